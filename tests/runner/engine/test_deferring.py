"""Constraints that begin where reasoning ends, on the scripted backend: a token is a byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.constraints import Constraint, ConstraintKind
from runner.domain.engine import EngineOptions
from runner.domain.events import Failed, Finished, TextDelta
from runner.engine.constraints import CompiledConstraint, ConstraintCompiler
from runner.engine.deferring import DeferredMatcher
from runner.engine.engine import Engine, EngineEvent, SequenceRequest
from runner.engine.fake import ANSWER, END, ScriptedBackend
from runner.engine.reasoning import Reasoning, SpelledMarkers

OPTIONS = EngineOptions(context_size=512, n_cells=1024, max_sequences=4, prefill_chunk=16)
COMPILER = ConstraintCompiler(ScriptedBackend(OPTIONS).new_constraint_tokenizer)
MARKERS = SpelledMarkers(
    start="<think>", end="</think>", start_tokens=tuple(b"<think>"), end_tokens=tuple(b"</think>")
)
MAY_OPEN = Reasoning(markers=MARKERS)
IS_OPEN = Reasoning(markers=MARKERS, is_open=True)
UNCUT = Reasoning(markers=MARKERS, is_separated=False)


def compiled(source: str, kind: ConstraintKind = ConstraintKind.REGEX) -> CompiledConstraint:
    return COMPILER.compile(Constraint(kind=kind, source=source, path="response_format"))


OBJECT = compiled('{"type":"object"}', ConstraintKind.JSON_SCHEMA)


@attrs.define
class Answer:
    reasoning: str = ""
    text: str = ""
    logprobs: bytes = b""
    deltas: list[TextDelta] = attrs.field(factory=list)
    end: EngineEvent | None = None

    @property
    def reason(self) -> str:
        assert isinstance(self.end, Finished), self.end
        return self.end.reason.value

    @property
    def reasoning_tokens(self) -> int:
        assert isinstance(self.end, Finished), self.end
        return self.end.usage.reasoning_tokens


class Bench:
    def __init__(self, options: EngineOptions = OPTIONS) -> None:
        self.backend = ScriptedBackend(options, sleep=lambda _: None)
        self.engine = Engine(self.backend, options)

    def submit(
        self,
        question: str,
        constraint: CompiledConstraint | None = None,
        reasoning: Reasoning | None = MAY_OPEN,
        *,
        request_id: str = "a",
        **fields: Any,
    ) -> None:
        tokens = self.backend.tokenize(question, add_special=True, parse_special=True)
        self.engine.submit(
            SequenceRequest(
                request_id=request_id,
                prompt_tokens=tuple(tokens),
                constraint=constraint,
                reasoning=reasoning,
                submitted_s=0.0,
                **fields,
            )
        )

    def run(self) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        while self.engine.has_work:
            for request_id, event in self.engine.step().events:
                answer = answers.setdefault(request_id, Answer())
                if not isinstance(event, TextDelta):
                    answer.end = event
                    continue
                answer.deltas.append(event)
                answer.logprobs += b"".join(one.text for one in event.logprobs)
                if event.is_reasoning:
                    answer.reasoning += event.text
                else:
                    answer.text += event.text
        return answers

    def answer(self, question: str, *arguments: Any, **fields: Any) -> Answer:
        self.submit(question, *arguments, **fields)
        return self.run()["a"]


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.engine.close()
    assert made.backend.cells_used == 0


# without a constraint


def test_reasoning_and_answer_come_apart(bench: Bench) -> None:
    answer = bench.answer("[[say <think>\nWell, é.\n</think>\n\nYes.]]")
    assert (answer.reasoning, answer.text, answer.reason) == ("Well, é.", "Yes.", "stop")
    assert answer.reasoning_tokens == len("<think>\nWell, é.\n</think>".encode())
    assert [delta.is_reasoning for delta in answer.deltas] == sorted(
        (delta.is_reasoning for delta in answer.deltas), reverse=True
    )


def test_an_answer_without_reasoning_counts_none(bench: Bench) -> None:
    answer = bench.answer("[[say <b>Yes</b>]]")
    assert (answer.reasoning, answer.text, answer.reasoning_tokens) == ("", "<b>Yes</b>", 0)


def test_what_is_not_to_be_cut_stays_in_the_answer(bench: Bench) -> None:
    answer = bench.answer("[[say <think>a</think>b]]", None, UNCUT)
    assert (answer.reasoning, answer.text, answer.reasoning_tokens) == ("", "<think>a</think>b", 0)


@pytest.mark.parametrize("max_tokens", [1, 6, 7, 8, 10, 14])
def test_a_limit_within_reasoning_leaves_the_answer_empty(bench: Bench, max_tokens: int) -> None:
    answer = bench.answer("[[say <think>abc</think>Yes]]", max_tokens=max_tokens)
    assert (answer.text, answer.reason) == ("", "length")
    assert "abc".startswith(answer.reasoning)
    assert answer.reasoning_tokens == (max_tokens if max_tokens >= 7 else 0)


def test_a_model_that_ends_its_turn_while_it_reasons_has_answered_nothing(bench: Bench) -> None:
    answer = bench.answer("[[say <think>abc]]")
    assert (answer.reasoning, answer.text, answer.reason) == ("abc", "", "stop")
    assert answer.reasoning_tokens == len("<think>abc") + 1


def test_stop_strings_are_looked_for_in_the_answer_only(bench: Bench) -> None:
    answer = bench.answer("[[say <think>no stop here</think>go, stop, no]]", stop=("stop",))
    assert (answer.reasoning, answer.text, answer.reason) == ("no stop here", "go, ", "stop")


def test_where_nothing_is_cut_a_stop_string_ends_reasoning_too(bench: Bench) -> None:
    answer = bench.answer("[[say <think>no stop here</think>go]]", None, UNCUT, stop=("stop",))
    assert (answer.text, answer.reason) == ("<think>no ", "stop")


def test_logprobs_are_of_the_answers_tokens_only(bench: Bench) -> None:
    answer = bench.answer("[[say <think>a é</think>\n\né☀ yes]]", logprobs=0)
    assert answer.text == "é☀ yes"
    assert answer.logprobs == "é☀ yes".encode()
    assert not any(delta.logprobs for delta in answer.deltas if delta.is_reasoning)


def test_logprobs_of_what_might_have_been_a_marker_are_kept(bench: Bench) -> None:
    assert bench.answer("[[say <thing>]]", logprobs=0).logprobs == b"<thing>"


def test_several_answers_are_cut_each_for_itself_and_counted_together(bench: Bench) -> None:
    answer = bench.answer("[[say <think>a</think>b]]", n=3)
    assert [delta.text for delta in answer.deltas if delta.is_reasoning] == ["a"] * 3
    assert {delta.choice_index for delta in answer.deltas} == {0, 1, 2}
    assert answer.reasoning_tokens == 3 * len("<think>a</think>")


def test_markers_that_are_control_tokens_are_seen(bench: Bench) -> None:
    class Vocabulary(ScriptedBackend):
        """Whose `A` and `B` are control tokens."""

        def token_piece(self, token_id: int) -> bytes:
            return b"" if token_id in b"AB" else super().token_piece(token_id)

    names = {ord("A"): b"[THINK]", ord("B"): b"[/THINK]"}
    markers = SpelledMarkers(
        start="[THINK]",
        end="[/THINK]",
        start_tokens=(ord("A"), *b"THINK]"),
        end_tokens=(ord("B"), *b"/THINK]"),
        names=names,
    )
    bench.engine = Engine(Vocabulary(OPTIONS), OPTIONS)
    for is_separated, parts in ((True, ("hm", "{}")), (False, ("", "[THINK]hm[/THINK]{}"))):
        for constraint in (None, OBJECT):
            reasoning = Reasoning(markers=markers, is_separated=is_separated)
            answer = bench.answer("[[say AhmB{}]]", constraint, reasoning)
            assert (answer.reasoning, answer.text) == parts


# with one


def test_the_constraint_holds_behind_the_reasoning(bench: Bench) -> None:
    answer = bench.answer('[[say <think>let me {see</think>{"a": 1} and more]]', OBJECT)
    assert (answer.reasoning, answer.text, answer.reason) == ("let me {see", '{"a": 1}', "stop")


def test_it_holds_from_the_first_token_behind_the_marker(bench: Bench) -> None:
    answer = bench.answer("[[say <think>hm</think>\n\nSure: 12]]", compiled("[0-9]{3}"))
    assert answer.reasoning == "hm"
    assert re.fullmatch("[0-9]{3}", answer.text)


def test_a_prompt_that_opened_the_reasoning_leaves_it_free(bench: Bench) -> None:
    answer = bench.answer("[[say hm</think>{}]]", OBJECT, IS_OPEN)
    assert (answer.reasoning, answer.text) == ("hm", "{}")


def test_where_no_reasoning_begins_it_holds_at_once(bench: Bench) -> None:
    answer = bench.answer('[[say {"a": 1}]]', OBJECT)
    assert (answer.reasoning, answer.text) == ("", '{"a": 1}')
    answer = bench.answer("[[say Well, <think>hm</think>12]]", compiled("[0-9]{2}"))
    assert (answer.reasoning, len(answer.text)) == ("", 2)
    assert answer.text.isdecimal()


def test_a_model_that_begins_the_marker_and_cannot_answer_so_goes_on_with_it(bench: Bench) -> None:
    answer = bench.answer("[[say <tho]]", compiled("[0-9]{2}"), max_tokens=40)
    assert answer.reasoning_tokens > 7
    assert not answer.text or answer.text.isdecimal()


def test_an_answer_that_begins_like_the_marker_is_an_answer(bench: Bench) -> None:
    answer = bench.answer("[[say <thing>]]", compiled("<th[a-z]+>"))
    assert (answer.reasoning, answer.text, answer.reason) == ("", "<thing>", "stop")


def test_where_an_answer_could_begin_with_the_marker_it_is_reasoning(bench: Bench) -> None:
    answer = bench.answer("[[say <think>a</think>b]]", compiled("(.|\n)*"))
    assert (answer.reasoning, answer.text) == ("a", "b")


def test_an_answer_may_be_whole_before_the_marker_is(bench: Bench) -> None:
    answer = bench.answer("[[say <think>]]", compiled("<t"))
    assert (answer.reasoning, answer.text, answer.reason) == ("", "<t", "stop")


def test_a_model_that_ends_its_turn_while_it_reasons_has_to_answer(bench: Bench) -> None:
    answer = bench.answer("[[say <think>hm]]", compiled("[0-9]{3}"))
    assert (answer.reasoning, answer.reason) == ("hm", "stop")
    assert re.fullmatch("[0-9]{3}", answer.text)
    answer = bench.answer("[[say hm</thi]]", compiled("[0-9]{3}"), IS_OPEN)
    assert (answer.reasoning, answer.reason) == ("hm", "stop")
    assert re.fullmatch("[0-9]{3}", answer.text)


def test_the_order_is_the_same_where_nothing_is_cut(bench: Bench) -> None:
    answer = bench.answer('[[say <think>hm</think>{"a":1} more]]', OBJECT, UNCUT)
    assert (answer.reasoning, answer.text) == ("", '<think>hm</think>{"a":1}')


def test_a_limit_within_reasoning_leaves_nothing_of_a_constrained_answer(bench: Bench) -> None:
    answer = bench.answer("[[say <think>hm, hm</think>{}]]", OBJECT, max_tokens=10)
    assert (answer.reasoning, answer.text, answer.reason) == ("hm,", "", "length")


def test_when_ends_are_ignored_reasoning_goes_on_until_it_is_closed(bench: Bench) -> None:
    answer = bench.answer("[[say hm</think>{}]]", OBJECT, IS_OPEN, ignore_eos=True)
    assert (answer.reasoning, answer.text) == ("hm", "{}")
    answer = bench.answer("[[say hm]]", OBJECT, IS_OPEN, ignore_eos=True, max_tokens=20)
    assert (answer.text, answer.reason) == ("", "length")


def test_logprobs_of_a_constrained_answer_are_its_own(bench: Bench) -> None:
    answer = bench.answer("[[say <think>hm</think>{} more]]", OBJECT, logprobs=0)
    assert answer.logprobs == answer.text.encode() == b"{}"


def test_a_preempted_sequence_goes_on_where_it_was() -> None:
    options = EngineOptions(context_size=120, n_cells=120, max_sequences=4, prefill_chunk=16)
    bench = Bench(options)
    question = "[[say <think>]][[repeat 12 ab]][[say </think>121212]]"
    for name in "abc":
        bench.submit(question, compiled("(12)*"), request_id=name)
    answers = bench.run()
    assert bench.engine.statistics().counts.preemptions > 0
    for answer in answers.values():
        assert (answer.reasoning, answer.text) == ("ab" * 12, "121212")
    bench.engine.close()


def test_N15_an_answer_whose_constraint_breaks_behind_reasoning_fails() -> None:
    bench = Bench()
    source = 'start: "b" ' + " ".join("a?" for _ in range(2500)) + '\na: "x"'
    bench.submit("[[say <think>hm</think>bxxx]]", compiled(source, ConstraintKind.LARK))
    answer = bench.run()["a"]
    assert answer.reasoning == "hm"
    assert isinstance(answer.end, Failed)
    assert answer.text in ("", "b")
    bench.engine.close()


says = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</th", "a", " ", "\n", "12", "{", "é"]), max_size=8
).map("".join)


@given(says, st.booleans(), st.booleans())
def test_N15_whatever_the_model_says_the_answer_is_what_was_asked_for(
    text: str, is_open: bool, is_separated: bool
) -> None:
    bench = Bench()
    reasoning = Reasoning(markers=MARKERS, is_open=is_open, is_separated=is_separated)
    answer = bench.answer(f"[[hex {text.encode().hex()}]]", compiled("[0-9]{3}"), reasoning)
    said = answer.text
    if not is_separated:
        if is_open:
            said = said.partition("</think>")[2]
        elif said.startswith("<think>"):
            said = said.removeprefix("<think>").partition("</think>")[2]
    assert answer.reason == "stop"
    assert re.fullmatch("[0-9]{3}", said)
    bench.engine.close()


# the matcher alone, with tokens of several bytes


class Words:
    """A vocabulary of whole words."""

    def __init__(self, *words: str) -> None:
        self._words = words

    def token_piece(self, token_id: int) -> bytes:
        return b"" if token_id >= len(self._words) else self._words[token_id].encode()

    def is_end_of_generation(self, token_id: int) -> bool:
        return token_id == END

    def token(self, word: str) -> int:
        return self._words.index(word)


def matcher_over(words: Words, *, is_open: bool) -> DeferredMatcher:
    return DeferredMatcher(OBJECT, Reasoning(markers=MARKERS, is_open=is_open), words)


def test_a_token_with_text_behind_the_end_marker_is_refused_and_the_rest_of_the_marker_forced() -> None:
    words = Words("hm", "</think", ">\n", "a</think>b")
    matcher = matcher_over(words, is_open=True)
    assert matcher.forced() is None
    assert matcher.take(words.token("hm"))
    assert matcher.take(words.token("</think"))
    assert not matcher.take(words.token(">\n"))
    assert matcher.forced() == ord(">")
    other = matcher_over(words, is_open=True)
    assert not other.take(words.token("a</think>b"))
    assert other.forced() == ord("<")
    assert not other.take(words.token("hm"))


def test_a_token_with_reasoning_behind_the_start_marker_opens_it() -> None:
    words = Words("<think", ">\n", "hm", "</think>")
    matcher = matcher_over(words, is_open=False)
    for word in ("<think", ">\n", "hm", "</think>"):
        assert matcher.take(words.token(word)), word
    assert matcher.take(ord("{"))
    assert matcher.take(ord("}"))
    assert matcher.is_complete


def test_a_token_that_is_reasoning_and_more_is_refused_while_undecided() -> None:
    words = Words("<think></think>{", "<think></think>")
    matcher = matcher_over(words, is_open=False)
    assert not matcher.take(0)
    assert not matcher.take(1)
    assert not matcher.is_complete
    assert matcher.take(ord("{"))


def test_the_end_of_a_turn_is_no_answer() -> None:
    matcher = matcher_over(Words(), is_open=False)
    for token in (END, ANSWER):
        assert not matcher.take(token)


def test_it_tells_where_it_is() -> None:
    assert repr(matcher_over(Words(), is_open=True)) == "<DeferredMatcher: reasoning, None>"


def test_what_it_answers_parses_on_its_own(bench: Bench) -> None:
    answer = bench.answer('[[say <think>{"no": </think>{"yes": [true, "</think>"]}]]', OBJECT)
    assert json.loads(answer.text) == {"yes": [True, "</think>"]}
