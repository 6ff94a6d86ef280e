"""The options a load is given, and what they take by the header alone."""

from __future__ import annotations

import attrs
import pytest
import trio

from actors.sizing import EngineSettings, HeaderSizer, at_least, by_header, fit, wished_options
from runner.domain.device_bytes import DeviceBytes
from runner.domain.engine import CacheType, DeviceBuffers, EngineOptions, FlashAttention
from runner.domain.model import ENCODERS, RECURRENT, ModelFiles
from runner.domain.settings import ModelSettings
from runner.memory.footprint import OVERHEAD_BYTES, Basis, Footprint, estimate
from tests.support.scheduler_bench import model_named

pytestmark = pytest.mark.anyio

ENGINE = EngineSettings(context_size=8192, max_sequences=4, n_threads=3)
KV = 1000
KEPT = KV + 64
"""Bytes of a token in the pool, and beside it."""
PLENTY = DeviceBytes.on_host(10**12)


def files(**changes: object) -> ModelFiles:
    model = attrs.evolve(model_named("a"), **{"trained_context_size": 4096, **changes})
    return ModelFiles(model=model, weights=(), weights_bytes=0, kv_bytes_per_cell=KV)


def host(size_bytes: int) -> DeviceBytes:
    return DeviceBytes.on_host(size_bytes)


def test_a_pool_of_one_trained_context_and_as_much_beside_it_is_the_rule() -> None:
    sized = by_header(files(), ENGINE, PLENTY)
    assert sized.options == EngineOptions(
        context_size=4096, n_cells=4096, host_cells=4096, max_sequences=4, n_threads=3
    )
    assert sized.footprint.total_bytes == 4096 * (KV + KEPT) + OVERHEAD_BYTES
    assert sized.footprint.basis is Basis.HEADER
    assert sized.key is None


def test_never_the_trained_maximum_blindly() -> None:
    sized = by_header(files(trained_context_size=1_048_576), ENGINE, PLENTY)
    options = sized.options
    assert (options.context_size, options.n_cells, options.host_cells) == (8192, 8192, 8192)


def test_the_wish_of_the_packager_counts() -> None:
    options = by_header(files(context_size=1024), ENGINE, PLENTY).options
    assert (options.context_size, options.n_cells, options.host_cells) == (1024, 1024, 1024)


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
        n_cells=512,
        host_cells=512,
        max_sequences=2,
        n_threads=1,
        key_type=CacheType.Q8_0,
        value_type=CacheType.Q4_0,
        flash_attention=FlashAttention.ON,
    )


def test_one_thing_configured_leaves_the_rest_to_packager_and_daemon() -> None:
    options = by_header(files(context_size=1024, settings=ModelSettings(threads=1)), ENGINE, PLENTY).options
    assert options == EngineOptions(
        context_size=1024, n_cells=1024, host_cells=1024, max_sequences=4, n_threads=1
    )


@pytest.mark.parametrize("settings", [ModelSettings(), ModelSettings(context_size=512, threads=1)])
def test_a_larger_context_that_a_request_needs_counts_more_than_the_configured_one(
    settings: ModelSettings,
) -> None:
    wanted = at_least(files(context_size=1024, settings=settings), 2048)
    options = by_header(wanted, ENGINE, PLENTY).options
    assert (options.context_size, options.n_threads) == (2048, settings.threads or ENGINE.n_threads)


def test_a_configured_context_is_not_halved_when_memory_is_short() -> None:
    settings = ModelSettings(context_size=4096)
    assert by_header(files(settings=settings), ENGINE, host(1)).options.context_size == 4096
    assert by_header(files(), ENGINE, host(1)).options.context_size == 2048


FULL = OVERHEAD_BYTES + 4096 * (KV + KEPT)


@pytest.mark.parametrize(
    ("budget_bytes", "host_cells"),
    [
        (-(-FULL * 100 // 95), 4096),
        (FULL * 100 // 95 - 1, 3584),
        (-(-(FULL - 3584 * KEPT) * 100 // 95), 512),
        ((FULL - 3584 * KEPT) * 100 // 95 - 1, 0),
        (FULL - 4096 * KEPT, 0),
    ],
)
def test_a_small_budget_shrinks_the_host_cache_and_leaves_a_margin_for_the_next_measurement(
    budget_bytes: int, host_cells: int
) -> None:
    sized = by_header(files(), ENGINE, host(budget_bytes))
    options = sized.options
    assert (options.context_size, options.n_cells, options.host_cells) == (4096, 4096, host_cells)
    assert sized.footprint.host_cache_bytes == host_cells * KEPT
    assert sized.footprint.total_bytes <= budget_bytes


@pytest.mark.parametrize(("missing", "fits"), [(0, True), (1, False)])
def test_one_packaged_context_is_the_least_and_may_use_the_margin(missing: int, fits: bool) -> None:
    budget_bytes = OVERHEAD_BYTES + 4096 * KV - missing
    sized = by_header(files(context_size=4096), ENGINE, host(budget_bytes))
    options = sized.options
    assert (options.context_size, options.n_cells, options.host_cells) == (4096, 4096, 0)
    assert (sized.footprint.total_bytes <= budget_bytes) is fits


@pytest.mark.parametrize(("missing", "context_size"), [(0, 4096), (1, 2048)])
def test_a_context_that_nobody_wished_is_halved_before_the_model_is_refused(
    missing: int, context_size: int
) -> None:
    budget_bytes = OVERHEAD_BYTES + 4096 * KV - missing
    sized = by_header(files(), ENGINE, host(budget_bytes))
    assert sized.options.context_size == sized.options.n_cells == context_size
    assert sized.footprint.total_bytes <= budget_bytes


@pytest.mark.parametrize(
    ("host_bytes", "host_cells"),
    [(200_000_000, 4096), (FULL * 2, 4096), (4096 * KEPT, 3584), (1064 * KEPT, 512), (0, 0)],
)
def test_the_host_cache_fits_host_memory_however_much_room_there_is_on_others(
    host_bytes: int, host_cells: int
) -> None:
    gpu = DeviceBuffers(device="CUDA0", weights_bytes=10**8, kv_cache_bytes=4096 * KV)
    footprint = Footprint(devices=(DeviceBuffers(device="cpu"), gpu), overhead_bytes=0)
    budget = DeviceBytes({"cpu": host_bytes, "CUDA0": 10**12})
    wished = wished_options(files(), ENGINE)
    options = fit(files(), ENGINE, footprint, wished, budget)
    assert (options.context_size, options.n_cells, options.host_cells) == (4096, 4096, host_cells)


@pytest.mark.parametrize("architecture", sorted(ENCODERS | RECURRENT))
def test_models_that_keep_no_prefixes_get_no_host_cache(architecture: str) -> None:
    sized = by_header(files(architecture=architecture), ENGINE, PLENTY)
    assert (sized.options.n_cells, sized.options.host_cells) == (4096, 0)
    assert sized.footprint == estimate(0, KV, 4096, 0)
    assert wished_options(files(architecture=architecture), ENGINE) == sized.options


def test_the_settings_of_the_engine_are_its_options() -> None:
    engine = attrs.evolve(
        ENGINE, key_type="q8_0", value_type=CacheType.Q4_0, flash_attention=FlashAttention.ON
    )
    options = wished_options(files(), engine)
    assert (options.key_type, options.value_type) == (CacheType.Q8_0, CacheType.Q4_0)
    assert options.flash_attention is FlashAttention.ON


def test_quantised_caches_are_counted_as_such() -> None:
    small = by_header(files(), attrs.evolve(ENGINE, key_type="q8_0", value_type="q4_0"), PLENTY)
    per_cell_bytes = -(-KV * 13 // 32)  # 8.5 and 4.5 instead of 16 and 16 bits
    assert small.footprint.kv_cache_bytes == 4096 * per_cell_bytes
    assert small.footprint.host_cache_bytes == 4096 * (per_cell_bytes + 64)


async def test_sizes_by_the_header_are_what_a_scheduler_gets_without_a_prober() -> None:
    with trio.fail_after(5):
        sizer = HeaderSizer()
        assert await sizer.size(files(), ENGINE, PLENTY) == by_header(files(), ENGINE, PLENTY)
