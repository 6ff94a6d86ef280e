"""One sequence: its states, the text it may show, its counts and times."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from runner.domain.events import FinishReason, TextDelta, Timings, Usage
from runner.engine.choosing import Chooser
from runner.engine.sampler import GreedySampler
from runner.engine.sequence import (
    TRANSITIONS,
    InvalidTransition,
    Sequence,
    SequenceRequest,
    SequenceState,
)


def no_logits(row: int) -> npt.NDArray[np.float32]:
    raise AssertionError(f"row {row} was asked for")


def sequence(stop: tuple[str, ...] = (), n_tokens_max: int = 100) -> Sequence:
    request = SequenceRequest(request_id="r", prompt_tokens=(1, 2, 3), stop=stop, submitted_s=10.0)
    return Sequence(
        request,
        order=1,
        n_tokens_max=n_tokens_max,
        chooser=Chooser(GreedySampler(no_logits, ()), no_logits),
    )


def in_state(state: SequenceState) -> Sequence:
    new = sequence()
    new.state = state
    return new


MOVES = {
    SequenceState.PREFILLING: lambda s: s.start(0, 11.0),
    SequenceState.PREEMPTED: lambda s: s.preempt(),
    SequenceState.ENDED: lambda s: s.end(),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(SequenceState, MOVES)))
def test_only_the_transitions_of_the_table_happen(old: SequenceState, new: SequenceState) -> None:
    moved = in_state(old)
    if new in TRANSITIONS[old]:
        MOVES[new](moved)
        assert moved.state is new
    else:
        with pytest.raises(InvalidTransition):
            MOVES[new](moved)
        assert moved.state is old


def test_every_state_has_its_line_in_the_table_and_an_ended_sequence_stays_ended() -> None:
    assert set(TRANSITIONS) == set(SequenceState)
    assert not TRANSITIONS[SequenceState.ENDED]


def test_the_first_token_makes_it_decode() -> None:
    new = sequence()
    new.start(0, 11.0)
    new.add_token(65, 12.0)
    assert new.state is SequenceState.DECODING
    assert (new.n_tokens, new.n_generated, new.n_remaining) == (4, 1, 96)


def test_tokens_without_text_are_counted_in_the_next_delta() -> None:
    new = sequence(stop=("<<",))
    new.start(0, 11.0)
    deltas = []
    for piece in (b"\xc3", b"\xa9", b"<", b"x"):
        new.add_token(1, 12.0)
        deltas.append(new.add_text(piece))
    assert deltas == [[], [TextDelta("é", 2)], [], [TextDelta("<x", 2)]]


def test_a_cut_character_is_left_out_and_one_the_model_left_is_replaced() -> None:
    for ended_by_model, shown in ((False, []), (True, [TextDelta("\ufffd", 1)])):
        new = sequence()
        new.start(0, 11.0)
        new.add_token(1, 12.0)
        new.add_text(b"\xe2\x82")
        assert new.flush(ended_by_model=ended_by_model) == shown


def test_counts_and_times_survive_preemption() -> None:
    new = sequence()
    new.start(0, 11.0)
    new.add_token(1, 13.0)
    new.preempt()
    new.start(1, 20.0)
    new.add_token(1, 25.0)
    finished = new.finished(FinishReason.STOP)
    assert finished.usage == Usage(prompt_tokens=3, completion_tokens=2)
    assert finished.timings == Timings(queued_s=1.0, prefill_s=2.0, decode_s=12.0)


def test_a_sequence_that_never_ran_has_no_times() -> None:
    assert sequence().finished(FinishReason.LENGTH).timings == Timings(queued_s=0, prefill_s=0, decode_s=0)


def test_it_is_full_at_its_limit_and_not_before() -> None:
    new = sequence(n_tokens_max=5)
    new.start(0, 11.0)
    new.add_token(1, 12.0)
    assert not new.is_full
    new.add_token(1, 12.0)
    assert new.is_full
    assert repr(new) == "<Sequence r: decoding, 3 prompt tokens, 2 generated, 0 in cells>"
