"""How many bytes the models may take of each device: measured, bounded by what somebody configured.

Imports `runner.hardware` and `runner.memory`. Read on in `runner/memory/budget.py` for the arithmetic and in
`actors/scheduler.py`, which asks from time to time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import attrs
import trio

from runner.domain.device_bytes import HOST_MEMORY, DeviceBytes
from runner.hardware.device import DeviceMemory
from runner.hardware.probe import device_memory
from runner.hardware.process_memory import children_ids, children_private_bytes
from runner.memory.budget import Budgets, budgets, held_by

MeasureBudget = Callable[[DeviceBytes], Awaitable[Budgets]]
"""The budgets at this moment, where so much is reserved for our workers."""


@attrs.frozen(kw_only=True)
class Machine:
    """Where measurements come from: the real machine, or a test's. All of it may wait for drivers."""

    devices: Callable[[], tuple[DeviceMemory, ...]] = device_memory
    private_bytes: Callable[[], int] = children_private_bytes
    children: Callable[[], frozenset[int]] = children_ids


@attrs.define
class BudgetMeter:
    """Budgets of this machine.

    `caps` bound what models may take of a device, `reserves` are what is left alone; both in bytes by device.
    Devices that are not named have no bound, and the default reserve.
    """

    _caps: Mapping[str, int] = attrs.field(factory=dict)
    _reserves: Mapping[str, int] = attrs.field(factory=dict)
    _machine: Machine = attrs.field(factory=Machine)

    async def measure(self, reserved: DeviceBytes) -> Budgets:
        """In a thread, since the system's answers may take some milliseconds."""
        return await trio.to_thread.run_sync(self._measure, reserved)

    def cap(self, device: str, size_bytes: int | None) -> None:
        """Bound a device from the next measurement on; None takes its bound away."""
        others = {name: size for name, size in self._caps.items() if name != device}
        self._caps = others if size_bytes is None else {**others, device: size_bytes}

    def _measure(self, reserved: DeviceBytes) -> Budgets:
        devices = self._machine.devices()
        pids = self._machine.children() if len(devices) > 1 else frozenset()
        ours = {
            one.device: self._machine.private_bytes()
            if one.device == HOST_MEMORY
            else held_by(pids, one, reserved[one.device])
            for one in devices
        }
        return budgets(devices, ours=DeviceBytes(ours), caps=self._caps, reserves=self._reserves)
