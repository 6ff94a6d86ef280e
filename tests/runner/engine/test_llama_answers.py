"""Constraints, logprobs, echoed prompts and several answers, with llama.cpp and a real model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from runner.domain.constraints import Constraint, ConstraintKind
from runner.domain.engine import EngineOptions
from runner.domain.events import Finished, FinishReason, PromptText, TextDelta
from runner.domain.sampling import SamplingParams
from runner.engine.backend import Backend, DecodeResult, load_backend
from runner.engine.constraints import CompiledConstraint, ConstraintCompiler
from runner.engine.engine import Engine, EngineEvent, SequenceRequest

# one thread: several spin at barriers, and crawl where the cores are shared with other tests
OPTIONS = EngineOptions(context_size=256, n_cells=512, max_sequences=4, prefill_chunk=32, n_threads=1)
QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def backend(default_model_file: Path) -> Iterator[Backend]:
    backend = load_backend("llama", default_model_file, OPTIONS, lambda _: True)
    yield backend
    backend.close()


@pytest.fixture
def engine(backend: Backend) -> Iterator[Engine]:
    """An engine of its own over the shared backend, whose cells must be free again afterwards."""
    engine = Engine(backend, OPTIONS)
    yield engine
    assert not engine.has_work
    engine.forget_retained()


def logits_after(backend: Backend, tokens: list[int]) -> npt.NDArray[np.float64]:
    """Of the last of `tokens`, computed in one pass."""
    n_rows = len(tokens)
    batch = backend.batch
    batch.tokens[:n_rows] = tokens
    batch.positions[:n_rows] = range(n_rows)
    batch.sequence_ids[:n_rows] = 0
    batch.wants_logits[:n_rows] = 0
    batch.wants_logits[n_rows - 1] = 1
    assert backend.decode(n_rows) is DecodeResult.DONE
    found = backend.logits(n_rows - 1).astype(np.float64)
    backend.drop_cells(0)
    return found


def run(engine: Engine) -> tuple[dict[str, str], dict[str, Finished]]:
    texts: dict[str, str] = {}
    ends: dict[str, Finished] = {}
    while engine.has_work:
        for request_id, event in engine.step().events:
            if isinstance(event, TextDelta):
                texts[request_id] = texts.get(request_id, "") + event.text
            else:
                assert isinstance(event, Finished), event
                ends[request_id] = event
    return texts, ends


# constraints


PERSON = """{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"},
"colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 3}},
"required": ["name", "age", "colours"], "additionalProperties": false}"""


@pytest.fixture(scope="module")
def compiler(backend: Backend) -> ConstraintCompiler:
    return ConstraintCompiler(backend.new_constraint_tokenizer)


def constrained(
    engine: Engine, backend: Backend, compiled: CompiledConstraint, *samplings: SamplingParams
) -> list[str]:
    """Whole answers, one for each."""
    tokens = tuple(backend.tokenize(QUESTION, add_special=True, parse_special=True))
    for index, sampling in enumerate(samplings):
        engine.submit(
            SequenceRequest(
                request_id=str(index),
                prompt_tokens=tokens,
                sampling=sampling,
                max_tokens=100,
                constraint=compiled,
                submitted_s=time.monotonic(),
            )
        )
    texts, ends = run(engine)
    return [texts[name] for name, end in ends.items() if end.reason is FinishReason.STOP]


def test_answers_match_their_schema_whatever_the_sampling(
    backend: Backend, engine: Engine, compiler: ConstraintCompiler
) -> None:
    schema = Constraint(kind=ConstraintKind.JSON_SCHEMA, source=PERSON, path="response_format")
    samplings = [GREEDY] + [SamplingParams(temperature=1.5, seed=seed, min_p=0.1) for seed in range(4)]
    samplings += [SamplingParams(mirostat=2, seed=1), SamplingParams(repeat_penalty=1.3, temperature=0)]
    answers = [
        json.loads(text) for text in constrained(engine, backend, compiler.compile(schema), *samplings)
    ]
    assert len(answers) >= 3
    for answer in answers:
        assert list(answer) == ["name", "age", "colours"]
        assert type(answer["age"]) is int
        assert 1 <= len(answer["colours"]) <= 3
        assert {"red", "green", "blue"}.issuperset(answer["colours"])


def test_the_end_of_a_turn_is_an_end_in_a_constraint_too(
    backend: Backend, engine: Engine, compiler: ConstraintCompiler
) -> None:
    words = Constraint(kind=ConstraintKind.REGEX, source="[a-zA-Z .]+", path="guided_regex")
    [text] = constrained(engine, backend, compiler.compile(words), GREEDY)
    assert "Paris" in text
    assert "<" not in text


def test_equal_seeds_give_equal_constrained_answers(
    backend: Backend, engine: Engine, compiler: ConstraintCompiler
) -> None:
    digits = Constraint(kind=ConstraintKind.REGEX, source="[0-9]{12}", path="guided_regex")
    compiled = compiler.compile(digits)
    hot = SamplingParams(temperature=1.5, seed=5)
    answers = [constrained(engine, backend, compiled, hot) for _ in range(2)]
    assert answers[0] == answers[1]


# several answers, logprobs, echo


STORY = "Once upon a time"


def events_of(engine: Engine, request: SequenceRequest) -> list[EngineEvent]:
    engine.submit(request)
    events: list[EngineEvent] = []
    while engine.has_work:
        events += [event for _, event in engine.step().events]
    return events


def asking(backend: Backend, text: str = QUESTION, **fields: Any) -> SequenceRequest:
    tokens = tuple(backend.tokenize(text, add_special=True, parse_special=True))
    wishes: dict[str, Any] = {"sampling": GREEDY, "max_tokens": 4, **fields}
    return SequenceRequest(request_id="0", prompt_tokens=tokens, submitted_s=time.monotonic(), **wishes)


def test_logprobs_of_an_echoed_prompt_are_those_of_a_softmax_over_each_row(
    backend: Backend, engine: Engine
) -> None:
    request = asking(backend, echo=True, logprobs=3)
    tokens = list(request.prompt_tokens)
    events = events_of(engine, request)
    told = [one for event in events if isinstance(event, PromptText) for one in event.logprobs]
    assert [one.token_id for one in told] == tokens
    assert "".join(event.text for event in events if isinstance(event, PromptText)) == QUESTION
    assert told[0].logprob is None
    engine.forget_retained()
    for n_tokens in (1, 5, len(tokens) - 1):
        logits = logits_after(backend, tokens[:n_tokens])
        expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        found = told[n_tokens]
        assert found.logprob == pytest.approx(expected[tokens[n_tokens]], abs=0.2)
        assert found.top[0].token_id == expected.argmax()
        assert [top.logprob for top in found.top] == sorted((top.logprob for top in found.top), reverse=True)


def test_greedy_tokens_are_the_likeliest(backend: Backend, engine: Engine) -> None:
    events = events_of(engine, asking(backend, logprobs=5, max_tokens=60))
    answered = [one for event in events if isinstance(event, TextDelta) for one in event.logprobs]
    assert all(one.token_id == one.top[0].token_id for one in answered)
    assert b"".join(one.text for one in answered).decode() == "".join(
        event.text for event in events if isinstance(event, TextDelta)
    )


def test_logprobs_are_raw_whatever_is_ruled_out(
    backend: Backend, engine: Engine, compiler: ConstraintCompiler
) -> None:
    digits = Constraint(kind=ConstraintKind.REGEX, source="[0-9]", path="guided_regex")
    request = asking(backend, logprobs=1, constraint=compiler.compile(digits))
    deltas = [event for event in events_of(engine, request) if isinstance(event, TextDelta)]
    [one] = [one for delta in deltas for one in delta.logprobs]
    assert one.text.isdigit()
    assert one.logprob is not None
    assert one.logprob < one.top[0].logprob
    assert not one.top[0].text.isdigit()


def test_several_answers_differ_with_one_seed_and_are_the_same_again(
    backend: Backend, engine: Engine
) -> None:
    def answers() -> list[str]:
        hot = SamplingParams(temperature=1.5, seed=5)
        engine.forget_retained()
        texts = ["", "", ""]
        for event in events_of(engine, asking(backend, STORY, n=3, sampling=hot, max_tokens=8)):
            if isinstance(event, TextDelta):
                texts[event.choice_index] += event.text
        return texts

    first = answers()
    assert len(set(first)) == 3
    assert answers() == first
