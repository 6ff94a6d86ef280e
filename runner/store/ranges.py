"""Which bytes of a file are there: sorted, disjoint ranges. Values only; imports nothing of ours."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import TypeAlias

import attrs

Range: TypeAlias = tuple[int, int]
"""Start and end of some bytes; the end is the first byte beyond them."""


@attrs.define
class RangeSet:
    """Ranges that neither overlap nor touch, in order. Owned by whoever made it."""

    _ranges: list[Range] = attrs.field(factory=list, alias="ranges")

    @classmethod
    def of(cls, ranges: Iterable[Range]) -> RangeSet:
        """What these cover together, whatever their order."""
        found = cls()
        for start, end in ranges:
            found.add(start, end)
        return found

    def add(self, start: int, end: int) -> None:
        """Now these bytes are there too; an empty range adds nothing."""
        if start >= end:
            return
        first, last = self._touching(start, end)
        if first < last:
            start = min(start, self._ranges[first][0])
            end = max(end, self._ranges[last - 1][1])
        self._ranges[first:last] = [(start, end)]

    def remove(self, start: int, end: int) -> None:
        """These bytes are not there any more; an empty range removes nothing."""
        if start >= end:
            return
        kept = []
        for left, right in self._ranges:
            kept += [(left, min(right, start)), (max(left, end), right)]
        self._ranges = [(left, right) for left, right in kept if left < right]

    def missing(self, start: int, end: int) -> tuple[Range, ...]:
        """What is not there between these."""
        gaps = []
        for left, right in self._ranges[self._touching(start, end)[0] :]:
            if left >= end:
                break
            if left > start:
                gaps.append((start, left))
            start = max(start, right)
        if start < end:
            gaps.append((start, end))
        return tuple(gaps)

    def prefix_end(self) -> int:
        """How many bytes are there from the beginning without a gap."""
        return self._ranges[0][1] if self._ranges and self._ranges[0][0] == 0 else 0

    def size_bytes(self) -> int:
        return sum(end - start for start, end in self._ranges)

    def ranges(self) -> tuple[Range, ...]:
        return tuple(self._ranges)

    def _touching(self, start: int, end: int) -> Range:
        """The slice of `_ranges` that overlaps or touches [start, end]."""
        first = bisect_left(self._ranges, start, key=lambda found: found[1])
        last = first
        while last < len(self._ranges) and self._ranges[last][0] <= end:
            last += 1
        return first, last
