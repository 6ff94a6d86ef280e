"""The first moments of a process that the daemon has started: whose it is, what it may leave, and where
its descriptors lead.

Standard library only, and little of it: a worker and a probe call these before they import what takes time or
starts threads.
"""

from __future__ import annotations

import os
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SWITCH_INTERVAL_S = 0.0005
_CORE_LIMIT_BYTES = 1
"""Less than any dump to a file; and unlike 0 it also keeps Linux from piping one to a program."""
_EXIT_ORPHAN = 1


def read_arguments(arguments: list[str]) -> tuple[int, int] | None:
    """By hand: argparse takes 6 ms of every load."""
    match arguments:
        case ["--channel-fd", fd, "--parent-pid", pid] if fd.isdecimal() and pid.isdecimal():
            return int(fd), int(pid)
        case _:
            return None


def tie_to(parent_pid: int) -> None:
    """End with the parent, whatever this process is doing then (W10).

    The signal follows the parent's *thread* that started us. It is armed only from here on: a parent that
    died before has left us to somebody else.
    """
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(_EXIT_ORPHAN)


def settle_process() -> None:
    """No core dumps: they would hold prompts. A crash says where in Python it happened, and signals that end
    the process do so."""
    import faulthandler
    import resource
    import signal

    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    core_bytes = 0 if hard == 0 else _CORE_LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_CORE, (core_bytes, core_bytes))
    faulthandler.enable()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM, signal.SIGTERM})
    # A step that comes back from native code waits this long for the interpreter while a template is
    # rendered; the default of 5 ms is as long as a whole step of a small model.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


def settle_descriptors() -> None:
    """Nothing on stdin, and what a library prints goes to the log: the protocol has a descriptor of its
    own."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if null != 0:
        os.close(null)
    os.dup2(2, 1)
