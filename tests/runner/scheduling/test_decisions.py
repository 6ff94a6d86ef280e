"""Decisions are kept with their numbers, and not for ever."""

from __future__ import annotations

import pytest

from runner.oci.digest import Digest
from runner.scheduling.decisions import Action, Decision, DecisionLog

A, B = Digest.of(b"a"), Digest.of(b"b")


def test_decisions_are_told_per_model_or_all_oldest_first() -> None:
    log = DecisionLog(10)
    log.note(1.0, A, "a", Action.LOAD, "it fits", {"needed_bytes": 5})
    log.note(2.0, B, "b", Action.EVICT, "idle", {})
    first = Decision(
        at_s=1.0, model_id=A, model="a", action=Action.LOAD, why="it fits", numbers={"needed_bytes": 5}
    )
    assert log.latest(A) == (first,)
    assert [decision.model for decision in log.latest()] == ["a", "b"]


@pytest.mark.parametrize(("noted", "kept"), [(2, 2), (3, 3), (4, 3)])
def test_O08_only_the_latest_decisions_are_kept(noted: int, kept: int) -> None:
    log = DecisionLog(3)
    for number in range(noted):
        log.note(float(number), A, "a", Action.READY, "", {})
    assert len(log) == kept
    assert log.latest()[-1].at_s == noted - 1
