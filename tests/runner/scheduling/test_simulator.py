"""Whole histories on a virtual clock: the policy against first come, first served, and against its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.scheduling.core import SchedulerCore
from runner.scheduling.rules import SchedulingRules
from runner.scheduling.simulator import Arrival, FirstComeFirstServed, Outcome, SimulatedModel, simulate
from tests.support.scheduling import on_host


def model(name: str, load_s: float = 3.0, use_s: float = 1.0, size: int = 80) -> SimulatedModel:
    return SimulatedModel(name=name, footprint=on_host(size), load_s=load_s, use_s=use_s)


A, B, C = model("a"), model("b"), model("c")


def core(budget: int = 100, **rules: float) -> SchedulerCore:
    return SchedulerCore(SchedulingRules(**rules), budget=on_host(budget))  # type: ignore[arg-type]  # numbers


def flood(names: str, count: int, every_s: float) -> list[Arrival]:
    return [Arrival(number * every_s, names[number % len(names)]) for number in range(count)]


def both(models: list[SimulatedModel], arrivals: list[Arrival]) -> tuple[Outcome, Outcome]:
    ours, theirs = simulate(core(), models, arrivals), simulate(FirstComeFirstServed(), models, arrivals)
    assert len(ours.served) == len(theirs.served) and theirs.refused == 0
    assert ours.most.fits_in(on_host(100))
    return ours, theirs


def test_one_request_waits_for_one_load() -> None:
    outcome = simulate(core(), [A], [Arrival(5.0, "a")])
    [served] = outcome.served
    assert (served.asked_at_s, served.waited_s, served.ended_at_s) == (5.0, 3.0, 9.0)
    assert (outcome.loads, outcome.swaps(1), outcome.refused) == (1, 0, 0)


@pytest.mark.parametrize("every_s", [0.25, 0.5, 1.0])
def test_in_a_flood_of_two_models_no_request_waits_longer_than_stated_and_swaps_are_few(
    every_s: float,
) -> None:
    ours, theirs = both([A, B], flood("ab", 400, every_s))
    assert ours.refused == 0 and ours.longest_wait_s <= 30.0
    assert ours.swaps_per_minute(2) < theirs.swaps_per_minute(2)
    assert ours.took_s < 0.5 * theirs.took_s


def test_what_came_at_once_takes_one_swap() -> None:
    ours, theirs = both([A, B], flood("ab", 120, 0.0))
    assert ours.swaps(2) == 1 < theirs.swaps(2)
    assert ours.refused == 0 and ours.took_s < 0.1 * theirs.took_s


def test_two_clients_that_ask_again_at_once_do_not_throw_each_other_out_for_every_request() -> None:
    loops = [Arrival(0.0, "a", then_s=0.1, repeats=100), Arrival(0.0, "b", then_s=0.1, repeats=100)]
    ours, theirs = both([A, B], loops)
    assert ours.swaps(2) <= 10 and theirs.swaps(2) > 190
    assert ours.longest_wait_s <= 30.0 and ours.mean_wait_s < theirs.mean_wait_s


def test_one_client_that_uses_models_in_turn_waits_for_nothing_but_loads() -> None:
    ours, _ = both([A, B], flood("ab", 50, 6.0))
    assert ours.longest_wait_s == pytest.approx(3.2)


def test_one_rare_request_beside_steady_use_has_its_turn_within_the_stated_wait() -> None:
    steady = [Arrival(0.0, "a", then_s=0.1, repeats=100) for _ in range(8)]
    ours, _ = both([A, B], [*steady, Arrival(20.0, "b")])
    [rare] = [one for one in ours.served if one.model == "b"]
    assert 10.0 < rare.waited_s <= 30.0


def test_three_models_share_one_place() -> None:
    ours, _ = both([A, B, C], flood("abc", 300, 0.3))
    assert ours.refused == 0 and ours.longest_wait_s <= 30.0


def test_loads_that_take_longer_than_the_stated_wait_still_have_their_turns() -> None:
    slow = [model("a", load_s=40.0), model("b", load_s=40.0)]
    ours, _ = both(slow, flood("ab", 100, 2.0))
    assert ours.refused == 0
    assert ours.longest_wait_s <= 2 * (40.0 + 5.0 + 2.0)


def test_models_that_fit_together_do_not_compete() -> None:
    small = [model("a", size=40), model("b", size=40)]
    ours = simulate(core(), small, flood("ab", 200, 0.2))
    assert ours.loads == 2 and ours.longest_wait_s <= 3.0


def test_what_never_ends_is_an_error() -> None:
    class Deaf:
        def handle(self, event: object, now_s: float) -> tuple[()]:
            return ()

    with pytest.raises(RuntimeError, match="1 requests were forgotten"):
        simulate(Deaf(), [A], [Arrival(0.0, "a")])


arrivals = st.lists(
    st.tuples(st.floats(0, 120), st.sampled_from("ab")).map(lambda one: Arrival(*one)), max_size=40
)
seconds = st.sampled_from([0.2, 1.0, 3.0, 6.0])


@settings(max_examples=60, deadline=None)
@given(arrivals, seconds, seconds, st.sampled_from([0.1, 0.5, 1.0, 2.0]))
def test_whoever_competes_for_one_place_waits_no_longer_than_stated(
    some: list[Arrival], load_a_s: float, load_b_s: float, use_s: float
) -> None:
    """At most 40 requests with 8 places: 5 rounds. Both models' loads and residencies fit into the wait."""
    models = [model("a", load_a_s, use_s), model("b", load_b_s, use_s)]
    outcome = simulate(core(), models, some)
    rounds_s = 5 * use_s
    assert outcome.refused == 0
    assert outcome.longest_wait_s <= 30.0 + rounds_s
    assert outcome.most.fits_in(on_host(100))
