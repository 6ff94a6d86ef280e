"""What is known of the content of files: that it was verified, or found to be wrong.

Owns `pieces/<hex>`, written when a large file was verified, so that neither loading nor pulling has to read
it again as long as it is the same file. It is advice: losing it costs reading. Imports layout, disk and
pieces; belongs in threads, of which any number may use it.
"""

from __future__ import annotations

import contextlib
import secrets
import threading

import attrs

from runner.errors import StoreError
from runner.oci.digest import Digest
from runner.store.disk import Disk, FileFacts
from runner.store.layout import StoreLayout
from runner.store.pieces import PIECE_BYTES, RECORD_BYTES_MAX, PieceRecord, PieceSums, parse_record

_REMEMBERED_MAX = 4096
_NO_FILE = -1


class KnownContent:
    """Knowledge about the files of one store. What is said of a file counts for that very file only."""

    def __init__(self, layout: StoreLayout, disk: Disk) -> None:
        self._layout = layout
        self._disk = disk
        self._turn = threading.Lock()
        self._good: dict[Digest, FileFacts] = {}
        self._bad: dict[Digest, FileFacts] = {}

    def is_good(self, digest: Digest, facts: FileFacts) -> bool:
        """Whether this file was verified and not found wrong since."""
        with self._turn:
            if self._bad.get(digest) == facts:
                return False
            if self._good.get(digest) == facts:
                return True
        record = self.record(digest)
        if record is None or record.facts != facts:
            return False
        with self._turn:
            _remember(self._good, digest, facts)
        return True

    def is_bad(self, digest: Digest, facts: FileFacts) -> bool:
        """Whether this file was found to have other content than its name says."""
        with self._turn:
            return self._bad.get(digest) == facts

    def note_good(self, digest: Digest, facts: FileFacts, pieces: PieceSums) -> None:
        """This file has just been verified; `pieces` are the checksums of all of it."""
        with self._turn:
            _remember(self._good, digest, facts)
            self._bad.pop(digest, None)
        if facts.size_bytes > PIECE_BYTES:
            self._write(digest, PieceRecord(facts=facts, checksums=pieces.checksums()))

    def note_bad(self, digest: Digest, facts: FileFacts) -> None:
        """This file has other content than its name says. Its checksums stay, since a repair needs them."""
        with self._turn:
            self._good.pop(digest, None)
            _remember(self._bad, digest, facts)
        record = self.record(digest)
        if record is not None and record.facts == facts:  # the disk itself forgot: true of no file any more
            self._write(digest, attrs.evolve(record, facts=attrs.evolve(facts, file_id=_NO_FILE)))

    def record(self, digest: Digest) -> PieceRecord | None:
        """What was written when the content was verified last, if that can be read."""
        try:
            content = self._disk.read(self._layout.pieces_of(digest), limit_bytes=RECORD_BYTES_MAX)
        except StoreError:
            return None
        return None if content is None else parse_record(content)

    def forget(self, digest: Digest) -> None:
        """The file is gone."""
        with self._turn:
            self._good.pop(digest, None)
            self._bad.pop(digest, None)
        path = self._layout.pieces_of(digest)
        with contextlib.suppress(StoreError):  # else it goes when the store is opened
            if self._disk.facts(path) is not None:
                self._disk.unlink(path)

    def drop_all_but(self, digests: frozenset[Digest]) -> None:
        """Remove records of files that are not there, and whatever else lies among them."""
        wanted = {digest.hex for digest in digests}
        for name in self._disk.names(self._layout.pieces):
            if name not in wanted:
                self._disk.unlink(self._layout.pieces / name)

    def _write(self, digest: Digest, record: PieceRecord) -> None:
        """Not synced: a record that a power cut tears says nothing, and is written anew."""
        path = self._layout.partial / f"{secrets.token_hex(8)}.json"
        with contextlib.suppress(StoreError):
            descriptor = self._disk.create(path)
            try:
                self._disk.write(descriptor, record.encode())
            finally:
                self._disk.close(descriptor)
            self._disk.rename(path, self._layout.pieces_of(digest))


def _remember(known: dict[Digest, FileFacts], digest: Digest, facts: FileFacts) -> None:
    known.pop(digest, None)
    known[digest] = facts
    if len(known) > _REMEMBERED_MAX:
        del known[next(iter(known))]
