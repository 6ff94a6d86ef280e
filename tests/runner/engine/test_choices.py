"""Several answers, logprobs and the echoed prompt, on the scripted backend."""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.engine import EngineOptions
from runner.domain.events import ChoiceEnded, Failed, Finished, FinishReason, PromptText, TextDelta
from runner.engine.batcher import Chunk, fit_outputs
from runner.engine.echo import Echo
from runner.engine.engine import Engine, EngineEvent, SequenceRequest
from runner.engine.fake import ANSWER, BOS, N_VOCAB, ScriptedBackend
from runner.engine.logprobs import Scorer, Scores
from runner.engine.sampler import UnusableLogits

OPTIONS = EngineOptions(context_size=256, n_cells=512, max_sequences=4, prefill_chunk=16)


class Bench:
    def __init__(self, options: EngineOptions = OPTIONS) -> None:
        self.backend = ScriptedBackend(options, sleep=lambda _: None)
        self.engine = Engine(self.backend, options)
        self.prefilled = 0

    def tokens(self, question: str) -> tuple[int, ...]:
        return tuple(self.backend.tokenize(question, add_special=True, parse_special=True))

    def submit(
        self,
        request_id: str,
        prompt: str | tuple[int, ...],
        *,
        n: int = 1,
        logprobs: int | None = None,
        echo: bool = False,
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
    ) -> None:
        self.engine.submit(
            SequenceRequest(
                request_id=request_id,
                prompt_tokens=self.tokens(prompt) if isinstance(prompt, str) else prompt,
                n=n,
                logprobs=logprobs,
                echo=echo,
                max_tokens=max_tokens,
                stop=stop,
                submitted_s=0.0,
            )
        )

    def run(self) -> dict[str, list[EngineEvent]]:
        events: dict[str, list[EngineEvent]] = {}
        while self.engine.has_work:
            output = self.engine.step()
            self.prefilled += output.prefill_tokens
            for request_id, event in output.events:
                events.setdefault(request_id, []).append(event)
        return events


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.engine.close()
    assert made.backend.cells_used == 0


def text_of(events: list[EngineEvent], choice_index: int = 0) -> str:
    deltas = [event for event in events if isinstance(event, TextDelta)]
    return "".join(event.text for event in deltas if event.choice_index == choice_index)


def deltas(events: list[EngineEvent]) -> list[TextDelta]:
    return [event for event in events if isinstance(event, TextDelta)]


# several answers


@pytest.mark.parametrize("n", [1, 2, 8])
def test_every_answer_comes_and_one_end_tells_of_all(bench: Bench, n: int) -> None:
    bench.submit("a", "[[say hello]]", n=n)
    events = bench.run()["a"]
    assert [text_of(events, index) for index in range(n)] == ["hello"] * n
    ended = [event.choice_index for event in events if isinstance(event, ChoiceEnded)]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert sorted([*ended, finished.choice_index]) == list(range(n))
    assert finished.usage.completion_tokens == n * 6
    assert finished.usage.prompt_tokens == len(bench.tokens("[[say hello]]"))
    assert sum(isinstance(event, Finished) for event in events) == 1


def test_the_prompt_of_all_answers_is_computed_once(bench: Bench) -> None:
    prompt = "[[say hello]]" + "x" * 100
    bench.submit("a", prompt, n=4)
    bench.run()
    assert bench.prefilled < len(bench.tokens(prompt)) + 4


def test_cancelling_ends_every_answer(bench: Bench) -> None:
    bench.submit("a", "[[forever]]", n=8)
    bench.engine.step()
    bench.engine.cancel("a")
    assert not bench.engine.has_work
    assert bench.engine.statistics().running == bench.engine.statistics().waiting == 0


def test_one_answer_that_fails_fails_the_request_and_nothing_follows(bench: Bench) -> None:
    bench.submit("a", "[[say hello]][[nan after 2]]", n=3)
    bench.submit("b", "[[say other]]")
    events = bench.run()
    assert sum(isinstance(event, Failed) for event in events["a"]) == 1
    assert isinstance(events["a"][-1], Failed)
    assert text_of(events["b"]) == "other"


def test_answers_end_each_by_itself(bench: Bench) -> None:
    bench.submit("a", "[[say hello]]", n=2, max_tokens=3)
    events = bench.run()["a"]
    assert [event.reason for event in events if isinstance(event, ChoiceEnded)] == [FinishReason.LENGTH]
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.LENGTH


# logprobs


def test_each_token_has_its_logprob_and_the_likeliest(bench: Bench) -> None:
    bench.submit("a", "[[say hé]]", logprobs=2)
    events = deltas(bench.run()["a"])
    assert [(event.text, len(event.logprobs)) for event in events] == [("h", 1), ("é", 2)]
    [first] = events[0].logprobs
    others = N_VOCAB - 2
    assert first.logprob == pytest.approx(2 - math.log(math.exp(2) + math.e + others))
    assert (first.token_id, first.text) == (ord("h"), b"h")
    assert [token.text for token in first.top] == [b"h", b"a"]
    assert first.top[0].logprob == first.logprob


def test_without_likeliest_ones_there_is_the_token_alone(bench: Bench) -> None:
    bench.submit("a", "[[say x]]", logprobs=0)
    [delta] = deltas(bench.run()["a"])
    assert [one.top for one in delta.logprobs] == [()]


def test_tokens_of_a_stop_string_are_not_told(bench: Bench) -> None:
    bench.submit("a", "[[say one END two]]", logprobs=0, stop=("END",))
    events = deltas(bench.run()["a"])
    told = b"".join(one.text for event in events for one in event.logprobs)
    assert told.decode() == "".join(event.text for event in events) == "one "


def test_raw_logits_count_and_ties_go_to_the_lower_id() -> None:
    logits = np.array([1.0, 3.0, 3.0, -np.inf], np.float32)
    scores = Scores(logits, 3, lambda token_id: b"%d" % token_id)
    logits[1] = -np.inf  # ruled out afterwards
    found = scores.of(2)
    total = math.log(math.e + 2 * math.exp(3))
    assert found.logprob == pytest.approx(3 - total)
    assert [(top.token_id, top.text) for top in found.top] == [(1, b"1"), (2, b"2"), (0, b"0")]
    assert scores.of(3).logprob == -9999.0
    with pytest.raises(UnusableLogits):
        Scores(np.array([1.0, np.nan], np.float32), 0, lambda _: b"")


# the prompt


def echoed(events: list[EngineEvent]) -> tuple[str, list[tuple[bytes, bool]]]:
    """Text, and for each token whether it has a logprob."""
    pieces = [event for event in events if isinstance(event, PromptText)]
    told = [(one.text, one.logprob is not None) for piece in pieces for one in piece.logprobs]
    return "".join(piece.text for piece in pieces), told


def test_the_prompt_is_told_before_the_answer_with_logprobs_of_all_but_its_first_token(bench: Bench) -> None:
    prompt = (BOS, *("é" + "x" * 60).encode(), ANSWER)
    bench.submit("a", prompt, echo=True, logprobs=1, max_tokens=2)
    events = bench.run()["a"]
    text, told = echoed(events)
    assert text == "<|bos|>é" + "x" * 60 + "<|answer|>"
    assert [one for one, _ in told] == [bench.backend.token_text(token) for token in prompt]
    assert [known for _, known in told] == [False] + [True] * (len(prompt) - 1)
    kinds = [type(event) for event in events]
    assert kinds.index(TextDelta) > max(index for index, kind in enumerate(kinds) if kind is PromptText)


def test_probabilities_of_a_prompt_are_those_of_each_token_after_the_ones_before(bench: Bench) -> None:
    """Without the mark of an answer the alphabet's next letter is the likelier one."""
    bench.submit("a", tuple(b"abcx"), echo=True, logprobs=1, max_tokens=1)
    pieces = [event for event in bench.run()["a"] if isinstance(event, PromptText)]
    [_, b, c, x] = [one for piece in pieces for one in piece.logprobs]
    assert b.logprob == c.logprob == b.top[0].logprob
    assert x.logprob is not None
    assert x.logprob < x.top[0].logprob
    assert x.top[0].text == b"d"


def test_a_prompt_without_logprobs_is_told_as_text_and_may_come_from_cells(bench: Bench) -> None:
    prompt = tuple(b"x" * 100)
    for name in "ab":
        bench.submit(name, prompt, echo=True, max_tokens=1)
        assert echoed(bench.run()[name]) == ("x" * 100, [])
    assert bench.prefilled < 150


def test_a_prompt_with_logprobs_is_computed_whoever_else_has_it(bench: Bench) -> None:
    prompt = tuple(b"x" * 100)
    for name in "ab":
        bench.submit(name, prompt, echo=True, logprobs=0, max_tokens=1)
        assert len(echoed(bench.run()[name])[1]) == 100
    assert bench.prefilled == 200


def test_several_answers_share_one_echo(bench: Bench) -> None:
    bench.submit("a", tuple(b"x" * 100), echo=True, logprobs=0, n=3, max_tokens=2)
    events = bench.run()["a"]
    assert echoed(events)[0] == "x" * 100
    assert len(echoed(events)[1]) == 100
    kinds = [type(event) for event in events]
    assert kinds.index(TextDelta) > max(index for index, kind in enumerate(kinds) if kind is PromptText)
    assert isinstance(events[-1], Finished)


def test_a_prompt_whose_logits_are_no_numbers_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = np.full(N_VOCAB, np.nan, np.float32)
    monkeypatch.setattr(bench.backend, "logits", lambda row: nothing)
    bench.submit("a", tuple(b"xyz"), echo=True, logprobs=0)
    [failed] = bench.run()["a"]
    assert isinstance(failed, Failed)


def test_an_echo_that_is_computed_again_tells_every_token_once() -> None:
    """As after a preemption."""
    row = np.zeros(N_VOCAB, np.float32)
    text = ScriptedBackend(OPTIONS).token_text
    echo = Echo(tuple(b"abcdef"), text, Scorer(lambda _: row, text, 0))
    told = [
        echo.advance(start, stop, first_row=7) for start, stop in ((0, 2), (0, 2), (2, 4), (0, 6), (0, 6))
    ]
    assert [piece and piece.text for piece in told] == ["abc", None, "de", "f", None]
    assert [piece and len(piece.logprobs) for piece in told] == [3, None, 2, 1, None]
    assert echo.is_over
    assert not echo.is_scored


@attrs.frozen
class Part:
    """A sequence, as far as policies look at one."""

    is_scored: bool
    n_filled: int = 0
    n_pending: int = 0
    n_remaining: int = 0


@given(
    st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.booleans()), min_size=1, max_size=5),
    st.integers(8, 40),
)
def test_no_step_wants_more_logits_than_there_are(
    parts: list[tuple[int, bool, bool]], n_outputs: int
) -> None:
    chunks = [Chunk(Part(is_scored), 0, count, is_last) for count, is_scored, is_last in parts]
    fitted = fit_outputs(chunks, n_outputs, lambda part: part.is_scored)
    wanted = (chunk.count if chunk.sequence.is_scored else chunk.is_last for chunk in fitted)
    assert 0 <= sum(wanted) <= n_outputs
    assert fitted
    assert all(chunk.count > 0 for chunk in fitted)
    plain = [chunk for chunk in chunks if not chunk.sequence.is_scored]
    assert [chunk for chunk in fitted if not chunk.sequence.is_scored] == plain
