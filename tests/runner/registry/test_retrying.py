from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import RegistryDenied, RegistryError, RegistryUnavailable, TransferAborted
from runner.registry.retrying import ATTEMPTS_MAX, pause_before, persevere, retry_after_s

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)


def unavailable(retry_after_s: float | None = None) -> RegistryUnavailable:
    return RegistryUnavailable("reg", "it failed", retry_after_s=retry_after_s)


@pytest.mark.parametrize(("seconds", "pause_s"), [(59.0, 59.0), (60.0, 60.0), (61.0, None), (3600.0, None)])
def test_S06_retry_after_is_honoured_up_to_60_s_and_ends_it_beyond(
    seconds: float, pause_s: float | None
) -> None:
    assert pause_before(2, unavailable(seconds), chance=0.0) == pause_s


@pytest.mark.parametrize(("attempt", "is_made"), [(4, True), (5, True), (6, False)])
def test_S06_there_are_5_attempts_and_no_sixth(attempt: int, is_made: bool) -> None:
    assert (pause_before(attempt, unavailable(), chance=0.5) is not None) is is_made
    assert (pause_before(attempt, unavailable(1.0), chance=0.5) is not None) is is_made


@given(attempt=st.integers(2, ATTEMPTS_MAX), chance=st.floats(0, 1, exclude_max=True))
def test_S06_pauses_double_with_jitter(attempt: int, chance: float) -> None:
    longest_s = 0.5 * 2 ** (attempt - 2)
    pause_s = pause_before(attempt, unavailable(), chance=chance)
    assert pause_s is not None
    assert longest_s / 2 <= pause_s <= longest_s


@given(seconds=st.floats(-10, 60), chance=st.floats(0, 1, exclude_max=True))
def test_S06_nobody_comes_back_before_the_time_that_was_asked_for(seconds: float, chance: float) -> None:
    pause_s = pause_before(2, unavailable(seconds), chance=chance)
    assert pause_s is not None
    assert max(0.0, seconds) <= pause_s <= max(0.0, seconds) + 1


@pytest.mark.parametrize("error", [RegistryError("reg", "x"), RegistryDenied("reg", "x"), ValueError("x")])
def test_S06_what_does_not_get_better_is_not_tried_again(error: Exception) -> None:
    assert pause_before(2, error, chance=0.0) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Wed, 01 Jul 2026 12:00:30 GMT", 30.0),
        ("Wed, 01 Jul 2026 11:00:00 GMT", 0.0),
        ("Wed, 01 Jul 2026 12:00:30", 30.0),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 11, None),
        ("²", None),
        (None, None),
    ],
)
def test_S06_retry_after_is_a_number_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds


@given(st.text(max_size=40))
def test_no_retry_after_is_a_fault_of_ours(value: str) -> None:
    found = retry_after_s(value, NOW - timedelta(days=1))
    assert found is None or found >= 0


class Operation:
    def __init__(self, *outcomes: Exception | str) -> None:
        self.outcomes = list(outcomes)
        self.pauses: list[float] = []

    def __call__(self) -> str:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def persevere(self) -> str:
        return persevere(self, wait=self.pauses.append, chance=lambda: 0.0)


def test_S06_an_operation_is_repeated_until_it_succeeds() -> None:
    operation = Operation(unavailable(), unavailable(7.0), unavailable(), "done")
    assert operation.persevere() == "done"
    assert operation.pauses == [0.25, 7.0, 1.0]


def test_S06_after_the_fifth_attempt_the_last_error_is_told() -> None:
    operation = Operation(*(RegistryUnavailable("reg", str(number)) for number in range(6)))
    with pytest.raises(RegistryUnavailable, match="4"):
        operation.persevere()
    assert len(operation.outcomes) == 1
    assert len(operation.pauses) == ATTEMPTS_MAX - 1


def test_S06_a_4xx_is_told_at_once() -> None:
    operation = Operation(RegistryDenied("reg", "no"))
    with pytest.raises(RegistryDenied):
        operation.persevere()
    assert operation.pauses == []


def test_a_pause_ends_when_the_transfer_is_given_up() -> None:
    def wait(_seconds: float) -> None:
        raise TransferAborted("given up")

    with pytest.raises(TransferAborted):
        persevere(Operation(unavailable()), wait=wait, chance=lambda: 0.0)
