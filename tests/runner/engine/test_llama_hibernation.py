"""Restoring must not change results: logits after a restored state against those after the cells it came of.

Bit by bit on SmolLM2. With sliding windows (a tiny model of random weights, and Gemma 3 where the test cache
has it) at the state's exact end; what the window has left behind is not restored, sums are added up over
other places, and the distributions are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from runner.domain.engine import EngineOptions
from runner.domain.events import Finished
from runner.domain.sampling import SamplingParams
from runner.engine.backend import Backend, DecodeResult
from runner.engine.engine import Engine, SequenceRequest
from runner.engine.hibernation import LEAST_SAVED
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
    """An engine, driven to the end of one request at a time."""

    def __init__(self, backend: Backend) -> None:
        self.engine = Engine(backend, OPTIONS)

    def cached(self, request: SequenceRequest) -> int:
        self.engine.submit(request)
        while True:
            for _, event in self.engine.step().events:
                if isinstance(event, Finished):
                    return event.usage.cached_tokens


def request_of(tokens: list[int], request_id: str) -> SequenceRequest:
    return SequenceRequest(
        request_id=request_id,
        prompt_tokens=tuple(tokens),
        sampling=SamplingParams(temperature=0.0),
        max_tokens=1,
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
    assert state[0][: 4 * CHUNK] == tuple(tokens[: 4 * CHUNK])
    follower = request_of(tokens, "b")
    assert after.engine.hibernation.count_spared(state[0], tokens, Namespace()) == len(state[0])
    assert after.engine.hibernation.restore(state[0], Namespace(), memoryview(bytearray(state[1])))
    assert after.engine.hibernation.count_spared(state[0], tokens, Namespace()) == 0
    assert after.cached(follower) == len(state[0])
    assert after.engine.statistics().counts.restored_tokens == len(state[0])


@pytest.mark.parametrize("model_path", [SMOL], indirect=True)
def test_a_state_that_is_too_large_is_saved_in_part(backends: tuple[Backend, Backend]) -> None:
    before = Bench(backends[0])
    tokens = tokens_of(backends[0], 4 * CHUNK)
    before.cached(request_of(tokens, "a"))
    (whole,) = [len(one.data) for one in before.engine.saved_states(BIG)]
    (exact,) = [len(one.data) for one in before.engine.saved_states(whole)]
    assert exact == whole
    (half,) = [(len(one.tokens), len(one.data)) for one in before.engine.saved_states(whole // 2)]
    assert LEAST_SAVED <= half[0] <= 2 * CHUNK and half[1] <= whole // 2
    assert list(before.engine.saved_states(whole // 99)) == []
