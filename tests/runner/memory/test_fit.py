"""Contexts and pools of cells against budgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.engine import DeviceBuffers
from runner.memory.fit import (
    DEFAULT_CONTEXT_SIZE,
    LEAST_DEFAULT_CONTEXT_SIZE,
    PoolCost,
    choose_context,
)
from runner.memory.footprint import CELL_GRANULARITY, Footprint, round_up_cells

PLENTY = 10**15
FIXED = 400_000_000
PER_CELL = 23_040
COST = PoolCost(FIXED, PER_CELL)


@pytest.mark.parametrize(
    ("trained", "packaged", "context_size"),
    [
        (2048, None, 2048),
        (8192, None, 8192),
        (131_072, None, 8192),
        (None, None, 8192),
        (131_072, 32_768, 32_768),
        (2048, 4096, 2048),
        (4096, 512, 512),
        (None, 20_000, 20_000),
    ],
)
def test_the_context_is_the_smaller_of_trained_and_wished(
    trained: int | None, packaged: int | None, context_size: int
) -> None:
    plan = choose_context(
        COST,
        budget_bytes=PLENTY,
        trained_context_size=trained,
        packaged_context_size=packaged,
    )
    assert plan.context_size == context_size
    assert plan.n_cells == round_up_cells(2 * context_size)
    assert plan.fits


def test_another_default_context_can_be_set() -> None:
    plan = choose_context(
        COST,
        budget_bytes=PLENTY,
        trained_context_size=131_072,
        default_context_size=4096,
    )
    assert (plan.context_size, plan.n_cells) == (4096, 8192)


def _cost(n_cells: int) -> int:
    return FIXED + n_cells * PER_CELL


@pytest.mark.parametrize(
    ("budget_bytes", "n_cells", "fits"),
    [
        (_cost(16_384) + 1, 16_384, True),
        (_cost(16_384), 16_384, True),
        (_cost(16_384) - 1, 15_360, True),  # in eighths of the context
        (_cost(9216), 9216, True),
        (_cost(9216) - 1, 8192, True),
        (_cost(8192), 8192, True),
        (_cost(8192) - 1, 8192, False),
        (FIXED, 8192, False),
        (FIXED - 1, 8192, False),
        (0, 8192, False),
    ],
)
def test_the_pool_shrinks_to_the_budget_but_not_below_one_context(
    budget_bytes: int, n_cells: int, fits: bool
) -> None:
    plan = choose_context(
        COST, budget_bytes=budget_bytes, trained_context_size=None, packaged_context_size=8192
    )
    assert plan.context_size == 8192
    assert plan.n_cells == n_cells
    assert plan.total_bytes == _cost(n_cells)
    assert plan.fits is fits
    assert plan.missing_bytes == (0 if fits else _cost(8192) - budget_bytes)


@pytest.mark.parametrize(
    ("budget_bytes", "context_size", "n_cells", "fits"),
    [
        (_cost(8192), 8192, 8192, True),
        (_cost(8192) - 1, 4096, 7680, True),
        (_cost(4096) - 1, 2048, 3840, True),
        (_cost(2048), 2048, 2048, True),
        (_cost(2048) - 1, 2048, 2048, False),
        (0, 2048, 2048, False),
    ],
)
def test_a_context_that_nobody_wished_shrinks_before_the_model_is_refused(
    budget_bytes: int, context_size: int, n_cells: int, fits: bool
) -> None:
    plan = choose_context(COST, budget_bytes=budget_bytes, trained_context_size=131_072)
    assert (plan.context_size, plan.n_cells, plan.fits) == (context_size, n_cells, fits)


def test_a_small_trained_context_is_not_enlarged_by_that() -> None:
    plan = choose_context(COST, budget_bytes=0, trained_context_size=512)
    assert (plan.context_size, plan.n_cells) == (512, 512)
    plan = choose_context(COST, budget_bytes=0, trained_context_size=3000)
    assert (plan.context_size, plan.n_cells) == (2048, 2048)


def test_the_pool_can_be_given_less_than_one_context_may_take() -> None:
    budget_bytes = _cost(8192)
    plan = choose_context(
        COST, budget_bytes=budget_bytes, pool_budget_bytes=budget_bytes * 9 // 10, trained_context_size=None
    )
    assert (plan.context_size, plan.n_cells, plan.fits) == (8192, 8192, True)
    plan = choose_context(
        COST, budget_bytes=_cost(16_384), pool_budget_bytes=_cost(12_288), trained_context_size=None
    )
    assert plan.n_cells == 12_288


def test_a_model_without_cells_gets_its_contexts_whatever_they_number() -> None:
    plan = choose_context(PoolCost(FIXED, 0), budget_bytes=FIXED, trained_context_size=1_048_576)
    assert plan.n_cells == 2 * DEFAULT_CONTEXT_SIZE
    assert plan.total_bytes == FIXED


def test_a_footprint_gives_the_cost_of_its_cells_and_never_less_than_itself() -> None:
    host = DeviceBuffers(device="cpu", weights_bytes=1000, kv_cache_bytes=1025, compute_bytes=7)
    footprint = Footprint(devices=(host,), overhead_bytes=50)
    cost = PoolCost.of(footprint, 512)
    assert cost == PoolCost(1057, 3)
    assert cost.total_bytes(512) >= footprint.total_bytes


@given(
    fixed_bytes=st.integers(0, 10**12),
    cell_bytes=st.integers(0, 10**7),
    budget_bytes=st.integers(0, 10**13),
    trained=st.none() | st.integers(1, 10**7),
    packaged=st.none() | st.integers(1, 10**7),
)
def test_every_plan_holds_one_context_and_says_truly_whether_it_fits(
    fixed_bytes: int, cell_bytes: int, budget_bytes: int, trained: int | None, packaged: int | None
) -> None:
    cost = PoolCost(fixed_bytes, cell_bytes)
    plan = choose_context(
        cost, budget_bytes=budget_bytes, trained_context_size=trained, packaged_context_size=packaged
    )
    wished = packaged or DEFAULT_CONTEXT_SIZE
    assert 1 <= plan.context_size <= (wished if trained is None else min(wished, trained))
    assert plan.context_size <= plan.n_cells <= round_up_cells(2 * plan.context_size)
    assert plan.n_cells % CELL_GRANULARITY == 0
    assert plan.total_bytes == cost.total_bytes(plan.n_cells)
    assert plan.fits == (plan.total_bytes <= budget_bytes)
    if plan.n_cells > round_up_cells(plan.context_size):
        assert plan.fits  # a larger pool is never the reason for a refusal
    if packaged is not None:
        assert plan.context_size == min(packaged, trained or packaged)
    elif not plan.fits:
        assert plan.context_size <= LEAST_DEFAULT_CONTEXT_SIZE  # nothing was left to try
