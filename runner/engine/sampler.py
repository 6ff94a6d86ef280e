"""How a sequence's next token is chosen: a plan that every backend can carry out, and the greedy choice.

Owns the order of the filters and the folding of seeds; pure. Imports numpy and `runner.domain`. The C
samplers that carry the other plans out are built in `llama.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
import numpy.typing as npt

from runner.domain.sampling import SamplingParams

_UINT32 = 0xFFFF_FFFF
_LLAMA_RANDOM_SEED = 0xFFFF_FFFF  # LLAMA_DEFAULT_SEED: llama.cpp would draw a seed of its own

LogitsOf = Callable[[int], npt.NDArray[np.float32]]
"""Row of the last decode -> its logits, shape (n_vocab,), writable."""


class UnusableLogits(Exception):
    """A row of logits holds NaN: the model computed nothing that a token could be chosen from."""


@attrs.frozen(kw_only=True)
class SamplerPlan:
    """Filters in the order they apply: forbidden tokens, top-k, top-p, min-p, temperature, then the draw.

    This is llama.cpp's own order for the filters we offer (common/common.h, `samplers`), so that equal
    parameters mean the same as with its server. `is_greedy` takes the most probable token that is not
    forbidden, and nothing else matters. `top_k` 0, `top_p` 1 and `min_p` 0 are off; `seed` is 32 bits wide.
    """

    is_greedy: bool
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    forbidden: tuple[int, ...] = ()


def plan_sampler(params: SamplingParams, *, fresh_seed: int, forbidden: tuple[int, ...] = ()) -> SamplerPlan:
    """The plan for one sequence; `fresh_seed` is used when the request names none."""
    if params.temperature <= 0 or params.top_k == 1:
        return SamplerPlan(is_greedy=True, forbidden=forbidden)
    return SamplerPlan(
        is_greedy=False,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=fold_seed(fresh_seed if params.seed is None else params.seed),
        forbidden=forbidden,
    )


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
    def __init__(self, logits_of: LogitsOf, forbidden: tuple[int, ...]) -> None:
        self._logits_of = logits_of
        self._forbidden = np.array(forbidden, dtype=np.intp)

    def sample(self, row: int) -> int:
        return best_token(self._logits_of(row), self._forbidden)

    def close(self) -> None:
        """Holds nothing."""
