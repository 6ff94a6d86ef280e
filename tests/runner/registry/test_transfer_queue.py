"""Who of the transfers runs, and who is next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runner.registry.transfer_queue import TransferQueue


def test_as_many_run_as_there_are_slots_and_the_others_wait_in_order():
    queue = TransferQueue(2)
    assert [queue.enter(number, f"k{number}") for number in range(4)] == [True, True, False, False]
    assert [queue.position(f"k{number}") for number in range(4)] == [None, None, 1, 2]
    assert queue.leave(1, "k1") == (2,)
    assert queue.position("k3") == 1
    assert repr(queue) == "<TransferQueue 2 running, 1 waiting>"


def test_who_shares_a_running_key_runs_too():
    queue = TransferQueue(1)
    assert queue.enter(1, "a")
    assert queue.enter(2, "a")
    assert not queue.enter(3, "b")
    assert queue.leave(1, "a") == ()
    assert queue.leave(2, "a") == (3,)


def test_who_shares_a_waiting_key_is_granted_with_it():
    queue = TransferQueue(1)
    queue.enter(1, "a")
    queue.enter(2, "b")
    queue.enter(3, "b")
    assert queue.leave(1, "a") == (2, 3)


def test_one_who_leaves_while_waiting_frees_the_place():
    queue = TransferQueue(1)
    queue.enter(1, "a")
    queue.enter(2, "b")
    queue.enter(3, "c")
    assert queue.leave(2, "b") == ()
    assert queue.leave(2, "b") == ()
    assert queue.position("c") == 1
    assert queue.leave(1, "a") == (3,)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 3))), st.integers(1, 3))
def test_never_more_keys_run_than_slots_and_nobody_is_forgotten(steps, slots):
    queue = TransferQueue(slots)
    running: dict[int, int] = {}
    waiting: dict[int, int] = {}
    for is_entering, entry_id, key in steps:
        if is_entering and entry_id not in running | waiting:
            (running if queue.enter(entry_id, key) else waiting)[entry_id] = key
        elif not is_entering and entry_id in running | waiting:
            key = running.pop(entry_id, None) if entry_id in running else waiting.pop(entry_id)
            for granted in queue.leave(entry_id, key):
                running[granted] = waiting.pop(granted)
        assert len(set(running.values())) <= slots
        assert not waiting or len(set(running.values())) == slots
        assert all(queue.position(key) is not None for key in waiting.values())
