"""Measured and smoothed seconds."""

from __future__ import annotations

import pytest

from runner.oci.digest import Digest
from runner.scheduling.pace import (
    FIRST_LOAD_S,
    FIRST_STOP_S,
    FIRST_USE_S,
    RETRY_AFTER_MAX_S,
    Pace,
    Smoothed,
    retry_after_s,
)
from tests.support.scheduling import model_id, on_host

A, B = model_id("a"), model_id("b")
GB = on_host(10**9)


def test_the_first_value_takes_the_place_of_the_guess_and_later_ones_move_it() -> None:
    seconds = Smoothed(5.0)
    seconds.add(2.0)
    assert (seconds.mean, seconds.cautious) == (2.0, 4.0)
    for _ in range(50):
        seconds.add(6.0)
    assert seconds.mean == pytest.approx(6.0, abs=0.01)
    assert seconds.cautious == pytest.approx(6.0, abs=0.1)


def test_a_model_nobody_loaded_is_estimated_by_its_size_and_by_how_estimates_turned_out() -> None:
    pace = Pace()
    assert pace.load_s(A, GB) == FIRST_LOAD_S + 1.0
    assert not pace.is_load_measured(A)
    pace.load_ended(B, GB, 4.0)
    assert pace.load_s(B, GB) == 4.0 and pace.is_load_measured(B)
    assert pace.load_s(A, GB) == pytest.approx(4.0)
    assert pace.load_s(A, on_host(3 * 10**9)) == pytest.approx(8.0)


def test_a_use_is_expected_as_the_model_had_it_else_as_others_did() -> None:
    pace = Pace()
    assert pace.use_s(A) == FIRST_USE_S
    pace.use_ended(B, 1.0)
    assert (pace.use_s(A), pace.use_s(B)) == (1.0, 1.0)
    pace.use_ended(A, 9.0)
    assert pace.use_s(A) == 9.0 and pace.use_s(B) == 1.0
    assert pace.drain_s(A) == 18.0


def test_the_end_of_a_worker_is_expected_as_others_ended() -> None:
    pace = Pace()
    assert pace.stop_s == FIRST_STOP_S
    pace.stop_ended(0.1)
    assert pace.stop_s == 0.1


def test_O08_so_many_models_are_remembered_and_the_one_measured_longest_ago_goes_first() -> None:
    pace = Pace(limit=2)
    for name in ("a", "b", "a", "c"):
        pace.load_ended(model_id(name), GB, 3.0)
    known = [pace.is_load_measured(model_id(name)) for name in ("a", "b", "c")]
    assert known == [True, False, True]


def test_many_models_level_off() -> None:
    pace = Pace(limit=8)
    for number in range(100):
        pace.use_ended(Digest.of(str(number).encode()), 1.0)
    assert len(pace._models) == 8


@pytest.mark.parametrize(
    ("expected_s", "told_s"),
    [(0.0, 1.0), (1.0, 1.0), (7.5, 7.5), (RETRY_AFTER_MAX_S, RETRY_AFTER_MAX_S), (1e9, RETRY_AFTER_MAX_S)],
)
def test_O04_a_time_to_come_back_lies_within_bounds(expected_s: float, told_s: float) -> None:
    assert retry_after_s(expected_s) == told_s
