"""Prober of the host: memory and processors, physical or as a container is allowed, whichever is smaller.

Reads `/proc`, `/sys` and psutil, a few small files at a time, and nothing else. Every place is a parameter,
so that a test can lay out a machine in a directory. What cannot be read does not limit: a missing file means
that the kernel has no such bound to offer.

Memory limits of control groups are inherited, so all groups from ours to the root are asked and the least
free one counts. Both generations are read, since many machines mount them side by side:

    version 2   memory.max, memory.current, cpu.max
    version 1   memory.limit_in_bytes, memory.usage_in_bytes, cpu.cfs_quota_us, cpu.cfs_period_us
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import attrs
import psutil

from runner.hardware.device import CpuCores, DeviceMemory

_FILE_BYTES_MAX = 64 * 1024


@attrs.frozen(kw_only=True)
class SystemPaths:
    """Where the kernel tells about this machine."""

    proc: Path = Path("/proc")
    cgroup: Path = Path("/sys/fs/cgroup")
    cpus: Path = Path("/sys/devices/system/cpu")


@attrs.frozen(kw_only=True)
class PhysicalMemory:
    """Bytes installed, and bytes available to new programs without swapping."""

    total_bytes: int
    available_bytes: int


@attrs.frozen
class _GroupMemory:
    limit_bytes: int
    free_bytes: int


def read_physical_memory() -> PhysicalMemory:
    memory = psutil.virtual_memory()
    return PhysicalMemory(total_bytes=memory.total, available_bytes=memory.available)


def read_memory(
    paths: SystemPaths = SystemPaths(),
    physical: Callable[[], PhysicalMemory] = read_physical_memory,
) -> DeviceMemory:
    """Host memory: the smaller of what the machine and every control group above us have left."""
    machine = physical()
    groups = [*_memory_v2(paths), *_memory_v1(paths)]
    total_bytes = min([machine.total_bytes, *(group.limit_bytes for group in groups)])
    free_bytes = min([machine.available_bytes, *(group.free_bytes for group in groups)])
    is_limited = total_bytes < machine.total_bytes or free_bytes < machine.available_bytes
    return DeviceMemory(
        device="cpu",
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        limited_by="cgroup" if is_limited else "physical",
    )


def read_cores(paths: SystemPaths = SystemPaths(), affinity: frozenset[int] | None = None) -> CpuCores:
    """Processors we may use. `affinity` holds processor numbers; by default the mask of this process."""
    allowed = own_processors() if affinity is None else affinity
    quotas = [*_cpu_quotas_v2(paths), *_cpu_quotas_v1(paths)]
    return CpuCores(
        logical=len(allowed),
        physical=_physical_cores(paths, allowed),
        usable=max(1, int(min([float(len(allowed)), *quotas]))),
    )


def own_processors() -> frozenset[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))  # macOS has no affinity masks


def _physical_cores(paths: SystemPaths, allowed: frozenset[int]) -> int:
    """Distinct cores of the allowed processors; their number, where the kernel does not tell siblings."""
    siblings = {_siblings(paths.cpus / f"cpu{number}" / "topology") for number in allowed}
    if "" in siblings:
        return max(1, min(psutil.cpu_count(logical=False) or len(allowed), len(allowed)))
    return max(1, len(siblings))


def _siblings(topology: Path) -> str:
    """The processors of one core as the kernel lists them; the second name is the one before Linux 5.3."""
    return _read_text(topology / "core_cpus_list") or _read_text(topology / "thread_siblings_list")


def _memory_v2(paths: SystemPaths) -> Iterator[_GroupMemory]:
    for group in _groups_v2(paths):
        limit_bytes, used_bytes = _read_int(group / "memory.max"), _read_int(group / "memory.current")
        if limit_bytes is not None and used_bytes is not None:
            cached_bytes = _page_cache_bytes(group, prefix="")
            yield _GroupMemory(limit_bytes, max(0, limit_bytes - used_bytes + cached_bytes))


def _memory_v1(paths: SystemPaths) -> Iterator[_GroupMemory]:
    for group in _groups_v1(paths, "memory"):
        limit_bytes = _read_int(group / "memory.limit_in_bytes")
        used_bytes = _read_int(group / "memory.usage_in_bytes")
        if limit_bytes is not None and used_bytes is not None:
            cached_bytes = _page_cache_bytes(group, prefix="total_")
            yield _GroupMemory(limit_bytes, max(0, limit_bytes - used_bytes + cached_bytes))


def _page_cache_bytes(group: Path, *, prefix: str) -> int:
    """File pages charged to the group. The kernel drops them before it refuses memory, so they count as free,
    as they do in the machine's own "available"; tmpfs pages cannot be dropped and are not among these."""
    cached_bytes = 0
    for line in _read_text(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in (f"{prefix}active_file", f"{prefix}inactive_file") and value.isdecimal():
            cached_bytes += int(value)
    return cached_bytes


def _cpu_quotas_v2(paths: SystemPaths) -> Iterator[float]:
    for group in _groups_v2(paths):
        quota, _, period = _read_text(group / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            yield int(quota) / int(period)


def _cpu_quotas_v1(paths: SystemPaths) -> Iterator[float]:
    for group in _groups_v1(paths, "cpu"):
        quota, period = _read_int(group / "cpu.cfs_quota_us"), _read_int(group / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period is not None and period > 0:  # -1: no quota
            yield quota / period


def _groups_v2(paths: SystemPaths) -> Iterator[Path]:
    root = paths.cgroup
    if not (root / "cgroup.controllers").is_file():
        root = root / "unified"  # version 1 with version 2 beside it
    for controllers, group in _own_groups(paths):
        if controllers == "":
            yield from _ancestors(root, group)


def _groups_v1(paths: SystemPaths, controller: str) -> Iterator[Path]:
    for controllers, group in _own_groups(paths):
        if controller in controllers.split(","):
            mounted = [paths.cgroup / name for name in (controllers, controller)]
            root = next((path for path in mounted if path.is_dir()), None)
            if root is not None:
                yield from _ancestors(root, group)


def _own_groups(paths: SystemPaths) -> Iterator[tuple[str, PurePosixPath]]:
    """(controllers, group) of each hierarchy, from lines such as `4:cpu,cpuacct:/user.slice` or `0::/`."""
    for line in _read_text(paths.proc / "self" / "cgroup").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            yield fields[1], PurePosixPath(fields[2])


def _ancestors(root: Path, group: PurePosixPath) -> Iterator[Path]:
    """Directories from our group to the root of its hierarchy.

    Inside a container the name may be that of the host while the container's own group is mounted as the root
    (or be relative, `/../x`): then only the root is there to ask.
    """
    names = [name for name in group.parts if name != "/"]
    if ".." in names or not root.joinpath(*names).is_dir():
        names = []
    for depth in range(len(names), -1, -1):
        yield root.joinpath(*names[:depth])


def _read_text(path: Path) -> str:
    """Contents without surrounding space; empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_FILE_BYTES_MAX).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _read_int(path: Path) -> int | None:
    """A number; None for `max`, or when there is none."""
    try:
        return int(_read_text(path))
    except ValueError:
        return None
