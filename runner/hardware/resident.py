"""Memory that a process really has at this moment, as the kernel counts it. Linux; None elsewhere.

Reads `/proc` and imports nothing, so that a worker can use it as well.
"""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")
_KIB = 1024


def anonymous_bytes(pid: int | None = None, *, proc: Path = _PROC) -> int | None:
    """Resident memory that belongs to no file: heaps, stacks, buffers. `pid` None is this process.

    Counters that the kernel keeps, so it costs microseconds. None when the process is gone or does not tell.
    """
    return _field(proc / _name(pid) / "status", "RssAnon")


def proportional_bytes(pid: int | None = None, *, proc: Path = _PROC) -> int | None:
    """All resident memory, a page that n processes share counted as an n-th (PSS).

    The kernel walks the page tables for it: milliseconds per hundred MiB, during which the process cannot map
    memory. None like `anonymous_bytes`, and for processes of others.
    """
    return _field(proc / _name(pid) / "smaps_rollup", "Pss")


def _name(pid: int | None) -> str:
    return "self" if pid is None else str(pid)


def _field(path: Path, name: str) -> int | None:
    try:
        for line in path.read_text("ascii", "replace").splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) * _KIB
    except (OSError, ValueError, IndexError):
        pass  # gone, not ours to look at, or another system
    return None
