"""Processor time: what all programs have used so far, and what one of ours has. Linux; None elsewhere.

Reads `/proc/stat` and `/proc/PID/stat`, 0.1 ms each. Differences between two readings are what is of use.
Read on in `actors/cores.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")
# Fields of a processor in /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal, … (guest time is
# part of user). Not counted: idle, waiting, and `nice`, which is work that gives way to everybody else's.
_USER, _SYSTEM, _IRQ, _SOFTIRQ, _STEAL = 0, 2, 5, 6, 7
# Fields of /proc/PID/stat behind the name, which may hold spaces and parentheses.
_UTIME, _STIME = 11, 12


def busy_s(processors: frozenset[int], proc: Path = _PROC) -> float | None:
    """Seconds that these processors have worked since the machine started, or another machine has taken them.

    The sum over processors; work of low priority is left out. None when the kernel does not tell.
    """
    ticks = 0
    try:
        for line in (proc / "stat").read_bytes().split(b"\n"):
            name, *fields = line.split()
            if not name.startswith(b"cpu"):
                break  # processors come first, and the lines behind them are long
            if name != b"cpu" and int(name[3:]) in processors:
                ticks += sum(int(fields[index]) for index in (_USER, _SYSTEM, _IRQ, _SOFTIRQ, _STEAL))
    except (OSError, ValueError, IndexError):
        return None
    return ticks / _ticks_per_s()


def process_busy_s(pid: int, proc: Path = _PROC) -> float | None:
    """Seconds of processor time that a process has used with all its threads; None when it is gone."""
    try:
        fields = (proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[_UTIME]) + int(fields[_STIME])) / _ticks_per_s()
    except (OSError, ValueError, IndexError):
        return None


def _ticks_per_s() -> int:
    return os.sysconf("SC_CLK_TCK")
