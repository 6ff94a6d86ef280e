"""Sequence ids: who holds which of the few that the engine's cells know sequences by.

Pure bookkeeping. Imports the standard library only. How many cells a sequence fills is its own knowledge.
"""

from __future__ import annotations

import heapq


class Slots:
    """Ids `0 … n_slots - 1`, the lowest free one first."""

    def __init__(self, n_slots: int) -> None:
        self._free = list(range(n_slots))
        self._held: set[int] = set()

    def __repr__(self) -> str:
        return f"<Slots: {len(self._held)} held, {len(self._free)} free>"

    @property
    def n_free(self) -> int:
        return len(self._free)

    def acquire(self) -> int:
        """A free id; IndexError when there is none, which `batcher.count_admissions` rules out."""
        slot = heapq.heappop(self._free)
        self._held.add(slot)
        return slot

    def release(self, slot: int) -> None:
        """Give an id back; KeyError when it is not held."""
        self._held.remove(slot)
        heapq.heappush(self._free, slot)
