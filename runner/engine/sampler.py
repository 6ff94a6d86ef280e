"""How a sequence's next token is chosen: a plan that every backend can carry out, and the greedy choice.

Owns which stages apply and in which order, and the folding of seeds; pure. Imports numpy and `runner.domain`.
The C samplers that carry the other plans out are built in `llama_sampling.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import attrs
import numpy as np
import numpy.typing as npt

from runner.domain.sampling import WHOLE_CONTEXT, SamplingParams
from runner.domain.sampling import Stage as Step

_UINT32 = 0xFFFF_FFFF
_LLAMA_RANDOM_SEED = 0xFFFF_FFFF  # LLAMA_DEFAULT_SEED: llama.cpp would draw a seed of its own
_XTC_THRESHOLD_MAX = 0.5  # two tokens cannot both be above it

LogitsOf = Callable[[int], npt.NDArray[np.float32]]
"""Row of the last decode -> its logits, shape (n_vocab,), writable."""


class UnusableLogits(Exception):
    """A row of logits holds NaN: the model computed nothing that a token could be chosen from."""


# what is done to the candidates


@attrs.frozen
class LogitBias:
    """Adds to the logits of single tokens."""

    biases: tuple[tuple[int, float], ...]


@attrs.frozen(kw_only=True)
class Penalties:
    """Over the last `window` tokens."""

    window: int
    repeat: float
    frequency: float
    presence: float


@attrs.frozen(kw_only=True)
class Dry:
    """Against repeating runs of more than `allowed_length` tokens of the last `window`."""

    window: int
    multiplier: float
    base: float
    allowed_length: int
    breakers: tuple[str, ...]


@attrs.frozen
class TopNSigma:
    n: float


@attrs.frozen
class TopK:
    k: int


@attrs.frozen
class TypicalP:
    p: float


@attrs.frozen
class TopP:
    p: float


@attrs.frozen
class MinP:
    p: float


@attrs.frozen(kw_only=True)
class Xtc:
    probability: float
    threshold: float
    seed: int


@attrs.frozen(kw_only=True)
class Temperature:
    """`spread` and `exponent` are of the dynamic temperature; a spread of 0 keeps it still."""

    value: float
    spread: float = 0.0
    exponent: float = 1.0


PlannedStage = LogitBias | Penalties | Dry | TopNSigma | TopK | TypicalP | TopP | MinP | Xtc | Temperature


# how one of them is taken


@attrs.frozen
class Best:
    """The most probable, the lowest id among equals."""


@attrs.frozen
class Drawn:
    """By probability. `seed` is 32 bits wide."""

    seed: int


@attrs.frozen(kw_only=True)
class Mirostat:
    """Drawn so that the surprise of the text stays at `tau` bits. `version` is 1 or 2."""

    version: int
    seed: int
    tau: float
    eta: float


Draw = Best | Drawn | Mirostat


@attrs.frozen(kw_only=True)
class SamplerPlan:
    """`stages` in the order they apply, then the draw. `forbidden` tokens are ruled out before everything.

    `history` is the end of the prompt, as much of it as the longest window sees.
    """

    stages: tuple[PlannedStage, ...] = ()
    draw: Draw = attrs.field(factory=Best)
    forbidden: tuple[int, ...] = ()
    history: tuple[int, ...] = ()

    @property
    def is_greedy(self) -> bool:
        """The highest logit of those not forbidden, and nothing else matters."""
        return type(self.draw) is Best and not self.stages


def plan_sampler(
    params: SamplingParams,
    *,
    fresh_seed: int,
    context_size: int,
    prompt: tuple[int, ...] = (),
    forbidden: tuple[int, ...] = (),
) -> SamplerPlan:
    """The plan for one sequence; `fresh_seed` is used when the request names none.

    1. Biases come first. Stages that change nothing are left out.
    2. Mirostat takes the place of all filters. Penalties stay, which llama-server drops without a word.
    3. Temperature 0 and a top-k of 1 take the best token; of the stages those stay that change who that is.
    """
    seed = fold_seed(fresh_seed if params.seed is None else params.seed)
    stages: list[PlannedStage] = [LogitBias(params.logit_bias)] if params.logit_bias else []
    for step in params.samplers:
        stages += _planned(step, params, seed, context_size)
    draw: Draw = Drawn(seed)
    if _takes_the_best(params):
        stages = [stage for stage in stages if isinstance(stage, LogitBias | Penalties | Dry)]
        draw = Best()
    elif params.mirostat:
        stages = [stage for stage in stages if isinstance(stage, LogitBias | Penalties | Dry | Temperature)]
        draw = Mirostat(version=params.mirostat, seed=seed, tau=params.mirostat_tau, eta=params.mirostat_eta)
    window = max((stage.window for stage in stages if isinstance(stage, Penalties | Dry)), default=0)
    return SamplerPlan(
        stages=tuple(stages), draw=draw, forbidden=forbidden, history=prompt[-window:] if window else ()
    )


def _takes_the_best(params: SamplingParams) -> bool:
    is_cold = params.temperature <= 0 and Step.TEMPERATURE in params.samplers
    return is_cold or (params.top_k == 1 and Step.TOP_K in params.samplers and not params.mirostat)


def _planned(step: Step, params: SamplingParams, seed: int, context_size: int) -> list[PlannedStage]:
    """One stage, or none where its values change nothing (`SamplingParams` lists them)."""
    stage: PlannedStage
    match step:
        case Step.PENALTIES:
            window = _window(params.repeat_last_n, context_size)
            is_on = window > 0 and (
                (params.repeat_penalty, params.frequency_penalty, params.presence_penalty) != (1, 0, 0)
            )
            stage = Penalties(
                window=window,
                repeat=params.repeat_penalty,
                frequency=params.frequency_penalty,
                presence=params.presence_penalty,
            )
        case Step.DRY:
            window = _window(params.dry_penalty_last_n, context_size)
            is_on = window > 0 and params.dry_multiplier > 0 and params.dry_base > 1
            stage = Dry(
                window=window,
                multiplier=params.dry_multiplier,
                base=params.dry_base,
                allowed_length=params.dry_allowed_length,
                breakers=params.dry_sequence_breakers,
            )
        case Step.TOP_N_SIGMA:
            is_on, stage = params.top_n_sigma > 0, TopNSigma(params.top_n_sigma)
        case Step.TOP_K:
            is_on, stage = params.top_k > 0, TopK(params.top_k)
        case Step.TYPICAL_P:
            is_on, stage = params.typical_p < 1, TypicalP(params.typical_p)
        case Step.TOP_P:
            is_on, stage = params.top_p < 1, TopP(params.top_p)
        case Step.MIN_P:
            is_on, stage = params.min_p > 0, MinP(params.min_p)
        case Step.XTC:
            is_on = params.xtc_probability > 0 and params.xtc_threshold <= _XTC_THRESHOLD_MAX
            stage = Xtc(probability=params.xtc_probability, threshold=params.xtc_threshold, seed=seed)
        case Step.TEMPERATURE:
            is_on = (params.temperature, params.dynatemp_range) != (1, 0)
            stage = Temperature(
                value=params.temperature, spread=params.dynatemp_range, exponent=params.dynatemp_exponent
            )
        case _:
            assert_never(step)
    return [stage] if is_on else []


def _window(n_tokens: int, context_size: int) -> int:
    return context_size if n_tokens == WHOLE_CONTEXT else min(n_tokens, context_size)


def fold_seed(seed: int) -> int:
    """32 bits of a 64-bit seed; every bit counts, small seeds keep their value, and none means "random"."""
    folded = (seed ^ (seed >> 32)) & _UINT32 if seed >= 0 else ~fold_seed(~seed) & _UINT32
    return _UINT32 - 1 if folded == _LLAMA_RANDOM_SEED else folded


def best_token(logits: npt.NDArray[np.float32], forbidden: npt.NDArray[np.intp]) -> int:
    """The most probable token, the lowest id among equals, once the forbidden ones are ruled out in place.

    Raises UnusableLogits when the row holds NaN, which numpy's argmax finds before any number. 3 µs at 49k
    vocabulary, so that samplers which need the check only can afford it too.
    """
    if forbidden.size:
        logits[forbidden] = -np.inf
    best = int(logits.argmax())
    if np.isnan(logits[best]):
        raise UnusableLogits
    return best


class GreedySampler:
    """Carries out the plans that are greedy."""

    def __init__(self, logits_of: LogitsOf, forbidden: tuple[int, ...]) -> None:
        self._logits_of = logits_of
        self._forbidden = np.array(forbidden, dtype=np.intp)

    def sample(self, row: int) -> int:
        return best_token(self._logits_of(row), self._forbidden)

    propose = sample

    def accept(self, token_id: int) -> None:
        """Remembers nothing."""

    def close(self) -> None:
        """Holds nothing."""
