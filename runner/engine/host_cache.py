"""States in host memory: what sequences had in cells, as bytes that are put back within milliseconds.

1,600 tokens of a small model take 4 ms to copy and 9 s to compute. So whatever leaves the cells is held here
as long as there is room. Then what nobody will miss goes first, since it is saved elsewhere or nobody is
expected back for it, the least recently used of it. What somebody waits for does not go.

Memory is mapped and shared, so that it is told apart from what else the process takes, and not kept by an
allocator. It was reserved with the load, so rooms of states that have gone are kept for the next ones: of
31 MB that were there the copy took 1.2 ms, of fresh ones 19, and 6 more to return them.

Imports nothing of ours. Used by `hibernation.py`.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Collection, Iterator
from typing import Final

import attrs

_SLACK: Final = 4
"""A room may be larger than its state by such a part."""


@attrs.define(kw_only=True, eq=False)
class HeldState:
    """What the cells of `tokens` held; `data` is valid until it is dropped.

    `is_expected`: somebody will come back for it, as was seen; `awaited_by`: for certain, and who.
    `state_id`: what it was saved as, or None. `is_pinned`: somebody reads it. `was_offered`: it was sent away
    to be saved, once.
    """

    owner: str
    tokens: list[int]
    data: memoryview
    is_expected: bool = False
    awaited_by: object | None = None
    state_id: int | None = None
    is_pinned: bool = False
    was_offered: bool = False


@attrs.define(eq=False)
class _Room:
    """`present_bytes` of it have been written, and take memory."""

    mapping: mmap.mmap
    present_bytes: int = 0

    def suits(self, size_bytes: int) -> bool:
        """Large enough, and nothing of it is present that would be left over."""
        return self.present_bytes <= size_bytes <= len(self.mapping)


class HostCache:
    """Takes `limit_bytes` at most, and for the moment of an exchange those of the one that leaves.
    `used_bytes` are of the states that are here."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._states: dict[HeldState, _Room] = {}
        """Least recently used first."""
        self._left: list[_Room] = []
        """Rooms of states that have gone, the one that was left first, first."""
        self.leaving: HeldState | None = None
        """Is being put back, and will be dropped at once: another one may take its place already."""

    def __repr__(self) -> str:
        return f"<HostCache: {len(self._states)} states, {self.used_bytes} of {self.limit_bytes} bytes>"

    def __iter__(self) -> Iterator[HeldState]:
        """Least recently used first."""
        return iter(tuple(self._states))

    @property
    def n_tokens(self) -> int:
        return sum(len(state.tokens) for state in self._states)

    @property
    def spare_bytes(self) -> int:
        """Free, or taken by what nobody will miss."""
        unmissed_bytes = sum(len(state.data) for state in self if _can_go(state) and not _is_missed(state))
        return self._free_bytes + unmissed_bytes

    @property
    def _free_bytes(self) -> int:
        leaving_bytes = len(self.leaving.data) if self.leaving is not None else 0
        return self.limit_bytes - self.used_bytes + leaving_bytes

    def use(self, state: HeldState) -> None:
        """It is the most recently used now."""
        self._states[state] = self._states.pop(state)

    def add(
        self,
        state: HeldState,
        size_bytes: int,
        fill: Callable[[memoryview], bool],
        instead_of: Collection[HeldState] = (),
    ) -> bool:
        """Hold a state, whose `data` is still empty, of so many bytes, which `fill` writes. False when there
        is no room for it, or `fill` says so; others may have had to go, and of these first, and in any case
        where there is room, those that it replaces."""
        if not self._make_room(size_bytes, instead_of):
            return False
        try:
            room = self._take(size_bytes)
        except MemoryError:
            return False
        with memoryview(room.mapping) as whole:
            data = whole[:size_bytes]
        is_filled = False
        try:
            is_filled = fill(data)
        finally:
            if not is_filled:
                data.release()
                self._leave(room)
        if is_filled:
            state.data = data
            self._states[state] = room
        return is_filled

    def drop(self, state: HeldState) -> None:
        """Nobody may have a view of a part of its data any more: the next state is written there."""
        state.data.release()
        self._leave(self._states.pop(state))

    def clear(self) -> None:
        for state in self:
            self.drop(state)
        self.give_back()

    def give_back(self) -> None:
        """All rooms that were left, to the system."""
        self._return_beyond(0)

    def _take(self, size_bytes: int) -> _Room:
        """A room that was left, the one that has most, or a new one that the next turn fits into, too. Raises
        MemoryError."""
        fitting = [room for room in self._left if room.suits(size_bytes)]
        if fitting:
            room = max(fitting, key=lambda room: room.present_bytes)
            self._left.remove(room)
        else:
            room = self._new_room(size_bytes)
        room.present_bytes = size_bytes
        self.used_bytes += size_bytes
        self._trim()
        return room

    def _new_room(self, size_bytes: int) -> _Room:
        try:
            return _Room(room_for(size_bytes + size_bytes // _SLACK))
        except MemoryError:
            self.give_back()
        return _Room(room_for(size_bytes))

    def _leave(self, room: _Room) -> None:
        self.used_bytes -= room.present_bytes
        self._left.append(room)
        self._trim()

    def _trim(self) -> None:
        self._return_beyond(max(0, self.limit_bytes - self.used_bytes))

    def _return_beyond(self, kept_bytes: int) -> None:
        """Return rooms that were left to the system, but for so many bytes."""
        excess_bytes = sum(room.present_bytes for room in self._left) - kept_bytes
        while excess_bytes > 0:
            room = self._left.pop(0)
            excess_bytes -= room.present_bytes
            room.mapping.close()

    def _make_room(self, size_bytes: int, instead_of: Collection[HeldState]) -> bool:
        """False, and nothing has gone, when what may go would not be enough."""
        victims = [state for state in self if _can_go(state)]
        if size_bytes > self._free_bytes + sum(len(state.data) for state in victims):
            return False
        for state in [state for state in victims if state in instead_of]:
            victims.remove(state)
            self.drop(state)
        for state in sorted(victims, key=_is_missed):  # stable: of equals the least recently used first
            if size_bytes <= self._free_bytes:
                break
            self.drop(state)
        return True


def _can_go(state: HeldState) -> bool:
    return not state.is_pinned and state.awaited_by is None


def _is_missed(state: HeldState) -> bool:
    return state.is_expected and state.state_id is None


def room_for(size_bytes: int) -> mmap.mmap:
    """Memory for one state. Raises MemoryError when there is none."""
    try:
        return mmap.mmap(-1, size_bytes)
    except OSError:
        raise MemoryError(f"no room for a state of {size_bytes} bytes") from None
