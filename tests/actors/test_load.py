"""The sizes a model is loaded with. What the task does otherwise is tested through the scheduler."""

from __future__ import annotations

import attrs
import pytest

from actors.load import EngineSettings, choose_sizes
from runner.domain.engine import EngineOptions
from runner.domain.model import ModelFiles
from runner.memory.footprint import OVERHEAD_BYTES
from tests.support.scheduler_bench import model_named

ENGINE = EngineSettings(context_size=8192, max_sequences=4, n_threads=3)
KV = 1000


def files(**changes: object) -> ModelFiles:
    model = attrs.evolve(model_named("a"), trained_context_size=4096, **changes)
    return ModelFiles(model=model, weights=(), weights_bytes=0, kv_bytes_per_cell=KV)


def test_room_for_two_trained_contexts_is_the_rule() -> None:
    options, footprint_bytes = choose_sizes(files(), ENGINE, 10**12)
    assert options == EngineOptions(context_size=4096, n_cells=8192, max_sequences=4, n_threads=3)
    assert footprint_bytes == 8192 * KV + OVERHEAD_BYTES


def test_the_wish_of_the_packager_counts() -> None:
    options, _ = choose_sizes(files(context_size=1024), ENGINE, 10**12)
    assert (options.context_size, options.n_cells) == (1024, 2048)


def test_a_small_budget_shrinks_the_pool_and_leaves_a_margin_for_the_next_measurement() -> None:
    budget_bytes = OVERHEAD_BYTES + 6000 * KV
    options, footprint_bytes = choose_sizes(files(), ENGINE, budget_bytes)
    assert options.context_size == 4096 <= options.n_cells < 8192
    assert footprint_bytes <= budget_bytes * 0.95 or options.n_cells == 4096


@pytest.mark.parametrize(("missing", "fits"), [(0, True), (1, False)])
def test_one_context_is_the_least_and_may_use_the_margin(missing: int, fits: bool) -> None:
    budget_bytes = OVERHEAD_BYTES + 4096 * KV - missing
    options, footprint_bytes = choose_sizes(files(), ENGINE, budget_bytes)
    assert options.n_cells == 4096
    assert (footprint_bytes <= budget_bytes) is fits
