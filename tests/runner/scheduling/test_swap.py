"""When a model gives way: case by case, each limit below, at and above."""

from __future__ import annotations

import math
from typing import Any

import pytest

from runner.scheduling.rules import SchedulingRules
from runner.scheduling.swap import Demand, Resident, Stand, Verdict, judge
from tests.support.scheduling import on_host

RULES = SchedulingRules(swap_wait_s=30.0, min_residency_s=5.0, linger_s=1.0)
NOW_S = 1000.0


def resident(**changes: Any) -> Resident:
    """Loaded long ago, with one request that takes a second; a reload takes four."""
    values: dict[str, Any] = {
        "load_id": 1,
        "size": on_host(60),
        "ready_since_s": 0.0,
        "idle_since_s": NOW_S,
        "leases": 1,
        "slots": 8,
        "use_s": 1.0,
        "drain_s": 2.0,
        "reload_s": 4.0,
    }
    return Resident(**{**values, **changes})


def demand(**changes: Any) -> Demand:
    """One request, which came just now; its model loads in three seconds."""
    values: dict[str, Any] = {"load_id": 9, "needed": on_host(60), "since_s": NOW_S, "load_s": 3.0}
    return Demand(**{**values, **changes})


def verdict(
    one: Resident, other: Demand | None = None, *, now_s: float = NOW_S, ahead_s: float = 0.0
) -> Verdict:
    return judge(one, other or demand(), ahead_s=ahead_s, stop_s=1.0, rules=RULES, now_s=now_s)


def test_a_pinned_model_never_goes_for_another() -> None:
    assert verdict(resident(leases=0, is_pinned=True)) == Verdict(Stand.PINNED, math.inf)
    assert not verdict(resident(is_pinned=True)).may_go


def test_a_pinned_model_may_be_loaded_again_for_its_own_larger_context() -> None:
    assert verdict(resident(leases=0, is_pinned=True), demand(replaces=1)).stand is Stand.FREE


def test_one_that_gives_way_already_goes_when_nothing_runs_and_is_not_weighed_again() -> None:
    just_loaded = resident(is_yielding=True, ready_since_s=NOW_S)
    assert verdict(just_loaded).stand is Stand.YIELDS
    assert verdict(resident(is_yielding=True, leases=0, waiting=3)).stand is Stand.FREE


# idle


@pytest.mark.parametrize(("idle_s", "stand"), [(0.9, Stand.LINGERS), (1.0, Stand.FREE), (1.1, Stand.FREE)])
def test_an_idle_model_lingers_after_its_load_while_nobody_knows_how_soon_requests_return(
    idle_s: float, stand: Stand
) -> None:
    one = resident(leases=0, ready_since_s=NOW_S - 2, idle_since_s=NOW_S - idle_s)
    assert verdict(one).stand is stand
    if stand is Stand.LINGERS:
        assert verdict(one).look_at_s == pytest.approx(NOW_S + 0.1)


def test_beyond_its_residency_it_does_not_linger_for_what_nobody_knows() -> None:
    assert verdict(resident(leases=0, ready_since_s=NOW_S - 5)).stand is Stand.FREE
    assert verdict(resident(leases=0, ready_since_s=NOW_S - 4.9)).stand is Stand.LINGERS


@pytest.mark.parametrize(
    ("returns_s", "idle_s", "stand"),
    [
        (0.5, 0.4, Stand.LINGERS),
        (0.5, 0.5, Stand.FREE),
        (1.0, 0.9, Stand.LINGERS),
        (1.1, 0.0, Stand.FREE),
        (60.0, 0.0, Stand.FREE),
    ],
)
def test_an_idle_model_lingers_as_long_as_its_requests_take_to_return_if_that_is_soon(
    returns_s: float, idle_s: float, stand: Stand
) -> None:
    assert verdict(resident(leases=0, idle_since_s=NOW_S - idle_s, returns_s=returns_s)).stand is stand


def test_it_lingers_at_most_for_half_of_what_its_return_costs() -> None:
    one = resident(leases=0, returns_s=0.5, reload_s=0.8)
    assert verdict(one).stand is Stand.FREE
    assert verdict(resident(leases=0, returns_s=0.4, reload_s=0.8)).stand is Stand.LINGERS


def test_it_does_not_linger_when_those_who_wait_have_waited_long_enough() -> None:
    one = resident(leases=0, returns_s=1.0)
    assert verdict(one, demand(since_s=NOW_S - 25.9)).stand is Stand.LINGERS
    assert verdict(one, demand(since_s=NOW_S - 26)).stand is Stand.FREE  # 1 s to stop, 3 s to load


# in use


@pytest.mark.parametrize(("age_s", "stand"), [(4.9, Stand.RESIDES), (5.0, Stand.YIELDS), (5.1, Stand.YIELDS)])
def test_a_model_in_use_stays_for_its_residency_however_long_others_wait(age_s: float, stand: Stand) -> None:
    made = verdict(resident(ready_since_s=NOW_S - age_s), demand(since_s=0.0))
    assert made.stand is stand
    if stand is Stand.RESIDES:
        assert made.look_at_s == pytest.approx(NOW_S + 0.1)


@pytest.mark.parametrize(
    ("waited_s", "stand"), [(23.9, Stand.DRAINS), (24.0, Stand.YIELDS), (24.1, Stand.YIELDS)]
)
def test_it_gives_way_in_time_for_those_who_wait_to_be_served_within_the_stated_wait(
    waited_s: float, stand: Stand
) -> None:
    """2 s until the running request has ended, 1 s to stop, 3 s to load: 24 s after they came."""
    made = verdict(resident(waiting=20), demand(since_s=NOW_S - waited_s))
    assert made.stand is stand
    if stand is Stand.DRAINS:
        assert made.look_at_s == pytest.approx(NOW_S + 0.1)


def test_those_whose_turn_comes_after_others_are_served_in_time_as_well() -> None:
    assert verdict(resident(), demand(since_s=NOW_S - 14), ahead_s=10.0).stand is Stand.YIELDS
    assert verdict(resident(), demand(since_s=NOW_S - 13.9), ahead_s=10.0).stand is Stand.DRAINS


@pytest.mark.parametrize(("waiting", "stand"), [(7, Stand.DRAINS), (8, Stand.YIELDS)])
def test_its_requests_are_served_first_while_that_costs_those_who_wait_less_than_a_swap_costs_it(
    waiting: int, stand: Stand
) -> None:
    """One round of a second for each who waits, against 3 + 4 seconds for its one request."""
    made = verdict(resident(), demand(waiting=waiting))
    assert made.stand is stand and made.costs_s == (waiting, 7.0)


def test_a_long_line_of_its_own_takes_rounds_and_weighs_as_much() -> None:
    made = verdict(resident(leases=8, waiting=9), demand(waiting=10))
    assert made == Verdict(Stand.DRAINS, NOW_S + 30 - 6, (10 * 3 * 1.0, 17 * 7.0))
