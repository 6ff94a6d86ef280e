"""The breakdown of a model's memory."""

from __future__ import annotations

import pytest

from runner.memory.footprint import OVERHEAD_BYTES, Footprint, estimate, round_up_cells

MIB = 1024**2


def test_a_footprint_is_files_and_cache_and_a_flat_allowance() -> None:
    footprint = estimate(weights_bytes=98 * MIB, kv_bytes_per_cell=23_040, n_cells=16_384)
    assert footprint == Footprint(
        weights_bytes=98 * MIB, kv_cache_bytes=23_040 * 16_384, overhead_bytes=256 * MIB
    )
    assert footprint.total_bytes == 98 * MIB + 360 * MIB + 256 * MIB
    assert OVERHEAD_BYTES == 256 * MIB


def test_a_footprint_explains_itself() -> None:
    text = str(estimate(98 * MIB, 23_040, 16_384))
    assert text == "weights 98.0 MiB + KV cache 360.0 MiB + buffers 256.0 MiB = 714.0 MiB"


@pytest.mark.parametrize(
    ("n_cells", "allocated"), [(0, 0), (1, 256), (255, 256), (256, 256), (257, 512), (8192, 8192)]
)
def test_cells_are_counted_as_the_engine_allocates_them(n_cells: int, allocated: int) -> None:
    assert round_up_cells(n_cells) == allocated
    assert estimate(0, 10, n_cells).kv_cache_bytes == 10 * allocated
