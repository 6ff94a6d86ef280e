"""The breakdown of a model's memory."""

from __future__ import annotations

import attrs
import pytest

from runner.domain.engine import CacheType, DeviceBuffers, EngineSizes
from runner.memory.footprint import (
    OVERHEAD_BYTES,
    PROCESS_BYTES,
    Basis,
    Footprint,
    cell_bytes,
    estimate,
    exact,
    is_believable,
    round_up_cells,
    with_cells,
)

MIB = 1024**2
GIB = 1024**3

HOST = DeviceBuffers(
    device="cpu",
    weights_bytes=235 * MIB,
    repacked_bytes=13 * MIB,
    kv_cache_bytes=72 * MIB,
    compute_bytes=8 * MIB,
    output_bytes=4 * MIB,
)
GPU = DeviceBuffers(device="CUDA0", weights_bytes=100 * MIB, kv_cache_bytes=30 * MIB)
SIZES = EngineSizes(devices=(HOST,), process_bytes=40 * MIB)


def test_by_the_header_a_footprint_is_files_and_cache_and_a_flat_allowance() -> None:
    footprint = estimate(weights_bytes=98 * MIB, kv_bytes_per_cell=23_040, n_cells=8192, host_cells=0)
    assert (footprint.weights_bytes, footprint.kv_cache_bytes) == (98 * MIB, 180 * MIB)
    assert footprint.overhead_bytes == OVERHEAD_BYTES == 256 * MIB
    assert footprint.total_bytes == footprint.bytes_on("cpu") == (98 + 180 + 256) * MIB
    assert footprint.basis is Basis.HEADER


def test_by_the_engines_word_every_buffer_counts_and_so_does_the_process() -> None:
    footprint = exact(SIZES, 4096, 0, learned_bytes=5 * MIB)
    assert footprint.total_bytes == (235 + 13 + 72 + 8 + 4 + 40 + 5) * MIB + PROCESS_BYTES
    assert footprint.private_bytes == footprint.total_bytes - 235 * MIB
    assert footprint.basis is Basis.PROBE


@pytest.mark.parametrize("host_cells", [0, 1, 4096, 10_000])
def test_the_host_cache_is_host_memory_beside_all_else(host_cells: int) -> None:
    cache_bytes = host_cells * 23_040 + host_cells * 64
    by_header = [estimate(98 * MIB, 23_040, 4000, count) for count in (0, host_cells)]
    host = attrs.evolve(HOST, kv_cache_bytes=4096 * 23_040)
    by_engine = [exact(attrs.evolve(SIZES, devices=(host,)), 4096, count) for count in (0, host_cells)]
    for without, having in (by_header, by_engine):
        assert having.host_cache_bytes == cache_bytes
        assert having.total_bytes == without.total_bytes + cache_bytes
        assert having.private_bytes == without.private_bytes  # it is mapped, and shared
        assert having.devices == without.devices
        assert dict(having.parts("cpu")).get("host cache", 0) == cache_bytes


def test_the_host_cache_lies_in_host_memory_also_where_the_pool_does_not() -> None:
    host, gpu = DeviceBuffers(device="cpu"), attrs.evolve(GPU, kv_cache_bytes=4096 * 1000)
    footprint = exact(EngineSizes(devices=(host, gpu)), 4096, 2048)
    assert footprint.host_cache_bytes == 2048 * 1064
    assert footprint.bytes_on("cpu") == 2048 * 1064 + PROCESS_BYTES
    assert footprint.bytes_on("CUDA0") == gpu.total_bytes
    assert footprint.total_bytes == footprint.bytes_on("cpu") + footprint.bytes_on("CUDA0")


def test_each_device_has_its_own_and_the_process_lives_on_the_host() -> None:
    footprint = Footprint(devices=(HOST, GPU), overhead_bytes=MIB, learned_bytes=2 * MIB)
    assert footprint.bytes_on("CUDA0") == 130 * MIB
    assert footprint.bytes_on("cpu") == (235 + 13 + 72 + 8 + 4 + 1 + 2) * MIB
    assert footprint.bytes_on("CUDA1") == 0
    assert footprint.total_bytes == footprint.bytes_on("cpu") + footprint.bytes_on("CUDA0")
    assert footprint.parts("CUDA0") == (("weights", 100 * MIB), ("KV cache", 30 * MIB))
    assert footprint.parts("CUDA1") == ()


def test_parts_add_up_to_the_whole() -> None:
    footprint = exact(SIZES, 4096, 1000, learned_bytes=5 * MIB)
    assert sum(size_bytes for _, size_bytes in footprint.parts("cpu")) == footprint.total_bytes


def test_a_footprint_explains_itself() -> None:
    assert str(estimate(98 * MIB, 23_040, 8192, 0)) == (
        "weights 98.0 MiB + KV cache 180.0 MiB + process 256.0 MiB = 534.0 MiB (estimated from the header)"
    )
    assert str(estimate(98 * MIB, 23_040, 8192, 8192)) == (
        "weights 98.0 MiB + KV cache 180.0 MiB + host cache 180.5 MiB + process 256.0 MiB = 714.5 MiB"
        " (estimated from the header)"
    )
    measured = Footprint(devices=(HOST,), overhead_bytes=MIB, learned_bytes=MIB, basis=Basis.LOAD)
    assert str(measured) == (
        "weights 235.0 MiB + repacked weights 13.0 MiB + KV cache 72.0 MiB + compute 8.0 MiB"
        " + outputs 4.0 MiB + process 1.0 MiB + learned 1.0 MiB = 334.0 MiB (as an earlier load had them)"
    )


def test_of_several_devices_each_is_explained_by_its_name() -> None:
    idle = DeviceBuffers(device="CUDA1")
    text = str(Footprint(devices=(HOST, GPU, idle), overhead_bytes=0, basis=Basis.PROBE))
    assert text.startswith("cpu: weights 235.0 MiB")
    assert "; CUDA0: weights 100.0 MiB + KV cache 30.0 MiB = 130.0 MiB; CUDA1: 0 B = 0 B (measured" in text


def test_a_smaller_pool_has_a_smaller_cache_on_every_device_and_all_else_as_before() -> None:
    footprint = Footprint(devices=(HOST, GPU), overhead_bytes=MIB)
    smaller = with_cells(footprint, 4096, 1024, 0)
    assert [buffers.kv_cache_bytes for buffers in smaller.devices] == [18 * MIB, 30 * MIB // 4]
    assert smaller.total_bytes == footprint.total_bytes - 54 * MIB - (30 * MIB - 30 * MIB // 4)
    assert with_cells(footprint, 4096, 4096, 0) == footprint


def test_a_smaller_pool_has_the_host_cache_that_it_is_given() -> None:
    footprint = exact(EngineSizes(devices=(HOST, GPU)), 4096, 4096)
    smaller = with_cells(footprint, 4096, 1024, 512)
    assert smaller.host_cache_bytes == 102 * MIB // 8 + 512 * 64
    assert with_cells(footprint, 4096, 4096, 4096) == footprint


@pytest.mark.parametrize(
    ("n_cells", "allocated"), [(0, 0), (1, 256), (255, 256), (256, 256), (257, 512), (8192, 8192)]
)
def test_cells_are_counted_as_the_engine_allocates_them(n_cells: int, allocated: int) -> None:
    assert round_up_cells(n_cells) == allocated
    assert estimate(0, 10, n_cells, 0).kv_cache_bytes == 10 * allocated


@pytest.mark.parametrize(
    ("key_type", "value_type", "expected"),
    [
        (CacheType.F16, CacheType.F16, 23_040),
        (CacheType.Q8_0, CacheType.Q8_0, 12_240),
        (CacheType.Q4_0, CacheType.Q4_0, 6_480),
        (CacheType.Q8_0, CacheType.F16, 17_640),
    ],
)
def test_a_cell_of_quantised_types_is_smaller(
    key_type: CacheType, value_type: CacheType, expected: int
) -> None:
    assert cell_bytes(23_040, key_type, value_type) == expected


# answers that cannot be true

BY_HEADER = estimate(weights_bytes=2 * GIB, kv_bytes_per_cell=100_000, n_cells=16_384, host_cells=0)


def answer(**changes: int | str) -> EngineSizes:
    honest = DeviceBuffers(device="cpu", weights_bytes=2 * GIB, kv_cache_bytes=1_638_400_000)
    return EngineSizes(devices=(attrs.evolve(honest, **changes),), process_bytes=100 * MIB)


def test_O01_an_honest_answer_is_believed() -> None:
    assert is_believable(answer(), BY_HEADER)
    assert is_believable(answer(kv_cache_bytes=0), BY_HEADER)  # a recurrent model
    assert is_believable(attrs.evolve(answer(), devices=(HOST, *answer(device="CUDA0").devices)), BY_HEADER)


@pytest.mark.parametrize(
    ("weights_bytes", "is_believed"), [(GIB - 64 * MIB, True), (GIB - 64 * MIB - 1, False)]
)
def test_O01_weights_that_are_far_less_than_the_file_are_not_believed(
    weights_bytes: int, is_believed: bool
) -> None:
    assert is_believable(answer(weights_bytes=weights_bytes), BY_HEADER) is is_believed


def test_O01_repacked_weights_count_as_weights() -> None:
    assert is_believable(answer(weights_bytes=0, repacked_bytes=2 * GIB), BY_HEADER)


@pytest.mark.parametrize(("excess", "is_believed"), [(0, True), (1, False)])
def test_O01_an_answer_out_of_all_proportion_is_not_believed(excess: int, is_believed: bool) -> None:
    others = 2 * GIB + 1_638_400_000 + 100 * MIB
    most = BY_HEADER.total_bytes * 8 + 8 * GIB
    assert is_believable(answer(compute_bytes=most - others + excess), BY_HEADER) is is_believed


def test_O01_an_answer_without_host_memory_is_not_believed() -> None:
    assert not is_believable(answer(device="CUDA0"), BY_HEADER)
    assert not is_believable(EngineSizes(devices=()), BY_HEADER)


def test_O01_small_files_may_be_mostly_vocabulary() -> None:
    tiny = estimate(weights_bytes=60 * MIB, kv_bytes_per_cell=0, n_cells=256, host_cells=0)
    assert is_believable(answer(weights_bytes=MIB, kv_cache_bytes=0), tiny)
