"""Which bytes of a file are there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runner.store.ranges import RangeSet

END = 40
ranges = st.tuples(st.integers(0, END), st.integers(0, END))
changes = st.lists(st.tuples(st.booleans(), ranges), max_size=12)


def bytes_of(found) -> set[int]:
    return {offset for start, end in found for offset in range(start, end)}


@given(changes, ranges)
def test_it_is_a_set_of_bytes(changes, window):
    found, expected = RangeSet(), set()
    for is_added, (start, end) in changes:
        if is_added:
            found.add(start, end)
            expected |= set(range(start, end))
        else:
            found.remove(start, end)
            expected -= set(range(start, end))
    assert bytes_of(found.ranges()) == expected
    assert found.size_bytes() == len(expected)
    start, end = window
    assert bytes_of(found.missing(start, end)) == set(range(start, end)) - expected
    prefix = next(offset for offset in range(END + 1) if offset not in expected)
    assert found.prefix_end() == prefix


@given(changes)
def test_ranges_are_sorted_and_neither_overlap_nor_touch(changes):
    found = RangeSet.of((start, end) for is_added, (start, end) in changes if is_added)
    ends = [edge for both in found.ranges() for edge in both]
    assert ends == sorted(set(ends))
