"""Sequence ids are given out once each, the lowest first."""

from __future__ import annotations

import pytest

from runner.engine.slots import Slots


def test_the_lowest_free_id_comes_first() -> None:
    slots = Slots(3)
    assert [slots.acquire() for _ in range(3)] == [0, 1, 2]
    slots.release(2)
    slots.release(0)
    assert slots.acquire() == 0
    assert slots.n_free == 1


def test_no_id_is_given_out_twice() -> None:
    slots = Slots(1)
    slots.acquire()
    with pytest.raises(IndexError):
        slots.acquire()


def test_an_id_that_is_not_held_cannot_be_given_back() -> None:
    slots = Slots(2)
    slot = slots.acquire()
    slots.release(slot)
    with pytest.raises(KeyError):
        slots.release(slot)
    assert repr(slots) == "<Slots: 0 held, 2 free>"
