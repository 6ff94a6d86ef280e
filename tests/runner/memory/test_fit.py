"""Contexts and pools of cells against budgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.engine import DeviceBuffers, EngineSizes
from runner.memory.fit import (
    DEFAULT_CONTEXT_SIZE,
    LEAST_DEFAULT_CONTEXT_SIZE,
    CacheLimit,
    PoolCost,
    choose_context,
)
from runner.memory.footprint import CELL_GRANULARITY, PROCESS_BYTES, exact, round_up_cells

PLENTY = 10**15
FIXED = 400_000_000
PER_CELL = 23_040
PER_HOST_CELL = 23_104
COST = PoolCost(FIXED, PER_CELL, PER_HOST_CELL)


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
    assert plan.n_cells == plan.host_cells == round_up_cells(context_size)
    assert plan.fits


def test_another_default_context_can_be_set() -> None:
    plan = choose_context(
        COST,
        budget_bytes=PLENTY,
        trained_context_size=131_072,
        default_context_size=4096,
    )
    assert (plan.context_size, plan.n_cells, plan.host_cells) == (4096, 4096, 4096)


def _cost(n_cells: int, host_cells: int = 0) -> int:
    return FIXED + n_cells * PER_CELL + host_cells * PER_HOST_CELL


@pytest.mark.parametrize(
    ("budget_bytes", "host_cells", "fits"),
    [
        (_cost(8192, 8192) + 1, 8192, True),
        (_cost(8192, 8192), 8192, True),
        (_cost(8192, 8192) - 1, 7168, True),  # in eighths of the context
        (_cost(8192, 7168), 7168, True),
        (_cost(8192, 7168) - 1, 6144, True),
        (_cost(8192, 1024), 1024, True),
        (_cost(8192, 1024) - 1, 0, True),
        (_cost(8192), 0, True),
        (_cost(8192) - 1, 0, False),
        (FIXED, 0, False),
        (FIXED - 1, 0, False),
        (0, 0, False),
    ],
)
def test_the_host_cache_shrinks_to_the_budget_and_the_pool_does_not(
    budget_bytes: int, host_cells: int, fits: bool
) -> None:
    plan = choose_context(
        COST, budget_bytes=budget_bytes, trained_context_size=None, packaged_context_size=8192
    )
    assert (plan.context_size, plan.n_cells, plan.host_cells) == (8192, 8192, host_cells)
    assert plan.total_bytes == _cost(8192, host_cells)
    assert plan.fits is fits
    assert plan.missing_bytes == (0 if fits else _cost(8192) - budget_bytes)


@pytest.mark.parametrize(
    ("budget_bytes", "context_size", "host_cells", "fits"),
    [
        (_cost(8192), 8192, 0, True),
        (_cost(8192) - 1, 4096, 3584, True),
        (_cost(4096), 4096, 0, True),
        (_cost(4096) - 1, 2048, 1792, True),
        (_cost(2048), 2048, 0, True),
        (_cost(2048) - 1, 2048, 0, False),
        (0, 2048, 0, False),
    ],
)
def test_a_context_that_nobody_wished_shrinks_before_the_model_is_refused(
    budget_bytes: int, context_size: int, host_cells: int, fits: bool
) -> None:
    plan = choose_context(COST, budget_bytes=budget_bytes, trained_context_size=131_072)
    assert plan.context_size == plan.n_cells == context_size
    assert (plan.host_cells, plan.fits) == (host_cells, fits)


@pytest.mark.parametrize(
    ("budget_bytes", "host_cells"),
    [
        (_cost(512, 512), 512),
        (_cost(512, 512) - 1, 256),  # steps are no smaller than what is allocated at once
        (_cost(512, 256) - 1, 0),
    ],
)
def test_a_small_host_cache_shrinks_in_larger_steps(budget_bytes: int, host_cells: int) -> None:
    plan = choose_context(COST, budget_bytes=budget_bytes, trained_context_size=500)
    assert (plan.context_size, plan.n_cells, plan.host_cells) == (500, 512, host_cells)


def test_a_small_trained_context_is_not_enlarged_by_that() -> None:
    plan = choose_context(COST, budget_bytes=0, trained_context_size=512)
    assert (plan.context_size, plan.n_cells) == (512, 512)
    plan = choose_context(COST, budget_bytes=0, trained_context_size=3000)
    assert (plan.context_size, plan.n_cells) == (2048, 2048)


@pytest.mark.parametrize(
    ("limit_bytes", "host_cells"),
    [
        (_cost(8192, 8192), 8192),
        (_cost(8192, 8192) - 1, 7168),
        (_cost(8192), 0),
        (_cost(8192) - 1, 0),
        (0, 0),
    ],
)
def test_the_host_cache_can_be_given_less_than_the_pool_may_take(limit_bytes: int, host_cells: int) -> None:
    plan = choose_context(
        COST,
        budget_bytes=_cost(8192, 8192),
        cache_limits=(CacheLimit(COST, limit_bytes), CacheLimit(COST, PLENTY)),
        trained_context_size=None,
    )
    assert (plan.context_size, plan.n_cells, plan.host_cells) == (8192, 8192, host_cells)
    assert plan.fits


@pytest.mark.parametrize(
    ("host_bytes", "host_cells"),
    [(7 + 8192 * PER_HOST_CELL, 8192), (6 + 8192 * PER_HOST_CELL, 7168), (7, 0), (0, 0)],
)
def test_a_limit_may_be_of_a_device_that_has_a_part_of_the_rest_only(
    host_bytes: int, host_cells: int
) -> None:
    on_host = PoolCost(7, 0, PER_HOST_CELL)
    plan = choose_context(
        COST,
        budget_bytes=PLENTY,
        cache_limits=(CacheLimit(on_host, host_bytes),),
        trained_context_size=None,
    )
    assert (plan.n_cells, plan.host_cells) == (8192, host_cells)


def test_a_model_that_can_keep_nothing_has_no_host_cache() -> None:
    plan = choose_context(COST, budget_bytes=PLENTY, trained_context_size=None, has_host_cache=False)
    assert (plan.n_cells, plan.host_cells, plan.total_bytes) == (8192, 0, _cost(8192))


def test_a_model_without_cells_gets_its_context_and_no_host_cache() -> None:
    plan = choose_context(PoolCost(FIXED, 0, 0), budget_bytes=FIXED, trained_context_size=1_048_576)
    assert (plan.n_cells, plan.host_cells) == (DEFAULT_CONTEXT_SIZE, 0)
    assert plan.total_bytes == FIXED


def test_a_footprint_gives_the_cost_of_its_cells_and_never_less_than_itself() -> None:
    host = DeviceBuffers(device="cpu", weights_bytes=1000, kv_cache_bytes=1025, compute_bytes=7)
    for host_cells in (0, 1, 511, 512):
        footprint = exact(EngineSizes(devices=(host,)), 512, host_cells)
        cost = PoolCost.of(footprint, 512)
        assert cost == PoolCost.on_host(footprint, 512) == PoolCost(1007 + PROCESS_BYTES, 3, 67)
        assert cost.total_bytes(512, host_cells) >= footprint.total_bytes


def test_of_several_devices_the_pool_costs_where_it_lies_and_the_host_cache_host_memory() -> None:
    host = DeviceBuffers(device="cpu", weights_bytes=1000, kv_cache_bytes=512)
    gpu = DeviceBuffers(device="CUDA0", weights_bytes=500, kv_cache_bytes=512 * 9)
    footprint = exact(EngineSizes(devices=(host, gpu)), 512, 100)
    assert PoolCost.of(footprint, 512) == PoolCost(1500 + PROCESS_BYTES, 10, 74)
    assert PoolCost.on_host(footprint, 512) == PoolCost(1000 + PROCESS_BYTES, 1, 74)
    assert PoolCost.on_host(footprint, 512).total_bytes(512, 100) == footprint.bytes_on("cpu")


@given(
    fixed_bytes=st.integers(0, 10**12),
    cell_bytes=st.integers(0, 10**7),
    budget_bytes=st.integers(0, 10**13),
    limit_bytes=st.integers(0, 10**13),
    trained=st.none() | st.integers(1, 10**7),
    packaged=st.none() | st.integers(1, 10**7),
)
def test_every_plan_holds_one_context_and_says_truly_whether_it_fits(
    fixed_bytes: int,
    cell_bytes: int,
    budget_bytes: int,
    limit_bytes: int,
    trained: int | None,
    packaged: int | None,
) -> None:
    cost = PoolCost(fixed_bytes, cell_bytes, cell_bytes and cell_bytes + 64)
    plan = choose_context(
        cost,
        budget_bytes=budget_bytes,
        trained_context_size=trained,
        packaged_context_size=packaged,
        cache_limits=(CacheLimit(cost, limit_bytes),),
    )
    wished = packaged or DEFAULT_CONTEXT_SIZE
    assert 1 <= plan.context_size <= (wished if trained is None else min(wished, trained))
    assert plan.n_cells == round_up_cells(plan.context_size)
    assert 0 <= plan.host_cells <= plan.n_cells
    assert plan.host_cells % CELL_GRANULARITY == 0
    assert plan.total_bytes == cost.total_bytes(plan.n_cells, plan.host_cells)
    assert plan.fits == (plan.total_bytes <= budget_bytes)
    if plan.host_cells:  # which is never the reason for a refusal
        assert plan.fits and plan.total_bytes <= limit_bytes
    elif cell_bytes and plan.n_cells > CELL_GRANULARITY:  # not even half of it has room
        assert cost.total_bytes(plan.n_cells, plan.n_cells // 2) > min(budget_bytes, limit_bytes)
    if packaged is not None:
        assert plan.context_size == min(packaged, trained or packaged)
    elif not plan.fits:
        assert plan.context_size <= LEAST_DEFAULT_CONTEXT_SIZE  # nothing was left to try
