"""What models may take of a device: its memory, less a reserve, less what other programs use. Pure.

Imports values of `runner.hardware`. Read on in `actors/budget.py`, which measures and asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from runner.domain.device_bytes import HOST_MEMORY, DeviceBytes
from runner.hardware.device import DeviceMemory

MIB: Final = 1024**2
GIB: Final = 1024**3


@attrs.frozen
class Budgets:
    """`budget` may be given away, device by device. Above `ceiling`, which is no less, idle models go."""

    budget: DeviceBytes
    ceiling: DeviceBytes


def default_reserve(device: str, total_bytes: int) -> int:
    """What is left alone for what cannot be foreseen: other programs that grow, drivers, fragmentation.

    A tenth of host memory between 512 MiB and 4 GiB; a twentieth of a GPU between 256 MiB and 1 GiB, of which
    the driver's own state per process is a part.
    """
    if device == HOST_MEMORY:
        return min(max(total_bytes // 10, 512 * MIB), 4 * GIB)
    return min(max(total_bytes // 20, 256 * MIB), 1 * GIB)


def budgets(
    devices: Iterable[DeviceMemory],
    *,
    ours: DeviceBytes,
    caps: Mapping[str, int],
    reserves: Mapping[str, int],
) -> Budgets:
    """The budget of every device.

    What is free or held by our workers (`ours`) excludes what other programs use; the part of our workers has
    to be counted in, or the budget would shrink with every load. From it the reserve goes off (`reserves`,
    else the default), and `caps` bound what is left. The ceiling takes off half the reserve only: in between
    nothing is admitted, and nothing has to go.
    """
    budget: dict[str, int] = {}
    ceiling: dict[str, int] = {}
    for one in devices:
        reachable_bytes = min(one.total_bytes, one.free_bytes + ours[one.device])
        reserve_bytes = reserves.get(one.device, default_reserve(one.device, one.total_bytes))
        cap_bytes = caps.get(one.device, one.total_bytes)
        budget[one.device] = max(0, min(cap_bytes, reachable_bytes - reserve_bytes))
        ceiling[one.device] = max(0, min(cap_bytes, reachable_bytes - reserve_bytes // 2))
    return Budgets(DeviceBytes(budget), DeviceBytes(ceiling))


def held_by(pids: frozenset[int], memory: DeviceMemory, reserved_bytes: int) -> int:
    """What these processes hold of a GPU.

    Where the driver does not tell of them (in containers process ids differ), what was reserved for them, as
    far as it is in use at all.
    """
    told = [size for pid, size in memory.process_bytes.items() if pid in pids]
    if told:
        return sum(told)
    return min(reserved_bytes, memory.total_bytes - memory.free_bytes)
