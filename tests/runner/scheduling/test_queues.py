"""Lines: in order, and past those whom what is loaded does not suffice."""

from __future__ import annotations

import pytest

from runner.scheduling.queues import Waiter, WaitingLine, Want


def line(*waiters: Waiter) -> WaitingLine:
    made = WaitingLine()
    for waiter in waiters:
        made.join(waiter)
    return made


def waiter(ticket: int, want: Want = Want.LEASE, since_s: float = 0.0, context_size: int = 0) -> Waiter:
    return Waiter(ticket=ticket, want=want, since_s=since_s, context_size=context_size)


def tickets(waiters: tuple[Waiter, ...]) -> list[int]:
    return [one.ticket for one in waiters]


def test_leases_are_taken_first_in_first_out_and_preloads_stay() -> None:
    some = line(waiter(1, Want.PRELOAD), waiter(2), waiter(3))
    first = some.take_lease(0)
    assert first is not None and first.ticket == 2
    assert tickets(some.take_preloads(0)) == [1]
    assert tickets(some.take_all()) == [3]
    assert some.take_lease(0) is None and len(some) == 0


def test_one_who_needs_a_larger_context_is_passed_and_keeps_its_place() -> None:
    some = line(waiter(1, context_size=4000), waiter(2), waiter(3, Want.PRELOAD, context_size=1001))
    first = some.take_lease(1000)
    assert first is not None and first.ticket == 2
    assert some.take_preloads(1000) == () and some.take_lease(1000) is None
    assert some.largest_need == 4000
    assert some.count(needing_more_than=1000) == 2 and some.count(needing_more_than=1001) == 1
    assert tickets(some.take_needing(1001)) == [1]
    assert tickets(some.take_preloads(1001)) == [3]
    assert some.largest_need == 0


def test_one_leaves_once_from_wherever_it_stands() -> None:
    some = line(waiter(1), waiter(2), waiter(3))
    assert some.leave(2)
    assert not some.leave(2)
    assert [one.ticket for one in some] == [1, 3]


@pytest.mark.parametrize(("now_s", "overdue"), [(9.9, []), (10.0, [1]), (15.0, [1, 2])])
def test_the_overdue_have_waited_long_enough(now_s: float, overdue: list[int]) -> None:
    some = line(waiter(1, since_s=0), waiter(2, since_s=5), waiter(3, since_s=6))
    assert tickets(some.take_overdue(now_s, 10)) == overdue


def test_of_those_who_need_more_the_first_and_the_overdue_are_told_apart() -> None:
    some = line(waiter(1, since_s=1), waiter(2, since_s=2, context_size=9), waiter(3, since_s=3))
    assert some.oldest_since_s() == 1
    assert some.oldest_since_s(needing_more_than=8) == 2
    assert some.oldest_since_s(needing_more_than=9) is None
    assert tickets(some.take_overdue(100, 10, needing_more_than=8)) == [2]
