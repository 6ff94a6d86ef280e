"""Who makes room for whom: plans as values."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runner.domain.device_bytes import DeviceBytes
from runner.scheduling.room import Eviction, RoomPlan, WaitReason, plan_room
from runner.scheduling.rules import SchedulingRules
from runner.scheduling.swap import Demand, Resident, Stand
from tests.support.scheduling import on_host

NOW_S = 1000.0
RULES = SchedulingRules(swap_wait_s=30.0, min_residency_s=5.0, linger_s=0.0, overtaking_s=10.0)


def demand(load_id: int, needed: int, waited_s: float = 0.0, **changes: Any) -> Demand:
    return Demand(load_id=load_id, needed=on_host(needed), since_s=NOW_S - waited_s, **changes)


def idle(load_id: int, size: int, *, idle_s: float = 60.0, reload_s: float = 1.0, **changes: Any) -> Resident:
    return Resident(
        load_id=load_id,
        size=on_host(size),
        ready_since_s=0.0,
        idle_since_s=NOW_S - idle_s,
        reload_s=reload_s,
        **changes,
    )


def busy(load_id: int, size: int, **changes: Any) -> Resident:
    """A demand of one has to wait for it; one of many more does not."""
    values: dict[str, Any] = {"leases": 1, "use_s": 1.0, "drain_s": 1.0, "reload_s": 4.0}
    return Resident(
        load_id=load_id,
        size=on_host(size),
        ready_since_s=0.0,
        idle_since_s=NOW_S,
        **{**values, **changes},
    )


MANY = 1000


def plan(demands: list[Demand], residents: list[Resident], *, free: int = 0, leaving: int = 0) -> RoomPlan:
    return plan_room(
        demands,
        residents,
        free=on_host(free),
        leaving=on_host(leaving),
        rules=RULES,
        now_s=NOW_S,
    )


def reasons(made: RoomPlan) -> dict[int, WaitReason]:
    return {wait.load_id: wait.reason for wait in made.waits}


def test_what_fits_starts_and_the_rest_of_the_room_is_the_next_ones() -> None:
    assert plan([demand(1, 40), demand(2, 60)], [], free=100).starts == (1, 2)
    made = plan([demand(1, 40), demand(2, 61)], [], free=100)
    assert made.starts == (1,) and reasons(made) == {2: WaitReason.BLOCKED}


def test_a_load_waits_for_processes_that_end_and_evicts_nobody_for_them() -> None:
    made = plan([demand(1, 60)], [idle(7, 60)], free=10, leaving=50)
    assert made.stops == () and reasons(made) == {1: WaitReason.ENDING}


def test_room_that_will_be_free_is_set_aside_for_the_first_who_waits_for_it() -> None:
    made = plan([demand(1, 60), demand(2, 20)], [], free=10, leaving=50)
    assert reasons(made) == {1: WaitReason.ENDING, 2: WaitReason.BLOCKED}


def test_a_small_load_may_take_what_the_first_one_does_not_need_in_the_end() -> None:
    assert plan([demand(1, 60), demand(2, 20)], [], free=20, leaving=60).starts == (2,)


def test_O01_the_cheapest_idle_models_stop_for_a_load_that_does_not_fit() -> None:
    made = plan([demand(9, 50)], [idle(1, 30, reload_s=3.0), idle(2, 30), idle(3, 30, idle_s=0.0)], free=10)
    assert made.starts == () and reasons(made) == {9: WaitReason.ENDING}
    assert [(one.victim_id, one.for_id, one.shortage, one.cost_s) for one in made.stops] == [
        (2, 9, on_host(40), 0.5),
        (3, 9, on_host(40), 1.0),
    ]


def test_nothing_goes_in_vain() -> None:
    made = plan([demand(9, 90)], [idle(1, 30)], free=10)
    assert made.stops == () and reasons(made) == {9: WaitReason.BLOCKED}


def test_a_budget_that_shrank_asks_for_more_than_the_load_itself() -> None:
    [eviction] = plan([demand(9, 10)], [idle(1, 30)], free=-20).stops
    assert eviction.shortage == on_host(30)


def test_idle_models_go_before_those_in_use_whatever_they_cost() -> None:
    made = plan([demand(9, 50, waiting=MANY)], [busy(1, 50, reload_s=0.1), idle(2, 50, reload_s=99.0)])
    assert [one.victim_id for one in made.stops] == [2] and made.yields == ()


def test_models_in_use_that_may_go_give_way_and_idle_ones_stay_until_then() -> None:
    made = plan([demand(9, 80, waiting=MANY)], [busy(1, 50), idle(2, 30)])
    assert made.stops == () and reasons(made) == {9: WaitReason.YIELDING}
    [eviction] = made.yields
    assert (eviction.victim_id, eviction.for_id) == (1, 9)
    assert eviction.costs_s is not None and eviction.costs_s[0] > eviction.costs_s[1]


def test_a_model_that_gives_way_does_so_until_all_can_go_even_when_nothing_of_it_runs() -> None:
    yielding = busy(1, 40, is_yielding=True, leases=0)
    made = plan([demand(9, 80, waiting=MANY)], [yielding, busy(2, 40)])
    assert {one.victim_id for one in made.yields} == {1, 2} and made.stops == ()
    made = plan([demand(9, 40)], [yielding, busy(2, 40)])
    assert [one.victim_id for one in made.stops] == [1] and made.yields == ()


def test_one_that_gives_way_already_is_chosen_before_others_that_might() -> None:
    some = [busy(1, 50, reload_s=0.01), busy(2, 50, is_yielding=True, reload_s=9.0)]
    made = plan([demand(9, 50, waiting=MANY)], some)
    assert [one.victim_id for one in made.yields] == [2]


def test_a_blocked_load_tells_where_everybody_stands_and_when_to_look_again() -> None:
    made = plan([demand(9, 50)], [busy(1, 50), busy(2, 50, is_pinned=True)])
    [wait] = made.waits
    assert wait.stands == {1: Stand.DRAINS, 2: Stand.PINNED} and wait.shortage == on_host(50)
    assert made.look_at_s == NOW_S + 30 - 1 - 1
    assert plan([demand(9, 50)], []).look_at_s == math.inf


def test_those_whose_turn_comes_later_have_models_give_way_earlier() -> None:
    first = demand(8, 50, waited_s=5.0, load_s=4.0)
    last = demand(9, 50, waited_s=4.0, load_s=4.0)
    made = plan([first, last], [busy(1, 50)])
    alone = plan([last], [busy(1, 50)])
    assert made.look_at_s == alone.look_at_s - 4.0 - RULES.min_residency_s


def test_a_larger_context_takes_the_place_of_the_model_itself() -> None:
    growing = demand(9, 70, replaces=1)
    made = plan([growing], [idle(1, 50), idle(2, 30)], free=0)
    assert {one.victim_id for one in made.stops} == {1, 2}
    made = plan([growing], [idle(1, 50), idle(2, 30)], free=20)
    assert [one.victim_id for one in made.stops] == [1]
    made = plan([growing], [idle(1, 50)], free=100)
    assert [one.victim_id for one in made.stops] == [1], "also where both would fit"
    made = plan([growing], [busy(1, 50)], free=100)
    assert reasons(made) == {9: WaitReason.BLOCKED}


def test_later_loads_pass_a_blocked_one_only_for_a_while() -> None:
    def made(waited_s: float) -> RoomPlan:
        return plan([demand(1, 90, waited_s), demand(2, 20)], [], free=30)

    assert made(9.9).starts == (2,)
    assert made(10.0).starts == made(10.1).starts == ()
    assert reasons(made(10.0))[2] is WaitReason.BEHIND


sizes = st.builds(
    lambda host, gpu: DeviceBytes({"cpu": host, "CUDA0": gpu}), st.integers(0, 80), st.integers(0, 40)
)


@given(
    st.lists(st.tuples(sizes, st.floats(0, 60), st.integers(1, 50)), max_size=5),
    st.lists(
        st.tuples(sizes, st.integers(0, 2), st.integers(0, 3), st.booleans(), st.booleans()), max_size=6
    ),
    st.builds(
        lambda host, gpu: DeviceBytes({"cpu": host, "CUDA0": gpu}), st.integers(-50, 100), st.integers(-9, 60)
    ),
    sizes,
)
def test_a_plan_keeps_within_the_room_there_is_and_touches_nothing_that_may_not_go(
    wanted: list[tuple[DeviceBytes, float, int]],
    there: list[tuple[DeviceBytes, int, int, bool, bool]],
    free: DeviceBytes,
    leaving: DeviceBytes,
) -> None:
    demands = [
        Demand(load_id=100 + number, needed=needed, since_s=NOW_S - waited_s, waiting=waiting)
        for number, (needed, waited_s, waiting) in enumerate(wanted)
    ]
    residents = [
        Resident(
            load_id=number,
            size=size,
            ready_since_s=0.0,
            idle_since_s=NOW_S,
            leases=leases,
            waiting=waiting,
            is_pinned=is_pinned,
            is_yielding=is_yielding,
        )
        for number, (size, leases, waiting, is_pinned, is_yielding) in enumerate(there)
    ]
    made = plan_room(demands, residents, free=free, leaving=leaving, rules=RULES, now_s=NOW_S)
    by_id = {one.load_id: one for one in residents}
    started = sum((one.needed for one in demands if one.load_id in made.starts), DeviceBytes())
    assert started.fits_in(free)
    touched: list[Eviction] = [*made.stops, *made.yields]
    assert len({one.victim_id for one in touched}) == len(touched)
    assert not any(by_id[one.victim_id].is_pinned for one in touched)
    assert not any(by_id[one.victim_id].leases for one in made.stops)
    told = [*made.starts, *(wait.load_id for wait in made.waits)]
    assert sorted(told) == [one.load_id for one in demands], "each is told of once"
    assert made.look_at_s > NOW_S
