"""What requests ask of their answers, through the worker's loop with the scripted engine."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.domain.constraints import Constraint, ConstraintKind
from runner.domain.events import Accepted, Examined, Failed, Finished, PromptText, TextDelta
from runner.domain.generation import (
    EXAMINED_BYTES_MAX,
    ChatMessage,
    ChatPrompt,
    Examination,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from runner.engine.fake import ANSWER, BOS, END
from runner.wire.messages import Cancel
from tests.support.worker_peer import WorkerThread, chat, generate, has_ended, text_of, worker_thread


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[WorkerThread]:
    weights = tmp_path / "weights"
    weights.write_bytes(b"no directives")
    with worker_thread() as worker:
        worker.load(weights)
        yield worker


# constraints


def json_object(path: str = "response_format") -> Constraint:
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, source='{"type":"object"}', path=path)


def test_an_answer_keeps_to_its_constraint(loaded: WorkerThread) -> None:
    loaded.send(
        chat("one", '[[say {"a": 1} and more]]', constraint=json_object()),
        chat("two", "[[say free]]"),
    )
    events = loaded.outcomes("one", "two")
    assert isinstance(events["one"][0], Accepted)
    assert text_of(events["one"]) == '{"a": 1}'
    assert text_of(events["two"]) == "free"


def test_N15_a_constraint_that_does_not_compile_is_refused_and_generates_nothing(
    loaded: WorkerThread,
) -> None:
    bad = Constraint(kind=ConstraintKind.JSON_SCHEMA, source='{"not": {}}', path="json_schema")
    loaded.send(chat("one", "[[say hello]]", constraint=bad))
    [failed] = loaded.outcome("one")
    assert isinstance(failed, Failed)
    assert failed.code == "invalid_parameter"
    assert failed.message.startswith("json_schema: ")
    assert loaded.steps[-1].step_index == 0


def test_a_constrained_request_can_be_cancelled_while_it_is_prepared(loaded: WorkerThread) -> None:
    loaded.send(
        chat("gone", "[[forever]]", constraint=json_object()), Cancel("gone"), chat("one", "[[say hello]]")
    )
    events = loaded.outcomes("one")
    assert not has_ended(events.get("gone", []))


# reasoning


REASONING = "{% for turn in messages %}{{ turn.content }}{% endfor %}{# <think> #}<|answer|>"


def test_reasoning_comes_apart_from_the_answer_and_before_its_constraint(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"no directives")
    with worker_thread() as worker:
        worker.load(weights, template=REASONING)
        worker.send(
            chat("cut", "[[say <think>hm</think>{} and more]]", constraint=json_object()),
            chat("whole", "[[say <think>hm</think>{} and more]]", separates_reasoning=False),
        )
        events = worker.outcomes("cut", "whole")
    thoughts = [event for event in events["cut"] if isinstance(event, TextDelta) and event.is_reasoning]
    assert "".join(thought.text for thought in thoughts) == "hm"
    assert text_of(events["cut"]) == "hm{}"
    finished = events["cut"][-1]
    assert isinstance(finished, Finished)
    assert finished.usage.reasoning_tokens == len("<think>hm</think>")
    assert text_of(events["whole"]) == "<think>hm</think>{} and more"


# several answers, logprobs, echo


def test_several_answers_come_through_one_request(loaded: WorkerThread) -> None:
    loaded.send(chat("one", "[[say hello]]", n=3))
    events = loaded.outcome("one")
    assert [type(event) for event in events].count(Accepted) == 1
    texts = ["", "", ""]
    for event in events:
        if isinstance(event, TextDelta):
            texts[event.choice_index] += event.text
    assert texts == ["hello"] * 3


def test_logprobs_and_the_prompt_come_through_frames(loaded: WorkerThread) -> None:
    loaded.send(generate("one", TokenPrompt(tuple(b"abc")), logprobs=20, echo=True, max_tokens=2))
    events = loaded.outcome("one")
    pieces = [event for event in events if isinstance(event, PromptText)]
    assert "".join(piece.text for piece in pieces) == "abc"
    assert [one.logprob is None for piece in pieces for one in piece.logprobs] == [True, False, False]
    answered = [one for event in events if isinstance(event, TextDelta) for one in event.logprobs]
    assert [(one.text, len(one.top)) for one in answered] == [(b"d", 20), (b"e", 20)]


# examinations


def examined(worker: WorkerThread, prompt: Prompt, examination: Examination) -> Examined:
    worker.send(generate("one", prompt, examination=examination))
    [event] = worker.outcome("one")
    assert isinstance(event, Examined), event
    return event


def token_ids(event: Examined) -> list[int]:
    found = array("i")
    found.frombytes(event.data)
    return found.tolist()


def test_a_prompt_is_examined_without_a_step(loaded: WorkerThread) -> None:
    text = TextPrompt("hé<|end|>")
    assert token_ids(examined(loaded, text, Examination.TOKENS)) == [BOS, *"hé".encode(), END, ANSWER]
    assert token_ids(examined(loaded, text, Examination.PLAIN_TOKENS)) == [*"hé".encode(), END]
    assert examined(loaded, text, Examination.COUNT) == Examined(6)
    messages = ChatPrompt(messages=(ChatMessage(role="user", content="hi"),))
    assert examined(loaded, messages, Examination.TEXT).data == b"<|user|>hi<|end|><|answer|>"
    assert examined(loaded, messages, Examination.COUNT) == Examined(6)
    tokens = TokenPrompt((BOS, *"hé".encode(), END))
    assert examined(loaded, tokens, Examination.TEXT).data.decode() == "<|bos|>hé<|end|>"
    assert loaded.steps[-1].step_index == 0


def test_what_is_too_long_to_run_is_counted(loaded: WorkerThread) -> None:
    assert examined(loaded, TextPrompt("x" * 5000), Examination.COUNT).n_tokens == 5002


@pytest.mark.parametrize(
    ("examination", "size"),
    [(Examination.TEXT, EXAMINED_BYTES_MAX), (Examination.PLAIN_TOKENS, EXAMINED_BYTES_MAX // 4)],
)
def test_what_is_told_fits_a_frame(loaded: WorkerThread, examination: Examination, size: int) -> None:
    assert len(examined(loaded, TextPrompt("x" * size), examination).data) == EXAMINED_BYTES_MAX
    loaded.send(generate("two", TextPrompt("x" * (size + 1)), examination=examination))
    [failed] = loaded.outcome("two")
    assert isinstance(failed, Failed)
    assert failed.code == "invalid_parameter"


def test_an_examination_that_cannot_be_is_refused(loaded: WorkerThread) -> None:
    loaded.send(generate("one", TokenPrompt((10**6,)), examination=Examination.TEXT))
    [failed] = loaded.outcome("one")
    assert isinstance(failed, Failed)
    assert failed.code == "invalid_parameter"
