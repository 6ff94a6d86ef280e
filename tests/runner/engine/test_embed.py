"""Which inputs share a pass, what their vectors are, and who pays for a pass that fails."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from runner.domain.engine import EngineOptions
from runner.domain.events import Embedded, Failed, Finished, FinishReason, TextDelta, Usage
from runner.engine.backend import GROUP_ROWS, DecodeResult, EmbeddingFacts, Pooling
from runner.engine.batcher import STEP_LIMIT_S
from runner.engine.embed import (
    TOLD_BYTES_MAX,
    Embedder,
    EmbeddingEvent,
    EmbeddingRequest,
    normalised,
)
from runner.engine.engine import Engine
from runner.engine.fake import ANSWER, ScriptedBackend
from runner.engine.fake_embedding import DIMENSIONS, ScriptedEmbedding, vector_of
from runner.engine.sequence import SequenceRequest
from runner.errors import InvalidParameter, LoadingFailed

FACTS = EmbeddingFacts(n_dimensions=DIMENSIONS, input_max=2048, max_sequences=4)


class Rig:
    """An embedder over a scripted context of `n_rows`. `passes` tells the rows of each pass, by sequence."""

    def __init__(self, facts: EmbeddingFacts = FACTS, n_rows: int = 16) -> None:
        self.context = ScriptedEmbedding(n_rows, play=self._play)
        self.n_opened = 0
        self.result: Callable[[list[int]], DecodeResult] = lambda tokens: DecodeResult.DONE
        self.passes: list[list[int]] = []
        self.now_s = 10.0
        self.rows_max = n_rows
        self._decode = self.context.decode
        self.context.decode = self._decoded  # type: ignore[method-assign]
        self.embedder = Embedder(facts, self._open, n_threads=3, clock=lambda: self.now_s)
        self.events: dict[str, list[EmbeddingEvent]] = {}

    def _open(self) -> ScriptedEmbedding:
        self.n_opened += 1
        return self.context

    def _play(self, question: bytes) -> bool:
        return True

    def _decoded(self, n_rows: int) -> DecodeResult:
        batch = self.context.batch
        self.passes.append(batch.sequence_ids[:n_rows].tolist())
        assert batch.wants_logits[:n_rows].all()
        result = self.result(batch.tokens[:n_rows].tolist())
        done = self._decode(n_rows)
        assert done is DecodeResult.DONE
        return result

    def submit(self, request_id: str, *inputs: tuple[int, ...], dimensions: int | None = None) -> None:
        request = EmbeddingRequest(
            request_id=request_id, inputs=inputs, dimensions=dimensions, submitted_s=self.now_s
        )
        self.embedder.submit(request)

    def step(self) -> int:
        events, n_rows = self.embedder.advance(self.rows_max)
        for request_id, event in events:
            self.events.setdefault(request_id, []).append(event)
        return n_rows

    def run(self) -> None:
        while self.embedder.has_work:
            self.step()

    def vectors(self, request_id: str) -> dict[int, tuple[float, ...]]:
        """By input; the request has finished."""
        *told, last = self.events[request_id]
        assert isinstance(last, Finished)
        return {one.input_index: numbers(one.vector) for one in told if isinstance(one, Embedded)}


def numbers(vector: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(vector) // 4}f", vector)


def expected(tokens: tuple[int, ...]) -> npt.NDArray[np.float32]:
    total = np.sum([vector_of(token) for token in tokens], axis=0)
    return np.asarray(total / np.linalg.norm(total), np.float32)


def test_inputs_that_fit_share_a_pass_and_each_has_its_mean_of_length_one() -> None:
    rig = Rig()
    rig.submit("a", (1, 2, 2), (3,))
    rig.submit("b", (4, 5))
    rig.run()
    assert rig.passes == [[0, 0, 0, 1, 1, 2]]
    assert rig.vectors("a")[0] == pytest.approx(expected((1, 2, 2)))
    assert rig.vectors("a")[1] == pytest.approx(expected((3,)))
    assert rig.vectors("b")[0] == pytest.approx(expected((4, 5)))
    last = rig.events["a"][-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.usage) == (FinishReason.STOP, Usage(prompt_tokens=4, completion_tokens=0))


def test_requests_take_turns_input_by_input() -> None:
    rig = Rig()
    rig.submit("many", *[(1,) * 8] * 4)
    rig.submit("one", (2,) * 8)
    rig.step()
    assert isinstance(rig.events["one"][-1], Finished)
    assert len(rig.events["many"]) == 1
    rig.run()
    assert sorted(rig.vectors("many")) == [0, 1, 2, 3]


def test_an_input_longer_than_a_pass_takes_several() -> None:
    rig = Rig()
    tokens = tuple(range(40))
    rig.submit("long", tokens)
    rig.submit("short", (7,))
    assert [rig.step() for _ in range(3)] == [16, 16, 8]
    assert rig.vectors("long")[0] == pytest.approx(expected(tokens))
    rig.run()
    assert rig.passes[3:] == [[0]]


@pytest.mark.parametrize(("pooling", "token"), [(Pooling.FIRST, 3), (Pooling.LAST, 42 % 8)])
def test_one_token_may_stand_for_all(pooling: Pooling, token: int) -> None:
    rig = Rig(EmbeddingFacts(n_dimensions=DIMENSIONS, input_max=64, pooling=pooling))
    tokens = (3, *range(40), 42)
    rig.submit("a", tokens)
    rig.run()
    assert rig.vectors("a")[0] == pytest.approx(vector_of(token))


def test_no_more_than_there_are_sequences_and_than_a_frame_holds_share_a_pass() -> None:
    rig = Rig()
    rig.submit("a", *[(1,)] * 6)
    rig.run()
    assert rig.passes == [[0, 1, 2, 3], [0, 1]]
    wide = EmbeddingFacts(n_dimensions=TOLD_BYTES_MAX // 8, input_max=64, max_sequences=64)
    rig = Rig(wide)
    rig.context.vector = lambda row: np.ones(wide.n_dimensions, np.float32)  # type: ignore[method-assign]
    rig.submit("a", *[(1,)] * 3)
    rig.run()
    assert rig.passes == [[0, 1], [0]]


def test_passes_are_filled_up_to_a_bound_where_they_could_be_longer() -> None:
    rig = Rig(EmbeddingFacts(n_dimensions=DIMENSIONS, input_max=2048, is_whole=True), n_rows=2048)
    rig.submit("a", (1,) * 300, (2,) * 300, (3,) * 2000)
    rig.run()
    assert [len(rows) for rows in rig.passes] == [300, 300, 2000]
    assert GROUP_ROWS < 600


def test_the_first_dimensions_are_a_vector_of_length_one() -> None:
    rig = Rig()
    rig.submit("a", (0, 0, 1, 5), dimensions=2)
    rig.run()
    assert rig.vectors("a")[0] == pytest.approx((2 / 5**0.5, 1 / 5**0.5))


def test_a_vector_of_nothing_stays_one() -> None:
    nothing = normalised(np.zeros(4, np.float32), None)
    assert nothing is not None
    assert nothing.tolist() == [0.0] * 4
    assert normalised(np.array([1, np.inf], np.float32), None) is None
    large = normalised(np.array([1.5e38, 2e38], np.float32), None)
    assert large is not None
    assert large.tolist() == pytest.approx([0.6, 0.8])


def test_a_pass_that_fails_costs_only_who_fails_alone() -> None:
    rig = Rig()
    rig.result = lambda tokens: DecodeResult.FAILED if 13 in tokens else DecodeResult.DONE
    rig.submit("good", (1,), (2,))
    rig.submit("bad", (13,), (3,))
    rig.run()
    [failed] = [event for event in rig.events["bad"] if not isinstance(event, Embedded)]
    assert isinstance(failed, Failed)
    assert failed.code == "engine_failed"
    assert sorted(rig.vectors("good")) == [0, 1]


def test_numbers_that_are_not_finite_fail_their_request() -> None:
    rig = Rig()
    rig.context.vector = lambda row: np.full(DIMENSIONS, np.nan, np.float32)  # type: ignore[method-assign]
    rig.submit("a", (1,), (2,))
    rig.run()
    [failed] = rig.events["a"]
    assert isinstance(failed, Failed)
    assert "not finite" in failed.message


def test_a_cancelled_request_tells_nothing_more() -> None:
    rig = Rig()
    rig.submit("long", tuple(range(40)))
    rig.submit("waiting", (1,))
    rig.step()
    assert rig.embedder.cancel("long")
    assert rig.embedder.cancel("waiting")
    assert not rig.embedder.cancel("waiting")
    assert not rig.embedder.has_work
    rig.submit("next", (5,))
    rig.run()
    assert set(rig.events) == {"next"}


def test_the_context_is_opened_when_it_is_needed_and_has_the_threads_of_then() -> None:
    rig = Rig()
    rig.embedder.set_threads(2)
    assert rig.n_opened == 0
    rig.submit("a", (1,))
    rig.run()
    rig.submit("b", (1,))
    rig.run()
    assert (rig.n_opened, rig.context.n_threads) == (1, 2)
    rig.embedder.set_threads(1)
    assert rig.context.n_threads == 1
    rig.embedder.close()
    assert rig.context.is_closed


def test_without_memory_for_a_context_the_request_fails_and_the_next_one_tries_again() -> None:
    def fail() -> ScriptedEmbedding:
        raise LoadingFailed("no memory")

    embedder = Embedder(FACTS, fail, n_threads=1, clock=lambda: 0.0)
    for request_id in ("a", "b"):
        embedder.submit(EmbeddingRequest(request_id=request_id, inputs=((1,),)))
        [(name, event)], n_rows = embedder.advance(16)
        assert (name, n_rows, embedder.has_work) == (request_id, 0, False)
        assert isinstance(event, Failed)


def test_what_cannot_be_submitted() -> None:
    rig = Rig()
    rig.submit("a", (1,))
    with pytest.raises(InvalidParameter, match="in use"):
        rig.submit("a", (1,))
    none = Embedder(None, rig._open, n_threads=1, clock=lambda: 0.0)
    with pytest.raises(InvalidParameter, match="model"):
        none.submit(EmbeddingRequest(request_id="a", inputs=((1,),)))


def test_embeddings_and_streams_take_turns_in_an_engine() -> None:
    options = EngineOptions(context_size=64, n_cells=128, prefill_chunk=16)
    engine = Engine(ScriptedBackend(options), options)
    prompt = (*b"[[count 9]]", ANSWER)
    engine.submit(SequenceRequest(request_id="text", prompt_tokens=prompt, submitted_s=0.0))
    engine.submit(EmbeddingRequest(request_id="vectors", inputs=((1,) * 12,) * 4))
    assert engine.statistics().waiting == 2
    told: list[tuple[str, type]] = []
    while engine.has_work:
        told += [(name, type(event)) for name, event in engine.step().events]
    first_vector = told.index(("vectors", Embedded))
    assert told.index(("text", TextDelta)) < told.index(("vectors", Finished))
    assert first_vector < told.index(("text", Finished))
    engine.submit(EmbeddingRequest(request_id="late", inputs=((1,),)))
    engine.cancel("late")
    assert not engine.has_work
    engine.close()


def test_a_closed_context_is_opened_again_by_the_next_request() -> None:
    rig = Rig()
    for number in (1, 2):
        rig.submit("a", (1,))
        rig.run()
        assert rig.n_opened == number
        rig.embedder.close()
        assert rig.context.is_closed
        rig.embedder.close()  # there is nothing left


def test_requests_that_are_there_when_it_is_closed_end_without_a_word() -> None:
    rig = Rig(n_rows=4)
    rig.submit("a", (1,) * 9)
    rig.step()
    rig.embedder.close()
    assert not rig.embedder.has_work and rig.events == {}
    rig.submit("a", (1,))
    rig.run()
    assert rig.vectors("a")[0] == pytest.approx((0, 1, *[0] * 6))


def test_only_embeddings_end_when_an_engine_closes_their_context() -> None:
    options = EngineOptions(context_size=64, n_cells=128, prefill_chunk=16)
    engine = Engine(ScriptedBackend(options), options)
    prompt = (*b"[[count 9]]", ANSWER)
    engine.submit(SequenceRequest(request_id="text", prompt_tokens=prompt, submitted_s=0.0))
    engine.submit(EmbeddingRequest(request_id="vectors", inputs=((1,) * 12,) * 4))
    engine.step()
    engine.close_annex()
    told = []
    while engine.has_work:
        told += [name for name, _ in engine.step().events]
    assert set(told) == {"text"}
    engine.close()


def test_passes_are_no_longer_than_they_may_be_now() -> None:
    rig = Rig()
    rig.submit("long", (1,) * 20)
    rig.submit("a", (1,) * 3)
    rig.submit("b", (1,) * 3)
    sizes = []
    for rows_max in (16, 2, 1, 4, 4, 4):
        rig.rows_max = rows_max
        sizes.append(rig.step())
    assert sizes == [16, 2, 1, 1, 3, 3]
    assert rig.vectors("long")[0] == pytest.approx((0, 1, *[0] * 6))


def test_an_input_that_has_to_be_seen_whole_takes_one_pass_whatever_its_length() -> None:
    rig = Rig(EmbeddingFacts(n_dimensions=DIMENSIONS, input_max=64, is_whole=True), n_rows=64)
    rig.rows_max = 4
    rig.submit("a", (1,) * 50)
    assert rig.step() == 50


def test_passes_of_embeddings_shorten_beside_streams_as_prefills_do() -> None:
    options = EngineOptions(context_size=512, n_cells=1024, prefill_chunk=64)
    now_s = 0.0
    backend = ScriptedBackend(options)
    opened = backend.open_embedding()
    decode = opened.decode

    def slow(n_rows: int) -> DecodeResult:
        nonlocal now_s
        now_s += 0.02 * n_rows
        return decode(n_rows)

    opened.decode = slow  # type: ignore[method-assign]
    backend.open_embedding = lambda: opened  # type: ignore[method-assign]
    engine = Engine(backend, options, clock=lambda: 0.0, stopwatch=lambda: now_s)
    prompt = (*b"[[count 400]]", ANSWER)
    engine.submit(SequenceRequest(request_id="text", prompt_tokens=prompt, submitted_s=0.0))
    while engine.statistics().cells_used <= len(prompt):
        engine.step()
    engine.submit(EmbeddingRequest(request_id="vectors", inputs=((1,) * 300,)))
    gaps = []
    while "vectors" not in [name for name, _ in engine.step().events]:
        gaps.append(engine.step_s)
    assert max(gaps) == pytest.approx(64 * 0.02)
    assert max(gaps[2:]) <= STEP_LIMIT_S
    engine.close()
