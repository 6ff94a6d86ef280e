"""What keeps one worker's hunger for memory from the others: its own limit, and its place before the kernel.

Set from outside, before a model is loaded, so that nothing in the worker has to be trusted with it. Imports
nothing of ours. Used by `actors/process.py`; the number comes from `runner/memory/limits.py`.

RLIMIT_DATA counts private writable memory only, when it is asked for: the mapping of the model file does not
count, and what exceeds the limit fails inside the worker, in the very call that asked. The alternatives
are worse: RLIMIT_AS would count the mapping, RLIMIT_RSS does nothing since Linux 2.4, and looking at resident
memory from time to time sees the excess when the host has paid for it. Linux counts so since 4.7.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Final

_MORE_THAN_OURS: Final = 500
"""Added to our own badness: as if the worker took half of the host's memory more than it does. Values are
-1000 to 1000 (proc_pid_oom_score_adj(5)); raising one's children's needs no privilege."""
_HIGHEST: Final = 1000


def limit_private_memory(pid: int, limit_bytes: int) -> None:
    """From now on the process may hold so much private memory; more is refused to it (W08)."""
    try:
        _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            limit_bytes = min(limit_bytes, hard)
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    except (OSError, ValueError):
        pass  # it is gone already


def prefer_as_victim(pid: int, proc: Path = Path("/proc")) -> None:
    """When the host runs out of memory, the kernel takes this process before the daemon (W09)."""
    try:
        ours = int((proc / "self" / "oom_score_adj").read_bytes())
        (proc / str(pid) / "oom_score_adj").write_text(str(min(ours + _MORE_THAN_OURS, _HIGHEST)))
    except (OSError, ValueError):
        pass  # it is gone already, or there is no /proc
