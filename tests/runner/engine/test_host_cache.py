"""Room for held states: kept when a state goes, taken again, and never more than was reserved."""

from __future__ import annotations

import mmap

import pytest

from runner.engine import host_cache
from runner.engine.host_cache import HeldState, HostCache

SIZE_BYTES = 100_000


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[mmap.mmap]:
    """All rooms that the system was asked for, in order."""
    rooms: list[mmap.mmap] = []
    room_for = host_cache.room_for

    def noted(size_bytes: int) -> mmap.mmap:
        rooms.append(room_for(size_bytes))
        return rooms[-1]

    monkeypatch.setattr(host_cache, "room_for", noted)
    return rooms


def hold(cache: HostCache, size_bytes: int, *, is_full: bool = True) -> HeldState | None:
    state = HeldState(owner="o", tokens=[1], data=memoryview(b""))

    def fill(room: memoryview) -> bool:
        assert len(room) == size_bytes
        room[:] = b"x" * size_bytes
        return is_full

    return state if cache.add(state, size_bytes, fill) else None


def leave(cache: HostCache, *sizes_bytes: int) -> None:
    """Rooms of states that were here together."""
    states = [hold(cache, size_bytes) for size_bytes in sizes_bytes]
    for state in states:
        assert state is not None
        cache.drop(state)


def present_bytes(cache: HostCache) -> int:
    return cache.used_bytes + sum(room.present_bytes for room in cache._left)


@pytest.mark.parametrize(
    ("size_bytes", "is_same"),
    [
        (SIZE_BYTES - 1, False),
        (SIZE_BYTES, True),
        (SIZE_BYTES * 5 // 4, True),
        (SIZE_BYTES * 5 // 4 + 1, False),
    ],
)
def test_the_next_state_takes_the_room_of_one_that_has_gone_where_it_suits(
    mapped: list[mmap.mmap], size_bytes: int, is_same: bool
) -> None:
    cache = HostCache(10 * SIZE_BYTES)
    leave(cache, SIZE_BYTES)
    assert (cache.used_bytes, present_bytes(cache)) == (0, SIZE_BYTES)
    assert hold(cache, size_bytes) is not None
    assert cache.used_bytes == size_bytes
    assert len(mapped) == (1 if is_same else 2)
    cache.clear()
    assert [room.closed for room in mapped] == [True] * len(mapped)


def test_of_rooms_that_suit_the_one_with_most_in_it_is_taken(mapped: list[mmap.mmap]) -> None:
    cache = HostCache(10 * SIZE_BYTES)
    leave(cache, SIZE_BYTES * 9 // 10, SIZE_BYTES)
    assert hold(cache, SIZE_BYTES + 1) is not None
    assert present_bytes(cache) == SIZE_BYTES + 1 + SIZE_BYTES * 9 // 10
    assert len(mapped) == 2


@pytest.mark.parametrize(("more_bytes", "n_open"), [(0, 2), (1, 1)])
def test_rooms_that_were_left_go_before_there_is_more_than_was_reserved(
    mapped: list[mmap.mmap], more_bytes: int, n_open: int
) -> None:
    cache = HostCache(3 * SIZE_BYTES)
    leave(cache, SIZE_BYTES)
    assert hold(cache, 2 * SIZE_BYTES + more_bytes) is not None
    assert present_bytes(cache) <= cache.limit_bytes
    assert sum(not room.closed for room in mapped) == n_open


def test_states_that_fit_are_held_whatever_was_held_before() -> None:
    cache = HostCache(3 * SIZE_BYTES)
    leave(cache, SIZE_BYTES * 5 // 4, SIZE_BYTES * 5 // 4)
    assert [hold(cache, SIZE_BYTES) is not None for _ in range(3)] == [True] * 3
    assert present_bytes(cache) == cache.used_bytes == 3 * SIZE_BYTES


def test_a_state_that_could_not_be_written_leaves_its_room(mapped: list[mmap.mmap]) -> None:
    def fail(room: memoryview) -> bool:
        raise MemoryError

    cache = HostCache(3 * SIZE_BYTES)
    assert hold(cache, SIZE_BYTES, is_full=False) is None
    with pytest.raises(MemoryError):
        cache.add(HeldState(owner="o", tokens=[1], data=memoryview(b"")), SIZE_BYTES, fail)
    assert (cache.used_bytes, list(cache)) == (0, [])
    assert hold(cache, SIZE_BYTES) is not None
    assert len(mapped) == 1


def test_rooms_are_given_back_before_a_state_is_refused_for_want_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = HostCache(10 * SIZE_BYTES)
    leave(cache, SIZE_BYTES)
    room_for = host_cache.room_for

    def scarce(size_bytes: int) -> mmap.mmap:
        if present_bytes(cache) + size_bytes > 2 * SIZE_BYTES:
            raise MemoryError
        return room_for(size_bytes)

    monkeypatch.setattr(host_cache, "room_for", scarce)
    assert hold(cache, 2 * SIZE_BYTES) is not None
    assert hold(cache, 1) is None
    assert cache.used_bytes == 2 * SIZE_BYTES
