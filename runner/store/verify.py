"""Reading content again, to see whether it still is what its name says (S24).

Owns what a finding is. Imports blobs, pieces and domain values. Belongs in threads, one step at a time, so
that whoever asked may leave between two steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from types import TracebackType
from typing import BinaryIO, Self

import attrs

from runner.domain.disk import BlobFinding, FindingKind
from runner.errors import StoreDamaged, StoreError
from runner.oci.manifest import Descriptor
from runner.store.blobs import BlobStore
from runner.store.disk import FileFacts, translated
from runner.store.pieces import PieceSums, piece_range
from runner.store.ranges import Range, RangeSet

STEP_BYTES = 64 << 20  # 70 ms of hashing
_READ_BYTES = 1 << 20


class BlobCheck:
    """Reads one file from beginning to end; what it finds is remembered by the store."""

    def __init__(self, blobs: BlobStore, descriptor: Descriptor) -> None:
        self.descriptor = descriptor
        self.done_bytes = 0
        self.finding: BlobFinding | None = None
        self._blobs = blobs
        self._hash = hashlib.sha256()
        self._pieces = PieceSums()
        self._file: BinaryIO | None = None
        self._facts: FileFacts | None = None
        self._is_done = False

    def step(self, limit_bytes: int = STEP_BYTES) -> bool:
        """Read on; False once everything has been read, or `finding` says why it never will be."""
        if self._is_done:
            return False
        try:
            if self._file is None and not self._open():
                return False
            if self._read(limit_bytes):
                return True
            self._judge()
        except StoreDamaged as error:
            self._end("foreign", str(error))
        except StoreError as error:
            self._end("unreadable", str(error))
        return False

    def run(self) -> BlobFinding | None:
        """All steps at once; the finding, or None when the content is sound."""
        with self:
            while self.step():
                pass
        return self.finding

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self) -> bool:
        digest = self.descriptor.digest
        self._facts = self._blobs.facts(digest)
        if self._facts is None:
            return self._end("missing", f"{digest} is missing from the store")
        if self._facts.size_bytes != self.descriptor.size_bytes:
            return self._end("wrong_size", f"{digest} in the store has {self._facts.size_bytes} bytes")
        self._file = self._blobs.open(digest)
        return True

    def _read(self, limit_bytes: int) -> bool:
        """Whether there may be more."""
        assert self._file is not None
        buffer = memoryview(bytearray(_READ_BYTES))
        rest_bytes = limit_bytes
        with translated("reading a file"):
            while rest_bytes > 0:
                read = self._file.readinto(buffer)  # type: ignore[attr-defined]  # an unbuffered file has it
                if not read:
                    return False
                self._hash.update(buffer[:read])
                self._pieces.update(buffer[:read])
                self.done_bytes += read
                rest_bytes -= read
        return True

    def _judge(self) -> None:
        digest, facts = self.descriptor.digest, self._facts
        assert facts is not None
        if self._hash.hexdigest() == digest.hex:
            self._is_done = True
            self._blobs.known.note_good(digest, facts, self._pieces)
            return
        record = self._blobs.known.record(digest)
        expected = None if record is None else record.checksums
        bad = None if expected is None else bad_ranges(expected, self._pieces.checksums(), facts.size_bytes)
        self._blobs.known.note_bad(digest, facts)
        self._end("wrong_content", f"the content of {digest} in the store is not what its name says", bad)

    def _end(self, kind: FindingKind, message: str, bad: tuple[Range, ...] | None = None) -> bool:
        self._is_done = True
        self.finding = BlobFinding(
            digest=str(self.descriptor.digest), kind=kind, models=(), message=message, bad_ranges=bad
        )
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def require_good(blobs: BlobStore, descriptors: Iterable[Descriptor]) -> None:
    """Raise StoreDamaged, naming the content, unless all of it was verified since it was written.

    What nobody has verified yet is read now, which takes a second per gigabyte, once.
    """
    for descriptor in descriptors:
        blobs.check(descriptor)
        if blobs.good(descriptor) is None:
            finding = BlobCheck(blobs, descriptor).run()
            if finding is not None:
                raise StoreDamaged(finding.message)


def bad_ranges(
    expected: tuple[int, ...], found: tuple[int, ...], size_bytes: int
) -> tuple[Range, ...] | None:
    """Bytes of the pieces that differ; None when none does or the checksums are of another content."""
    if len(expected) != len(found):
        return None
    bad = RangeSet.of(
        piece_range(index, size_bytes)
        for index, (was, is_now) in enumerate(zip(expected, found, strict=True))
        if was != is_now
    )
    return bad.ranges() or None


def attributed(finding: BlobFinding, models: tuple[str, ...]) -> BlobFinding:
    """The finding with the names of the models that refer to the content."""
    return attrs.evolve(finding, models=models)
