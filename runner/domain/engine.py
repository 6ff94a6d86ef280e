"""Sizes of one engine: as the scheduler chooses them, and as the engine tells what they cost. Values only."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

import attrs


class CacheType(enum.Enum):
    """How the KV cache stores keys or values. Blocks of 32 numbers share a scale in the quantised types."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"

    @property
    def bits_per_value(self) -> float:
        """With the share of a block's scale: 16, 8.5 or 4.5 (`block_q8_0`, `block_q4_0` in ggml-common.h)."""
        return _BITS_PER_VALUE[self]


_BITS_PER_VALUE = {CacheType.F16: 16.0, CacheType.Q8_0: 8.5, CacheType.Q4_0: 4.5}


class FlashAttention(enum.Enum):
    """`AUTO` is the engine's choice, which is on wherever the device can. Quantised values need it."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class CacheMiss(enum.Enum):
    """Why nothing of a prompt was in cells when it came."""

    NEW = "new"
    """Nothing began like it."""
    GIVEN_UP = "given_up"
    """Something did, and made room for others since."""
    WINDOW = "window"
    """It is there, but the model's sliding window has left it behind."""
    UNSUPPORTED = "unsupported"
    """The model keeps a state instead of cells."""
    DISABLED = "disabled"
    """The request asked for it."""


@attrs.frozen(kw_only=True)
class EngineCounts:
    """Since an engine was loaded: sequences that gave way for older ones, prompts of which something was in
    cells, the tokens of these that were, and prompts of which nothing was, in the order of `CacheMiss`.

    `saved_tokens` were copied to host memory when their cells were given up; `restored_tokens` were put back
    into cells, from host memory or from saved states, and those of prompts count as reused, too.
    """

    preemptions: int = 0
    reuse_hits: int = 0
    reused_tokens: int = 0
    saved_tokens: int = 0
    restored_tokens: int = 0
    misses: tuple[int, ...] = (0,) * len(CacheMiss)


_positive = attrs.validators.ge(1)


@attrs.frozen(kw_only=True)
class EngineOptions:
    """Sizes of one engine; numbers are positive. Raises ValueError for what no engine can be given.

    `context_size` limits one sequence, `n_cells` the pool that all share; `max_sequences` run at once, and
    the beginnings of `max_retained` that ended are kept for prompts that begin alike (0 for none).
    `host_cells` are tokens whose keys and values may be kept in host memory beside the pool (0 for none).
    `prefill_chunk` is the number of prompt tokens that one step adds at most; where that takes too long on
    a device, the engine adds fewer. `key_type` and `value_type` are
    of the KV cache.
    """

    context_size: int = attrs.field(validator=_positive)
    n_cells: int = attrs.field(validator=_positive)
    host_cells: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    max_sequences: int = attrs.field(default=8, validator=_positive)
    max_retained: int = attrs.field(default=16, validator=attrs.validators.ge(0))
    prefill_chunk: int = attrs.field(default=512, validator=_positive)
    n_threads: int = attrs.field(default=1, validator=_positive)
    key_type: CacheType = attrs.field(default=CacheType.F16, converter=CacheType)
    value_type: CacheType = attrs.field(default=CacheType.F16, converter=CacheType)
    flash_attention: FlashAttention = attrs.field(default=FlashAttention.AUTO, converter=FlashAttention)

    def __attrs_post_init__(self) -> None:
        if self.value_type is not CacheType.F16 and self.flash_attention is FlashAttention.OFF:
            raise ValueError(f"{self.value_type.value} values in the KV cache need flash attention")


@attrs.frozen(kw_only=True)
class DeviceBuffers:
    """Bytes that one engine holds on one device. `device` is `cpu` for host memory, else the engine's name
    for it (`CUDA0`).

    `weights_bytes` are the file's tensors, mapped or copied; `repacked_bytes` copies of some of them in an
    order that suits the processor; `compute_bytes` what a forward pass works in, `output_bytes` its logits.
    """

    device: str
    weights_bytes: int = 0
    repacked_bytes: int = 0
    kv_cache_bytes: int = 0
    compute_bytes: int = 0
    output_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return (
            self.weights_bytes
            + self.repacked_bytes
            + self.kv_cache_bytes
            + self.compute_bytes
            + self.output_bytes
        )


_HOST_TOKEN_BYTES: Final = 64
"""What a token takes in a saved state beside its keys and values: its position, its part of the headers."""


def host_cache_bytes(devices: Iterable[DeviceBuffers], n_cells: int, host_cells: int) -> int:
    """Host memory for `host_cells` tokens, by the KV caches that hold `n_cells` on all devices together;
    0 for a model without any."""
    kv_cache_bytes = sum(buffers.kv_cache_bytes for buffers in devices)
    if kv_cache_bytes == 0:
        return 0
    return -(-kv_cache_bytes * host_cells // n_cells) + _HOST_TOKEN_BYTES * host_cells


@attrs.frozen(kw_only=True)
class EngineSizes:
    """What an engine said that a model takes with certain options.

    `devices` are distinct. `process_bytes` is host memory that the model takes beside the buffers:
    vocabulary, graphs, the state of samplers. `annex` is what a model that generates takes more, on distinct
    devices, once embeddings are asked of it: a second context.
    """

    devices: tuple[DeviceBuffers, ...]
    process_bytes: int = 0
    annex: tuple[DeviceBuffers, ...] = ()
