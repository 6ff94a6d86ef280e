"""Bytes per device: what a footprint, a budget and a reservation are made of. A value.

Imports `runner.units`. Read on in `runner/scheduling/ledger.py`, which adds and subtracts these.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from runner.units import format_bytes

HOST_MEMORY = "cpu"
"""The name of host memory among devices; GPUs are named as the engine names them (`CUDA0`)."""


def _normal(by_device: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((device, size) for device, size in by_device.items() if size != 0))


@attrs.frozen(repr=False)
class DeviceBytes:
    """Whole numbers of bytes on named devices; a device that is not named holds 0. May be negative.

    `DeviceBytes({"cpu": 5})["cpu"] == 5`. Devices with 0 are dropped, so that equal amounts are equal.
    """

    _amounts: tuple[tuple[str, int], ...] = attrs.field(factory=dict, converter=_normal)

    @classmethod
    def on_host(cls, size_bytes: int) -> DeviceBytes:
        return cls({HOST_MEMORY: size_bytes})

    def __getitem__(self, device: str) -> int:
        return next((size for name, size in self._amounts if name == device), 0)

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of devices with an amount, sorted."""
        return tuple(name for name, _ in self._amounts)

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size in self._amounts)

    def __bool__(self) -> bool:
        return bool(self._amounts)

    def __add__(self, other: DeviceBytes) -> DeviceBytes:
        amounts = dict(self._amounts)
        for device, size in other._amounts:
            amounts[device] = amounts.get(device, 0) + size
        return DeviceBytes(amounts)

    def __sub__(self, other: DeviceBytes) -> DeviceBytes:
        amounts = dict(self._amounts)
        for device, size in other._amounts:
            amounts[device] = amounts.get(device, 0) - size
        return DeviceBytes(amounts)

    def positive(self) -> DeviceBytes:
        """The devices with more than nothing."""
        return DeviceBytes({device: size for device, size in self._amounts if size > 0})

    def missing_in(self, room: DeviceBytes) -> DeviceBytes:
        """What `room` lacks to hold this; devices of which this needs nothing do not matter."""
        return DeviceBytes(
            {device: size - room[device] for device, size in self._amounts if size > max(0, room[device])}
        )

    def fits_in(self, room: DeviceBytes) -> bool:
        return not self.missing_in(room)

    def as_dict(self) -> dict[str, int]:
        return dict(self._amounts)

    def __str__(self) -> str:
        """`3.2 GiB`, or `1.0 GiB of cpu, 2.2 GiB of CUDA0` when a GPU is among them."""
        if all(device == HOST_MEMORY for device in self.devices):
            return format_bytes(self[HOST_MEMORY])
        return ", ".join(f"{format_bytes(size)} of {device}" for device, size in self._amounts)

    def __repr__(self) -> str:
        return f"<DeviceBytes {dict(self._amounts)}>"
