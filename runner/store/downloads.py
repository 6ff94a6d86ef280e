"""Downloads of a store directory: what lies there already, what is left of earlier tries, and room for more.

Owns the free space that is kept (S03) and what becomes of unfinished files. Imports blobs and partials;
belongs in threads, and changes one at a time.
"""

from __future__ import annotations

import contextlib
import weakref
import zlib
from collections.abc import Iterable
from typing import Final

import attrs

from runner.errors import DiskFull, InvalidReference, StoreDamaged, StoreError
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store.blobs import BlobStore, StoredBlob
from runner.store.disk import Disk
from runner.store.journal import JOURNAL_BYTES_MAX, parse_journal
from runner.store.layout import StoreLayout
from runner.store.partials import PartialBlob
from runner.store.pieces import PIECE_BYTES, piece_range
from runner.units import format_bytes

KEEP_FREE_BYTES: Final = 1 << 30  # S03


@attrs.frozen(kw_only=True)
class UnfinishedDownload:
    """What an earlier try left. `size_bytes` is the room that it takes."""

    digest: Digest
    size_bytes: int
    modified_s: float


class Downloads:
    """The downloads of one store directory."""

    def __init__(
        self, layout: StoreLayout, disk: Disk, blobs: BlobStore, *, keep_free_bytes: int = KEEP_FREE_BYTES
    ) -> None:
        self.keep_free_bytes = keep_free_bytes
        self._layout = layout
        self._disk = disk
        self._blobs = blobs
        self._open: weakref.WeakSet[PartialBlob] = weakref.WeakSet()

    def begin(self, descriptor: Descriptor, *, is_repair: bool = False) -> StoredBlob | PartialBlob | None:
        """What to do about this content.

        1. It lies there and is known to be good: that. Not when `is_repair`.
        2. Something of its name and length lies there that nobody has verified: None; somebody must look.
        3. Else a file to write it into, with what an earlier try left.

        Raises DiskFull when what is missing does not fit (S03), Conflict while somebody is at it.
        """
        if not is_repair:
            stored = self._blobs.good(descriptor)
            if stored is not None:
                return stored
            if self._blobs.is_unverified(descriptor):
                return None
        partial = self._blobs.begin_partial(descriptor)
        try:
            self._require(sum(end - start for start, end in partial.missing()))
        except BaseException:
            end = partial.close if partial.done_bytes else partial.discard
            end()
            raise
        self._open.add(partial)
        return partial

    def require_room(self, descriptors: Iterable[Descriptor]) -> None:
        """Raise DiskFull unless all of this that is not there yet fits, less the free space that is kept."""
        promised = {partial.digest for partial in self._open if partial.is_open}
        distinct = {
            descriptor.digest: descriptor for descriptor in descriptors if descriptor.digest not in promised
        }
        self._require(sum(map(self._missing_bytes, distinct.values())))

    def room_bytes(self) -> int:
        """What may still be written: free space, less what is kept and what open downloads will take."""
        promised = sum(partial.size_bytes - partial.done_bytes for partial in self._open if partial.is_open)
        return self._disk.free_bytes(self._layout.root) - self.keep_free_bytes - promised

    def seed(self, partial: PartialBlob) -> None:
        """Copy the good pieces of a damaged file into the download that will replace it.

        Without checksums nothing is copied. That it cannot be read further is no error: the rest is fetched.
        """
        record = self._blobs.known.record(partial.digest)
        if record is None or record.facts.size_bytes != partial.size_bytes:
            return
        with contextlib.suppress(StoreError), self._blobs.open(partial.digest) as file:
            for piece_index, checksum in enumerate(record.checksums):
                _copy_if_good(self._disk, file.fileno(), partial, piece_index, checksum)
        partial.checkpoint()

    # what is left of earlier tries

    def unfinished(self) -> tuple[UnfinishedDownload, ...]:
        """Downloads whose files lie there, also those that go on just now."""
        found = []
        for name in self._disk.names(self._layout.partial):
            digest = _digest_of(name, ".part")
            if digest is not None:
                with contextlib.suppress(StoreDamaged):
                    facts = self._disk.facts(self._layout.partial_of(digest))
                    if facts is not None:
                        found.append(
                            UnfinishedDownload(
                                digest=digest, size_bytes=facts.taken_bytes, modified_s=facts.modified_s
                            )
                        )
        return tuple(found)

    def remove(self, digest: Digest) -> bool:
        """Remove what an earlier try left; False when somebody is at it just now."""
        path = self._layout.partial_of(digest)
        descriptor = self._disk.reopen(path)
        try:
            if descriptor is not None and not self._disk.lock(descriptor):
                return False
            self._disk.unlink(path)
            self._disk.unlink(self._layout.journal_of(digest))
        finally:
            if descriptor is not None:
                self._disk.close(descriptor)
        return True

    def remove_debris(self) -> None:
        """Remove everything among the partial files that no download can go on with."""
        names = self._disk.names(self._layout.partial)
        parts = {digest for name in names if (digest := _digest_of(name, ".part")) is not None}
        for name in names:
            is_part = _digest_of(name, ".part") is not None
            if not is_part and _digest_of(name, ".journal") not in parts:
                self._disk.unlink(self._layout.partial / name)

    def _missing_bytes(self, descriptor: Descriptor) -> int:
        with contextlib.suppress(StoreDamaged):
            facts = self._blobs.facts(descriptor.digest)
            if facts is not None and facts.size_bytes == descriptor.size_bytes:
                return 0
        return max(0, descriptor.size_bytes - self._left_bytes(descriptor))

    def _left_bytes(self, descriptor: Descriptor) -> int:
        with contextlib.suppress(StoreDamaged):
            content = self._disk.read(
                self._layout.journal_of(descriptor.digest), limit_bytes=JOURNAL_BYTES_MAX
            )
            journal = parse_journal(content or b"", descriptor.digest, descriptor.size_bytes)
            if journal is not None:
                return journal.ranges.size_bytes()
        return 0

    def _require(self, size_bytes: int) -> None:
        room_bytes = self.room_bytes()
        if size_bytes > room_bytes:
            raise DiskFull(
                f"{format_bytes(size_bytes)} are still to be written and the disk of the store has room for "
                f"{format_bytes(max(0, room_bytes))} ({format_bytes(self.keep_free_bytes)} are kept free)"
            )


def _copy_if_good(disk: Disk, source: int, partial: PartialBlob, piece_index: int, checksum: int) -> None:
    start, end = piece_range(piece_index, partial.size_bytes)
    piece = memoryview(bytearray(PIECE_BYTES))[: end - start]
    filled = 0
    while filled < len(piece):
        read = disk.read_at(source, piece[filled:], start + filled)
        if read == 0:
            return
        filled += read
    if zlib.crc32(piece) == checksum:
        partial.write_at(start, piece)


def _digest_of(name: str, suffix: str) -> Digest | None:
    if not name.endswith(suffix):
        return None
    try:
        return Digest(name.removesuffix(suffix))
    except InvalidReference:
        return None
