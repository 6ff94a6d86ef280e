"""Content by digest: written once under a temporary name, verified, synced, and then made visible.

Owns the order of S17 for single files. Imports the layout, the disk and digests. Everything here blocks and
belongs in a thread.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import secrets
from pathlib import Path
from typing import BinaryIO, Protocol

import attrs

from runner.errors import (
    BlobNotFound,
    ContentMismatch,
    DiskFull,
    InvalidReference,
    StoreDamaged,
    StoreError,
)
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store.disk import Disk, FileFacts
from runner.store.known import KnownContent
from runner.store.layout import StoreLayout
from runner.store.partials import PartialBlob, PartialFiles
from runner.store.pieces import PieceSums


@attrs.frozen(kw_only=True)
class StoredBlob:
    """Content that lies in the store, complete."""

    digest: Digest
    path: Path
    size_bytes: int


class _WriterState(enum.Enum):
    NEW = "new"
    OPEN = "open"
    FINISHED = "finished"
    ENDED = "ended"
    """Adopted by the store, or abandoned: the temporary file is gone."""


class BlobWriter:
    """One file that is being written: `open`, `write`*, `finish`, then the store adopts it.

    `abandon` ends it at any time. Used by one thread at a time.
    """

    def __init__(self, disk: Disk, path: Path, *, size_bytes: int | None, digest: Digest | None) -> None:
        self.path = path
        self.size_bytes = 0
        self.pieces = PieceSums()
        self._disk = disk
        self._hash = hashlib.sha256()
        self._announced_bytes = size_bytes
        self._announced_digest = digest
        self._descriptor = -1
        self._state = _WriterState.NEW

    def open(self) -> None:
        """Create the temporary file. Raises DiskFull at once when the announced length cannot fit."""
        self._require(_WriterState.NEW)
        wanted = self._announced_bytes
        if wanted is not None and wanted > self._disk.free_bytes(self.path.parent):
            raise DiskFull(f"there is no space for {wanted} bytes on the disk of the store")
        self._descriptor = self._disk.create(self.path)
        self._state = _WriterState.OPEN

    def write(self, content: bytes | bytearray) -> None:
        """Append; raises ContentMismatch at the first byte beyond the announced length."""
        self._require(_WriterState.OPEN)
        self.size_bytes += len(content)
        if self._announced_bytes is not None and self.size_bytes > self._announced_bytes:
            raise ContentMismatch(f"the content is longer than the announced {self._announced_bytes} bytes")
        self._disk.write(self._descriptor, content)
        self._hash.update(content)
        self.pieces.update(memoryview(content))

    def finish(self) -> None:
        """Verify, seal and sync; afterwards the file is complete on disk under its temporary name.

        Raises ContentMismatch when length or digest differ from what was announced.
        """
        self._require(_WriterState.OPEN)
        self._verify()
        self._disk.seal(self._descriptor)
        self._disk.sync(self._descriptor)
        self._state = _WriterState.FINISHED  # the descriptor is gone even when closing it fails
        self._disk.close(self._descriptor)

    @property
    def digest(self) -> Digest:
        """The digest of what has been written so far."""
        return Digest(self._hash.hexdigest())

    def mark_adopted(self) -> None:
        self._require(_WriterState.FINISHED)
        self._state = _WriterState.ENDED

    def abandon(self) -> None:
        """Remove the temporary file unless the store has adopted it; doing so again changes nothing.

        A file that cannot be removed stays until the store is opened the next time.
        """
        state, self._state = self._state, _WriterState.ENDED
        try:
            if state is _WriterState.OPEN:
                self._disk.close(self._descriptor)
        except StoreError:  # the content is lost, which is what abandoning means
            pass
        finally:
            if state in (_WriterState.OPEN, _WriterState.FINISHED):
                _unlink_if_possible(self._disk, self.path)

    def _verify(self) -> None:
        if self._announced_bytes is not None and self.size_bytes != self._announced_bytes:
            raise ContentMismatch(
                f"the content has {self.size_bytes} bytes instead of the announced {self._announced_bytes}"
            )
        if self._announced_digest is not None and self.digest != self._announced_digest:
            raise ContentMismatch(
                f"the content is {self.digest} instead of the announced {self._announced_digest}"
            )

    def _require(self, state: _WriterState) -> None:
        if self._state is not state:
            raise RuntimeError(f"{self!r} must be {state.value}")

    def __repr__(self) -> str:
        return f"<BlobWriter {self._state.value}, {self.size_bytes} bytes>"


class FinishedContent(Protocol):
    """A complete, verified and synced file under a temporary name: a BlobWriter or a PartialBlob."""

    @property
    def path(self) -> Path: ...

    @property
    def digest(self) -> Digest: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def pieces(self) -> PieceSums: ...

    def mark_adopted(self) -> None: ...

    def abandon(self) -> None: ...


class BlobStore:
    """The blobs of one store directory."""

    def __init__(self, layout: StoreLayout, disk: Disk) -> None:
        self._layout = layout
        self._disk = disk
        self.known = KnownContent(layout, disk)

    def begin(self, *, size_bytes: int | None = None, digest: Digest | None = None) -> BlobWriter:
        """A writer for new content; nothing happens until it is opened."""
        path = self._layout.partial / f"{secrets.token_hex(8)}.blob"
        return BlobWriter(self._disk, path, size_bytes=size_bytes, digest=digest)

    def begin_partial(self, descriptor: Descriptor) -> PartialBlob:
        """New content by ranges, or what an earlier try left of it. Raises Conflict while somebody is at
        it."""
        return PartialBlob(PartialFiles(self._disk, self._layout, descriptor))

    def good(self, descriptor: Descriptor) -> StoredBlob | None:
        """Content that lies there and is known to be what its name says; None when nothing right does, or
        when nobody has looked since it was written."""
        try:
            facts = self.facts(descriptor.digest)
        except StoreDamaged:
            return None
        if facts is None or facts.size_bytes != descriptor.size_bytes:
            return None
        if not self.known.is_good(descriptor.digest, facts):
            return None
        path = self.path(descriptor.digest)
        return StoredBlob(digest=descriptor.digest, path=path, size_bytes=facts.size_bytes)

    def is_unverified(self, descriptor: Descriptor) -> bool:
        """A file of the right length lies there, and nobody knows whether its content is right."""
        try:
            facts = self.facts(descriptor.digest)
        except StoreDamaged:
            return False
        if facts is None or facts.size_bytes != descriptor.size_bytes:
            return False
        known = self.known
        return not known.is_good(descriptor.digest, facts) and not known.is_bad(descriptor.digest, facts)

    def adopt(self, writer: FinishedContent) -> StoredBlob:
        """Make a finished writer's content visible. After an error it is not there (S19).

        What lay there before is replaced and not kept: its bytes were promised to be the same, and if they
        were not, this heals them. Whoever has the old file open keeps it.
        """
        target = self._layout.blob(writer.digest)
        was_there = self._is_there(target)
        try:
            self._disk.rename(writer.path, target)
        except StoreError:
            writer.abandon()
            raise
        writer.mark_adopted()
        try:
            self._disk.sync_directory(self._layout.blobs)
        except StoreError:
            if not was_there:  # else both the old and the new file are complete, whichever the disk has
                _unlink_if_possible(self._disk, target)
            raise
        facts = self._disk.facts(target)
        if facts is not None:
            self.known.note_good(writer.digest, facts, writer.pieces)
        return StoredBlob(digest=writer.digest, path=target, size_bytes=writer.size_bytes)

    def put(self, content: bytes) -> Digest:
        """Write a small document."""
        writer = self.begin(size_bytes=len(content))
        try:
            writer.open()
            writer.write(content)
            writer.finish()
            self.adopt(writer)
        except BaseException:
            writer.abandon()
            raise
        return writer.digest

    def read(self, digest: Digest, *, limit_bytes: int) -> bytes:
        """A small document, verified. Raises StoreDamaged when it is missing, too long or has other bytes."""
        content = self._disk.read(self._layout.blob(digest), limit_bytes=limit_bytes)
        if content is None:
            raise StoreDamaged(f"{digest} is missing from the store")
        if Digest.of(content) != digest:
            raise StoreDamaged(f"the content of {digest} in the store is not what its name says")
        return content

    def open(self, digest: Digest) -> BinaryIO:
        """A file of any size, not verified. Raises StoreDamaged when it is missing or not a file of ours."""
        file = self._disk.open(self._layout.blob(digest))
        if file is None:
            raise StoreDamaged(f"{digest} is missing from the store")
        return file

    def facts(self, digest: Digest) -> FileFacts | None:
        """Size and age; None when it is not there. Raises StoreDamaged unless it is a file of ours."""
        return self._disk.facts(self._layout.blob(digest))

    def check(self, descriptor: Descriptor) -> None:
        """Raise StoreDamaged unless a file of the right length lies there."""
        facts = self.facts(descriptor.digest)
        if facts is None:
            raise StoreDamaged(f"{descriptor.digest} is missing from the store")
        if facts.size_bytes != descriptor.size_bytes:
            raise StoreDamaged(f"{descriptor.digest} in the store has {facts.size_bytes} bytes")

    def path(self, digest: Digest) -> Path:
        return self._layout.blob(digest)

    def hold(self, digests: tuple[Digest, ...]) -> tuple[StoredBlob, ...]:
        """Where these lie. Raises BlobNotFound for the first one that is missing."""
        return tuple(self._hold(digest) for digest in digests)

    def _hold(self, digest: Digest) -> StoredBlob:
        facts = self.facts(digest)
        if facts is None:
            raise BlobNotFound(str(digest))
        return StoredBlob(digest=digest, path=self.path(digest), size_bytes=facts.size_bytes)

    def age(self, digest: Digest) -> None:
        """Make it look old, so that it is a leftover as soon as nothing needs it."""
        with contextlib.suppress(StoreError):  # then it is one in 7 days
            self._disk.age(self.path(digest))

    def remove(self, digests: tuple[Digest, ...]) -> None:
        """Remove blobs in this order; those that are not there count as removed."""
        for digest in digests:
            self._disk.unlink(self._layout.blob(digest))
            self.known.forget(digest)
        if digests:
            self._disk.sync_directory(self._layout.blobs)

    def digests(self) -> tuple[Digest, ...]:
        """Every name in the directory that is a digest; what lies there has not been looked at."""
        found = []
        for name in self._disk.names(self._layout.blobs):
            try:
                found.append(Digest(name))
            except InvalidReference:  # not ours; nothing leads to it
                continue
        return tuple(found)

    def _is_there(self, path: Path) -> bool:
        try:
            return self._disk.facts(path) is not None
        except StoreDamaged:  # a link or device: it is replaced, never followed
            return False


def _unlink_if_possible(disk: Disk, path: Path) -> None:
    try:
        disk.unlink(path)
    except StoreError:  # the error that led here is the one to tell
        pass
