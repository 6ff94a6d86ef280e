"""Content on its way into the store by ranges, resumable after any end of the process.

Owns the files `<hex>.part` and `<hex>.journal`: bytes count only once they were synced and then journalled.
The digest is always that of the whole file as it lies on disk (S20). Imports layout, disk, journal, ranges
and pieces. Everything here blocks and belongs in threads; read on in `runner/store/blobs.py`, which makes
finished content visible.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from runner.errors import Conflict, ContentMismatch, StoreDamaged, StoreError
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store.disk import Disk
from runner.store.journal import JOURNAL_BYTES_MAX, Journal, encode_header, encode_records, parse_journal
from runner.store.layout import StoreLayout
from runner.store.pieces import PieceSums
from runner.store.ranges import Range, RangeSet

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

HASH_STEP_BYTES = 16 << 20
_READ_BYTES = 1 << 20


class _State(enum.Enum):
    OPEN = "open"
    FINISHED = "finished"
    """Verified, synced and closed; waits to be adopted. Until then nobody else may touch it."""
    ENDED = "ended"
    """Adopted, closed or given up."""


@attrs.define
class PartialFiles:
    """The two files of one download, as a PartialBlob finds or makes them."""

    disk: Disk
    layout: StoreLayout
    descriptor: Descriptor

    @property
    def part(self) -> Path:
        return self.layout.partial_of(self.descriptor.digest)

    @property
    def journal(self) -> Path:
        return self.layout.journal_of(self.descriptor.digest)

    def remove(self) -> None:
        """Leave nothing of them, whatever lies there; links are not followed."""
        self.disk.unlink(self.part)
        self.disk.unlink(self.journal)

    def open(self) -> tuple[int, int, Journal]:
        """Descriptors of both files, and what the journal says: of what was left, or of new ones."""
        return self._resume() or self._create()

    def _resume(self) -> tuple[int, int, Journal] | None:
        """None when nothing of use is left; then nothing is left at all. Raises Conflict when it is in
        use."""
        try:
            part = self.disk.reopen(self.part)
        except StoreDamaged:
            part = None
        try:
            if part is not None and not self.disk.lock(part):
                raise Conflict(f"{self.descriptor.digest} is being downloaded already")
            journal = self._read_journal() if part is not None and self._has_right_size() else None
            if part is not None and journal is not None:
                journal_descriptor = self.disk.reopen(self.journal)
                if journal_descriptor is not None:
                    return part, journal_descriptor, journal
        except BaseException:
            if part is not None:
                self.disk.close(part)
            raise
        if part is not None:
            self.disk.close(part)
        elif not self._is_anything_left():
            return None
        self.remove()
        # An old journal must never be found beside a new file: after a power cut both are old, or both new.
        self.disk.sync_directory(self.layout.partial)
        return None

    def _create(self) -> tuple[int, int, Journal]:
        digest, size_bytes = self.descriptor.digest, self.descriptor.size_bytes
        with contextlib.ExitStack() as on_error:
            part = self.disk.create(self.part)
            on_error.callback(self.remove)
            on_error.callback(self.disk.close, part)
            self.disk.lock(part)
            self.disk.resize(part, size_bytes)
            journal = self.disk.create(self.journal)
            on_error.callback(self.disk.close, journal)
            header = encode_header(digest, size_bytes)
            self.disk.write_at(journal, header, 0)
            on_error.pop_all()
        return part, journal, Journal(RangeSet(), len(header))

    def _is_anything_left(self) -> bool:
        try:
            return self.disk.facts(self.part) is not None or self.disk.facts(self.journal) is not None
        except StoreDamaged:  # nothing of ours, but in our way
            return True

    def _has_right_size(self) -> bool:
        facts = self.disk.facts(self.part)
        return facts is not None and facts.size_bytes == self.descriptor.size_bytes

    def _read_journal(self) -> Journal | None:
        try:
            content = self.disk.read(self.journal, limit_bytes=JOURNAL_BYTES_MAX)
        except StoreDamaged:
            return None
        return parse_journal(content or b"", self.descriptor.digest, self.descriptor.size_bytes)


class PartialBlob:
    """One download: any number of threads write ranges; one at a time checkpoints, hashes and ends it.

    Holds the file against every other process and PartialBlob. What was written twice is kept as it was
    written first, so that nothing changes once it was hashed.
    """

    def __init__(self, files: PartialFiles) -> None:
        """Open or resume. Raises Conflict when somebody is at it, DiskFull, StoreError."""
        self._files = files
        self._disk = files.disk
        self.descriptor = files.descriptor
        self._part, self._journal, journal = files.open()
        self._journal_end = journal.end
        self._written = journal.ranges
        self._claimed = RangeSet.of(journal.ranges.ranges())  # written, or being written by some thread
        self._to_sync = RangeSet()
        self._lock: int | None = None  # keeps others away once the file is closed
        self._is_in_directory = False  # a power cut might still take the very names of the files
        self._is_lost = False
        self._state = _State.OPEN
        self._users = 0  # threads that are using a descriptor
        self._changed = threading.Condition()
        self._sync_turn = threading.Lock()
        self._hash_turn = threading.Lock()
        self._hash = hashlib.sha256()
        self._hashed_bytes = 0
        self.pieces = PieceSums()

    # what is there

    @property
    def path(self) -> Path:
        return self._files.part

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest

    @property
    def size_bytes(self) -> int:
        return self.descriptor.size_bytes

    @property
    def done_bytes(self) -> int:
        """Bytes written, by this process or an earlier one."""
        with self._changed:
            return self._written.size_bytes()

    @property
    def hashed_bytes(self) -> int:
        return self._hashed_bytes

    @property
    def is_open(self) -> bool:
        return self._state is _State.OPEN

    def missing(self) -> tuple[Range, ...]:
        """What has not been written yet, in order; what a thread is just writing counts as missing."""
        with self._changed:
            return self._written.missing(0, self.size_bytes)

    # writing

    def write_at(self, offset: int, content: Buffer) -> None:
        """Write these bytes, but those that are there already.

        Raises ContentMismatch beyond the announced length (S02), DiskFull, StoreError; then what is missing
        afterwards has not been written.
        """
        whole = memoryview(content).cast("B")
        end = offset + len(whole)
        if offset < 0 or end > self.size_bytes:
            raise ContentMismatch(f"{self.digest} is longer than the announced {self.size_bytes} bytes")
        with self._using():
            with self._changed:
                fresh = self._claimed.missing(offset, end)
                self._claimed.add(offset, end)
            written: list[Range] = []
            try:
                for start, stop in fresh:
                    self._disk.write_at(self._part, whole[start - offset : stop - offset], start)
                    written.append((start, stop))
            finally:
                self._note(fresh, written)

    def _note(self, claimed: tuple[Range, ...], written: list[Range]) -> None:
        with self._changed:
            for start, end in claimed[len(written) :]:
                self._claimed.remove(start, end)
            for start, end in written:
                self._written.add(start, end)
                self._to_sync.add(start, end)

    def checkpoint(self) -> None:
        """Make what was written count after any end of this process: sync it, then journal it.

        Raises DiskFull or StoreError. When the sync failed nothing of the file is believed any more: it goes,
        and the download begins anew (S19).
        """
        with self._sync_turn, self._using():
            self._checkpoint()

    def _checkpoint(self) -> None:
        with self._changed:
            ranges, self._to_sync = self._to_sync, RangeSet()
        if not ranges.ranges():
            return
        self._sync(self._part)
        records = encode_records(self.digest, self.size_bytes, ranges.ranges())
        try:
            # Always at the end of what is good, so that the next record replaces a torn one.
            self._disk.write_at(self._journal, records, self._journal_end)
        except StoreError:
            with self._changed:
                for start, end in ranges.ranges():
                    self._to_sync.add(start, end)
            raise
        self._sync(self._journal)
        self._journal_end += len(records)

    def _sync(self, descriptor: int) -> None:
        try:
            self._disk.sync_data(descriptor)
            if not self._is_in_directory:
                self._disk.sync_directory(self._files.layout.partial)
        except StoreError:
            self._is_lost = True
            raise
        self._is_in_directory = True

    # verifying

    def hash_forward(self, limit_bytes: int = HASH_STEP_BYTES) -> int:
        """Hash up to this many of the bytes that lie next without a gap; how many those were.

        Called while bytes arrive, so that little is left to hash at the end.
        """
        with self._hash_turn, self._using():
            return self._hash_forward(limit_bytes)

    def _hash_forward(self, limit_bytes: int) -> int:
        with self._changed:
            end = min(self._written.prefix_end(), self._hashed_bytes + limit_bytes)
        began = self._hashed_bytes
        buffer = memoryview(bytearray(_READ_BYTES))
        while self._hashed_bytes < end:
            wanted = buffer[: min(_READ_BYTES, end - self._hashed_bytes)]
            read = self._disk.read_at(self._part, wanted, self._hashed_bytes)
            if read == 0:
                raise StoreError(f"the partial file of {self.digest} was cut off")
            self._hash.update(wanted[:read])
            self.pieces.update(wanted[:read])
            self._hashed_bytes += read
        return end - began

    def finish(self) -> None:
        """Verify the whole file and sync it; afterwards the store may adopt it. Doing so again changes
        nothing.

        Raises ContentMismatch, and nothing is left of the file (S02); StoreError when bytes are missing or
        the disk fails.
        """
        if self._state is _State.FINISHED:
            return
        missing = self.missing()
        if missing:
            raise StoreError(f"{self.digest} is not complete: {len(missing)} ranges are missing")
        self.checkpoint()
        while self.hash_forward():
            pass
        if self._hash.hexdigest() != self.digest.hex:
            self.discard()
            raise ContentMismatch(f"the content downloaded as {self.digest} has another digest")
        with self._using():
            self._lock = self._disk.duplicate(self._part)
            try:
                self._disk.seal(self._part)
                self._disk.sync(self._part)
            except StoreError:
                self._is_lost = True
                raise
        self._end(_State.FINISHED)

    # ending

    def mark_adopted(self) -> None:
        """The store has renamed the file; its journal goes with it."""
        if self._state is not _State.FINISHED:
            raise RuntimeError(f"{self!r} must be finished")
        with contextlib.suppress(StoreError):  # a journal without its file goes when the store is opened
            self._disk.unlink(self._files.journal)
        self._let_go()

    def close(self) -> None:
        """Stop here and keep what counts, to be resumed. Waits for threads that write; never fails."""
        with contextlib.suppress(StoreError):
            self.checkpoint()
        with contextlib.suppress(StoreError):
            self._end(_State.ENDED)
        self._let_go()

    def abandon(self) -> None:
        """What the store does when it cannot adopt: keep the file for another try."""
        self.close()

    def discard(self) -> None:
        """Stop here and leave nothing."""
        is_finished = self._state is _State.FINISHED
        self._is_lost = True
        with contextlib.suppress(StoreError):
            self._end(_State.ENDED)
        if is_finished:
            self._remove()
        self._let_go()

    def _end(self, state: _State) -> None:
        """Close both files; what is lost is removed. Raises StoreError when closing failed: then it is
        lost."""
        with self._changed:
            if self._state is not _State.OPEN:
                return
            self._state = state
            self._changed.wait_for(lambda: self._users == 0)
        try:
            self._close_files()
        except StoreError:
            self._is_lost = True
            self._state = _State.ENDED
            raise
        finally:
            if self._is_lost:
                self._remove()

    def _close_files(self) -> None:
        try:
            self._disk.close(self._journal)
        finally:
            self._disk.close(self._part)

    def _let_go(self) -> None:
        """The end: others may have what is left."""
        self._state = _State.ENDED
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(StoreError):
                self._disk.close(lock)

    def _remove(self) -> None:
        with contextlib.suppress(StoreError):  # it goes when the store is opened, or with the leftovers
            self._files.remove()

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        """The descriptors stay open meanwhile. Raises StoreError when the download has ended."""
        with self._changed:
            if self._state is not _State.OPEN or self._is_lost:
                raise StoreError(f"the download of {self.digest} has ended")
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def __repr__(self) -> str:
        return f"<PartialBlob {self.digest.short()} {self._state.value}, {self.done_bytes}/{self.size_bytes}>"
