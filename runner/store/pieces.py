"""Checksums of the pieces of a verified file, and of which file they were taken. Pure: values in, bytes out.

They tell which pieces of a damaged file are still good, so that a repair fetches the others only. CRC-32 is
enough: it costs a third of SHA-256, and the digest of the whole file is verified after every repair. Imports
file facts only.
"""

from __future__ import annotations

import zlib
from typing import Any

import attrs
import orjson

from runner.store.disk import FileFacts
from runner.store.ranges import Range

PIECE_BYTES = 4 << 20
RECORD_BYTES_MAX = 64 << 20
_VERSION = 1
_FIELDS = frozenset({"version", "size_bytes", "modified_s", "file_id", "piece_bytes", "crc32"})


@attrs.frozen(kw_only=True)
class PieceRecord:
    """`facts` are those of the file when its content was verified; one checksum per 4 MiB, the last
    shorter."""

    facts: FileFacts
    checksums: tuple[int, ...]

    def encode(self) -> bytes:
        return orjson.dumps(
            {
                "version": _VERSION,
                "size_bytes": self.facts.size_bytes,
                "modified_s": self.facts.modified_s,
                "file_id": self.facts.file_id,
                "piece_bytes": PIECE_BYTES,
                "crc32": self.checksums,
            }
        )


def parse_record(content: bytes) -> PieceRecord | None:
    """The record in these bytes; None for anything that is not exactly one."""
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(found, dict) or found.keys() != _FIELDS or not _is_valid(found):
        return None
    facts = FileFacts(
        size_bytes=found["size_bytes"], modified_s=float(found["modified_s"]), file_id=found["file_id"]
    )
    return PieceRecord(facts=facts, checksums=tuple(found["crc32"]))


def _is_valid(found: dict[str, Any]) -> bool:
    match found:
        case {
            "version": 1,
            "piece_bytes": 4_194_304,
            "size_bytes": int(size_bytes),
            "modified_s": int() | float(),
            "file_id": int(),
            "crc32": list(checksums),
        }:
            return len(checksums) == n_pieces(size_bytes) and all(type(crc) is int for crc in checksums)
    return False


class PieceSums:
    """Checksums of content that arrives in order."""

    def __init__(self) -> None:
        self._ended: list[int] = []
        self._running = 0
        self._running_bytes = 0

    def update(self, content: memoryview) -> None:
        while content:
            part = content[: PIECE_BYTES - self._running_bytes]
            self._running = zlib.crc32(part, self._running)
            self._running_bytes += len(part)
            content = content[len(part) :]
            if self._running_bytes == PIECE_BYTES:
                self._end_piece()

    def checksums(self) -> tuple[int, ...]:
        """Of everything so far; the last piece may be short."""
        return (*self._ended, self._running) if self._running_bytes else tuple(self._ended)

    def _end_piece(self) -> None:
        self._ended.append(self._running)
        self._running = self._running_bytes = 0


def n_pieces(size_bytes: int) -> int:
    return -(-size_bytes // PIECE_BYTES)


def piece_range(piece_index: int, size_bytes: int) -> Range:
    """The bytes of one piece."""
    return piece_index * PIECE_BYTES, min((piece_index + 1) * PIECE_BYTES, size_bytes)
