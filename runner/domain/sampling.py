"""How the next token is chosen: parameters with their ranges.

Values only. Dialects report faults against `RANGES` (N12).
"""

from __future__ import annotations

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

RANGES: Mapping[str, Range] = MappingProxyType(
    {
        "temperature": Range(0.0, 2.0),
        "top_p": Range(0.0, 1.0),
        "top_k": Range(0, TOP_K_MAX),
        "min_p": Range(0.0, 1.0),
        "seed": Range(-SEED_MAX, SEED_MAX),
    }
)

STOP_MAX = 16
STOP_BYTES_MAX = 256


@attrs.frozen(kw_only=True)
class SamplingParams:
    """Already validated. `top_k` 0, `top_p` 1 and `min_p` 0 switch a filter off; `temperature` 0 is greedy.

    `seed` None means a fresh one per request. Defaults are the usual ones of local servers.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    seed: int | None = None
