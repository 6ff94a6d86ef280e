"""How the next token is chosen: parameters with their ranges.

Values only. Dialects report faults against `RANGES` (N12). What each stage does to the candidates is planned
in `runner/engine/sampler.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

import attrs


@attrs.frozen
class Range:
    """Closed interval of allowed values."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


TOP_K_MAX = 1_000_000  # larger than any vocabulary; the sampler clamps to the vocabulary
SEED_MAX = 2**63 - 1
WINDOW_MAX = 2**24  # as the largest context; the engine clamps to its own
WHOLE_CONTEXT = -1
"""As a window: all tokens of the sequence."""

_PENALTY = Range(-2.0, 2.0)
_WINDOW = Range(WHOLE_CONTEXT, WINDOW_MAX)
_SHARE = Range(0.0, 1.0)

RANGES: Mapping[str, Range] = MappingProxyType(
    {
        "temperature": Range(0.0, 2.0),
        "top_p": _SHARE,
        "top_k": Range(0, TOP_K_MAX),
        "min_p": _SHARE,
        "seed": Range(-SEED_MAX, SEED_MAX),
        "typical_p": _SHARE,
        "top_n_sigma": Range(-1.0, 10.0),
        "dynatemp_range": Range(0.0, 2.0),
        "dynatemp_exponent": Range(0.1, 10.0),
        "repeat_penalty": Range(0.1, 2.0),
        "repeat_last_n": _WINDOW,
        "frequency_penalty": _PENALTY,
        "presence_penalty": _PENALTY,
        "dry_multiplier": Range(0.0, 10.0),
        "dry_base": Range(1.0, 10.0),
        "dry_allowed_length": Range(1, 1024),
        "dry_penalty_last_n": _WINDOW,
        "xtc_probability": _SHARE,
        "xtc_threshold": _SHARE,
        "mirostat": Range(0, 2),
        "mirostat_tau": Range(0.0, 20.0),
        "mirostat_eta": _SHARE,
    }
)
"""Of every parameter that is a number. The first five are the usual ones."""

INTEGERS = frozenset(
    {"top_k", "seed", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat"}
)
"""Those of `RANGES` that are counted; the others are measured."""

STOP_MAX = 16
STOP_BYTES_MAX = 256
LOGIT_BIAS_MAX = 1024
LOGIT_BIAS = Range(-100.0, 100.0)
BREAKERS_MAX = 16
BREAKER_BYTES_MAX = 40  # llama.cpp cuts longer ones off (MAX_CHAR_LEN in llama-sampler.cpp)
CHOICES = Range(1, 8)
"""Answers to one request."""
LOGPROBS = Range(0, 20)
"""Likeliest tokens that are told with each."""


class Stage(enum.Enum):
    """What may be done to the candidates before one is drawn, in the order in which it usually is.

    Names and order are llama-server's (`samplers` in its common.h).
    """

    PENALTIES = "penalties"
    """`repeat_penalty`, `frequency_penalty`, `presence_penalty` over the last `repeat_last_n` tokens."""
    DRY = "dry"
    TOP_N_SIGMA = "top_n_sigma"
    TOP_K = "top_k"
    TYPICAL_P = "typ_p"
    TOP_P = "top_p"
    MIN_P = "min_p"
    XTC = "xtc"
    TEMPERATURE = "temperature"


USUAL_ORDER = tuple(Stage)


@attrs.frozen(kw_only=True)
class SamplingParams:
    """Already validated. Defaults are the usual ones of local servers.

    Values that switch a stage off: `temperature` 0 (greedy), `top_k`, `min_p`, `dynatemp_range`, the two
    OpenAI penalties, `dry_multiplier`, `xtc_probability`, `mirostat` and either window 0; `top_p`,
    `typical_p`, `repeat_penalty` and `dry_base` 1; `top_n_sigma` 0 and below; `xtc_threshold` above 0.5.

    `seed` None means a fresh one per request. Windows count tokens, the prompt's too. `logit_bias` pairs
    token ids with what is added to their logits. `samplers` are the stages and their order; one that is
    missing does not happen. Mirostat replaces all filters.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    seed: int | None = None
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    logit_bias: tuple[tuple[int, float], ...] = ()
    samplers: tuple[Stage, ...] = USUAL_ORDER
