"""Buffer sizes as llama.cpp's log tells them: lines in, bytes per device out.

    load_tensors:   CPU_REPACK model buffer size =    12.66 MiB
    llama_kv_cache:        CPU KV buffer size =    60.00 MiB
    llama_kv_cache: size =   60.00 MiB (  4096 cells,  15 layers,  8/1 seqs), K (f16): …

The log is the one place where a real load says what it took, to 0.01 MiB. In a simulated load the lines of
model and KV cache say 0, since nothing was allocated; the second form is right in both.

Pure; imports the domain. Read on in `llama_loading.py`, which feeds it, and `llama_memory.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import attrs

from runner.domain.engine import DeviceBuffers

HOST: Final = "cpu"
ROUNDING_BYTES: Final = 2**20 // 200
"""Half of the last digit that the log prints."""

_LINE = re.compile(
    rb"(\S+) +(model|KV|RS|compute|output|DSV4 [^=]{1,40} state) buffer size = +([0-9]{1,9}\.[0-9]+) MiB"
)
_CACHE_LINE = re.compile(rb": size = +([0-9]{1,9}\.[0-9]+) MiB \( *[0-9]+ cells,")
_FIELDS: Final = {
    b"KV": "kv_cache_bytes",
    b"RS": "kv_cache_bytes",
    b"compute": "compute_bytes",
    b"output": "output_bytes",
}
_LINES_MAX: Final = 4096


@attrs.frozen
class _Buffer:
    name: str
    field: str
    size_bytes: int


class BufferLog:
    """What was logged since the last `clear`; bounded, as a model could make the library repeat itself."""

    def __init__(self) -> None:
        self._buffers: list[_Buffer] = []
        self._cache_bytes: list[int] = []

    def clear(self) -> None:
        self._buffers.clear()
        self._cache_bytes.clear()

    def feed(self, text: bytes) -> None:
        """One message of the log, whatever it is about."""
        if len(self._buffers) + len(self._cache_bytes) >= _LINES_MAX:
            return
        if line := _LINE.search(text):
            name = line[1].decode("ascii", "replace")
            self._buffers.append(_Buffer(name, _field_of(name, line[2]), _bytes_of(line[3])))
        elif line := _CACHE_LINE.search(text):
            self._cache_bytes.append(_bytes_of(line[1]))

    def devices(self) -> tuple[DeviceBuffers, ...]:
        """The buffers that were allocated, host memory first."""
        sums: dict[str, dict[str, int]] = {}
        for buffer in self._buffers:
            fields = sums.setdefault(device_of(buffer.name), {})
            fields[buffer.field] = fields.get(buffer.field, 0) + buffer.size_bytes
        return in_order(DeviceBuffers(device=device, **fields) for device, fields in sums.items())

    @property
    def cache_bytes(self) -> int:
        """KV caches and recurrent states on all devices, also of a simulated load."""
        return sum(self._cache_bytes)

    @property
    def n_caches(self) -> int:
        return len(self._cache_bytes)

    def allocated_bytes(self, field: str) -> int:
        """One kind of buffer on all devices."""
        return sum(buffer.size_bytes for buffer in self._buffers if buffer.field == field)


def device_of(buffer_name: str) -> str:
    """The device whose memory a ggml buffer type takes: `CPU_REPACK` and `CUDA_Host` are host memory."""
    if buffer_name.startswith(("CPU", "AMX")) or buffer_name.endswith("_Host"):
        return HOST
    return buffer_name.removesuffix("_Mapped").removesuffix("_Private")


def is_repacked(buffer_name: str) -> bool:
    """Host memory that holds weights in another order than the file: `CPU_REPACK`, `CPU_AARCH64`, `AMX`."""
    is_plain = buffer_name in ("CPU", "CPU_Mapped") or buffer_name.endswith("_Host")
    return device_of(buffer_name) == HOST and not is_plain


def in_order(devices: Iterable[DeviceBuffers]) -> tuple[DeviceBuffers, ...]:
    """Host memory first, then by name."""
    return tuple(sorted(devices, key=lambda buffers: (buffers.device != HOST, buffers.device)))


def _field_of(buffer_name: str, kind: bytes) -> str:
    if kind == b"model":
        return "repacked_bytes" if is_repacked(buffer_name) else "weights_bytes"
    return _FIELDS.get(kind, "kv_cache_bytes")


def _bytes_of(mebibytes: bytes) -> int:
    return round(float(mebibytes) * 2**20)
