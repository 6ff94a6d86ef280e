"""Sizes of one engine, as the scheduler chooses them and the engine keeps to them. Values only."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class EngineOptions:
    """Sizes of one engine; all positive.

    `context_size` limits one sequence, `n_cells` the pool that all share; `max_sequences` run at once.
    `prefill_chunk` is the number of prompt tokens that one step adds at most.
    """

    context_size: int
    n_cells: int
    max_sequences: int = 8
    prefill_chunk: int = 64
    n_threads: int = 1
