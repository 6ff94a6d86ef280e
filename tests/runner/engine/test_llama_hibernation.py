"""Restoring must not change results: logits after a restored state against those after the cells it came of.

Bit by bit on SmolLM2. With sliding windows (a tiny model of random weights, and Gemma 3 where the test cache
has it) at the state's exact end; what the window has left behind is not restored, sums are added up over
other places, and the distributions are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt
import pytest

from runner.domain.engine import EngineCounts, EngineOptions
from runner.domain.events import Finished, TextDelta
from runner.domain.sampling import SamplingParams
from runner.engine.backend import Backend, DecodeResult
from runner.engine.batcher import LEAST_CHUNK
from runner.engine.engine import Engine, EngineEvent, SequenceRequest
from runner.engine.hibernation import LEAST_SAVED, KnownState
from runner.engine.llama import LlamaBackend
from runner.engine.prefix import Namespace
from tests.support.model_files import models_called
from tests.support.tiny_kinds import write_windowed

pytestmark = pytest.mark.real_model

OPTIONS = EngineOptions(
    context_size=1024, n_cells=1536, max_sequences=2, max_retained=3, prefill_chunk=64, n_threads=1
)
CHUNK = OPTIONS.prefill_chunk
SMOL, TINY = "SmolLM2-135M-Instruct.Q4_1.gguf", "tiny windowed"
MODELS = [SMOL, TINY, *models_called("gemma-3*.gguf")]
TEXT = " ".join(f"{number} green bottles hang on the wall, and {number * 7} do not." for number in range(50))
BIG = 1 << 30
KL_BOUND = 1e-2


@pytest.fixture(params=MODELS)
def model_path(request: pytest.FixtureRequest, default_model_file: Path, tmp_path: Path) -> Path:
    if request.param == TINY:
        path: Path = write_windowed(tmp_path / "tiny.gguf")
        return path
    return default_model_file.parent / str(request.param)


@pytest.fixture
def backends(model_path: Path) -> Iterator[tuple[Backend, Backend]]:
    """Two of one model: what was loaded before, and what is loaded after."""
    pair = tuple(LlamaBackend.load(model_path, OPTIONS, lambda _: True) for _ in range(2))
    yield pair[0], pair[1]
    for backend in pair:
        backend.close()


def tokens_of(backend: Backend, count: int) -> list[int]:
    return backend.tokenize(TEXT, add_special=True, parse_special=False)[:count]


def prefill(backend: Backend, slot: int, tokens: list[int], start: int = 0) -> npt.NDArray[np.float32]:
    batch = backend.batch
    for first in range(start, len(tokens), CHUNK):
        chunk = tokens[first : first + CHUNK]
        n_rows = len(chunk)
        batch.tokens[:n_rows] = chunk
        batch.positions[:n_rows] = range(first, first + n_rows)
        batch.sequence_ids[:n_rows] = slot
        batch.wants_logits[:n_rows] = 0
        batch.wants_logits[n_rows - 1] = 1
        assert backend.decode(n_rows) is DecodeResult.DONE
    return backend.logits(n_rows - 1).copy()


def saved(backend: Backend, slot: int) -> memoryview:
    state = memoryview(bytearray(backend.state_bytes(slot)))
    assert backend.save_state(slot, state)
    return state


def kl_divergence(p_logits: npt.NDArray[np.float32], q_logits: npt.NDArray[np.float32]) -> float:
    p, q = (np.exp(row - row.max(), dtype=np.float64) for row in (p_logits, q_logits))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log((p + 1e-30) / (q + 1e-30))).sum())


def test_logits_after_a_restored_state_are_those_after_its_cells(
    backends: tuple[Backend, Backend],
) -> None:
    before, after = backends
    tokens = tokens_of(before, 4 * CHUNK + 5)
    prefill(before, 0, tokens[: 3 * CHUNK])
    state = saved(before, 0)
    expected = prefill(before, 0, tokens, 3 * CHUNK)
    assert after.restore_state(2, state, 3 * CHUNK)
    assert after.copy_cells(2, 0, 3 * CHUNK)
    found = prefill(after, 0, tokens, 3 * CHUNK)
    if after.facts.cuts_states:
        assert np.array_equal(found, expected)
    assert kl_divergence(found, expected) < KL_BOUND


@pytest.mark.parametrize("model_path", [SMOL], indirect=True)
def test_a_state_of_full_attention_can_be_gone_on_from_anywhere(backends: tuple[Backend, Backend]) -> None:
    before, after = backends
    assert before.facts.cuts_states
    tokens = tokens_of(before, 3 * CHUNK + 5)
    expected = prefill(before, 0, tokens)
    assert after.restore_state(1, saved(before, 0), len(tokens))
    assert after.copy_cells(1, 0, 2 * CHUNK)
    assert np.array_equal(prefill(after, 0, tokens, 2 * CHUNK), expected)


@pytest.mark.parametrize("model_path", [SMOL], indirect=True)
def test_the_engine_refuses_states_that_are_not_whole(backends: tuple[Backend, Backend]) -> None:
    before, after = backends
    tokens = tokens_of(before, CHUNK)
    prefill(before, 0, tokens)
    state = saved(before, 0)
    for broken in (state[:-1], state[: len(state) // 2], memoryview(bytearray(len(state)))):
        assert not after.restore_state(1, broken, CHUNK)
    assert not after.restore_state(1, state, CHUNK - 1)
    assert not after.restore_state(1, state, CHUNK + 1)
    assert after.restore_state(1, state, CHUNK)


class Bench:
    """An engine whose states are held, or kept and brought back a step later, as a daemon does."""

    def __init__(
        self,
        backend: Backend,
        options: EngineOptions = OPTIONS,
        *,
        saves: bool = True,
        host_cells: int = 1024,
    ) -> None:
        options = attrs.evolve(options, host_cells=host_cells if saves else 0)
        self.engine = Engine(backend, options)
        self.engine.hibernation.allow(BIG if saves else 0)
        self.engine._cells.goes_on = lambda prompt, namespace: True  # type: ignore[method-assign]
        self.data: dict[int, bytes] = {}
        self.texts: dict[str, str] = {}
        self.ends: dict[str, Finished] = {}

    def cached(self, request: SequenceRequest) -> int:
        self.engine.submit(request)
        self.run()
        return self.ends[request.request_id].usage.cached_tokens

    def run(self) -> None:
        while self.engine.has_work or self.engine.wanted_state is not None:
            self.note(self.engine.step().events)
            self.serve()

    def note(self, events: list[tuple[str, EngineEvent]]) -> None:
        for name, event in events:
            if isinstance(event, TextDelta):
                self.texts[name] = self.texts.get(name, "") + event.text
            elif isinstance(event, Finished):
                self.ends[name] = event

    def serve(self) -> None:
        hibernation = self.engine.hibernation
        while hibernation.outgoing is not None:
            state_id = len(self.data) + 1
            self.data[state_id] = bytes(hibernation.outgoing.data)
            hibernation.sent(state_id)
        if (wanted := self.engine.wanted_state) is not None:
            assert self.engine.bring_state(wanted.state_id, memoryview(bytearray(self.data[wanted.state_id])))

    @property
    def counts(self) -> EngineCounts:
        return self.engine.statistics().counts


def request_of(tokens: list[int], request_id: str, max_tokens: int = 1) -> SequenceRequest:
    return SequenceRequest(
        request_id=request_id,
        prompt_tokens=tuple(tokens),
        sampling=SamplingParams(temperature=0.0),
        max_tokens=max_tokens,
        stop=(),
        ignore_eos=True,
        namespace=Namespace(),
        submitted_s=0.0,
    )


def test_an_engine_goes_on_where_another_was_left(backends: tuple[Backend, Backend]) -> None:
    before, after = map(Bench, backends)
    tokens = tokens_of(backends[0], 5 * CHUNK)
    before.cached(request_of(tokens[: 4 * CHUNK], "a"))
    (state,) = [(one.tokens, bytes(one.data)) for one in before.engine.saved_states(BIG)]
    assert state[0] == tokens[: 4 * CHUNK]
    after.data[9] = state[1]
    after.engine.hibernation.learn(
        [KnownState(state_id=9, owner="", tokens=state[0], size_bytes=len(state[1]))]
    )
    assert after.cached(request_of(tokens, "b")) == len(state[0])
    assert after.counts.restored_tokens == len(state[0])


def test_what_makes_room_comes_back_and_goes_on_with_the_same_logits(
    backends: tuple[Backend, Backend],
) -> None:
    """Bit by bit where states can be cut, and the distributions with a window."""
    bench = Bench(backends[0], attrs.evolve(OPTIONS, max_retained=1))
    tokens = tokens_of(backends[0], 4 * CHUNK + 5)
    expected = prefill(backends[1], 0, tokens)
    bench.cached(request_of(tokens[: 3 * CHUNK], "a"))
    bench.cached(request_of(tokens[7 : 7 + CHUNK], "other"))  # of one id
    assert bench.cached(attrs.evolve(request_of(tokens, "b"), ignore_eos=False)) == 3 * CHUNK
    assert bench.counts.restored_tokens == 3 * CHUNK
    found = backends[0].logits(4).copy()  # the last pass had the rest, of five tokens
    if backends[0].facts.cuts_states:
        assert np.array_equal(found, expected)
    assert kl_divergence(found, expected) < KL_BOUND


PREEMPTING = EngineOptions(
    context_size=512, n_cells=512, max_sequences=2, max_retained=2, prefill_chunk=LEAST_CHUNK, n_threads=1
)
"""Chunks that the time they take does not change, so that two runs have the same steps."""


class Preempted(Bench):
    """Two of which the younger is preempted when cells run out, or in step `preempted_in` if there are
    enough, and resumed when the older one has ended."""

    def __init__(
        self, backend: Backend, options: EngineOptions, *, saves: bool, preempted_in: int = 0
    ) -> None:
        super().__init__(backend, options, saves=saves)
        tokens = tokens_of(backend, 400)
        self.engine.submit(request_of(tokens[:129], "old", 250))
        self.engine.step()
        self.engine.submit(request_of(tokens[200:301], "young", 200))
        self.n_steps = 0
        while self.counts.preemptions == 0:
            self.n_steps += 1
            if self.n_steps == preempted_in:
                self.engine._preempt(self.engine._running[-1])
                admit, self.engine._admit = self.engine._admit, lambda now_s: None  # type: ignore[method-assign]
            self.note(self.engine.step().events)
            self.serve()
        while "old" not in self.ends:
            self.note(self.engine.step().events)
            self.serve()
        if preempted_in:
            self.engine._admit = admit  # type: ignore[method-assign]
        n_rows = 0
        while not n_rows:
            output = self.engine.step()
            n_rows = output.prefill_tokens + output.decode_tokens
            self.note(output.events)
            self.serve()
        self.resumed = backend.logits(0).copy() if n_rows == 1 else None
        """After the first pass, when all but one token was there."""
        self.run()


@pytest.mark.parametrize("saves", [True, False])
def test_a_sequence_that_was_preempted_goes_on_as_if_it_had_kept_its_cells(
    model_path: Path, saves: bool
) -> None:
    """Not bit by bit, since what it had was not computed alone: the distributions are compared."""
    backend = LlamaBackend.load(model_path, PREEMPTING, lambda _: True)
    bench = Preempted(backend, PREEMPTING, saves=saves)
    bench.engine.close()
    assert bench.counts.preemptions == 1
    assert (bench.counts.restored_tokens > 200) is saves
    assert {name: end.usage.completion_tokens for name, end in bench.ends.items()} == {
        "old": 250,
        "young": 200,
    }
    if saves:
        options = attrs.evolve(PREEMPTING, n_cells=1024)
        kept = Preempted(
            LlamaBackend.load(model_path, options, lambda _: True),
            options,
            saves=False,
            preempted_in=bench.n_steps,
        )
        kept.engine.close()
        assert kept.counts.restored_tokens == 0
        assert bench.resumed is not None and kept.resumed is not None
        assert kl_divergence(bench.resumed, kept.resumed) < KL_BOUND


@pytest.mark.parametrize("host_cells", [600, 2000])
def test_of_four_who_take_turns_where_two_have_room_each_finds_what_it_left(
    model_path: Path, host_cells: int
) -> None:
    """In memory, or where that is too small, saved. States with a window are smaller."""
    options = EngineOptions(context_size=512, n_cells=768, max_sequences=2, max_retained=4, n_threads=1)
    backend = LlamaBackend.load(model_path, options, lambda _: True)
    bench = Bench(backend, options, host_cells=host_cells)
    try:
        length = [0] * 4
        for turn in range(3):
            for who in range(4):
                tokens = backend.tokenize(f"{who}: {TEXT}", add_special=True, parse_special=False)
                n_prompt = 150 + 80 * turn
                assert bench.cached(request_of(tokens[:n_prompt], f"{who} {turn}")) >= 0.9 * length[who]
                length[who] = n_prompt
        assert bench.counts.restored_tokens > 0
        assert bool(bench.data) is (host_cells == 600 and backend.facts.cuts_states)
    finally:
        bench.engine.close()


@pytest.mark.parametrize("model_path", [SMOL], indirect=True)
def test_a_state_that_is_too_large_is_saved_in_part(backends: tuple[Backend, Backend]) -> None:
    tokens = tokens_of(backends[0], 4 * CHUNK)

    def parts(limit_bytes: int, *, is_held: bool) -> list[tuple[int, int]]:
        before = Bench(backends[0])
        before.cached(request_of(tokens, "a"))
        if is_held:
            before.engine._cells.give_up_oldest()
            assert before.engine.hibernation.n_held_tokens == len(tokens)
        return [(len(one.tokens), len(one.data)) for one in before.engine.saved_states(limit_bytes)]

    for is_held in (False, True):
        ((n_tokens, whole),) = parts(BIG, is_held=is_held)
        assert n_tokens == len(tokens)
        assert parts(whole, is_held=is_held) == [(n_tokens, whole)]
        ((n_half, half),) = parts(whole // 2, is_held=is_held)
        assert LEAST_SAVED <= n_half <= 2 * CHUNK and half <= whole // 2
        assert parts(whole // 99, is_held=is_held) == []
