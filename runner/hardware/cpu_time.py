"""Processor time: what all programs have used so far, what one of ours has, and how many want some just now.

Linux; None elsewhere.

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
_UTIME, _STIME, _CHILDREN_UTIME, _CHILDREN_STIME = 11, 12, 13, 14


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


def family_busy_s(proc: Path = _PROC) -> float | None:
    """Seconds of processor time that this process has used, with its children of now and those that ended.

    So differences hold while children come and go. None when the kernel does not tell.
    """
    own_s = _used_s(proc / "self", _UTIME, _STIME, _CHILDREN_UTIME, _CHILDREN_STIME)
    children = _children(proc)
    if own_s is None or children is None:
        return None
    children_s = (_used_s(proc / pid, _UTIME, _STIME) for pid in children)
    return own_s + sum(used_s for used_s in children_s if used_s is not None)


def n_runnable(proc: Path = _PROC) -> int | None:
    """Threads on this machine that run or wait for a processor at this moment, the one that asks included."""
    try:
        return int((proc / "loadavg").read_bytes().split()[3].partition(b"/")[0])
    except (OSError, ValueError, IndexError):
        return None


def _used_s(process: Path, *indices: int) -> float | None:
    """The sum of these fields, for all threads of a process; None when it is gone."""
    try:
        fields = (process / "stat").read_bytes().rpartition(b")")[2].split()
        return sum(int(fields[index]) for index in indices) / _ticks_per_s()
    except (OSError, ValueError, IndexError):
        return None


def _children(proc: Path) -> list[str] | None:
    """Process ids of the direct children, by the thread that started them; None where none are listed."""
    lists = list((proc / "self" / "task").glob("*/children"))
    if not lists:
        return None
    found: list[str] = []
    for listed in lists:
        try:
            found += listed.read_text().split()
        except OSError:  # the thread has ended
            continue
    return found


def _ticks_per_s() -> int:
    return os.sysconf("SC_CLK_TCK")
