"""Checksums of pieces, and the record of them."""

from __future__ import annotations

import zlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.store.disk import FileFacts
from runner.store.pieces import PIECE_BYTES, PieceRecord, PieceSums, n_pieces, parse_record, piece_range

CONTENT = bytes(range(256)) * (PIECE_BYTES // 256) + b"x" * PIECE_BYTES + b"end"
EXPECTED = tuple(
    zlib.crc32(CONTENT[start : start + PIECE_BYTES]) for start in range(0, len(CONTENT), PIECE_BYTES)
)
FACTS = FileFacts(size_bytes=len(CONTENT), modified_s=1_800_000_000.123456, file_id=42)
RECORD = PieceRecord(facts=FACTS, checksums=EXPECTED)


@given(st.lists(st.integers(1, 2 * PIECE_BYTES), max_size=6))
def test_the_checksums_do_not_depend_on_how_the_content_arrives(sizes):
    sums, rest = PieceSums(), memoryview(CONTENT)
    for size_bytes in (*sizes, len(CONTENT)):
        sums.update(rest[:size_bytes])
        rest = rest[size_bytes:]
    assert sums.checksums() == EXPECTED


@pytest.mark.parametrize(
    ("size_bytes", "pieces"),
    [(0, 0), (1, 1), (PIECE_BYTES - 1, 1), (PIECE_BYTES, 1), (PIECE_BYTES + 1, 2)],
)
def test_the_last_piece_may_be_short(size_bytes, pieces):
    assert n_pieces(size_bytes) == pieces
    sums = PieceSums()
    sums.update(memoryview(bytes(size_bytes)))
    assert len(sums.checksums()) == pieces
    ends = [piece_range(index, size_bytes) for index in range(pieces)]
    assert [start for start, _ in ends] == [index * PIECE_BYTES for index in range(pieces)]
    assert all(end == size_bytes for _, end in ends[-1:])


def test_a_record_reads_as_it_was_written():
    assert parse_record(RECORD.encode()) == RECORD


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"piece_bytes": 1 << 20},
        {"size_bytes": "1"},
        {"crc32": list(EXPECTED[1:])},
        {"crc32": [1, 2, "3"]},
        {"crc32": [True, 2, 3]},
        {"more": 1},
    ],
)
def test_anything_else_is_no_record(change):
    assert parse_record(orjson.dumps({**orjson.loads(RECORD.encode()), **change})) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"{}"])
def test_damage_is_no_record(content):
    assert parse_record(content) is None
