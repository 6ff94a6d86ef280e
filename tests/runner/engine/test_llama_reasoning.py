"""Reasoning before a constrained answer, with llama.cpp and the vocabulary of a real model.

The model does not reason; a template that opens the reasoning, or begins it in the model's name, makes it.
Its markers are plain text of several tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import pytest

from runner.chat.control_text import ControlTexts
from runner.chat.template import ChatTemplate
from runner.domain.constraints import Constraint, ConstraintKind
from runner.domain.engine import EngineOptions
from runner.domain.events import Finished, TextDelta
from runner.domain.generation import ChatMessage, ChatPrompt, GenerationRequest
from runner.domain.sampling import SamplingParams
from runner.engine.backend import Backend, load_backend
from runner.engine.constraints import CompiledConstraint, ConstraintCompiler
from runner.engine.deferring import DeferredMatcher
from runner.engine.engine import Engine, SequenceRequest
from runner.engine.reasoning import Reasoning
from runner.worker.preparation import Preparer
from runner.worker.reasoning import ReasoningReader

pytestmark = pytest.mark.real_model

OPTIONS = EngineOptions(context_size=512, n_cells=1024, max_sequences=4, prefill_chunk=32, n_threads=1)
TURNS = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
MAY_OPEN = TURNS + "{# <think> #}"
OPENED = TURNS + "<think>"
SCHEMA = """{"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}},
"required": ["city"], "additionalProperties": false}"""


@pytest.fixture(scope="module")
def backend(default_model_file: Path) -> Iterator[Backend]:
    backend = load_backend("llama", default_model_file, OPTIONS, lambda _: True)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def schema(backend: Backend) -> CompiledConstraint:
    compiler = ConstraintCompiler(backend.new_constraint_tokenizer)
    return compiler.compile(Constraint(kind=ConstraintKind.JSON_SCHEMA, source=SCHEMA, path="p"))


def prepared(backend: Backend, template: str, *, is_separated: bool = True) -> SequenceRequest:
    chat_template = ChatTemplate(template, backend.bos_text, backend.eos_text)
    reader = ReasoningReader(backend, chat_template)
    preparer = Preparer(backend, OPTIONS, chat_template, ControlTexts(backend.control_texts), reader)
    turn = ChatMessage(role="user", content="What is the capital of France?")
    request = GenerationRequest(
        request_id="a",
        prompt=ChatPrompt(messages=(turn,)),
        sampling=SamplingParams(temperature=0),
        max_tokens=200,
        separates_reasoning=is_separated,
    )
    return preparer.prepare(request, 0.0)


def answer(backend: Backend, request: SequenceRequest) -> tuple[str, str, Finished]:
    """Reasoning, answer, end."""
    engine = Engine(backend, OPTIONS)
    engine.submit(request)
    parts = {True: "", False: ""}
    end: Finished | None = None
    while engine.has_work:
        for _, event in engine.step().events:
            if isinstance(event, TextDelta):
                parts[event.is_reasoning] += event.text
            else:
                assert isinstance(event, Finished), event
                end = event
    engine.forget_retained()
    assert end is not None
    return parts[True], parts[False], end


def with_constraint(request: SequenceRequest, schema: CompiledConstraint) -> SequenceRequest:
    return attrs.evolve(request, constraint=schema)


def test_a_model_reasons_freely_and_answers_in_the_form(backend: Backend, schema: CompiledConstraint) -> None:
    request = with_constraint(prepared(backend, OPENED), schema)
    reasoning, text, end = answer(backend, request)
    assert "capital of France" in reasoning
    assert "think>" not in reasoning
    assert list(json.loads(text)) == ["city"]
    assert 0 < end.usage.reasoning_tokens < end.usage.completion_tokens


def test_the_order_is_the_same_in_one_text(backend: Backend, schema: CompiledConstraint) -> None:
    request = with_constraint(prepared(backend, OPENED, is_separated=False), schema)
    reasoning, text, end = answer(backend, request)
    thought, marker, said = text.partition("</think>")
    assert (reasoning, marker, end.usage.reasoning_tokens) == ("", "</think>", 0)
    assert "capital of France" in thought
    assert list(json.loads(said)) == ["city"]


def test_a_model_that_does_not_reason_answers_in_the_form_at_once(
    backend: Backend, schema: CompiledConstraint
) -> None:
    reasoning, text, end = answer(backend, with_constraint(prepared(backend, MAY_OPEN), schema))
    assert (reasoning, end.usage.reasoning_tokens) == ("", 0)
    assert list(json.loads(text)) == ["city"]


def test_without_a_constraint_an_open_reasoning_is_all_there_is(backend: Backend) -> None:
    reasoning, text, _ = answer(backend, prepared(backend, OPENED))
    assert "capital of France" in reasoning
    assert text == ""


@pytest.mark.parametrize("marker_in_pieces", [True, False])
def test_markers_are_followed_over_the_tokens_of_a_real_vocabulary(
    backend: Backend, schema: CompiledConstraint, marker_in_pieces: bool
) -> None:
    reasoning = prepared(backend, MAY_OPEN).reasoning
    assert isinstance(reasoning, Reasoning)
    matcher = DeferredMatcher(schema, reasoning, backend)
    text = '<think>\nParis { is it.</think>{"city": "Paris"}'
    pieces = list(text) if marker_in_pieces else re.findall(r"</?think>|[^<]+", text)
    for piece in pieces:
        for token_id in backend.tokenize(piece, add_special=False, parse_special=True):
            assert matcher.take(token_id), backend.token_piece(token_id)
    assert matcher.is_complete


def test_a_token_that_runs_over_the_end_marker_is_replaced(
    backend: Backend, schema: CompiledConstraint
) -> None:
    """`>\\n` and its like are tokens of real vocabularies."""
    reasoning = prepared(backend, OPENED).reasoning
    assert reasoning is not None
    matcher = DeferredMatcher(schema, reasoning, backend)
    for token_id in backend.tokenize("so.</think", add_special=False, parse_special=True):
        assert matcher.take(token_id)
    [over] = backend.tokenize('>"', add_special=False, parse_special=True)
    assert not matcher.take(over)
    forced = matcher.forced()
    assert forced is not None
    assert backend.token_piece(forced) == b">"
    assert matcher.take(forced)
    logits = np.zeros(backend.facts.n_vocab, np.float32)
    matcher.rule_out(logits)
    allowed = {backend.token_piece(int(token_id)) for token_id in np.flatnonzero(logits == 0)}
    assert allowed
    assert all(piece.lstrip().startswith(b"{") for piece in allowed)
