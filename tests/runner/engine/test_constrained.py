"""Constrained sequences in the engine, on the scripted backend: nothing but what the constraint allows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.constraints import Constraint, ConstraintKind
from runner.domain.engine import EngineOptions
from runner.domain.events import Failed, Finished, FinishReason, TextDelta
from runner.engine.constraints import CompiledConstraint, ConstraintCompiler
from runner.engine.engine import Engine, EngineEvent, SequenceRequest
from runner.engine.fake import ScriptedBackend

OPTIONS = EngineOptions(context_size=256, n_cells=512, max_sequences=4, prefill_chunk=16)
COMPILER = ConstraintCompiler(ScriptedBackend(OPTIONS).new_constraint_tokenizer)
JSON = ConstraintKind.JSON_SCHEMA
REGEX = ConstraintKind.REGEX


def compiled(kind: ConstraintKind, source: str) -> CompiledConstraint:
    return COMPILER.compile(Constraint(kind=kind, source=source, path="response_format"))


class Bench:
    def __init__(self, options: EngineOptions = OPTIONS) -> None:
        self.backend = ScriptedBackend(options, sleep=lambda _: None)
        self.engine = Engine(self.backend, options)

    def submit(
        self,
        request_id: str,
        question: str,
        constraint: CompiledConstraint | None,
        *,
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
        ignore_eos: bool = False,
    ) -> None:
        self.engine.submit(
            SequenceRequest(
                request_id=request_id,
                prompt_tokens=tuple(self.backend.tokenize(question, add_special=True, parse_special=True)),
                constraint=constraint,
                max_tokens=max_tokens,
                stop=stop,
                ignore_eos=ignore_eos,
                submitted_s=0.0,
            )
        )

    def run(self) -> dict[str, tuple[str, EngineEvent]]:
        """Text and last event of each request."""
        texts: dict[str, str] = {}
        ends: dict[str, EngineEvent] = {}
        while self.engine.has_work:
            for request_id, event in self.engine.step().events:
                if isinstance(event, TextDelta):
                    texts[request_id] = texts.get(request_id, "") + event.text
                else:
                    ends[request_id] = event
        return {request_id: (texts.get(request_id, ""), end) for request_id, end in ends.items()}

    def answer(self, question: str, constraint: CompiledConstraint, **fields: object) -> tuple[str, str]:
        """Text and why it ended."""
        self.submit("a", question, constraint, **fields)  # type: ignore[arg-type]  # whatever a test sets
        text, end = self.run()["a"]
        assert isinstance(end, Finished), end
        return text, end.reason.value


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.engine.close()
    assert made.backend.cells_used == 0


OBJECT = compiled(JSON, '{"type":"object"}')


def test_an_answer_that_is_allowed_stays_as_it_is(bench: Bench) -> None:
    assert bench.answer('[[say {"a": [1, 2]}]]', OBJECT) == ('{"a": [1, 2]}', "stop")


def test_it_ends_where_nothing_can_follow_although_the_model_would_go_on(bench: Bench) -> None:
    assert bench.answer("[[say {} and more]]", OBJECT) == ("{}", "stop")


def test_it_may_end_where_something_could_follow(bench: Bench) -> None:
    assert bench.answer("[[say aab]]", compiled(REGEX, "a+b*")) == ("aab", "stop")


def test_the_model_may_not_end_before_the_answer_is_whole(bench: Bench) -> None:
    text, reason = bench.answer("[[say a]]", compiled(REGEX, "ab{3}"))
    assert (text, reason) == ("abbb", "stop")


def test_what_the_model_would_rather_say_is_ruled_out(bench: Bench) -> None:
    text, _ = bench.answer("[[say hello there]]", compiled(REGEX, "[0-9]{4}"))
    assert re.fullmatch("[0-9]{4}", text)


def test_a_limit_cuts_it_and_says_so(bench: Bench) -> None:
    assert bench.answer('[[say {"a": 1}]]', OBJECT, max_tokens=4) == ('{"a"', "length")


def test_stop_strings_end_it_as_they_end_others(bench: Bench) -> None:
    assert bench.answer('[[say {"a": 1}]]', OBJECT, stop=(": ",)) == ('{"a"', "stop")


def test_when_ends_are_ignored_it_goes_on_as_far_as_the_constraint_lets_it(bench: Bench) -> None:
    assert bench.answer("[[say ab]]", compiled(REGEX, "abc?d?"), ignore_eos=True) == ("abcd", "stop")


def test_sequences_with_and_without_constraints_share_steps(bench: Bench) -> None:
    bench.submit("free", "[[say hello]]", None)
    bench.submit("object", "[[say hello]]", compiled(REGEX, "[x-z]{5}"))
    bench.submit("same", "[[say zyxzy]]", compiled(REGEX, "[x-z]{5}"))
    ended = bench.run()
    assert ended["free"][0] == "hello"
    assert re.fullmatch("[x-z]{5}", ended["object"][0])
    assert ended["same"][0] == "zyxzy"


def test_a_preempted_sequence_goes_on_in_its_constraint() -> None:
    options = EngineOptions(context_size=60, n_cells=60, max_sequences=4, prefill_chunk=16)
    bench = Bench(options)
    for name in "abc":
        bench.submit(name, "[[repeat 40 12]]", compiled(REGEX, "(12)*"), max_tokens=30)
    ended = bench.run()
    assert {text for text, _ in ended.values()} == {"12" * 15}
    assert bench.engine.statistics().counts.preemptions > 0


def test_N15_a_constraint_that_becomes_too_complex_ends_its_sequence_alone_and_nothing_follows() -> None:
    bench = Bench()
    source = 'start: "b" ' + " ".join("a?" for _ in range(2500)) + '\na: "x"'
    bench.submit("a", "[[say bxxx]]", compiled(ConstraintKind.LARK, source))
    bench.submit("b", "[[say hello]]", None)
    ended = bench.run()
    text, end = ended["a"]
    assert isinstance(end, Failed)
    assert end.code == "engine_failed"
    assert re.fullmatch("b?x*", text)
    assert ended["b"][0] == "hello"


def test_N15_where_nothing_that_is_allowed_may_be_chosen_the_sequence_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the end of the turn is allowed, and it is forbidden."""
    monkeypatch.setattr("runner.engine.constraints.Matcher.is_complete", False)
    bench.submit("a", "[[say ab]]", compiled(REGEX, "ab"), ignore_eos=True)
    text, end = bench.run()["a"]
    assert text == "ab"
    assert isinstance(end, Failed)


def test_logits_that_are_no_numbers_fail_a_constrained_sequence_too(bench: Bench) -> None:
    bench.submit("a", "[[nan after 1]][[say ab]]", compiled(REGEX, "ab"))
    text, end = bench.run()["a"]
    assert text == "a"
    assert isinstance(end, Failed)


@given(st.text(st.characters(codec="utf-8", exclude_characters="[]"), max_size=30))
def test_N15_whatever_the_model_says_only_what_is_allowed_comes_out(said: str) -> None:
    bench = Bench()
    schema = '{"properties":{"a":{"type":"integer"}},"required":["a"],"additionalProperties":false}'
    schema = '{"type":"object",' + schema[1:]
    bench.submit("a", f"[[say {said}]]", compiled(JSON, schema), max_tokens=60)
    text, end = bench.run()["a"]
    assert isinstance(end, Finished)
    if end.reason is FinishReason.STOP:
        assert type(json.loads(text)["a"]) is int
    else:
        assert text[:1] in ("{", "")
    assert np.all([byte < 128 for byte in text.encode()])
