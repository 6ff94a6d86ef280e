"""Options of an engine: only what one can be given."""

from __future__ import annotations

import attrs
import pytest

from runner.domain.engine import (
    CacheType,
    DeviceBuffers,
    EngineOptions,
    FlashAttention,
    host_cache_bytes,
)

OPTIONS = EngineOptions(context_size=1, n_cells=1, max_sequences=1, prefill_chunk=1, n_threads=1)


@pytest.mark.parametrize("name", ["context_size", "n_cells", "max_sequences", "prefill_chunk", "n_threads"])
def test_every_size_is_positive(name: str) -> None:
    assert getattr(OPTIONS, name) == 1
    with pytest.raises(ValueError, match=name):
        attrs.evolve(OPTIONS, **{name: 0})


@pytest.mark.parametrize("name", ["max_retained", "host_cells"])
def test_what_is_kept_of_ended_sequences_may_be_nothing_but_no_less(name: str) -> None:
    for count in (0, 1):
        assert getattr(attrs.evolve(OPTIONS, **{name: count}), name) == count
    with pytest.raises(ValueError, match=name):
        attrs.evolve(OPTIONS, **{name: -1})


def test_types_and_attention_may_be_named_by_their_values() -> None:
    options = attrs.evolve(OPTIONS, key_type="q8_0", value_type="q4_0", flash_attention="on")
    assert (options.key_type, options.value_type) == (CacheType.Q8_0, CacheType.Q4_0)
    assert options.flash_attention is FlashAttention.ON
    assert OPTIONS.key_type is OPTIONS.value_type is CacheType.F16
    assert OPTIONS.flash_attention is FlashAttention.AUTO


@pytest.mark.parametrize(
    ("name", "value"), [("key_type", "q5_0"), ("value_type", ""), ("flash_attention", "yes")]
)
def test_other_values_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="is not a valid"):
        attrs.evolve(OPTIONS, **{name: value})


@pytest.mark.parametrize("attention", [FlashAttention.AUTO, FlashAttention.ON, FlashAttention.OFF])
@pytest.mark.parametrize("value_type", CacheType)
def test_quantised_values_need_flash_attention(value_type: CacheType, attention: FlashAttention) -> None:
    if value_type is not CacheType.F16 and attention is FlashAttention.OFF:
        with pytest.raises(ValueError, match="need flash attention"):
            attrs.evolve(OPTIONS, value_type=value_type, flash_attention=attention)
    else:
        attrs.evolve(OPTIONS, value_type=value_type, flash_attention=attention)
    attrs.evolve(OPTIONS, key_type=value_type, flash_attention=attention)


def test_bits_of_a_stored_value_count_its_share_of_the_scale() -> None:
    assert [kind.bits_per_value for kind in CacheType] == [16.0, 8.5, 4.5]


def test_the_buffers_of_a_device_add_up() -> None:
    buffers = DeviceBuffers(
        device="cpu",
        weights_bytes=1,
        repacked_bytes=20,
        kv_cache_bytes=300,
        compute_bytes=4000,
        output_bytes=5,
    )
    assert buffers.total_bytes == 4326


@pytest.mark.parametrize(
    ("host_cells", "size_bytes"),
    [(0, 0), (1, 11 + 64), (99, 1040 + 99 * 64), (100, 1050 + 100 * 64), (200, 2100 + 200 * 64)],
)
def test_the_host_cache_takes_what_as_many_cells_of_all_devices_take(
    host_cells: int, size_bytes: int
) -> None:
    devices = [
        DeviceBuffers(device="cpu", weights_bytes=7, kv_cache_bytes=50),
        DeviceBuffers(device="CUDA0", kv_cache_bytes=1000, compute_bytes=9),
    ]
    assert host_cache_bytes(devices, 100, host_cells) == size_bytes


def test_a_model_without_a_kv_cache_has_no_host_cache() -> None:
    devices = (DeviceBuffers(device="cpu", weights_bytes=7, compute_bytes=9),)
    assert host_cache_bytes(devices, 100, 100) == host_cache_bytes((), 100, 100) == 0
