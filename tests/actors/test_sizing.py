"""The options a load is given, and what they take by the header alone."""

from __future__ import annotations

import attrs
import pytest
import trio

from actors.sizing import EngineSettings, HeaderSizer, at_least, by_header, wished_options
from runner.domain.engine import CacheType, EngineOptions, FlashAttention
from runner.domain.model import ModelFiles
from runner.domain.settings import ModelSettings
from runner.memory.footprint import OVERHEAD_BYTES, Basis
from tests.support.scheduler_bench import model_named

pytestmark = pytest.mark.anyio

ENGINE = EngineSettings(context_size=8192, max_sequences=4, n_threads=3)
KV = 1000
PLENTY = 10**12


def files(**changes: object) -> ModelFiles:
    model = attrs.evolve(model_named("a"), **{"trained_context_size": 4096, **changes})
    return ModelFiles(model=model, weights=(), weights_bytes=0, kv_bytes_per_cell=KV)


def test_room_for_two_trained_contexts_is_the_rule() -> None:
    sized = by_header(files(), ENGINE, PLENTY)
    assert sized.options == EngineOptions(context_size=4096, n_cells=8192, max_sequences=4, n_threads=3)
    assert sized.footprint.total_bytes == 8192 * KV + OVERHEAD_BYTES
    assert sized.footprint.basis is Basis.HEADER
    assert sized.key is None


def test_never_the_trained_maximum_blindly() -> None:
    sized = by_header(files(trained_context_size=1_048_576), ENGINE, PLENTY)
    assert (sized.options.context_size, sized.options.n_cells) == (8192, 16_384)


def test_the_wish_of_the_packager_counts() -> None:
    options = by_header(files(context_size=1024), ENGINE, PLENTY).options
    assert (options.context_size, options.n_cells) == (1024, 2048)


def test_what_is_configured_for_the_model_counts_more_than_all_else() -> None:
    settings = ModelSettings(
        context_size=512,
        max_sequences=2,
        threads=1,
        key_type=CacheType.Q8_0,
        value_type=CacheType.Q4_0,
        flash_attention=FlashAttention.ON,
    )
    options = by_header(files(context_size=1024, settings=settings), ENGINE, PLENTY).options
    assert options == EngineOptions(
        context_size=512,
        n_cells=1024,
        max_sequences=2,
        n_threads=1,
        key_type=CacheType.Q8_0,
        value_type=CacheType.Q4_0,
        flash_attention=FlashAttention.ON,
    )


def test_one_thing_configured_leaves_the_rest_to_packager_and_daemon() -> None:
    options = by_header(files(context_size=1024, settings=ModelSettings(threads=1)), ENGINE, PLENTY).options
    assert options == EngineOptions(context_size=1024, n_cells=2048, max_sequences=4, n_threads=1)


@pytest.mark.parametrize("settings", [ModelSettings(), ModelSettings(context_size=512, threads=1)])
def test_a_larger_context_that_a_request_needs_counts_more_than_the_configured_one(
    settings: ModelSettings,
) -> None:
    wanted = at_least(files(context_size=1024, settings=settings), 2048)
    options = by_header(wanted, ENGINE, PLENTY).options
    assert (options.context_size, options.n_threads) == (2048, settings.threads or ENGINE.n_threads)


def test_a_configured_context_is_not_halved_when_memory_is_short() -> None:
    settings = ModelSettings(context_size=4096)
    assert by_header(files(settings=settings), ENGINE, 1).options.context_size == 4096
    assert by_header(files(), ENGINE, 1).options.context_size == 2048


def test_a_small_budget_shrinks_the_pool_and_leaves_a_margin_for_the_next_measurement() -> None:
    budget_bytes = OVERHEAD_BYTES + 6000 * KV
    sized = by_header(files(), ENGINE, budget_bytes)
    assert sized.options.context_size == 4096 <= sized.options.n_cells < 8192
    assert sized.footprint.total_bytes <= budget_bytes * 0.95 or sized.options.n_cells == 4096


@pytest.mark.parametrize(("missing", "fits"), [(0, True), (1, False)])
def test_one_packaged_context_is_the_least_and_may_use_the_margin(missing: int, fits: bool) -> None:
    budget_bytes = OVERHEAD_BYTES + 4096 * KV - missing
    sized = by_header(files(context_size=4096), ENGINE, budget_bytes)
    assert (sized.options.context_size, sized.options.n_cells) == (4096, 4096)
    assert (sized.footprint.total_bytes <= budget_bytes) is fits


@pytest.mark.parametrize(("missing", "context_size"), [(0, 4096), (1, 2048)])
def test_a_context_that_nobody_wished_is_halved_before_the_model_is_refused(
    missing: int, context_size: int
) -> None:
    budget_bytes = OVERHEAD_BYTES + 4096 * KV - missing
    sized = by_header(files(), ENGINE, budget_bytes)
    assert sized.options.context_size == context_size
    assert sized.footprint.total_bytes <= budget_bytes


def test_the_settings_of_the_engine_are_its_options() -> None:
    engine = attrs.evolve(
        ENGINE, key_type="q8_0", value_type=CacheType.Q4_0, flash_attention=FlashAttention.ON
    )
    options = wished_options(files(), engine)
    assert (options.key_type, options.value_type) == (CacheType.Q8_0, CacheType.Q4_0)
    assert options.flash_attention is FlashAttention.ON


def test_quantised_caches_are_counted_as_such() -> None:
    small = by_header(files(), attrs.evolve(ENGINE, key_type="q8_0", value_type="q4_0"), PLENTY)
    # 8.5 and 4.5 instead of 16 and 16 bits
    assert small.footprint.kv_cache_bytes == 8192 * -(-KV * 13 // 32)


async def test_sizes_by_the_header_are_what_a_scheduler_gets_without_a_prober() -> None:
    with trio.fail_after(5):
        sizer = HeaderSizer()
        assert await sizer.size(files(), ENGINE, PLENTY) == by_header(files(), ENGINE, PLENTY)
