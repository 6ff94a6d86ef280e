"""Reuse must not change results: logits after shared cells against those of a sequence of its own.

Exact where the reused cells came from a prefill in an otherwise empty cache that was cut at the same places;
where they lie beside foreign cells, or were cut elsewhere, sums are added up in another order, and the
distributions are compared. Runs on SmolLM2, on a tiny model of random weights that has a sliding window, and
on Gemma 3, which has one too, where the test cache has it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt
import pytest

from runner.domain.engine import CacheMiss, EngineOptions
from runner.domain.events import Finished
from runner.domain.sampling import SamplingParams
from runner.engine.backend import Backend, DecodeResult, Sampler, load_backend
from runner.engine.engine import Engine, SequenceRequest
from runner.engine.llama import LlamaBackend
from runner.engine.prefix import Namespace
from runner.engine.sampler import SamplerPlan
from scripts.tiny_gguf import TinyModel, write_tiny_gguf
from tests.support.model_files import models_called
from tests.support.tiny_kinds import write_hybrid, write_recurrent, write_windowed

pytestmark = pytest.mark.real_model

OPTIONS = EngineOptions(
    context_size=1536, n_cells=2048, max_sequences=4, max_retained=4, prefill_chunk=64, n_threads=1
)
CHUNK = OPTIONS.prefill_chunk
KL_BOUND = 1e-2
TINY = "tiny windowed"
MODELS = ["SmolLM2-135M-Instruct.Q4_1.gguf", TINY, *models_called("gemma-3*.gguf")]
TEXT = " ".join(f"{number} green bottles hang on the wall, and {number * 7} do not." for number in range(99))


@pytest.fixture(scope="module", params=MODELS)
def backend(
    request: pytest.FixtureRequest, default_model_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    backend = load(request.param, default_model_file.parent, tmp_path_factory.mktemp("model"))
    yield backend
    backend.close()


@pytest.fixture(scope="module", params=MODELS[1:])
def windowed(
    request: pytest.FixtureRequest, default_model_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaBackend]:
    backend = load(request.param, default_model_file.parent, tmp_path_factory.mktemp("model"))
    assert isinstance(backend, LlamaBackend)
    yield backend
    backend.close()


def load(name: str, directory: Path, scratch: Path) -> Backend:
    path = write_windowed(scratch / "tiny.gguf") if name == TINY else directory / name
    return load_backend("llama", path, OPTIONS, lambda _: True)


def tokens_of(backend: Backend, count: int, text: str = TEXT) -> list[int]:
    return backend.tokenize(text, add_special=True, parse_special=False)[:count]


def put(backend: Backend, slot: int, start: int, tokens: list[int]) -> npt.NDArray[np.float32]:
    """One pass of these tokens alone; the logits of the last."""
    n_rows, batch = len(tokens), backend.batch
    batch.tokens[:n_rows] = tokens
    batch.positions[:n_rows] = range(start, start + n_rows)
    batch.sequence_ids[:n_rows] = slot
    batch.wants_logits[:n_rows] = 0
    batch.wants_logits[n_rows - 1] = 1
    assert backend.decode(n_rows) is DecodeResult.DONE
    return backend.logits(n_rows - 1).copy()


def prefill(
    backend: Backend, slot: int, tokens: list[int], start: int = 0, *, chunk: int = CHUNK
) -> npt.NDArray[np.float32]:
    for first in range(start, len(tokens), chunk):
        logits = put(backend, slot, first, tokens[first : first + chunk])
    return logits


def kl_divergence(p_logits: npt.NDArray[np.float32], q_logits: npt.NDArray[np.float32]) -> float:
    p, q = (np.exp(row - row.max(), dtype=np.float64) for row in (p_logits, q_logits))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log((p + 1e-30) / (q + 1e-30))).sum())


# cells


@pytest.mark.parametrize("cut", [CHUNK, 3 * CHUNK])
def test_logits_after_shared_cells_are_those_of_a_sequence_of_its_own_bit_by_bit(
    backend: Backend, cut: int
) -> None:
    tokens = tokens_of(backend, 4 * CHUNK + 5)
    alone = prefill(backend, 0, tokens)
    backend.drop_cells(0)
    prefill(backend, 1, tokens[:cut])
    assert backend.copy_cells(1, 3, cut)
    assert np.array_equal(prefill(backend, 3, tokens, cut), alone)
    backend.drop_cells(1)
    backend.drop_cells(3)


def test_shared_cells_outlive_the_sequence_that_computed_them(backend: Backend) -> None:
    tokens = tokens_of(backend, 2 * CHUNK + 5)
    alone = prefill(backend, 0, tokens)
    backend.drop_cells(0)
    prefill(backend, 1, [*tokens[:CHUNK], *tokens[7 : CHUNK + 7]])
    assert backend.copy_cells(1, 2, CHUNK)
    backend.drop_cells(1)
    assert np.array_equal(prefill(backend, 2, tokens, CHUNK), alone)
    backend.drop_cells(2)


def test_a_branch_goes_on_from_the_middle_of_a_long_sequence(windowed: LlamaBackend) -> None:
    """Beyond the window of layers that have one: what is behind it must still be there."""
    long = tokens_of(windowed, 13 * CHUNK)
    branch = [*long[: 4 * CHUNK], *long[40 : 40 + CHUNK]]
    alone = prefill(windowed, 0, branch)
    windowed.drop_cells(0)
    prefill(windowed, 1, long)
    assert windowed.copy_cells(1, 2, 4 * CHUNK)
    assert kl_divergence(alone, prefill(windowed, 2, branch, 4 * CHUNK)) < KL_BOUND
    windowed.drop_cells(1)
    windowed.drop_cells(2)


@pytest.mark.parametrize("is_guarded", [True, False])
def test_what_a_window_has_left_behind_is_kept_by_a_guard_and_refused_without(
    windowed: LlamaBackend, is_guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library overwrites such cells while others are empty; here they are wanted again."""
    assert isinstance(windowed, LlamaBackend)
    if not is_guarded:
        monkeypatch.setattr(windowed._cells, "guard", lambda batch, n_rows: None)
    long = tokens_of(windowed, 13 * CHUNK)
    prefill(windowed, 0, tokens_of(windowed, 4 * CHUNK, TEXT[200:]))
    prefill(windowed, 1, long)
    windowed.drop_cells(0)  # so that the search for cells begins at the front again
    prefill(windowed, 2, tokens_of(windowed, 7 * CHUNK, TEXT[500:]))
    branch = [*long[: 4 * CHUNK], *long[40 : 40 + CHUNK]]
    is_kept = windowed.copy_cells(1, 3, 4 * CHUNK)
    assert is_kept == is_guarded
    shared = prefill(windowed, 3, branch, 4 * CHUNK if is_kept else 0)
    for slot in (1, 2, 3):
        windowed.drop_cells(slot)
    assert kl_divergence(prefill(windowed, 0, branch), shared) < KL_BOUND
    windowed.drop_cells(0)


# the engine


class Watched:
    """An engine that takes down the logits that every token was chosen from, by request."""

    def __init__(self, backend: Backend, options: EngineOptions = OPTIONS) -> None:
        self.backend = backend
        self.engine = Engine(backend, options, stopwatch=lambda: 0.0)
        self.logits: dict[str, list[npt.NDArray[np.float32]]] = {}
        self.ends: dict[str, Finished] = {}

    def submit(self, name: str, tokens: list[int], *, is_shared: bool = True, max_tokens: int = 4) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.backend, "new_sampler", partial(self._new_sampler, name))
            self.engine.submit(
                SequenceRequest(
                    request_id=name,
                    prompt_tokens=tuple(tokens),
                    sampling=SamplingParams(temperature=0),
                    max_tokens=max_tokens,
                    ignore_eos=True,
                    namespace=Namespace() if is_shared else None,
                    submitted_s=0.0,
                )
            )

    def _new_sampler(self, name: str, plan: SamplerPlan) -> Sampler:
        sampler = type(self.backend).new_sampler(self.backend, plan)
        sample, seen = sampler.sample, self.logits.setdefault(name, [])

        def copying(row: int) -> int:
            seen.append(self.backend.logits(row).copy())
            return sample(row)

        sampler.sample = copying  # type: ignore[method-assign]  # watched, not changed
        return sampler

    def run(self) -> None:
        while self.engine.has_work:
            self.step()

    def step(self) -> None:
        for name, event in self.engine.step().events:
            if isinstance(event, Finished):
                self.ends[name] = event

    def cached(self, name: str) -> int:
        return self.ends[name].usage.cached_tokens


@pytest.fixture
def watched(backend: Backend) -> Iterator[Watched]:
    watched = Watched(backend)
    yield watched
    watched.run()
    watched.engine.forget_retained()
    assert watched.engine.statistics().cells_retained == 0


def test_an_answer_after_a_reused_prompt_is_the_same_bit_by_bit(backend: Backend, watched: Watched) -> None:
    """The first prompt ends where chunks do, so that the second is cut as it would be alone."""
    tokens = tokens_of(backend, 3 * CHUNK + 20)
    watched.submit("alone", tokens, is_shared=False)
    watched.run()
    watched.submit("first", tokens[: 3 * CHUNK], max_tokens=1)
    watched.run()
    watched.submit("second", tokens)
    watched.run()
    assert watched.cached("second") == 3 * CHUNK
    for alone, second in zip(watched.logits["alone"], watched.logits["second"], strict=True):
        assert np.array_equal(alone, second)


def test_requests_that_arrive_together_compute_what_they_share_once_and_answer_the_same(
    backend: Backend, watched: Watched
) -> None:
    shared = tokens_of(backend, 4 * CHUNK)
    questions = [tokens_of(backend, 12, f"{word} bottles?")[1:] for word in ("Which", "Whose", "What")]
    for index, question in enumerate(questions):
        watched.submit(f"alone {index}", [*shared, *question], is_shared=False)
        watched.run()
    for index, question in enumerate(questions):
        watched.submit(f"beside {index}", [*shared, *question])
    watched.run()
    n_cached = [watched.cached(f"beside {index}") for index in range(3)]
    assert n_cached[0] == 0
    assert all(count >= 4 * CHUNK for count in n_cached[1:])
    for index in range(3):
        alone, beside = watched.logits[f"alone {index}"][0], watched.logits[f"beside {index}"][0]
        assert kl_divergence(alone, beside) < KL_BOUND


def test_a_conversation_finds_nearly_all_of_its_last_turn(backend: Backend, watched: Watched) -> None:
    tokens = tokens_of(backend, 200)
    n_before = 0
    for turn, words in zip(range(4), itertools.count(300, 100), strict=False):
        watched.submit(str(turn), tokens, max_tokens=20)
        watched.run()
        if turn:
            assert watched.cached(str(turn)) == n_before
        n_before = len(tokens) + 19  # the last token of an answer is never put into a cell
        answer = [int(row.argmax()) for row in watched.logits[str(turn)]]
        tokens = [*tokens, *answer, *tokens_of(backend, 30, TEXT[words:])[1:]]


# states instead of cells


@pytest.fixture(scope="module", params=[write_recurrent, write_hybrid])
def stateful(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    path = request.param(tmp_path_factory.mktemp("stateful") / "tiny.gguf")
    backend = load_backend("llama", path, OPTIONS, lambda _: True)
    yield backend
    backend.close()


def test_of_states_nothing_is_shared_and_each_sequence_has_its_own(stateful: Backend) -> None:
    """More requests than run at once, of equal beginnings: beside others they answer as alone."""
    assert not stateful.facts.shares_cells
    watched = Watched(stateful)
    prompts = [tokens_of(stateful, 3 * CHUNK + 5 + index) for index in range(6)]
    for index, prompt in enumerate(prompts):
        watched.submit(f"alone {index}", prompt)
        watched.run()
    for index, prompt in enumerate(prompts):
        watched.submit(f"beside {index}", prompt)
    watched.engine.step()
    watched.engine.cancel("beside 1")
    watched.run()
    counts = watched.engine.statistics().counts
    assert counts.reuse_hits == 0
    assert counts.misses[list(CacheMiss).index(CacheMiss.UNSUPPORTED)] == 11
    assert watched.engine.statistics().cells_retained == 0
    for index in (0, 2, 3, 4, 5):
        for alone, beside in zip(
            watched.logits[f"alone {index}"], watched.logits[f"beside {index}"], strict=True
        ):
            assert kl_divergence(alone, beside) < KL_BOUND


def test_a_preempted_state_is_computed_anew(stateful: Backend) -> None:
    options = attrs.evolve(OPTIONS, context_size=200, n_cells=320)
    watched = Watched(stateful, options)
    prompt = tokens_of(stateful, 120)
    for name in "ab":
        watched.submit(name, prompt, max_tokens=70)
    watched.run()
    assert watched.engine.statistics().counts.preemptions > 0
    for first, second in zip(watched.logits["a"], watched.logits["b"], strict=True):
        assert kl_divergence(first, second) < KL_BOUND


# all of it at once


def write_plain(path: Path) -> Path:
    return write_tiny_gguf(path, TinyModel(context_length=4096))


@pytest.mark.parametrize("write", [write_plain, write_windowed, write_hybrid])
def test_whatever_comes_first_tokens_are_chosen_as_alone(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    """A drawn load of three families of prompts, in a pool too small for them: a wrong cell shows."""
    options = EngineOptions(
        context_size=400, n_cells=448, max_sequences=8, max_retained=5, prefill_chunk=32, n_threads=1
    )
    backend = load_backend("llama", write(tmp_path / "tiny.gguf"), options, lambda _: True)
    watched, drawn = Watched(backend, options), random.Random(5)
    families = [tokens_of(backend, 350, TEXT[first:]) for first in (0, 211, 422)]
    prompts: dict[str, list[int]] = {}
    for _ in range(40):
        if drawn.random() < 0.6:
            tail = [drawn.randrange(5, 200) for _ in range(drawn.randint(1, 40))]
            name = str(len(prompts))
            prompts[name] = drawn.choice(families)[: drawn.randint(1, 250)] + tail
            is_shared = drawn.random() < 0.9
            watched.submit(name, prompts[name], is_shared=is_shared, max_tokens=drawn.randint(1, 100))
        elif drawn.random() < 0.2:
            watched.engine.cancel(str(drawn.randrange(len(prompts) + 1)))
        else:
            for _ in range(drawn.randint(1, 12)):
                watched.step()
    watched.run()
    counts = watched.engine.statistics().counts
    assert counts.preemptions > 0
    assert (counts.reuse_hits > 5) == backend.facts.shares_cells
    watched.engine.forget_retained()
    for name in watched.ends:
        alone = prefill(backend, 0, prompts[name], chunk=32)
        backend.drop_cells(0)
        assert kl_divergence(alone, watched.logits[name][0]) < KL_BOUND / 100
    backend.close()
