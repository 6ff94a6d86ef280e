"""Budgets of a machine: measured, capped, changed while it runs."""

from __future__ import annotations

import attrs
import pytest

from actors.budget import BudgetMeter, Machine
from runner.domain.device_bytes import DeviceBytes
from runner.hardware.device import DeviceMemory

pytestmark = pytest.mark.anyio

GIB = 1024**3
HOST = DeviceMemory(device="cpu", total_bytes=64 * GIB, free_bytes=30 * GIB, limited_by="physical")
GPU = DeviceMemory(
    device="CUDA0",
    total_bytes=24 * GIB,
    free_bytes=10 * GIB,
    limited_by="physical",
    process_bytes={7: 9 * GIB, 99: 5 * GIB},
)


def machine(*devices: DeviceMemory, private_bytes: int = 0) -> Machine:
    return Machine(
        devices=lambda: devices, private_bytes=lambda: private_bytes, children=lambda: frozenset({7, 8})
    )


async def test_O01_the_budget_is_what_is_free_or_held_by_our_workers_less_a_reserve() -> None:
    meter = BudgetMeter(machine=machine(HOST, GPU, private_bytes=6 * GIB))
    measured = await meter.measure(DeviceBytes())
    assert measured.budget == DeviceBytes({"cpu": 32 * GIB, "CUDA0": 18 * GIB})
    assert measured.ceiling == DeviceBytes({"cpu": 34 * GIB, "CUDA0": 18 * GIB + GIB // 2})


async def test_a_gpu_that_does_not_tell_its_processes_is_believed_to_hold_what_was_reserved() -> None:
    silent = attrs.evolve(GPU, process_bytes={})
    meter = BudgetMeter(machine=machine(HOST, silent))
    held = await meter.measure(DeviceBytes({"CUDA0": 9 * GIB}))
    assert held.budget["CUDA0"] == 18 * GIB


async def test_what_is_configured_bounds_a_device_and_reserves_take_the_place_of_the_default() -> None:
    meter = BudgetMeter(caps={"cpu": 8 * GIB}, reserves={"CUDA0": 0}, machine=machine(HOST, GPU))
    measured = await meter.measure(DeviceBytes())
    assert measured.budget == DeviceBytes({"cpu": 8 * GIB, "CUDA0": 19 * GIB})
    assert measured.ceiling["cpu"] == 8 * GIB


async def test_a_bound_above_what_there_is_changes_nothing() -> None:
    meter = BudgetMeter(caps={"cpu": 900 * GIB}, machine=machine(HOST))
    assert (await meter.measure(DeviceBytes())).budget["cpu"] == 26 * GIB


async def test_a_bound_changes_while_it_runs_and_goes_away() -> None:
    meter = BudgetMeter(machine=machine(HOST))
    meter.cap("cpu", 5 * GIB)
    assert (await meter.measure(DeviceBytes())).budget["cpu"] == 5 * GIB
    meter.cap("cpu", None)
    assert (await meter.measure(DeviceBytes())).budget["cpu"] == 26 * GIB


async def test_this_machine_has_a_budget() -> None:
    assert (await BudgetMeter().measure(DeviceBytes())).budget["cpu"] > 0
