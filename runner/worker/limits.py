"""Limits that the worker puts on its own process while a chat template runs.

The sandbox (`runner.chat`) refuses ordinary excess and an asynchronous exception ends a template that loops.
Neither reaches one native call that does not return, or many allocations that are each small enough. So,
while a template runs:

- *Time.* A kernel timer ends the process by SIGALRM after `KILL_AFTER_S`. No Python code takes part: a native
  call that keeps the interpreter's lock would keep any watching thread from running, too.
- *Memory.* RLIMIT_DATA is lowered to the private memory in use plus `MEMORY_HEADROOM_BYTES`. It counts
private
  writable memory only, so neither the mapped model nor what the engine has reserved is in the way (RLIMIT_AS
  would count the model). What is refused comes out as MemoryError, in the template. Lowered for the length of
  a rendering only, since the engine grows at other times. The limit is the process's: were the engine to ask
  for more than the headroom at that very moment, the worker would fail, and only the worker. Linux counts so
  since 4.7; other systems ignore the limit for mappings.

Imports the standard library.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KILL_AFTER_S = 3.0
"""One second after the deadline of `runner.chat.template`, for what does not end by it."""
MEMORY_HEADROOM_BYTES = 512 * 1024 * 1024
"""A thousand times what a template with the longest allowed output needs."""

_STACK_BYTES = 8 * 1024 * 1024
_STATM = Path("/proc/self/statm")


class RenderingLimits:
    """`with limits.while_rendering(): …`, in one thread at a time.

    `n_threads`: how many threads the engine may start meanwhile; their stacks count as private memory.
    """

    def __init__(
        self,
        n_threads: int,
        *,
        kill_after_s: float = KILL_AFTER_S,
        headroom_bytes: int = MEMORY_HEADROOM_BYTES,
    ) -> None:
        self._kill_after_s = kill_after_s
        self._headroom_bytes = headroom_bytes + n_threads * _stack_bytes()

    @contextmanager
    def while_rendering(self) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        present = private_bytes()
        if present is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (_lower(present + self._headroom_bytes, soft), hard))
        signal.setitimer(signal.ITIMER_REAL, self._kill_after_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def private_bytes() -> int | None:
    """What RLIMIT_DATA counts of this process (its stack besides); None where there is no /proc."""
    try:
        data_pages = int(_STATM.read_bytes().split()[5])
    except OSError:
        return None
    return data_pages * resource.getpagesize()


def _lower(wanted: int, present_limit: int) -> int:
    return wanted if present_limit == resource.RLIM_INFINITY else min(wanted, present_limit)


def _stack_bytes() -> int:
    """Of a new thread: the soft limit of stacks, which is what glibc takes."""
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return _STACK_BYTES if soft == resource.RLIM_INFINITY else soft
