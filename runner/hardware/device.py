"""What a machine offers, as values. Who measures them is `probe.py` and one prober per kind beside it."""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen(kw_only=True)
class DeviceMemory:
    """Memory of one device in bytes, at one moment.

    `device` is `cpu` for host memory, else the engine's name for it (`CUDA0`); `name` is for people.
    `total_bytes` is what this process could use at most, `free_bytes` what it could still take without
    pushing anything out. `limited_by` names the tighter bound: `physical` or `cgroup`. `process_bytes` is
    what processes hold of it, by process id, as far as the device tells; host memory does not.
    """

    device: str
    total_bytes: int
    free_bytes: int
    limited_by: str
    process_bytes: Mapping[int, int] = attrs.field(factory=dict)
    name: str = ""


@attrs.frozen(kw_only=True)
class CpuCores:
    """Processors that this process may run on.

    `logical` counts the processors of its affinity mask, `physical` the cores they belong to, `usable` is
    `logical` cut by a cgroup quota, at least 1.
    """

    logical: int
    physical: int
    usable: int

    @property
    def compute_threads(self) -> int:
        """Threads worth starting for arithmetic: one per core, since siblings share the vector units."""
        return max(1, min(self.physical, self.usable))
