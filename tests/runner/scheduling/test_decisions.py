"""Decisions are kept with their numbers, and not for ever."""

from __future__ import annotations

import pytest

from runner.domain.device_bytes import DeviceBytes
from runner.oci.digest import Digest
from runner.scheduling.decisions import Action, Decision, DecisionLog, amounts

A, B = Digest.of(b"a"), Digest.of(b"b")


def decision(model_id: Digest, at_s: float) -> Decision:
    return Decision(at_s=at_s, model_id=model_id, model="m", action=Action.LOAD, why="it fits")


def test_decisions_are_told_per_model_or_all_oldest_first() -> None:
    log = DecisionLog(10)
    for one in (decision(A, 1.0), decision(B, 2.0), decision(A, 3.0)):
        log.add(one)
    assert log.latest(A) == (decision(A, 1.0), decision(A, 3.0))
    assert [one.at_s for one in log.latest()] == [1.0, 2.0, 3.0]


def test_fresh_decisions_are_taken_once() -> None:
    log = DecisionLog(1)
    log.add(decision(A, 1.0))
    log.add(decision(B, 2.0))
    assert log.take_fresh() == (decision(A, 1.0), decision(B, 2.0))
    assert log.take_fresh() == ()


@pytest.mark.parametrize(("made", "kept"), [(2, 2), (3, 3), (4, 3)])
def test_O08_only_the_latest_decisions_are_kept(made: int, kept: int) -> None:
    log = DecisionLog(3)
    for number in range(made):
        log.add(decision(A, float(number)))
    assert len(log) == kept
    assert log.latest()[-1].at_s == made - 1


def refusal(model_id: Digest, at_s: float, why: str = "its line is full") -> Decision:
    return Decision(at_s=at_s, model_id=model_id, model="m", action=Action.REFUSE, why=why)


def test_O08_a_flood_of_equal_refusals_is_one_decision_that_counts_and_is_told_ever_more_seldom() -> None:
    log = DecisionLog(10)
    log.add(decision(A, 0.0))
    told = []
    for number in range(1, 101):
        log.add(refusal(A, float(number)))
        if number == 50:
            log.add(decision(B, float(number)))
        told += [one.times for one in log.take_fresh() if one.action is Action.REFUSE]
    assert told == [1, 2, 4, 8, 16, 32, 64]
    kept = log.latest(A)
    assert [(one.action, one.at_s, one.times) for one in kept] == [
        (Action.LOAD, 0.0, 1),
        (Action.REFUSE, 100.0, 100),
    ]


def test_a_refusal_for_another_reason_or_after_something_else_stands_alone() -> None:
    log = DecisionLog(10)
    for one in (refusal(A, 1.0), refusal(A, 2.0, "no room"), decision(A, 3.0), refusal(A, 4.0, "no room")):
        log.add(one)
    assert [one.times for one in log.latest()] == [1, 1, 1, 1]


def test_a_forgotten_decision_is_not_counted_on() -> None:
    log = DecisionLog(1)
    log.add(refusal(A, 1.0))
    log.add(decision(B, 2.0))
    log.add(refusal(A, 3.0))
    assert log.latest() == (refusal(A, 3.0),)


def test_bytes_are_told_per_device_where_there_are_gpus() -> None:
    assert amounts("needed_bytes", DeviceBytes.on_host(5)) == {"needed_bytes": 5}
    assert amounts("needed_bytes", DeviceBytes()) == {"needed_bytes": 0}
    on_both = DeviceBytes({"cpu": 5, "CUDA0": 7})
    assert amounts("needed_bytes", on_both) == {"needed_bytes_CUDA0": 7, "needed_bytes_cpu": 5}
