"""Lines of llama.cpp's log: what they say of buffers, and everything else that passes by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.engine import DeviceBuffers
from runner.engine.buffer_log import BufferLog, device_of, in_order, is_repacked

MIB = 2**20

REAL = b"""\
load_tensors:   CPU_Mapped model buffer size =   235.16 MiB
load_tensors:   CPU_REPACK model buffer size =    12.66 MiB
llama_context:        CPU  output buffer size =     8.00 MiB
llama_kv_cache:        CPU KV buffer size =    12.00 MiB
llama_kv_cache: size =   12.00 MiB (  4096 cells,   3 layers,  8/1 seqs), K (f16):    6.00 MiB, V (f16):    6.00 MiB
llama_kv_cache:        CPU KV buffer size =    60.00 MiB
llama_kv_cache: size =   60.00 MiB (  4096 cells,  15 layers,  8/1 seqs), K (f16):   30.00 MiB, V (f16):   30.00 MiB
sched_reserve:        CPU compute buffer size =     8.20 MiB
"""  # noqa: E501  # as the library prints them
SIMULATED = b"""\
load_tensors:          CPU model buffer size =     0.00 MiB
llama_context:        CPU  output buffer size =     1.50 MiB
llama_kv_cache:        CPU KV buffer size =     0.00 MiB
llama_kv_cache: size =   90.00 MiB (  4096 cells,  30 layers,  8/1 seqs), K (f16):   45.00 MiB, V (f16):   45.00 MiB
sched_reserve:        CPU compute buffer size =     2.46 MiB
"""  # noqa: E501
OF_A_GPU = b"""\
load_tensors:   CPU_Mapped model buffer size =   100.00 MiB
load_tensors:        CUDA0 model buffer size =  4000.50 MiB
llama_context:  CUDA_Host  output buffer size =     0.98 MiB
llama_kv_cache:      CUDA0 KV buffer size =  1024.00 MiB
llama_memory_recurrent:      CUDA0 RS buffer size =     2.00 MiB
sched_reserve:      CUDA0 compute buffer size =   300.75 MiB
sched_reserve:  CUDA_Host compute buffer size =    20.00 MiB
"""


def fed(text: bytes) -> BufferLog:
    log = BufferLog()
    for line in text.splitlines(keepends=True):
        log.feed(line)
    return log


def mib(value: float) -> int:
    return round(value * MIB)


def test_a_real_load_tells_every_buffer() -> None:
    assert fed(REAL).devices() == (
        DeviceBuffers(
            device="cpu",
            weights_bytes=mib(235.16),
            repacked_bytes=mib(12.66),
            kv_cache_bytes=mib(72),
            compute_bytes=mib(8.2),
            output_bytes=mib(8),
        ),
    )


def test_a_simulated_load_tells_its_cache_by_its_sum() -> None:
    log = fed(SIMULATED)
    (host,) = log.devices()
    assert (host.weights_bytes, host.kv_cache_bytes) == (0, 0)
    assert (host.compute_bytes, host.output_bytes) == (mib(2.46), mib(1.5))
    assert (log.cache_bytes, log.n_caches) == (mib(90), 1)
    assert log.allocated_bytes("output_bytes") == mib(1.5)
    assert fed(REAL).cache_bytes == mib(72)


def test_devices_are_told_apart_and_host_memory_of_a_gpu_is_host_memory() -> None:
    host, gpu = fed(OF_A_GPU).devices()
    assert (host.device, gpu.device) == ("cpu", "CUDA0")
    assert (host.weights_bytes, host.output_bytes, host.compute_bytes) == (mib(100), mib(0.98), mib(20))
    assert (gpu.weights_bytes, gpu.kv_cache_bytes, gpu.compute_bytes) == (mib(4000.5), mib(1026), mib(300.75))


def test_clear_forgets_the_load_before() -> None:
    log = fed(REAL)
    log.clear()
    assert log.devices() == ()
    assert (log.cache_bytes, log.n_caches) == (0, 0)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"load: special tokens cache size = 17\n",
        b"load: token to piece cache size = 0.3170 MB\n",
        b"llama_context:        CPU  output buffer size =   nan MiB\n",
        b"llama_kv_cache:        CPU KV buffer size =  -12.00 MiB\n",
        b"llama_kv_cache: size =   12 MiB (  4096 cells,\n",
        b"llama_adapter:        CPU LoRA buffer size =     3.00 MiB\n",
        b"size =    12.00 MiB ->    6.00 MiB (q4_0)\n",
        b"sched_reserve:        CPU compute buffer size = 12345678901234567890.00 MiB\n",
    ],
)
def test_other_lines_say_nothing(line: bytes) -> None:
    log = fed(line)
    assert log.devices() == ()
    assert log.cache_bytes == 0


def test_a_library_that_repeats_itself_is_heard_no_more() -> None:
    log = BufferLog()
    for _ in range(5000):
        log.feed(b"x: CPU KV buffer size = 1.00 MiB\n")
    assert log.allocated_bytes("kv_cache_bytes") == 4096 * MIB


@given(st.binary(max_size=200))
def test_no_line_is_too_strange(line: bytes) -> None:
    fed(line).devices()


@pytest.mark.parametrize(
    ("buffer", "device", "repacked"),
    [
        ("CPU", "cpu", False),
        ("CPU_Mapped", "cpu", False),
        ("CPU_REPACK", "cpu", True),
        ("CPU_AARCH64", "cpu", True),
        ("AMX", "cpu", True),
        ("CUDA_Host", "cpu", False),
        ("CUDA0", "CUDA0", False),
        ("MTL0_Mapped", "MTL0", False),
        ("MTL0_Private", "MTL0", False),
    ],
)
def test_buffer_types_by_the_memory_they_take(buffer: str, device: str, repacked: bool) -> None:
    assert device_of(buffer) == device
    assert is_repacked(buffer) is repacked


def test_host_memory_comes_first() -> None:
    names = [buffers.device for buffers in in_order(map(_on, ("ROCm1", "CUDA0", "cpu")))]
    assert names == ["cpu", "CUDA0", "ROCm1"]


def _on(device: str) -> DeviceBuffers:
    return DeviceBuffers(device=device)
