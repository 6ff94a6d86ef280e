"""Footprint against budget: how much context a model gets.

Pure functions; the caller brings free bytes (`runner.hardware`) and what a model costs, and decides what
happens when even the least does not fit: evict, wait or refuse.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

from runner.domain.engine import host_cache_bytes
from runner.memory.footprint import CELL_GRANULARITY, HOST, Footprint, round_up_cells

DEFAULT_CONTEXT_SIZE: Final = 8192
LEAST_DEFAULT_CONTEXT_SIZE: Final = 2048
"""A context that nobody asked for shrinks before a model is refused, but a chat needs so much."""
_STEPS_PER_CONTEXT: Final = 8
"""A host cache shrinks in steps, so that budgets which differ a little lead to the same sizes."""


@attrs.frozen
class PoolCost:
    """Bytes of a model as a function of the cells in its pool, and of the tokens kept in host memory beside
    it."""

    fixed_bytes: int
    cell_bytes: int
    host_cell_bytes: int

    @classmethod
    def of(cls, footprint: Footprint, n_cells: int) -> PoolCost:
        """On all devices together, from the footprint with `n_cells` cells. For fewer cells it is an upper
        bound: compute buffers do not grow when the pool shrinks."""
        return cls._of(footprint, n_cells, footprint.total_bytes, footprint.kv_cache_bytes)

    @classmethod
    def on_host(cls, footprint: Footprint, n_cells: int) -> PoolCost:
        """The same of host memory alone, where the host cache lies wherever the pool does."""
        pool_bytes = sum(one.kv_cache_bytes for one in footprint.devices if one.device == HOST)
        return cls._of(footprint, n_cells, footprint.bytes_on(HOST), pool_bytes)

    @classmethod
    def _of(cls, footprint: Footprint, n_cells: int, whole_bytes: int, pool_bytes: int) -> PoolCost:
        return cls(
            fixed_bytes=whole_bytes - pool_bytes - footprint.host_cache_bytes,
            cell_bytes=-(-pool_bytes // n_cells),
            host_cell_bytes=host_cache_bytes(footprint.devices, n_cells, 1),
        )

    def total_bytes(self, n_cells: int, host_cells: int = 0) -> int:
        return self.fixed_bytes + self.cell_bytes * n_cells + self.host_cell_bytes * host_cells


@attrs.frozen
class CacheLimit:
    """What the host cache has to leave room for, and the budget that it may fill beside that."""

    cost: PoolCost
    budget_bytes: int

    def host_cells(self, n_cells: int) -> int:
        """Tokens that fit beside `n_cells` cells and everything else; less than 0 where these do not."""
        return (self.budget_bytes - self.cost.total_bytes(n_cells)) // self.cost.host_cell_bytes


@attrs.frozen(kw_only=True)
class ContextPlan:
    """What a model is loaded with.

    `context_size` is the limit of one sequence in tokens, `n_cells` the pool that all its sequences share:
    one context, in whole multiples of `CELL_GRANULARITY`. `host_cells` are tokens that may be kept in host
    memory beside it. `total_bytes` is what all that costs, whether or not it fits `budget_bytes`.
    """

    context_size: int
    n_cells: int
    host_cells: int
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


def choose_context(
    cost: PoolCost,
    *,
    budget_bytes: int,
    trained_context_size: int | None,
    packaged_context_size: int | None = None,
    default_context_size: int = DEFAULT_CONTEXT_SIZE,
    has_host_cache: bool = True,
    cache_limits: Iterable[CacheLimit] = (),
) -> ContextPlan:
    """The context, the pool of cells and the host cache that a model gets within `budget_bytes`.

    1. The context is `wished_context`.
    2. The pool holds one context, which may take the whole budget.
    3. The host cache has room for as many tokens again, unless the model can keep none ...
    4. ... or the budget or one of `cache_limits` has less left beside all else: then for what that holds, in
       steps, down to nothing.
    5. Where even that does not fit, a context that nobody wished is halved, down to
       `LEAST_DEFAULT_CONTEXT_SIZE`.
    6. What still does not fit says so, and what is missing.
    """
    limits = (CacheLimit(cost, budget_bytes), *cache_limits) if has_host_cache else ()
    context_size = wished_context(trained_context_size, packaged_context_size, default_context_size)  # 1
    while True:
        plan = _plan(cost, context_size, budget_bytes, limits)
        is_least = packaged_context_size is not None or context_size <= LEAST_DEFAULT_CONTEXT_SIZE
        if plan.fits or is_least:
            return plan  # 6
        context_size = max(context_size // 2, LEAST_DEFAULT_CONTEXT_SIZE)  # 5


def _plan(
    cost: PoolCost, context_size: int, budget_bytes: int, limits: tuple[CacheLimit, ...]
) -> ContextPlan:
    n_cells = round_up_cells(context_size)  # 2
    host_cells = _host_cells(limits, n_cells) if cost.host_cell_bytes and limits else 0  # 3
    return ContextPlan(
        context_size=context_size,
        n_cells=n_cells,
        host_cells=host_cells,
        total_bytes=cost.total_bytes(n_cells, host_cells),
        budget_bytes=budget_bytes,
    )


def _host_cells(limits: tuple[CacheLimit, ...], n_cells: int) -> int:
    """As many as the pool has, else a whole multiple of a step."""
    affordable = min(limit.host_cells(n_cells) for limit in limits)
    if affordable >= n_cells:
        return n_cells
    step = max(CELL_GRANULARITY, round_up_cells(n_cells // _STEPS_PER_CONTEXT))
    return max(0, affordable // step * step)  # 4
