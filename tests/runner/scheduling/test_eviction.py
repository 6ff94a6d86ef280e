"""Who goes, and who may come: the policies as functions."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from runner.scheduling.eviction import Candidate, Demand, Eviction, RoomPlan, choose_victims, plan_room


def candidates(*sizes: int) -> list[Candidate]:
    """Numbered from 1, the first one idle for longest."""
    return [
        Candidate(load_id=number, size_bytes=size, idle_since_s=float(number))
        for number, size in enumerate(sizes, start=1)
    ]


def demand(load_id: int, needed: int, waited_s: float = 0.0) -> Demand:
    return Demand(load_id=load_id, needed_bytes=needed, waited_s=waited_s)


def ids(victims: tuple[Candidate, ...]) -> list[int]:
    return [victim.load_id for victim in victims]


def plan(
    demands: list[Demand], idle: list[Candidate], *, free: int, leaving: int = 0, overtaking_s: float = 10.0
) -> RoomPlan:
    return plan_room(demands, idle, free_bytes=free, leaving_bytes=leaving, overtaking_s=overtaking_s)


def test_the_least_recently_used_goes_first() -> None:
    assert ids(choose_victims(candidates(10, 10, 10), 10)) == [1]
    assert ids(choose_victims(list(reversed(candidates(10, 10, 10))), 15)) == [1, 2]


def test_a_small_one_is_spared_when_a_larger_one_has_to_go_anyway() -> None:
    assert ids(choose_victims(candidates(2, 10), 10)) == [2]


def test_nobody_goes_when_all_together_would_not_do() -> None:
    assert choose_victims(candidates(10, 10), 21) == ()
    assert ids(choose_victims(candidates(10, 10), 20)) == [1, 2]


sizes = st.lists(st.integers(0, 50), max_size=7)


@given(sizes, st.integers(1, 200))
def test_victims_suffice_and_none_of_them_is_too_many(given_sizes: list[int], shortage: int) -> None:
    idle = candidates(*given_sizes)
    victims = choose_victims(idle, shortage)
    if not victims:
        assert sum(given_sizes) < shortage
        return
    assert sum(victim.size_bytes for victim in victims) >= shortage
    for victim in victims:
        assert sum(other.size_bytes for other in victims if other is not victim) < shortage


def test_what_fits_starts_and_the_rest_of_the_room_is_the_next_ones() -> None:
    assert plan([demand(1, 40), demand(2, 60)], [], free=100).starts == (1, 2)
    assert plan([demand(1, 40), demand(2, 61)], [], free=100) == RoomPlan(starts=(1,), blocked=(2,))


def test_a_load_waits_for_processes_that_end_and_evicts_nobody_for_them() -> None:
    assert plan([demand(1, 60)], candidates(60), free=10, leaving=50) == RoomPlan()


def test_room_that_will_be_free_is_set_aside_for_the_first_who_waits_for_it() -> None:
    made = plan([demand(1, 60), demand(2, 20)], [], free=10, leaving=50)
    assert made == RoomPlan(blocked=(2,))


def test_a_small_load_may_take_what_the_first_one_does_not_need_in_the_end() -> None:
    assert plan([demand(1, 60), demand(2, 20)], [], free=20, leaving=60).starts == (2,)


def test_O01_idle_models_are_evicted_for_a_load_that_does_not_fit() -> None:
    made = plan([demand(9, 50)], candidates(30, 30, 30), free=10)
    assert made.evictions == (
        Eviction(victim_id=1, for_id=9, shortage_bytes=40),
        Eviction(victim_id=2, for_id=9, shortage_bytes=40),
    )
    assert made.starts == ()


def test_nothing_is_evicted_in_vain() -> None:
    assert plan([demand(9, 90)], candidates(30), free=10) == RoomPlan(blocked=(9,))


def test_a_budget_that_shrank_asks_for_more_than_the_load_itself() -> None:
    assert plan([demand(9, 10)], candidates(30), free=-20).evictions == (
        Eviction(victim_id=1, for_id=9, shortage_bytes=30),
    )


def test_later_loads_pass_a_blocked_one_only_for_a_while() -> None:
    def starts(waited_s: float) -> tuple[int, ...]:
        return plan([demand(1, 90, waited_s), demand(2, 20)], [], free=30).starts

    assert starts(9.9) == (2,)
    assert starts(10.0) == starts(10.1) == ()


demand_sizes = st.lists(st.tuples(st.integers(0, 80), st.floats(0, 20)), max_size=6)


@given(demand_sizes, sizes, st.integers(-50, 100), st.integers(0, 100))
def test_a_plan_keeps_within_the_room_there_is(
    wanted: list[tuple[int, float]], idle_sizes: list[int], free: int, leaving: int
) -> None:
    demands = [demand(100 + number, *one) for number, one in enumerate(wanted)]
    idle = candidates(*idle_sizes)
    made = plan(demands, idle, free=free, leaving=leaving)
    needed = {one.load_id: one.needed_bytes for one in demands}
    victims = [eviction.victim_id for eviction in made.evictions]
    assert len(set(victims)) == len(victims)
    assert sum(needed[load_id] for load_id in made.starts) <= max(free, 0)
    for one, group in itertools.groupby(made.evictions, key=lambda eviction: eviction.for_id):
        assert one not in made.starts and one not in made.blocked
        assert {eviction.shortage_bytes for eviction in group} != set()
    if demands and not made.starts and not made.evictions and not leaving:
        assert demands[0].load_id in made.blocked, "the first waits although nothing is in its way"
