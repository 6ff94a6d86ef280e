"""What became of requests is remembered, and not for ever."""

from __future__ import annotations

import pytest

from runner.scheduling.lifecycle import InstanceState
from runner.scheduling.requests import Outcome, RequestLog, RequestRecord, waited_in
from tests.support.scheduling import model_id

S = InstanceState
HISTORY = [(S.SIZING, 0.0), (S.QUEUED, 2.0), (S.LOADING, 3.0), (S.READY, 10.0)]


def record(name: str, asked_at_s: float = 0.0) -> RequestRecord:
    return RequestRecord(request_id=name, model_id=model_id("a"), model="a", asked_at_s=asked_at_s, ahead=0)


@pytest.mark.parametrize(
    ("from_s", "to_s", "waits"),
    [
        (0.0, 10.0, [(S.SIZING, 2.0), (S.QUEUED, 1.0), (S.LOADING, 7.0)]),
        (2.5, 4.0, [(S.QUEUED, 0.5), (S.LOADING, 1.0)]),
        (11.0, 12.5, [(S.READY, 1.5)]),
        (12.0, 12.0, []),
        (-5.0, 1.0, [(S.SIZING, 1.0)]),
    ],
)
def test_a_wait_is_told_by_the_states_of_the_model(
    from_s: float, to_s: float, waits: list[tuple[InstanceState, float]]
) -> None:
    assert list(waited_in(HISTORY, from_s, to_s)) == waits


def test_a_state_met_twice_is_summed_up() -> None:
    history = [(S.READY, 0.0), (S.YIELDING, 1.0), (S.READY, 3.0), (S.YIELDING, 4.0)]
    assert waited_in(history, 0.0, 9.0) == ((S.READY, 2.0), (S.YIELDING, 7.0))
    assert waited_in([], 0.0, 9.0) == ()


def test_a_request_is_followed_from_asking_to_its_end() -> None:
    log = RequestLog(10)
    log.asked(1, record("r"))
    log.granted(1, 10.0, HISTORY)
    [one] = log.of("r")
    assert (one.outcome, one.granted_at_s) == (Outcome.RUNNING, 10.0)
    assert dict(one.waits) == {S.SIZING: 2.0, S.QUEUED: 1.0, S.LOADING: 7.0}
    log.ended(1, 12.0)
    [one] = log.of("r")
    assert (one.outcome, one.ended_at_s) == (Outcome.ENDED, 12.0)


def test_one_that_asks_twice_is_told_twice_oldest_first() -> None:
    log = RequestLog(10)
    log.asked(1, record("r"))
    log.refused(1, 3.0, "no room", HISTORY)
    log.asked(2, record("r", 4.0))
    log.left(2, 5.0)
    first, second = log.of("r")
    assert (first.outcome, first.refusal, first.ended_at_s) == (Outcome.REFUSED, "no room", 3.0)
    assert (second.outcome, second.waits, second.ended_at_s) == (Outcome.LEFT, (), 5.0)


def test_requests_without_a_name_are_not_followed() -> None:
    log = RequestLog(10)
    log.granted(1, 1.0, HISTORY)
    log.refused(2, 1.0, "no room")
    log.left(3, 1.0)
    log.ended(4, 1.0)
    assert len(log) == 0


@pytest.mark.parametrize(("made", "kept"), [(2, 2), (3, 3), (4, 3)])
def test_O08_only_the_latest_requests_are_kept(made: int, kept: int) -> None:
    log = RequestLog(3)
    for number in range(made):
        log.asked(number, record(str(number)))
    assert len(log) == kept
    assert [one.request_id for one in log.latest(model_id("a"), 2)] == [str(made - 2), str(made - 1)]
    assert log.latest(model_id("b"), 2) == ()
