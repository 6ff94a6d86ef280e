"""The arithmetic of budgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.device_bytes import DeviceBytes
from runner.hardware.device import DeviceMemory
from runner.memory.budget import GIB, MIB, budgets, default_reserve, held_by


@pytest.mark.parametrize(
    ("device", "total_bytes", "reserve_bytes"),
    [
        ("cpu", 5 * GIB - 1, 512 * MIB),
        ("cpu", 8 * GIB, 8 * GIB // 10),
        ("cpu", 40 * GIB, 4 * GIB),
        ("cpu", 41 * GIB, 4 * GIB),
        ("CUDA0", 5 * GIB - 1, 256 * MIB),
        ("CUDA0", 8 * GIB, 8 * GIB // 20),
        ("CUDA0", 20 * GIB, 1 * GIB),
        ("CUDA0", 80 * GIB, 1 * GIB),
    ],
)
def test_the_reserve_is_a_part_of_the_memory_within_bounds(
    device: str, total_bytes: int, reserve_bytes: int
) -> None:
    assert default_reserve(device, total_bytes) == reserve_bytes


sizes = st.integers(0, 100)


@given(total=sizes, free=sizes, ours=sizes, cap=st.none() | sizes, reserve=sizes)
def test_O02_a_budget_lies_within_every_bound_and_below_its_ceiling(
    total: int, free: int, ours: int, cap: int | None, reserve: int
) -> None:
    device = DeviceMemory(device="cpu", total_bytes=total, free_bytes=free, limited_by="cgroup")
    made = budgets(
        [device],
        ours=DeviceBytes.on_host(ours),
        caps={} if cap is None else {"cpu": cap},
        reserves={"cpu": reserve},
    )
    budget, ceiling = made.budget["cpu"], made.ceiling["cpu"]
    assert 0 <= budget <= ceiling <= total
    assert budget <= max(0, free + ours - reserve)
    assert cap is None or ceiling <= cap


def gpu(**process_bytes: int) -> DeviceMemory:
    return DeviceMemory(
        device="CUDA0",
        total_bytes=100,
        free_bytes=40,
        limited_by="physical",
        process_bytes={int(pid[1:]): size for pid, size in process_bytes.items()},
    )


def test_of_a_gpu_the_told_use_of_our_processes_counts_else_what_was_reserved_and_is_used() -> None:
    ours = frozenset({1, 2})
    assert held_by(ours, gpu(p1=10, p2=5, p3=30), reserved_bytes=50) == 15
    assert held_by(ours, gpu(p3=30), reserved_bytes=50) == 50
    assert held_by(ours, gpu(), reserved_bytes=70) == 60
