"""The journal of a download, as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.oci.digest import Digest
from runner.store.journal import encode_header, encode_records, parse_journal

DIGEST, SIZE = Digest.of(b"content"), 1000
HEADER = encode_header(DIGEST, SIZE)
RECORD_BYTES = 20
ranges = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).filter(lambda found: found[0] < found[1])


@given(st.lists(ranges, max_size=8), st.integers(0, RECORD_BYTES - 1))
def test_S20_every_whole_record_counts_and_a_torn_one_does_not(found, torn_bytes):
    content = HEADER + encode_records(DIGEST, SIZE, found)
    torn = encode_records(DIGEST, SIZE, [(0, SIZE)])[:torn_bytes]
    journal = parse_journal(content + torn, DIGEST, SIZE)
    assert journal.end == len(content)
    assert journal.ranges.size_bytes() == len({at for start, end in found for at in range(start, end)})


@given(st.lists(ranges, min_size=1, max_size=4), st.data())
def test_S20_a_record_with_any_bit_wrong_ends_the_journal(found, data):
    content = bytearray(HEADER + encode_records(DIGEST, SIZE, found))
    at = data.draw(st.integers(len(HEADER), len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    journal = parse_journal(bytes(content), DIGEST, SIZE)
    assert journal.end == len(HEADER) + (at - len(HEADER)) // RECORD_BYTES * RECORD_BYTES


@pytest.mark.parametrize("content", [b"", HEADER[:-1], b"RUNRJ000" + HEADER[8:], bytes(len(HEADER))])
def test_S20_what_does_not_begin_as_the_journal_of_this_content_says_nothing(content):
    assert parse_journal(content, DIGEST, SIZE) is None


def test_S20_the_journal_of_another_size_or_content_says_nothing():
    assert parse_journal(encode_header(DIGEST, SIZE + 1), DIGEST, SIZE) is None
    assert parse_journal(encode_header(Digest.of(b"other"), SIZE), DIGEST, SIZE) is None
    foreign = HEADER + encode_records(Digest.of(b"other"), SIZE, [(0, 10)])
    assert parse_journal(foreign, DIGEST, SIZE).end == len(HEADER)


@pytest.mark.parametrize("wrong", [(0, SIZE + 1), (5, 5), (6, 5)])
def test_S20_a_range_outside_of_the_content_is_not_believed(wrong):
    content = HEADER + encode_records(DIGEST, SIZE, [wrong])
    assert parse_journal(content, DIGEST, SIZE).end == len(HEADER)
    assert parse_journal(HEADER + encode_records(DIGEST, SIZE, [(0, SIZE)]), DIGEST, SIZE).end > len(HEADER)
