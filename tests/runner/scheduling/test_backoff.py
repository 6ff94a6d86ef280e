"""The delay after crashes grows, has an end, and is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.oci.digest import Digest
from runner.scheduling.backoff import BackoffRules, CrashLog, after_crash

RULES = BackoffRules(first_s=1.0, longest_s=8.0, forget_s=60.0)
MODEL = Digest.of(b"model")


def delays(*times_s: float, jitter: float = 0.0) -> list[float]:
    log, found = CrashLog(RULES), []
    for time_s in times_s:
        found.append(log.add(MODEL, time_s, jitter).not_before_s - time_s)
    return found


def test_L03_each_crash_in_a_row_doubles_the_delay_up_to_a_limit() -> None:
    assert delays(0, 10, 20, 30, 40, 50) == [1, 2, 4, 8, 8, 8]


@pytest.mark.parametrize(("pause_s", "second_s"), [(59.0, 2.0), (60.0, 1.0), (61.0, 1.0)])
def test_L03_a_model_that_lived_long_enough_starts_from_the_beginning(
    pause_s: float, second_s: float
) -> None:
    assert delays(0, pause_s) == [1.0, second_s]


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 100))
def test_L03_jitter_lengthens_a_delay_by_at_most_a_half(jitter: float, crashes: int) -> None:
    record = None
    for number in range(crashes):
        record = after_crash(RULES, record, float(number), jitter)
    assert record is not None
    plain_s = min(2.0 ** (crashes - 1), 8.0)
    assert plain_s <= record.not_before_s - record.last_s <= plain_s * 1.5


def test_a_model_that_never_crashed_may_start_at_any_time() -> None:
    assert CrashLog(RULES).not_before_s(MODEL) == float("-inf")


@pytest.mark.parametrize(("models", "is_remembered"), [(3, True), (4, True), (5, False)])
def test_O08_only_the_latest_crashes_are_remembered(models: int, is_remembered: bool) -> None:
    log = CrashLog(RULES, limit=4)
    for number in range(models):
        log.add(Digest.of(bytes([number])), 10.0, 0.0)
    assert (log.not_before_s(Digest.of(bytes([0]))) == 11.0) is is_remembered
