"""How many bytes a loaded model needs, as a breakdown that explains itself.

Pure arithmetic on values: what the engine told of a simulated or a real load, or, before anybody asked the
engine, what the GGUF header gives. Imports the domain and `runner.units`. Where a footprint meets a budget is
`runner.memory.fit`.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

from runner.domain.engine import CacheType, DeviceBuffers, EngineSizes, host_cache_bytes
from runner.domain.generation import EMBEDDED_MAX
from runner.units import format_bytes

HOST: Final = "cpu"
"""The device that is host memory; a worker's process lives there, whatever else it uses."""

OVERHEAD_BYTES: Final = 256 * 1024**2
"""What a worker needs beside weights and KV cache, as long as only the header is known: compute and output
buffers, vocabulary, the interpreter. A flat allowance."""

ANNEX_OVERHEAD_BYTES: Final = 128 * 1024**2
"""The same of a second context for embeddings. With a vocabulary of 262,144 tokens it takes that."""

PROCESS_BYTES: Final = 40 * 1024**2
"""What a worker's process takes for itself, whatever its model: interpreter, libraries, template renderer,
scratch memory of a forward pass. Measured with `scripts/measure_footprint.py`."""

CELL_GRANULARITY: Final = 256
"""llama.cpp pads the cells of a context to a multiple of this (constructor in llama-context.cpp)."""


class Basis(enum.Enum):
    """What a footprint rests on; the value ends the sentence "sizes are …"."""

    HEADER = "estimated from the header"
    PROBE = "measured by a simulated load"
    LOAD = "as an earlier load had them"


@attrs.frozen(kw_only=True)
class Footprint:
    """Bytes of one loaded model on each of its devices.

    `devices` holds the engine's buffers; host memory is always among them. Three parts more lie in host
    memory: `overhead_bytes`, the process beside the buffers, `host_cache_bytes`, what may be kept beside the
    pool, and `learned_bytes`, by which earlier loads exceeded the rest. `annex` comes on top as long as there
    is a second context for embeddings, and in none of the sums.
    """

    devices: tuple[DeviceBuffers, ...]
    overhead_bytes: int
    host_cache_bytes: int = 0
    learned_bytes: int = 0
    basis: Basis = Basis.HEADER
    annex: tuple[DeviceBuffers, ...] = ()

    @property
    def weights_bytes(self) -> int:
        return sum(buffers.weights_bytes for buffers in self.devices)

    @property
    def kv_cache_bytes(self) -> int:
        return sum(buffers.kv_cache_bytes for buffers in self.devices)

    @property
    def total_bytes(self) -> int:
        """On all devices together."""
        return sum(self.bytes_on(buffers.device) for buffers in self.devices)

    @property
    def private_bytes(self) -> int:
        """Host memory that belongs to no file and is not shared: everything there but the mapped weights and
        the host cache."""
        host = self._buffers_on(HOST)
        mapped_bytes = host.weights_bytes if host is not None else 0
        return self.bytes_on(HOST) - mapped_bytes - self.host_cache_bytes

    @property
    def annex_host_bytes(self) -> int:
        return sum(buffers.total_bytes for buffers in self.annex if buffers.device == HOST)

    def bytes_on(self, device: str) -> int:
        """0 for a device that the model does not use."""
        buffers = self._buffers_on(device)
        extra_bytes = self.overhead_bytes + self.host_cache_bytes + self.learned_bytes
        return (extra_bytes if device == HOST else 0) + (buffers.total_bytes if buffers is not None else 0)

    def parts(self, device: str) -> tuple[tuple[str, int], ...]:
        """What `bytes_on(device)` consists of: name and bytes, without what is 0."""
        buffers = self._buffers_on(device) or DeviceBuffers(device=device)
        named = [
            ("weights", buffers.weights_bytes),
            ("repacked weights", buffers.repacked_bytes),
            ("KV cache", buffers.kv_cache_bytes),
            ("compute", buffers.compute_bytes),
            ("outputs", buffers.output_bytes),
        ]
        if device == HOST:
            named += [
                ("host cache", self.host_cache_bytes),
                ("process", self.overhead_bytes),
                ("learned", self.learned_bytes),
            ]
        return tuple((name, size_bytes) for name, size_bytes in named if size_bytes)

    def _buffers_on(self, device: str) -> DeviceBuffers | None:
        return next((buffers for buffers in self.devices if buffers.device == device), None)

    def __str__(self) -> str:
        """`weights 93.7 MiB + KV cache 360.0 MiB + process 256.0 MiB = 709.7 MiB (estimated from the
        header)`, for refusals and logs; of several devices each by its name."""
        told = "; ".join(self._describe(buffers.device) for buffers in self.devices)
        return f"{told} ({self.basis.value})"

    def _describe(self, device: str) -> str:
        prefix = f"{device}: " if len(self.devices) > 1 else ""
        parts = " + ".join(f"{name} {format_bytes(size)}" for name, size in self.parts(device)) or "0 B"
        return f"{prefix}{parts} = {format_bytes(self.bytes_on(device))}"


def estimate(weights_bytes: int, kv_bytes_per_cell: int, n_cells: int, host_cells: int) -> Footprint:
    """By the header: the model's files, its KV cache for `n_cells` tokens and `host_cells` beside it, and
    flat allowances.

    Cells are counted as the engine allocates them, so `n_cells` is rounded up to `CELL_GRANULARITY`.
    """
    allocated_cells = round_up_cells(n_cells)
    kv_cache_bytes = kv_bytes_per_cell * allocated_cells
    host = DeviceBuffers(device=HOST, weights_bytes=weights_bytes, kv_cache_bytes=kv_cache_bytes)
    annex = DeviceBuffers(
        device=HOST, kv_cache_bytes=kv_bytes_per_cell * EMBEDDED_MAX, compute_bytes=ANNEX_OVERHEAD_BYTES
    )
    return Footprint(
        devices=(host,),
        overhead_bytes=OVERHEAD_BYTES,
        host_cache_bytes=host_cache_bytes((host,), allocated_cells, host_cells),
        annex=(annex,),
    )


def exact(
    sizes: EngineSizes,
    n_cells: int,
    host_cells: int,
    *,
    learned_bytes: int = 0,
    basis: Basis = Basis.PROBE,
) -> Footprint:
    """By the engine's own word on a pool of `n_cells`, with `host_cells` beside it."""
    return Footprint(
        devices=sizes.devices,
        overhead_bytes=PROCESS_BYTES + sizes.process_bytes,
        host_cache_bytes=host_cache_bytes(sizes.devices, n_cells, host_cells),
        learned_bytes=learned_bytes,
        basis=basis,
        annex=sizes.annex,
    )


def with_cells(footprint: Footprint, n_cells: int, fewer_cells: int, host_cells: int) -> Footprint:
    """An upper bound for a smaller pool than the one of `n_cells` that the footprint is of, with `host_cells`
    beside it."""
    devices = tuple(
        attrs.evolve(buffers, kv_cache_bytes=-(-buffers.kv_cache_bytes * fewer_cells // n_cells))
        for buffers in footprint.devices
    )
    cache_bytes = host_cache_bytes(devices, fewer_cells, host_cells)
    return attrs.evolve(footprint, devices=devices, host_cache_bytes=cache_bytes)


def round_up_cells(n_cells: int) -> int:
    """The next multiple of `CELL_GRANULARITY`, which is what the engine allocates for `n_cells`."""
    return -(-n_cells // CELL_GRANULARITY) * CELL_GRANULARITY


def cell_bytes(f16_bytes: int, key_type: CacheType, value_type: CacheType) -> int:
    """Bytes of one cell with these types, from those at f16; keys and values are taken to be of equal size,
    rounded up."""
    bits = round(key_type.bits_per_value * 2) + round(value_type.bits_per_value * 2)  # 64 for twice f16
    return -(-f16_bytes * bits // 64)


_LEAST_SHARE = 2
_SLACK_BYTES = 64 * 1024**2
_EXCESS_FACTOR = 8
_EXCESS_BYTES = 8 * 1024**3


def is_believable(sizes: EngineSizes, by_header: Footprint) -> bool:
    """Whether an answer about a file can be true. It came from a process that a hostile file may have taken
    over, in order to overcommit the machine.

    1. Host memory is among the devices.
    2. The weights are no less than half of the files, whose other contents (a vocabulary) are small.
    3. Nothing is out of all proportion to what the header says; an answer too high harms its own model first,
       but might evict others.
    """
    weights_bytes = sum(buffers.weights_bytes + buffers.repacked_bytes for buffers in sizes.devices)
    buffers_bytes = sum(buffers.total_bytes for buffers in (*sizes.devices, *sizes.annex))
    total_bytes = buffers_bytes + sizes.process_bytes
    return (
        any(buffers.device == HOST for buffers in sizes.devices)  # 1
        and weights_bytes + _SLACK_BYTES >= by_header.weights_bytes // _LEAST_SHARE  # 2
        and total_bytes <= by_header.total_bytes * _EXCESS_FACTOR + _EXCESS_BYTES  # 3
    )
