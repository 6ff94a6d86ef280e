"""The engine on the scripted backend: everything that happens between submission and the last event."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.engine import EngineOptions
from runner.domain.events import Failed, Finished, FinishReason, TextDelta, Timings, Usage
from runner.engine.backend import DecodeResult
from runner.engine.engine import Engine, EngineEvent, SequenceRequest
from runner.engine.fake import ScriptedBackend
from runner.errors import ContextLengthExceeded, InvalidParameter

OPTIONS = EngineOptions(context_size=256, n_cells=512, max_sequences=4, prefill_chunk=16)


class Clock:
    """Advances by a second whenever it is read."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


class Bench:
    """An engine on a scripted backend, and what came out of it per request."""

    def __init__(self, options: EngineOptions = OPTIONS, backend: ScriptedBackend | None = None) -> None:
        self.backend = backend or ScriptedBackend(options, sleep=lambda _: None)
        self.engine = Engine(self.backend, options, clock=Clock())
        self.options = options
        self.events: dict[str, list[EngineEvent]] = {}
        self.told: list[tuple[str, EngineEvent]] = []

    def submit(
        self,
        request_id: str,
        prompt: str | tuple[int, ...],
        *,
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
        ignore_eos: bool = False,
    ) -> None:
        if isinstance(prompt, str):
            prompt = tuple(self.backend.tokenize(prompt, add_special=True, parse_special=True))
        self.engine.submit(
            SequenceRequest(
                request_id=request_id,
                prompt_tokens=prompt,
                max_tokens=max_tokens,
                stop=stop,
                ignore_eos=ignore_eos,
                submitted_s=self.engine._clock(),
            )
        )

    def step(self) -> list[tuple[str, EngineEvent]]:
        output = self.engine.step()
        for request_id, event in output.events:
            self.events.setdefault(request_id, []).append(event)
        self.told += output.events
        statistics = self.engine.statistics()
        assert statistics.cells_used + statistics.cells_retained == self.backend.cells_used
        assert self.backend.cells_used <= self.options.n_cells
        assert statistics.running <= self.options.max_sequences
        return output.events

    def run(self, limit: int = 5000) -> None:
        while self.engine.has_work:
            self.step()
            limit -= 1
            assert limit, "the engine does not come to an end"
        assert self.engine.statistics().cells_used == 0

    def text(self, request_id: str) -> str:
        return "".join(event.text for event in self.events[request_id] if isinstance(event, TextDelta))

    def end(self, request_id: str) -> Finished | Failed:
        *deltas, last = self.events[request_id]
        assert all(isinstance(event, TextDelta) and event.text for event in deltas)
        assert isinstance(last, Finished | Failed)
        return last

    def reason(self, request_id: str) -> FinishReason:
        end = self.end(request_id)
        assert isinstance(end, Finished), end
        return end.reason


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.engine.close()
    assert bench.backend.is_closed
    assert bench.engine.statistics().running == bench.engine.statistics().waiting == 0


# one sequence


def test_an_answer_comes_in_deltas_and_ends_with_counts_and_times(bench: Bench) -> None:
    bench.submit("r", "[[say abc]]")  # 1 second on the clock
    bench.run()
    assert bench.events["r"] == [
        TextDelta("a", 1),
        TextDelta("b", 1),
        TextDelta("c", 1),
        Finished(
            reason=FinishReason.STOP,
            usage=Usage(prompt_tokens=13, completion_tokens=4),
            timings=Timings(queued_s=1.0, prefill_s=1.0, decode_s=6.0),
        ),
    ]


def test_nothing_to_do_is_a_step_without_events(bench: Bench) -> None:
    assert not bench.engine.has_work
    assert bench.step() == []


def test_characters_arrive_whole_with_the_tokens_they_took(bench: Bench) -> None:
    bench.submit("r", "[[say é€]]")
    bench.run()
    assert bench.events["r"][:2] == [TextDelta("é", 2), TextDelta("€", 3)]


def test_an_unfinished_character_is_replaced_at_the_end_of_the_turn_and_left_out_at_a_limit(
    bench: Bench,
) -> None:
    bench.submit("turn", "[[hex 61e282]]")
    bench.submit("limit", "[[hex 61e28282]]", max_tokens=3)
    bench.run()
    assert bench.text("turn") == "a\ufffd"
    assert bench.text("limit") == "a"
    assert bench.reason("limit") is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("max_tokens", "text", "reason"),
    [
        (0, "", FinishReason.LENGTH),
        (1, "1", FinishReason.LENGTH),
        (3, "1 2", FinishReason.LENGTH),
        (4, "1 2", FinishReason.STOP),
        (None, "1 2", FinishReason.STOP),
    ],
)
def test_max_tokens_at_below_and_above_the_answer(
    bench: Bench, max_tokens: int | None, text: str, reason: FinishReason
) -> None:
    bench.submit("r", "[[count 2]]", max_tokens=max_tokens)
    bench.run()
    assert bench.reason("r") is reason
    assert "".join(event.text for event in bench.events["r"] if isinstance(event, TextDelta)) == text


def test_a_full_context_is_the_end_and_the_counts_show_it(bench: Bench) -> None:
    bench.submit("r", "[[forever]]")
    bench.run()
    end = bench.end("r")
    assert isinstance(end, Finished)
    assert end.reason is FinishReason.LENGTH
    assert end.usage.prompt_tokens + end.usage.completion_tokens == OPTIONS.context_size


def test_a_prompt_that_leaves_room_for_one_token_runs_and_a_longer_one_is_refused(bench: Bench) -> None:
    bench.submit("fits", (7,) * (OPTIONS.context_size - 1))
    bench.run()
    assert bench.end("fits") == Finished(
        reason=FinishReason.LENGTH,
        usage=Usage(prompt_tokens=255, completion_tokens=1),
        timings=bench.end("fits").timings,  # type: ignore[union-attr]  # it did finish, see above
    )
    with pytest.raises(ContextLengthExceeded) as caught:
        bench.submit("long", (7,) * OPTIONS.context_size)
    assert (caught.value.prompt_tokens, caught.value.context_size) == (256, 256)
    assert not bench.engine.has_work


def test_a_pool_smaller_than_the_context_limits_it() -> None:
    bench = Bench(attrs.evolve(OPTIONS, n_cells=64))
    with pytest.raises(ContextLengthExceeded):
        bench.submit("long", (7,) * 64)
    bench.submit("r", "[[forever]]")
    bench.run()
    assert bench.reason("r") is FinishReason.LENGTH


def test_an_empty_prompt_and_an_id_in_use_are_refused(bench: Bench) -> None:
    bench.submit("r", "x")
    with pytest.raises(InvalidParameter):
        bench.submit("empty", ())
    with pytest.raises(InvalidParameter):
        bench.submit("r", "y")
    assert bench.engine.statistics().waiting == 1


def test_stop_strings_end_the_answer_and_are_not_shown(bench: Bench) -> None:
    bench.submit("r", "[[count 30]]", stop=("12", "never"))
    bench.run()
    assert bench.text("r") == "1 2 3 4 5 6 7 8 9 10 11 "
    assert bench.reason("r") is FinishReason.STOP


def test_text_held_for_a_stop_string_is_shown_when_the_answer_ends_otherwise(bench: Bench) -> None:
    bench.submit("turn", "[[say a<en]]", stop=("<end>",))
    bench.submit("limit", "[[say a<en]]", stop=("<end>",), max_tokens=3)
    bench.run()
    assert bench.text("turn") == "a<en"
    assert bench.text("limit") == "a<e"


def test_ignore_eos_goes_on_to_the_limit(bench: Bench) -> None:
    bench.submit("r", "[[say ab]]", ignore_eos=True, max_tokens=6)
    bench.run()
    assert bench.text("r") == "abcdef"
    assert bench.reason("r") is FinishReason.LENGTH


# several sequences


def test_sequences_share_steps_and_join_while_others_run(bench: Bench) -> None:
    bench.submit("first", "[[count 9]]")
    for _ in range(4):
        bench.step()
    bench.submit("second", "[[count 9]]")
    bench.run()
    assert bench.text("first") == bench.text("second") == "1 2 3 4 5 6 7 8 9"
    order = [request_id for request_id, _ in bench.told]
    assert order.index("second") < len(order) - 1 - order[::-1].index("first")


def test_a_stream_goes_on_at_every_second_step_while_a_long_prompt_is_prefilled(bench: Bench) -> None:
    bench.submit("stream", "[[forever]]")
    bench.step()
    bench.submit("long", "x" * 150)
    told = [[request_id for request_id, _ in bench.step()] for _ in range(20)]
    assert told[::2] == [["stream"]] * 10
    assert told[1::2] == [[]] * 9 + [["long"]]  # 152 tokens in chunks of 16


def test_with_chunks_of_one_token_streams_and_prompts_still_take_turns() -> None:
    bench = Bench(attrs.evolve(OPTIONS, prefill_chunk=1))
    bench.submit("stream", "", ignore_eos=True)  # two tokens
    bench.step()
    bench.step()
    bench.submit("long", "x" * 18)
    outputs = [bench.engine.step() for _ in range(6)]
    assert [(output.prefill_tokens, output.decode_tokens) for output in outputs] == [(1, 0), (0, 1)] * 3


def test_prompts_are_prefilled_in_chunks_and_counted(bench: Bench) -> None:
    bench.submit("r", "x" * 38)  # 40 tokens
    outputs = [bench.engine.step() for _ in range(4)]
    assert [(output.prefill_tokens, output.decode_tokens) for output in outputs] == [
        (16, 0),
        (16, 0),
        (8, 0),
        (0, 1),
    ]


def test_more_sequences_than_ids_wait_in_order(bench: Bench) -> None:
    for index in range(7):
        bench.submit(str(index), f"[[say {index}{index}]]")
    bench.step()
    assert repr(bench.engine) == "<Engine: 4 running, 3 waiting>"
    bench.run()
    ends = [request_id for request_id, event in bench.told if isinstance(event, Finished)]
    assert ends == [str(index) for index in range(7)]
    assert all(bench.text(str(index)) == str(index) * 2 for index in range(7))


def test_cancel_frees_a_running_and_a_waiting_sequence_without_an_event(bench: Bench) -> None:
    for name in "abcde":
        bench.submit(name, "[[forever]]")
    bench.step()
    bench.engine.cancel("b")
    bench.engine.cancel("e")
    bench.engine.cancel("nobody")
    n_told = len(bench.told)
    bench.step()
    assert not any(request_id in "be" for request_id, _ in bench.told[n_told:])
    assert bench.engine.statistics().running == 3
    bench.submit("b", "[[say again]]")  # the id is free, and so is the slot
    for _ in range(10):
        bench.step()
    assert bench.text("b")[-5:] == "again"


def test_a_cancelled_sequence_in_prefill_leaves_no_cells_but_for_those_that_are_retained(
    bench: Bench,
) -> None:
    bench.submit("r", "x" * 100)
    bench.step()
    assert bench.engine.statistics().cells_used == bench.backend.cells_used == 16
    bench.engine.cancel("r")
    assert bench.engine.statistics().cells_used == 0
    assert bench.engine.statistics().cells_retained == bench.backend.cells_used == 16


# preemption

TIGHT = EngineOptions(context_size=120, n_cells=128, max_sequences=3, prefill_chunk=16)


def test_preempted_sequences_resume_with_the_same_text() -> None:
    bench = Bench(TIGHT)
    for name in "abc":
        bench.submit(name, f"{name}[[count 30]]")
    bench.run()
    assert bench.engine.statistics().counts.preemptions > 0
    expected = " ".join(str(number) for number in range(1, 31))
    for name in "abc":
        assert bench.text(name) == expected
        end = bench.end(name)
        assert isinstance(end, Finished)
        assert end.usage == Usage(prompt_tokens=15, completion_tokens=len(expected) + 1)
    ends = [request_id for request_id, event in bench.told if isinstance(event, Finished)]
    assert ends[0] == "a", "the oldest is never held up"


def test_a_preempted_sequence_can_be_cancelled() -> None:
    bench = Bench(TIGHT)
    for name in "abc":
        bench.submit(name, f"{name}[[count 30]]")
    while not bench.engine.statistics().counts.preemptions:
        bench.step()
    bench.engine.cancel("c")
    bench.run()
    assert "c" not in [request_id for request_id, event in bench.told if isinstance(event, Finished)]


def test_memory_that_counts_otherwise_than_we_do_makes_room_by_preemption_and_ends_the_last_alone() -> None:
    """The backend holds fewer cells than the engine believes, as other memory layouts may."""
    backend = ScriptedBackend(attrs.evolve(TIGHT, n_cells=60))
    bench = Bench(TIGHT, backend)
    bench.submit("a", "[[count 12]]")
    bench.submit("b", "[[count 12]]")
    bench.run()
    assert bench.text("a") == bench.text("b") == "1 2 3 4 5 6 7 8 9 10 11 12"
    assert bench.engine.statistics().counts.preemptions > 0
    bench.submit("huge", "[[forever]]")
    bench.run()
    end = bench.end("huge")
    assert isinstance(end, Failed)
    assert end.code == "engine_failed"


# faults


def test_a_failing_sequence_fails_alone() -> None:
    bench = Bench()
    bench.submit("good", "[[count 9]]")
    bench.submit("bad", "[[repeat 50 x]][[fail after 5]]")
    bench.submit("other", "[[count 9]]")
    bench.run()
    assert bench.text("good") == bench.text("other") == "1 2 3 4 5 6 7 8 9"
    assert bench.text("bad") == "xxxxx"
    end = bench.end("bad")
    assert isinstance(end, Failed)
    assert end.code == "engine_failed"


def test_a_sequence_that_fails_in_prefill_fails_alone() -> None:
    bench = Bench()
    bench.submit("bad", "[[fail]]")
    bench.submit("good", "[[say fine]]")
    bench.run()
    assert isinstance(bench.end("bad"), Failed)
    assert bench.text("good") == "fine"


class ForgetsAllOrNothing(ScriptedBackend):
    """As recurrent models do."""

    def drop_cells(self, sequence_id: int, from_position: int = 0) -> bool:
        return from_position == 0 and super().drop_cells(sequence_id)


def test_where_cells_cannot_be_dropped_in_part_a_failed_pass_starts_its_sequences_anew() -> None:
    bench = Bench(OPTIONS, ForgetsAllOrNothing(OPTIONS))
    bench.submit("good", "[[count 9]]")
    bench.submit("bad", "[[repeat 50 x]][[fail after 5]]")
    bench.run()
    assert bench.text("good") == "1 2 3 4 5 6 7 8 9"
    assert isinstance(bench.end("bad"), Failed)


class AlwaysFails(ScriptedBackend):
    def decode(self, n_rows: int) -> DecodeResult:
        return DecodeResult.FAILED


class AlwaysFailsAndForgetsAll(AlwaysFails, ForgetsAllOrNothing):
    pass


@pytest.mark.parametrize("backend_class", [AlwaysFails, AlwaysFailsAndForgetsAll])
def test_a_backend_that_computes_nothing_fails_everybody_and_comes_to_an_end(
    backend_class: type[ScriptedBackend],
) -> None:
    bench = Bench(OPTIONS, backend_class(OPTIONS))
    for name in "abcdef":
        bench.submit(name, "x")
    bench.run(limit=20)
    assert all(isinstance(bench.end(name), Failed) for name in "abcdef")


def test_logits_that_are_no_numbers_fail_their_sequence_alone() -> None:
    bench = Bench()
    bench.submit("bad", "[[say abc]][[nan after 2]]")
    bench.submit("good", "[[say fine]]")
    bench.run()
    assert bench.text("bad") == "ab"
    assert isinstance(bench.end("bad"), Failed)
    assert bench.text("good") == "fine"


# everything at once

actions = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 10), st.integers(1, 30)),
        st.tuples(st.just("cancel"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("step"), st.integers(1, 10), st.just(0)),
    ),
    max_size=30,
)


@given(actions, st.integers(64, 200), st.integers(1, 4), st.integers(1, 20))
def test_whatever_comes_every_request_that_stays_gets_its_whole_answer(
    played: list[tuple[str, int, int]], n_cells: int, max_sequences: int, chunk: int
) -> None:
    """Played: submit with a prompt longer by the first number and an answer of the second; cancel; steps."""
    bench = Bench(
        EngineOptions(context_size=64, n_cells=n_cells, max_sequences=max_sequences, prefill_chunk=chunk)
    )
    answers: dict[str, str] = {}
    cancelled: set[str] = set()
    for kind, first, second in played:
        if kind == "submit":
            name = str(len(answers))
            answers[name] = (f"{name}-" * 20)[:second]
            bench.submit(name, "p" * first + f"[[say {answers[name]}]]")
        elif kind == "cancel":
            bench.engine.cancel(str(first))
            cancelled.add(str(first))
        else:
            for _ in range(first):
                bench.step()
    bench.run()
    for name in answers.keys() - cancelled:
        end = bench.end(name)
        assert isinstance(end, Finished)
        assert bench.text(name) == answers[name][: 64 - end.usage.prompt_tokens]


# the size of chunks


class SlowPerRow(ScriptedBackend):
    """Takes 10 ms a row, on a stopwatch of its own."""

    elapsed_s = 0.0

    def decode(self, n_rows: int) -> DecodeResult:
        self.elapsed_s += 0.01 * n_rows
        return super().decode(n_rows)


def test_chunks_beside_a_stream_stay_below_its_limit_and_are_whole_where_nobody_waits() -> None:
    options = attrs.evolve(OPTIONS, n_cells=1024, prefill_chunk=64)
    backend = SlowPerRow(options)
    engine = Engine(backend, options, stopwatch=lambda: backend.elapsed_s)

    def submit(name: str, size: int) -> None:
        request = SequenceRequest(
            request_id=name, prompt_tokens=(7,) * size, ignore_eos=True, namespace=None, submitted_s=0.0
        )
        engine.submit(request)

    def prefilled() -> list[int]:
        return [count for _ in range(12) if (count := engine.step().prefill_tokens)]

    submit("stream", 130)
    assert prefilled() == [64, 64, 2]
    submit("beside it", 200)
    assert prefilled() == [64, 16, 16, 16, 16, 16]
    engine.cancel("stream")
    engine.cancel("beside it")
    submit("alone", 200)
    assert prefilled() == [64, 64, 64, 8]
