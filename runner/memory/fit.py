"""Footprint against budget: how much context a model gets.

Pure functions; the caller brings free bytes (`runner.hardware`) and header facts (`runner.gguf`), and decides
what happens when even the least does not fit: evict, wait or refuse.
"""

from __future__ import annotations

import attrs

from runner.memory.footprint import CELL_GRANULARITY, Footprint, estimate, round_up_cells

DEFAULT_CONTEXT_SIZE = 8192
CONTEXTS_PER_POOL = 2
"""Cells for two full contexts by default: sequences rarely fill theirs, and prefixes can be retained."""


@attrs.frozen(kw_only=True)
class ContextPlan:
    """What a model is loaded with.

    `context_size` is the limit of one sequence in tokens, `n_cells` the pool that all its sequences share, in
    whole multiples of `CELL_GRANULARITY` and never less than one context. `footprint` is what that costs,
    whether or not it fits `budget_bytes`.
    """

    context_size: int
    n_cells: int
    footprint: Footprint
    budget_bytes: int

    @property
    def fits(self) -> bool:
        return self.missing_bytes == 0

    @property
    def missing_bytes(self) -> int:
        """Bytes that the budget lacks; 0 when the plan fits."""
        return max(0, self.footprint.total_bytes - self.budget_bytes)


def memory_budget(free_bytes: int) -> int:
    """The share of free memory that models may take: 80 %, since other programs grow as well."""
    return free_bytes * 4 // 5


def choose_context(
    *,
    weights_bytes: int,
    kv_bytes_per_cell: int,
    budget_bytes: int,
    trained_context_size: int | None,
    packaged_context_size: int | None = None,
    default_context_size: int = DEFAULT_CONTEXT_SIZE,
) -> ContextPlan:
    """The context and the pool of cells that a model gets within `budget_bytes`.

    1. The context is what the packager wished, else `default_context_size`, and never more than was trained.
    2. The pool holds two contexts.
    3. Where the budget is smaller, the pool shrinks to what is left after weights and buffers ...
    4. ... but never below one context; a plan that does not fit says so and what is missing.
    """
    wished = default_context_size if packaged_context_size is None else packaged_context_size
    context_size = wished if trained_context_size is None else min(wished, trained_context_size)  # 1
    most = round_up_cells(CONTEXTS_PER_POOL * context_size)  # 2
    affordable = _affordable_cells(weights_bytes, kv_bytes_per_cell, budget_bytes, most)  # 3
    n_cells = max(round_up_cells(context_size), affordable)  # 4
    return ContextPlan(
        context_size=context_size,
        n_cells=n_cells,
        footprint=estimate(weights_bytes, kv_bytes_per_cell, n_cells),
        budget_bytes=budget_bytes,
    )


def _affordable_cells(weights_bytes: int, kv_bytes_per_cell: int, budget_bytes: int, most: int) -> int:
    """Cells that fit beside weights and buffers, at most `most`, in whole multiples of the granularity."""
    left_bytes = budget_bytes - estimate(weights_bytes, kv_bytes_per_cell, 0).total_bytes
    step_bytes = kv_bytes_per_cell * CELL_GRANULARITY
    if left_bytes <= 0:
        return 0
    if step_bytes == 0:  # recurrent models keep no cells; the number then only limits positions
        return most
    return min(most, left_bytes // step_bytes * CELL_GRANULARITY)
