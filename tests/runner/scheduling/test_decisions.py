"""Decisions are kept with their numbers, and not for ever."""

from __future__ import annotations

import pytest

from runner.oci.digest import Digest
from runner.scheduling.decisions import Action, Decision, DecisionLog

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
