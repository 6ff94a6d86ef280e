"""Lines of waiters: bounded, in order, with a way out from the middle."""

from __future__ import annotations

import pytest

from runner.scheduling.queues import Rates, Waiter, WaitingLine, Want


def waiter(ticket: int, want: Want = Want.LEASE, since_s: float = 0.0) -> Waiter:
    return Waiter(ticket=ticket, want=want, keep_alive_s=None, since_s=since_s)


def line_of(*waiters: Waiter, limit: int = 64) -> WaitingLine:
    line = WaitingLine(limit)
    for one in waiters:
        line.join(one)
    return line


@pytest.mark.parametrize(("waiting", "is_full"), [(63, False), (64, True)])
def test_O04_a_line_is_full_at_its_limit(waiting: int, is_full: bool) -> None:
    assert line_of(*map(waiter, range(waiting))).is_full is is_full


def test_O04_whoever_leaves_frees_the_place() -> None:
    line = line_of(waiter(1), waiter(2), limit=2)
    assert line.leave(1) and not line.leave(1)
    assert not line.is_full
    line.join(waiter(3))
    assert [one.ticket for one in line.take_all()] == [2, 3]
    assert len(line) == 0


def test_leases_go_in_order_and_preloads_are_no_part_of_it() -> None:
    line = line_of(waiter(1, Want.PRELOAD), waiter(2), waiter(3, Want.PRELOAD), waiter(4))
    first = line.take_lease()
    assert first is not None and first.ticket == 2
    assert [one.ticket for one in line.take_preloads()] == [1, 3]
    assert [one.ticket for one in line.take_all()] == [4]
    assert line.take_lease() is None


def test_the_overdue_are_those_who_waited_as_long_or_longer() -> None:
    line = line_of(waiter(1, since_s=0.1), waiter(2, since_s=5.0))
    assert line.oldest_since_s() == 0.1
    assert line.take_overdue(120.0, 120.0) == ()
    assert [one.ticket for one in line.take_overdue(0.1 + 120.0, 120.0)] == [1]
    assert line.oldest_since_s() == 5.0


def test_rates_follow_what_is_measured() -> None:
    rates = Rates()
    for _ in range(40):
        rates.load_ended(2.0)
        rates.lease_ended(30.0)
    assert rates.load_s == pytest.approx(2.0, rel=0.01)
    assert rates.lease_s == pytest.approx(30.0, rel=0.01)


@pytest.mark.parametrize(
    ("expected", "told"), [(0.0, 1.0), (1.0, 1.0), (2.5, 2.5), (60.0, 60.0), (61.0, 60.0)]
)
def test_O04_a_refused_client_is_told_a_time_within_bounds(expected: float, told: float) -> None:
    assert Rates(load_s=expected).retry_after_s(None) == told
    assert Rates(lease_s=8 * expected).retry_after_s(8) == told
