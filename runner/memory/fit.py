"""Footprint against budget: how much context a model gets.

Pure functions; the caller brings free bytes (`runner.hardware`) and what a model costs, and decides what
happens when even the least does not fit: evict, wait or refuse.
"""

from __future__ import annotations

from typing import Final

import attrs

from runner.memory.footprint import CELL_GRANULARITY, Footprint, round_up_cells

DEFAULT_CONTEXT_SIZE: Final = 8192
LEAST_DEFAULT_CONTEXT_SIZE: Final = 2048
"""A context that nobody asked for shrinks before a model is refused, but a chat needs so much."""
CONTEXTS_PER_POOL: Final = 2
"""Cells for two full contexts by default: sequences rarely fill theirs, and prefixes can be retained."""
_STEPS_PER_CONTEXT: Final = 8
"""A pool shrinks in steps, so that budgets which differ a little lead to the same sizes, measured once."""


@attrs.frozen
class PoolCost:
    """Bytes of a model as a function of its cells."""

    fixed_bytes: int
    cell_bytes: int

    @classmethod
    def of(cls, footprint: Footprint, n_cells: int) -> PoolCost:
        """From the footprint with `n_cells` cells. For fewer cells it is an upper bound: compute buffers do
        not grow when the pool shrinks."""
        kv_cache_bytes = footprint.kv_cache_bytes
        per_cell_bytes = -(-kv_cache_bytes // n_cells)
        return cls(footprint.total_bytes - kv_cache_bytes, per_cell_bytes)

    def total_bytes(self, n_cells: int) -> int:
        return self.fixed_bytes + self.cell_bytes * n_cells


@attrs.frozen(kw_only=True)
class ContextPlan:
    """What a model is loaded with.

    `context_size` is the limit of one sequence in tokens, `n_cells` the pool that all its sequences share, in
    whole multiples of `CELL_GRANULARITY` and never less than one context. `total_bytes` is what that costs,
    whether or not it fits `budget_bytes`.
    """

    context_size: int
    n_cells: int
    total_bytes: int
    budget_bytes: int

    @property
    def fits(self) -> bool:
        return self.missing_bytes == 0

    @property
    def missing_bytes(self) -> int:
        """Bytes that the budget lacks; 0 when the plan fits."""
        return max(0, self.total_bytes - self.budget_bytes)


def wished_context(
    trained_context_size: int | None,
    packaged_context_size: int | None = None,
    default_context_size: int = DEFAULT_CONTEXT_SIZE,
) -> int:
    """What the packager wished, else the default, and never more than was trained."""
    wished = default_context_size if packaged_context_size is None else packaged_context_size
    return wished if trained_context_size is None else min(wished, trained_context_size)


def full_pool(context_size: int) -> int:
    """The cells of a model that has room enough."""
    return round_up_cells(CONTEXTS_PER_POOL * context_size)


def choose_context(
    cost: PoolCost,
    *,
    budget_bytes: int,
    trained_context_size: int | None,
    packaged_context_size: int | None = None,
    default_context_size: int = DEFAULT_CONTEXT_SIZE,
    pool_budget_bytes: int | None = None,
) -> ContextPlan:
    """The context and the pool of cells that a model gets within `budget_bytes`.

    1. The context is `wished_context`.
    2. The pool holds two contexts.
    3. Where `pool_budget_bytes` (by default the budget) is smaller, the pool shrinks to what is left after
       everything else ...
    4. ... but never below one context, which may take the whole budget.
    5. A context that nobody wished is then halved, down to `LEAST_DEFAULT_CONTEXT_SIZE`.
    6. What still does not fit says so, and what is missing.
    """
    pool_bytes = budget_bytes if pool_budget_bytes is None else pool_budget_bytes
    context_size = wished_context(trained_context_size, packaged_context_size, default_context_size)  # 1
    while True:
        plan = _plan(cost, context_size, budget_bytes, pool_bytes)
        is_least = packaged_context_size is not None or context_size <= LEAST_DEFAULT_CONTEXT_SIZE
        if plan.fits or is_least:
            return plan  # 6
        context_size = max(context_size // 2, LEAST_DEFAULT_CONTEXT_SIZE)  # 5


def _plan(cost: PoolCost, context_size: int, budget_bytes: int, pool_bytes: int) -> ContextPlan:
    least, most = round_up_cells(context_size), full_pool(context_size)  # 2
    n_cells = max(least, _affordable_cells(cost, pool_bytes, most, _step(context_size)))  # 3, 4
    return ContextPlan(
        context_size=context_size,
        n_cells=n_cells,
        total_bytes=cost.total_bytes(n_cells),
        budget_bytes=budget_bytes,
    )


def _step(context_size: int) -> int:
    return max(CELL_GRANULARITY, round_up_cells(context_size // _STEPS_PER_CONTEXT))


def _affordable_cells(cost: PoolCost, pool_bytes: int, most: int, step: int) -> int:
    """Cells that fit beside everything else: `most`, else a whole multiple of `step`."""
    left_bytes = pool_bytes - cost.fixed_bytes
    if left_bytes < 0:
        return 0
    if cost.cell_bytes * most <= left_bytes:  # recurrent models keep no cells: then the number costs nothing
        return most
    return left_bytes // (cost.cell_bytes * step) * step
