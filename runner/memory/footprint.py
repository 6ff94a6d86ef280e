"""How many bytes a loaded model needs, as a breakdown that explains itself.

Pure arithmetic on values that the store and the GGUF header give; imports only `runner.units`. Where a
footprint meets a budget is `runner.memory.fit`.
"""

from __future__ import annotations

import attrs

from runner.units import format_bytes

OVERHEAD_BYTES = 256 * 1024**2
"""What a worker needs beside weights and KV cache: compute buffers, output buffers, the interpreter. A flat
allowance until the engine's own simulated allocation replaces it."""

CELL_GRANULARITY = 256
"""llama.cpp pads the cells of a context to a multiple of this (constructor in llama-context.cpp)."""


@attrs.frozen(kw_only=True)
class Footprint:
    """Bytes of one loaded model on one device. `weights_bytes` is the size of its weight files."""

    weights_bytes: int
    kv_cache_bytes: int
    overhead_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.overhead_bytes

    def __str__(self) -> str:
        """`weights 93.7 MiB + KV cache 360.0 MiB + buffers 256.0 MiB = 709.7 MiB`, for refusals and logs."""
        return (
            f"weights {format_bytes(self.weights_bytes)} + KV cache {format_bytes(self.kv_cache_bytes)}"
            f" + buffers {format_bytes(self.overhead_bytes)} = {format_bytes(self.total_bytes)}"
        )


def estimate(weights_bytes: int, kv_bytes_per_cell: int, n_cells: int) -> Footprint:
    """Footprint of a model with room for `n_cells` tokens: its files, its KV cache, and a flat allowance.

    Cells are counted as the engine allocates them, so `n_cells` is rounded up to `CELL_GRANULARITY`.
    """
    return Footprint(
        weights_bytes=weights_bytes,
        kv_cache_bytes=kv_bytes_per_cell * round_up_cells(n_cells),
        overhead_bytes=OVERHEAD_BYTES,
    )


def round_up_cells(n_cells: int) -> int:
    """The next multiple of `CELL_GRANULARITY`, which is what the engine allocates for `n_cells`."""
    return -(-n_cells // CELL_GRANULARITY) * CELL_GRANULARITY
