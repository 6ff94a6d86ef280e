"""The journal beside a partial file: which of its ranges have reached the disk. Pure: values in, bytes out.

Owns the format: a header that names the content, then records of one range each. Header and records carry a
checksum over themselves and the content they are about, so that a torn or foreign record ends the journal.
Imports digests and ranges.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

import attrs

from runner.oci.digest import Digest
from runner.store.ranges import Range, RangeSet

JOURNAL_BYTES_MAX = 64 << 20  # some three million records; one is written for every 16 MiB or 2 s
_MAGIC = b"RUNRJ001"  # another version is another magic: its ranges are not believed
_HEADER = struct.Struct(">8s32sQI")
_RECORD = struct.Struct(">QQI")


@attrs.frozen
class Journal:
    """What a journal says, and where its next record goes."""

    ranges: RangeSet
    end: int


def encode_header(digest: Digest, size_bytes: int) -> bytes:
    """The beginning of the journal of this content."""
    return _HEADER.pack(_MAGIC, bytes.fromhex(digest.hex), size_bytes, _seed(digest, size_bytes))


def encode_records(digest: Digest, size_bytes: int, ranges: Iterable[Range]) -> bytes:
    """One record for each of these ranges."""
    seed = _seed(digest, size_bytes)
    return b"".join(_RECORD.pack(start, end, _checksum(start, end, seed)) for start, end in ranges)


def parse_journal(content: bytes, digest: Digest, size_bytes: int) -> Journal | None:
    """What the journal says of this content; None when it is about something else, or of another version.

    It ends before the first record that is torn, false or outside of the content.
    """
    if content[: _HEADER.size] != encode_header(digest, size_bytes):
        return None
    found = Journal(RangeSet(), _HEADER.size)
    seed = _seed(digest, size_bytes)
    for start, end, checksum in _records(content):
        if checksum != _checksum(start, end, seed) or not start < end <= size_bytes:
            break
        found.ranges.add(start, end)
        found = attrs.evolve(found, end=found.end + _RECORD.size)
    return found


def _records(content: bytes) -> Iterator[tuple[int, int, int]]:
    whole = (len(content) - _HEADER.size) // _RECORD.size * _RECORD.size
    return _RECORD.iter_unpack(content[_HEADER.size : _HEADER.size + whole])


def _seed(digest: Digest, size_bytes: int) -> int:
    return zlib.crc32(struct.pack(">32sQ", bytes.fromhex(digest.hex), size_bytes))


def _checksum(start: int, end: int, seed: int) -> int:
    return zlib.crc32(struct.pack(">QQ", start, end), seed)
