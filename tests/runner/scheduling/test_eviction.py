"""The cheapest set of models that makes enough room."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.device_bytes import DeviceBytes
from runner.scheduling.eviction import (
    EXACT_UP_TO,
    LEAST_RELOAD_S,
    Candidate,
    absence_cost_s,
    choose_victims,
)
from tests.support.scheduling import on_host


def candidates(*sizes_and_costs: tuple[int, float]) -> list[Candidate]:
    """Numbered from 1."""
    return [
        Candidate(load_id=number, size=on_host(size), cost_s=cost_s)
        for number, (size, cost_s) in enumerate(sizes_and_costs, start=1)
    ]


def ids(victims: tuple[Candidate, ...]) -> list[int]:
    return sorted(victim.load_id for victim in victims)


# costs


def test_the_absence_of_a_model_costs_its_reload_for_every_request_it_has() -> None:
    assert absence_cost_s(reload_s=4.0, requests=3, idle_s=0.0, idle_scale_s=60.0) == 12.0


@pytest.mark.parametrize(("idle_s", "cost_s"), [(0.0, 4.0), (60.0, 2.0), (120.0, 4 / 3), (-1.0, 4.0)])
def test_the_longer_a_model_is_idle_the_less_its_absence_costs(idle_s: float, cost_s: float) -> None:
    cost = absence_cost_s(reload_s=4.0, requests=0, idle_s=idle_s, idle_scale_s=60.0)
    assert cost == pytest.approx(cost_s)


def test_among_models_that_load_in_no_time_the_time_without_use_decides() -> None:
    costs = [absence_cost_s(reload_s=0, requests=0, idle_s=idle_s, idle_scale_s=60) for idle_s in (0, 1, 2)]
    assert costs == sorted(costs, reverse=True) and costs[0] == LEAST_RELOAD_S


# sets


def test_the_one_that_costs_least_goes() -> None:
    assert ids(choose_victims(candidates((10, 3.0), (10, 1.0), (10, 2.0)), on_host(10))) == [2]
    assert ids(choose_victims(candidates((10, 3.0), (10, 1.0), (10, 2.0)), on_host(15))) == [2, 3]


def test_one_large_model_goes_instead_of_several_that_cost_more_together() -> None:
    some = candidates((10, 1.0), (10, 1.0), (20, 1.5))
    assert ids(choose_victims(some, on_host(20))) == [3]
    some = candidates((10, 1.0), (10, 1.0), (20, 2.5))
    assert ids(choose_victims(some, on_host(20))) == [1, 2]


def test_of_equal_costs_the_set_that_frees_less_goes() -> None:
    assert ids(choose_victims(candidates((30, 1.0), (20, 1.0)), on_host(15))) == [2]


def test_nobody_goes_when_all_together_would_not_do() -> None:
    assert choose_victims(candidates((10, 1.0), (10, 1.0)), on_host(21)) == ()
    assert ids(choose_victims(candidates((10, 1.0), (10, 1.0)), on_host(20))) == [1, 2]


def test_room_is_made_on_the_device_that_lacks_it() -> None:
    gpu = Candidate(load_id=1, size=DeviceBytes({"cpu": 5, "CUDA0": 20}), cost_s=9.0)
    host = Candidate(load_id=2, size=on_host(50), cost_s=1.0)
    assert ids(choose_victims([gpu, host], DeviceBytes({"CUDA0": 10}))) == [1]
    assert ids(choose_victims([gpu, host], DeviceBytes({"CUDA0": 10, "cpu": 6}))) == [1, 2]
    assert choose_victims([gpu, host], DeviceBytes({"CUDA1": 1})) == ()


def test_what_has_to_go_anyway_spares_others() -> None:
    some = candidates((10, 1.0), (10, 5.0), (10, 2.0))
    assert ids(choose_victims(some, on_host(10), must=[2])) == [2]
    assert ids(choose_victims(some, on_host(11), must=[2])) == [1, 2]
    assert ids(choose_victims(some, DeviceBytes(), must=[2])) == [2]
    assert choose_victims(some, on_host(1), must=[7]) == ()


amounts = st.builds(
    lambda host, gpu: DeviceBytes({"cpu": host, "CUDA0": gpu}), st.integers(0, 50), st.integers(0, 20)
)
costs = st.floats(0.01, 100)
shortages = st.builds(
    lambda host, gpu: DeviceBytes({"cpu": host, "CUDA0": gpu}), st.integers(1, 120), st.integers(0, 40)
)


def total(some: tuple[Candidate, ...]) -> DeviceBytes:
    return sum((one.size for one in some), DeviceBytes())


@given(st.lists(st.tuples(amounts, costs), max_size=6), shortages)
def test_no_set_that_suffices_costs_less(
    given_ones: list[tuple[DeviceBytes, float]], shortage: DeviceBytes
) -> None:
    some = [
        Candidate(load_id=number, size=size, cost_s=cost) for number, (size, cost) in enumerate(given_ones)
    ]
    victims = choose_victims(some, shortage)
    sufficing = [
        chosen
        for count in range(len(some) + 1)
        for chosen in itertools.combinations(some, count)
        if shortage.fits_in(total(chosen))
    ]
    if not sufficing:
        assert victims == ()
        return
    assert shortage.fits_in(total(victims))
    least_s = min(sum(one.cost_s for one in chosen) for chosen in sufficing)
    assert sum(one.cost_s for one in victims) == pytest.approx(least_s)


@given(
    st.lists(st.tuples(amounts, costs), min_size=EXACT_UP_TO + 1, max_size=EXACT_UP_TO + 8),
    shortages,
)
def test_of_many_candidates_enough_go_and_none_too_many(
    given_ones: list[tuple[DeviceBytes, float]], shortage: DeviceBytes
) -> None:
    some = [
        Candidate(load_id=number, size=size, cost_s=cost) for number, (size, cost) in enumerate(given_ones)
    ]
    victims = choose_victims(some, shortage)
    if not victims:
        assert not shortage.fits_in(total(tuple(some)))
        return
    assert shortage.fits_in(total(victims))
    for victim in victims:
        others = tuple(other for other in victims if other is not victim)
        assert not shortage.fits_in(total(others))
