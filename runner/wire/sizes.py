"""Engine options and buffer sizes as fields, and back; they occur in more than one message.

Imports the domain's values and `checks.py`.
"""

from __future__ import annotations

from typing import Any, Final

from runner.domain.engine import CacheType, DeviceBuffers, EngineOptions, FlashAttention
from runner.wire.checks import Fields, Malformed, as_array, as_count, as_positive, as_text

DEVICES_LIMIT: Final = 64
"""Devices that one engine may name; llama.cpp itself knows 16 (`GGML_SCHED_MAX_BACKENDS`)."""
DEVICE_NAME_LIMIT: Final = 64
"""Characters."""
BYTES_MAX: Final = 2**50
"""More than any machine has, and few enough that sums of them stay counts."""


def options_fields(options: EngineOptions) -> list[Any]:
    return [
        options.context_size,
        options.n_cells,
        options.host_cells,
        options.max_sequences,
        options.max_retained,
        options.prefill_chunk,
        options.n_threads,
        options.key_type.value,
        options.value_type.value,
        options.flash_attention.value,
    ]


def read_options(fields: Fields) -> EngineOptions:
    """Also raises ValueError for choices that do not exist or do not go together."""
    (
        context_size,
        n_cells,
        host_cells,
        max_sequences,
        max_retained,
        prefill_chunk,
        n_threads,
        key_type,
        value_type,
        attention,
    ) = fields
    return EngineOptions(
        context_size=as_positive(context_size),
        n_cells=as_positive(n_cells),
        host_cells=as_count(host_cells),
        max_sequences=as_positive(max_sequences),
        max_retained=as_count(max_retained),
        prefill_chunk=as_positive(prefill_chunk),
        n_threads=as_positive(n_threads),
        key_type=CacheType(as_text(key_type)),
        value_type=CacheType(as_text(value_type)),
        flash_attention=FlashAttention(as_text(attention)),
    )


def buffers_fields(buffers: DeviceBuffers) -> list[Any]:
    return [
        buffers.device,
        buffers.weights_bytes,
        buffers.repacked_bytes,
        buffers.kv_cache_bytes,
        buffers.compute_bytes,
        buffers.output_bytes,
    ]


def read_buffers(items: Fields) -> tuple[DeviceBuffers, ...]:
    """Distinct devices, few enough."""
    if len(items) > DEVICES_LIMIT:
        raise Malformed(f"more than {DEVICES_LIMIT} devices")
    found = tuple(_read_device(as_array(item)) for item in items)
    if len({buffers.device for buffers in found}) < len(found):
        raise Malformed("a device twice")
    return found


def _read_device(fields: Fields) -> DeviceBuffers:
    device, weights, repacked, kv_cache, compute, output = fields
    return DeviceBuffers(
        device=_device_name(device),
        weights_bytes=as_size(weights),
        repacked_bytes=as_size(repacked),
        kv_cache_bytes=as_size(kv_cache),
        compute_bytes=as_size(compute),
        output_bytes=as_size(output),
    )


def as_size(value: Any) -> int:
    """Bytes of memory."""
    if as_count(value) > BYTES_MAX:
        raise Malformed("more bytes than there are")
    return value  # type: ignore[no-any-return]  # as_count() has checked it


def _device_name(value: Any) -> str:
    """Shown to people, so printable; ASCII, as all engines' names are."""
    name = as_text(value, DEVICE_NAME_LIMIT)
    if not (name and name.isascii() and name.isprintable()):
        raise Malformed("not the name of a device")
    return name
