"""Contexts and pools of cells against budgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.memory.fit import DEFAULT_CONTEXT_SIZE, choose_context, memory_budget
from runner.memory.footprint import CELL_GRANULARITY, OVERHEAD_BYTES, round_up_cells

PLENTY = 10**15
WEIGHTS = 100_000_000
PER_CELL = 23_040


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
        weights_bytes=WEIGHTS,
        kv_bytes_per_cell=PER_CELL,
        budget_bytes=PLENTY,
        trained_context_size=trained,
        packaged_context_size=packaged,
    )
    assert plan.context_size == context_size
    assert plan.n_cells == round_up_cells(2 * context_size)
    assert plan.fits


def test_another_default_context_can_be_set() -> None:
    plan = choose_context(
        weights_bytes=WEIGHTS,
        kv_bytes_per_cell=PER_CELL,
        budget_bytes=PLENTY,
        trained_context_size=131_072,
        default_context_size=4096,
    )
    assert (plan.context_size, plan.n_cells) == (4096, 8192)


def _cost(n_cells: int) -> int:
    return WEIGHTS + OVERHEAD_BYTES + n_cells * PER_CELL


@pytest.mark.parametrize(
    ("budget_bytes", "n_cells", "fits"),
    [
        (_cost(16_384) + 1, 16_384, True),
        (_cost(16_384), 16_384, True),
        (_cost(16_384) - 1, 16_128, True),
        (_cost(8448), 8448, True),
        (_cost(8448) - 1, 8192, True),
        (_cost(8192), 8192, True),
        (_cost(8192) - 1, 8192, False),
        (OVERHEAD_BYTES, 8192, False),
        (0, 8192, False),
    ],
)
def test_the_pool_shrinks_to_the_budget_but_not_below_one_context(
    budget_bytes: int, n_cells: int, fits: bool
) -> None:
    plan = choose_context(
        weights_bytes=WEIGHTS,
        kv_bytes_per_cell=PER_CELL,
        budget_bytes=budget_bytes,
        trained_context_size=8192,
    )
    assert plan.context_size == 8192
    assert plan.n_cells == n_cells
    assert plan.fits is fits
    assert plan.missing_bytes == (0 if fits else _cost(8192) - budget_bytes)


def test_a_model_without_cells_gets_its_contexts_whatever_they_number() -> None:
    plan = choose_context(
        weights_bytes=WEIGHTS, kv_bytes_per_cell=0, budget_bytes=_cost(0) + 1, trained_context_size=1_048_576
    )
    assert plan.n_cells == 2 * DEFAULT_CONTEXT_SIZE
    assert plan.footprint.kv_cache_bytes == 0


@pytest.mark.parametrize(("free_bytes", "budget_bytes"), [(0, 0), (1, 0), (5, 4), (10 * 10**9, 8 * 10**9)])
def test_the_budget_is_four_fifths_of_free_memory(free_bytes: int, budget_bytes: int) -> None:
    assert memory_budget(free_bytes) == budget_bytes


@given(
    weights_bytes=st.integers(0, 10**12),
    kv_bytes_per_cell=st.integers(0, 10**7),
    budget_bytes=st.integers(0, 10**13),
    trained=st.none() | st.integers(1, 10**7),
    packaged=st.none() | st.integers(1, 10**7),
)
def test_every_plan_holds_one_context_and_says_truly_whether_it_fits(
    weights_bytes: int, kv_bytes_per_cell: int, budget_bytes: int, trained: int | None, packaged: int | None
) -> None:
    plan = choose_context(
        weights_bytes=weights_bytes,
        kv_bytes_per_cell=kv_bytes_per_cell,
        budget_bytes=budget_bytes,
        trained_context_size=trained,
        packaged_context_size=packaged,
    )
    assert 1 <= plan.context_size <= (packaged or DEFAULT_CONTEXT_SIZE)
    assert trained is None or plan.context_size <= trained
    assert plan.context_size <= plan.n_cells <= round_up_cells(2 * plan.context_size)
    assert plan.n_cells % CELL_GRANULARITY == 0
    assert plan.fits == (plan.footprint.total_bytes <= budget_bytes)
    if plan.n_cells > round_up_cells(plan.context_size):
        assert plan.fits  # a larger pool is never the reason for a refusal
