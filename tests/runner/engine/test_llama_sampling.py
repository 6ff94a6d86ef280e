"""What llama.cpp's samplers do with the plans, held against numpy on the logits of one real row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from runner.domain.engine import EngineOptions
from runner.engine.backend import DecodeResult, Sampler, load_backend
from runner.engine.llama import LlamaBackend
from runner.engine.sampler import (
    Draw,
    Drawn,
    Dry,
    LogitBias,
    MinP,
    Mirostat,
    Penalties,
    PlannedStage,
    SamplerPlan,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
    UnusableLogits,
    Xtc,
)

OPTIONS = EngineOptions(context_size=64, n_cells=64, max_sequences=1, prefill_chunk=32, n_threads=1)
Row = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def loaded(default_model_file: object) -> Iterator[LlamaBackend]:
    backend = load_backend("llama", default_model_file, OPTIONS, lambda _: True)  # type: ignore[arg-type]  # a Path
    assert isinstance(backend, LlamaBackend)
    yield backend
    backend.close()


@pytest.fixture
def backend(loaded: LlamaBackend) -> Iterator[LlamaBackend]:
    """One row has just been computed: number `LAST`, after "The best colour is"."""
    tokens = loaded.tokenize("The best colour is", add_special=True, parse_special=True)
    batch = loaded.batch
    n_rows = len(tokens)
    batch.tokens[:n_rows] = tokens
    batch.positions[:n_rows] = range(n_rows)
    batch.sequence_ids[:n_rows] = 0
    batch.wants_logits[:n_rows] = 0
    batch.wants_logits[n_rows - 1] = 1
    assert loaded.decode(n_rows) is DecodeResult.DONE
    yield loaded
    loaded.drop_cells(0)


LAST = -1


def logits_of(backend: LlamaBackend) -> Row:
    return backend.logits(LAST).astype(np.float64)


def probabilities(logits: Row) -> Row:
    weights = np.exp(logits - logits.max())
    found: Row = weights / weights.sum()
    return found


def sampler(
    backend: LlamaBackend, *stages: PlannedStage, draw: Draw | None = None, history: tuple[int, ...] = ()
) -> Sampler:
    plan = SamplerPlan(stages=stages, history=history)
    if draw is not None:
        plan = SamplerPlan(stages=stages, draw=draw, history=history)
    return backend.new_sampler(plan)


def first(backend: LlamaBackend, *stages: PlannedStage, history: tuple[int, ...] = ()) -> int:
    """The best token once `stages` have done their work."""
    made = sampler(backend, *stages, history=history)
    try:
        return made.sample(LAST)
    finally:
        made.close()


def drawn(backend: LlamaBackend, *stages: PlannedStage, count: int = 200) -> set[int]:
    """Those that come out at a temperature at which all that are left are about equally likely."""
    made = sampler(backend, *stages, Temperature(value=50.0), draw=Drawn(1))
    try:
        return {made.sample(LAST) for _ in range(count)}
    finally:
        made.close()


def test_a_bias_decides_who_is_best(backend: LlamaBackend) -> None:
    ranked = np.argsort(-logits_of(backend))
    assert first(backend, LogitBias(((int(ranked[0]), -100.0),))) == ranked[1]
    assert first(backend, LogitBias(((7, 100.0),))) == 7


def test_penalties_follow_their_formula(backend: LlamaBackend) -> None:
    """A positive logit is divided, a negative one multiplied; frequency counts, presence does not."""
    logits = logits_of(backend)
    ranked = [int(token) for token in np.argsort(-logits)[:4]]
    history = (ranked[0], ranked[0], ranked[1], 5)
    stage = Penalties(window=4, repeat=1.2, frequency=0.3, presence=0.25)
    expected = logits.copy()
    for token, count in ((ranked[0], 2), (ranked[1], 1), (5, 1)):
        expected[token] *= 1 / 1.2 if expected[token] > 0 else 1.2
        expected[token] -= 0.3 * count + 0.25
    assert first(backend, stage, history=history) == expected.argmax() != ranked[0]


def test_penalties_forget_what_lies_before_their_window(backend: LlamaBackend) -> None:
    best = int(logits_of(backend).argmax())
    stage = Penalties(window=2, repeat=1.0, frequency=0.0, presence=2.0)
    assert first(backend, stage, history=(5, best)) != best
    assert first(backend, stage, history=(best, 5, 6)) == best


def test_penalties_see_the_tokens_of_the_answer(backend: LlamaBackend) -> None:
    """Each choice is taken into the window, so that the next one is another."""
    made = sampler(backend, Penalties(window=64, repeat=1.0, frequency=0.0, presence=100.0))
    try:
        chosen = [made.sample(LAST) for _ in range(5)]
    finally:
        made.close()
    assert chosen == [int(token) for token in np.argsort(-logits_of(backend))[:5]]


def test_dry_keeps_a_run_from_being_repeated(backend: LlamaBackend) -> None:
    best = int(logits_of(backend).argmax())
    run = (1001, 1002, 1003)
    stage = Dry(window=64, multiplier=100.0, base=1.75, allowed_length=2, breakers=())
    assert first(backend, stage, history=(*run, best, *run)) != best
    assert first(backend, stage, history=(*run, best, 1004, 1005)) == best


def test_a_breaker_ends_a_run(backend: LlamaBackend) -> None:
    best = int(logits_of(backend).argmax())
    newline = backend.tokenize("\n", add_special=False, parse_special=False)
    run = (1001, *newline, 1003)
    history = (*run, best, *run)
    broken = Dry(window=64, multiplier=100.0, base=1.75, allowed_length=2, breakers=("\n",))
    assert first(backend, broken, history=history) == best
    whole = Dry(window=64, multiplier=100.0, base=1.75, allowed_length=2, breakers=())
    assert first(backend, whole, history=history) != best


def test_top_k_leaves_so_many(backend: LlamaBackend) -> None:
    assert drawn(backend, TopK(3)) == set(np.argsort(-logits_of(backend))[:3].tolist())


def test_top_p_leaves_the_least_number_that_has_the_probability(backend: LlamaBackend) -> None:
    chances = probabilities(logits_of(backend))
    ranked = np.argsort(-chances)
    count = int(np.searchsorted(np.cumsum(chances[ranked]), 0.3)) + 1
    assert drawn(backend, TopP(0.3)) == set(ranked[:count].tolist())


def test_min_p_leaves_those_near_the_best(backend: LlamaBackend) -> None:
    chances = probabilities(logits_of(backend))
    assert drawn(backend, MinP(0.5)) == set(np.flatnonzero(chances >= 0.5 * chances.max()).tolist())


def test_top_n_sigma_leaves_those_within_deviations_of_the_best(backend: LlamaBackend) -> None:
    logits = logits_of(backend)
    kept = np.flatnonzero(logits >= logits.max() - 0.3 * logits.std())
    assert drawn(backend, TopNSigma(0.3), count=400) == set(kept.tolist())


def test_typical_leaves_those_whose_surprise_is_near_the_entropy(backend: LlamaBackend) -> None:
    chances = probabilities(logits_of(backend))
    with np.errstate(divide="ignore"):
        surprise = -np.log(chances)
    entropy = float((chances * np.where(chances > 0, surprise, 0)).sum())
    ranked = np.argsort(np.abs(surprise - entropy))
    count = int(np.searchsorted(np.cumsum(chances[ranked]), 0.05)) + 1
    found = drawn(backend, TypicalP(0.05), count=400)
    assert found <= set(ranked[: count + 1].tolist())
    assert int(np.argmax(chances)) not in found


def test_xtc_takes_away_the_most_probable_but_the_last_of_them(backend: LlamaBackend) -> None:
    logits = logits_of(backend)
    ranked = np.argsort(-logits)[:5]
    chances = probabilities(logits[ranked])
    threshold = float((chances[2] + chances[3]) / 2)  # three are above it
    stages = (TopK(5), Xtc(probability=1.0, threshold=threshold, seed=1))
    assert drawn(backend, *stages) == {int(ranked[index]) for index in (2, 3, 4)}


def test_a_temperature_near_zero_takes_the_best(backend: LlamaBackend) -> None:
    made = sampler(backend, Temperature(value=1e-3), draw=Drawn(1))
    try:
        assert {made.sample(LAST) for _ in range(20)} == {int(logits_of(backend).argmax())}
    finally:
        made.close()


@pytest.mark.parametrize(
    "draw",
    [
        Drawn(5),
        Mirostat(version=1, seed=5, tau=5.0, eta=0.1),
        Mirostat(version=2, seed=5, tau=5.0, eta=0.1),
    ],
)
def test_equal_seeds_draw_equally_also_when_proposed_and_accepted(backend: LlamaBackend, draw: Draw) -> None:
    at_once, in_two = (sampler(backend, Temperature(value=1.5), draw=draw) for _ in range(2))
    try:
        chosen = [at_once.sample(LAST) for _ in range(8)]
        for token in chosen:
            assert in_two.propose(LAST) == token
            in_two.accept(token)
    finally:
        at_once.close()
        in_two.close()
    assert len(set(chosen)) > 1


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_aims_at_an_entropy(backend: LlamaBackend, version: int) -> None:
    """A low aim leaves few tokens, a high one many."""
    found = []
    for tau in (0.5, 9.0):
        made = sampler(backend, draw=Mirostat(version=version, seed=1, tau=tau, eta=0.5))
        try:
            found.append(len({made.sample(LAST) for _ in range(60)}))
        finally:
            made.close()
    assert found[0] < found[1]


def test_what_is_no_number_is_unusable_to_a_chain_too(backend: LlamaBackend) -> None:
    made = sampler(backend, draw=Drawn(1))
    backend.logits(LAST)[3] = np.nan
    try:
        for choose in (made.sample, made.propose):
            with pytest.raises(UnusableLogits):
                choose(LAST)
    finally:
        made.close()
