"""Asks every prober what this machine offers right now: the host, and GPUs of the kinds we know.

What asks the host is quick (a few files below /proc and /sys) and may run on the event loop; drivers of GPUs
take milliseconds and are asked in a thread.
"""

from __future__ import annotations

import attrs

from runner.hardware import cpu
from runner.hardware.device import CpuCores, DeviceMemory
from runner.hardware.nvidia import NvidiaProber

_nvidia = NvidiaProber()


@attrs.frozen(kw_only=True)
class HardwareReport:
    """One look at the machine: memory per device, the host first, and processors."""

    memory: tuple[DeviceMemory, ...]
    cores: CpuCores


def probe() -> HardwareReport:
    return HardwareReport(memory=device_memory(), cores=cpu.read_cores())


def device_memory() -> tuple[DeviceMemory, ...]:
    """Memory of every device, the host first."""
    return (cpu.read_memory(), *_nvidia.read())


def free_memory_bytes() -> int:
    """Host memory that could still be taken: the smaller of the machine's and our control groups'."""
    return cpu.read_memory().free_bytes


def compute_threads() -> int:
    """Threads worth starting for arithmetic on this machine, within affinity and quota."""
    return cpu.read_cores().compute_threads
