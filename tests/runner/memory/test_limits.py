"""The cap on a worker's private memory (W08)."""

from __future__ import annotations

import pytest

from runner.domain.engine import DeviceBuffers, EngineSizes
from runner.memory.footprint import (
    ANNEX_OVERHEAD_BYTES,
    OVERHEAD_BYTES,
    PROCESS_BYTES,
    estimate,
    exact,
)
from runner.memory.limits import HEADROOM_BYTES, private_limit_bytes

HOST = DeviceBuffers(
    device="cpu",
    weights_bytes=10_000,
    repacked_bytes=2_000,
    kv_cache_bytes=300,
    compute_bytes=40,
    output_bytes=5,
)


def test_W08_the_mapping_of_the_model_file_does_not_count() -> None:
    measured = exact(EngineSizes(devices=(HOST,), process_bytes=7), 300, 0, learned_bytes=11)
    assert private_limit_bytes(measured) == 2_345 + 7 + 11 + PROCESS_BYTES + HEADROOM_BYTES


def test_W08_what_only_the_header_told_may_be_copied_whole() -> None:
    annex_bytes = 2048 + ANNEX_OVERHEAD_BYTES
    private_bytes = 10_256 + OVERHEAD_BYTES + annex_bytes
    assert private_limit_bytes(estimate(10_000, 1, 256, 0)) == private_bytes + HEADROOM_BYTES


def test_W08_a_context_for_embeddings_may_be_opened() -> None:
    annex = DeviceBuffers(device="cpu", kv_cache_bytes=100, compute_bytes=20, output_bytes=3)
    without, having = EngineSizes(devices=(HOST,)), EngineSizes(devices=(HOST,), annex=(annex,))
    limits = [private_limit_bytes(exact(sizes, 300, 0)) for sizes in (without, having)]
    assert limits == [2_345 + PROCESS_BYTES + HEADROOM_BYTES + more for more in (0, 123)]


def test_W08_the_host_cache_is_no_private_memory() -> None:
    limits = [private_limit_bytes(exact(EngineSizes(devices=(HOST,)), 300, count)) for count in (0, 10)]
    assert limits == [2_345 + PROCESS_BYTES + HEADROOM_BYTES] * 2


@pytest.mark.parametrize("weights_bytes", [0, 1])
def test_a_worker_that_uses_other_devices_has_no_cap(weights_bytes: int) -> None:
    gpu = DeviceBuffers(device="CUDA0", weights_bytes=weights_bytes)
    assert private_limit_bytes(exact(EngineSizes(devices=(HOST, gpu)), 300, 0)) is None
