"""Deadlines for counted work (L07), and what counts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.watchdog import LoadWatch, WatchdogRules, WorkWatch
from runner.domain.events import Accepted, Failed, Finished, FinishReason, TextDelta, Timings, Usage
from runner.wire.messages import Step, StepEvent

RULES = WatchdogRules(
    load_rise_s=20,
    load_whole_s=60,
    load_bytes_per_s=10,
    judgement_s=15,
    judgement_bytes_per_s=100,
    step_s=10,
    step_bytes_per_s=50,
    prompt_tokens_per_s=2,
)
SIZE = 500
STEP_LIMIT_S = 10 + 500 / 50
FINISHED = Finished(
    reason=FinishReason.STOP,
    usage=Usage(prompt_tokens=1, completion_tokens=1),
    timings=Timings(queued_s=0, prefill_s=0, decode_s=0),
)


def step(*events: tuple[str, StepEvent], prefilled: int = 0, decoded: int = 0) -> Step:
    return Step(
        step_index=1,
        prefill_tokens=prefilled,
        decode_tokens=decoded,
        running=0,
        waiting=0,
        cells_used=0,
        events=events,
    )


def watch() -> WorkWatch:
    return WorkWatch(RULES, SIZE)


def speaking() -> WorkWatch:
    """One request that has had its first text, at 100 s."""
    found = watch()
    found.opened("r", 0, 90)
    found.stepped(step(("r", Accepted(prompt_tokens=10))), 95)
    found.stepped(step(("r", TextDelta("x", 1)), prefilled=10), 100)
    return found


def test_L07_a_load_must_rise_within_a_time_that_grows_with_its_bytes() -> None:
    load = LoadWatch(RULES, 100, 1000.0)
    assert load.due_s == 1000 + 20 + 100 / 10
    load.progressed(0.1, 1005)
    assert load.due_s == 1005 + 30
    assert load.complaint == "no progress for 30 s"
    assert LoadWatch(RULES, 1000, 0.0).due_s == 120


def test_L07_a_load_that_repeats_itself_makes_no_progress() -> None:
    load = LoadWatch(RULES, 0, 0.0)
    load.progressed(0.5, 10)
    load.progressed(0.5, 20)
    load.progressed(0.4, 25)
    assert load.due_s == 10 + 20


def test_L07_a_load_that_creeps_ends_at_the_deadline_of_the_whole() -> None:
    load = LoadWatch(RULES, 100, 0.0)
    for second in range(75):
        load.progressed(second / 100, second)
    assert load.due_s == 60 + 2 * 100 / 10
    assert load.complaint == "not loaded within 80 s"


def test_nobody_waits_then_nothing_is_due() -> None:
    assert watch().due_s == math.inf
    assert watch().is_idle
    found = speaking()
    assert not found.is_idle
    found.closed("r")
    assert found.is_idle and found.due_s == math.inf
    found.closed("r")  # again, and unknown ones


def test_L07_a_request_must_be_judged_within_a_time_that_grows_with_its_size() -> None:
    found = watch()
    found.opened("small", 100, 50)
    assert found.due_s == 50 + 15 + 1
    found.opened("large", 10_000, 60)
    assert found.due_s == 50 + 15 + 100
    assert found.complaint == "no progress for 115 s"


@pytest.mark.parametrize("verdict", [Accepted(prompt_tokens=4), Failed(code="x", message="y")])
def test_a_verdict_on_one_request_is_progress_for_those_behind_it(verdict: StepEvent) -> None:
    found = watch()
    found.opened("a", 0, 0)
    found.opened("b", 0, 1)
    found.stepped(step(("a", verdict)), 14)
    found.closed("a")
    assert found.due_s == 14 + 15


def test_L07_the_first_token_may_take_longer_after_a_longer_prompt() -> None:
    found = watch()
    found.opened("r", 0, 0)
    found.stepped(step(("r", Accepted(prompt_tokens=600))), 5)
    assert found.due_s == 5 + STEP_LIMIT_S + 600 / 2
    found.stepped(step(prefilled=64), 30)
    assert found.due_s == 30 + STEP_LIMIT_S + 600 / 2


def test_L07_between_tokens_only_the_size_of_the_model_counts() -> None:
    found = speaking()
    assert found.due_s == 100 + STEP_LIMIT_S
    found.stepped(step(("r", TextDelta("y", 1)), decoded=1), 101)
    assert found.due_s == 101 + STEP_LIMIT_S
    assert found.complaint == "no progress for 20 s"


def test_L07_a_frame_without_counted_work_is_no_progress() -> None:
    found = speaking()
    found.stepped(step(), 110)
    found.stepped(step(("r", TextDelta("y", 1))), 111)
    found.stepped(step(("unknown", Accepted(prompt_tokens=1))), 112)
    assert found.due_s == 100 + STEP_LIMIT_S


def test_the_clock_of_a_lane_starts_when_the_lane_fills() -> None:
    found = speaking()
    found.stepped(step(("r", FINISHED), decoded=1), 120)
    found.closed("r")
    found.opened("s", 0, 5000)
    found.stepped(step(("s", Accepted(prompt_tokens=0))), 5001)
    assert found.due_s == 5001 + STEP_LIMIT_S


def test_a_request_that_waits_to_be_judged_does_not_hide_an_engine_that_hangs() -> None:
    found = speaking()
    found.opened("s", 100_000, 119)
    assert found.due_s == 100 + STEP_LIMIT_S
    assert found.complaint == "no progress for 20 s"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "accept", "text", "fail", "finish", "close", "work"]),
            st.sampled_from(["a", "b", "c"]),
            st.integers(0, 50),
        ),
        max_size=60,
    )
)
def test_something_is_due_exactly_while_somebody_waits(history: list[tuple[str, str, int]]) -> None:
    found, waiting, now_s = watch(), set[str](), 0.0
    events: dict[str, StepEvent] = {
        "accept": Accepted(prompt_tokens=3),
        "text": TextDelta("x", 1),
        "fail": Failed(code="x", message="y"),
        "finish": FINISHED,
    }
    for what, request_id, seconds in history:
        now_s += seconds
        match what:
            case "open" if request_id not in waiting:
                found.opened(request_id, 10, now_s)
                waiting.add(request_id)
            case "close":
                found.closed(request_id)
                waiting.discard(request_id)
            case "work":
                found.stepped(step(decoded=1), now_s)
            case "accept" | "text" | "fail" | "finish":
                found.stepped(step((request_id, events[what])), now_s)
                if what in ("fail", "finish"):
                    found.closed(request_id)  # as the handle does
                    waiting.discard(request_id)
        assert found.is_idle is (not waiting)
        assert (found.due_s == math.inf) is found.is_idle
        assert found.due_s >= min(now_s, found.due_s)
