"""`python -m runner.worker --channel-fd N --parent-pid P`: one model in a process of its own.

Started by `actors/process.py` and by nobody else. Before anything is imported that might take time or start
threads, the process is tied to its parent's life and its descriptors are put in order. Read on in `loop.py`.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SWITCH_INTERVAL_S = 0.0005
_CORE_LIMIT_BYTES = 1
"""Less than any dump to a file; and unlike 0 it also keeps Linux from piping one to a program."""
_USAGE = "usage: python -m runner.worker --channel-fd N --parent-pid P\n"
_EXIT_USAGE = 2
_EXIT_ERROR = 1


def main(arguments: list[str]) -> int:
    """Does not return while the daemon lives, except for wrong usage."""
    numbers = _read(arguments)
    if numbers is None:
        sys.stderr.write(_USAGE)
        return _EXIT_USAGE
    channel_fd, parent_pid = numbers
    _tie_to(parent_pid)
    _settle_process()
    _settle_descriptors()

    from runner.worker.channel import Channel, adopt
    from runner.worker.limits import RenderingLimits
    from runner.worker.loop import Worker

    worker = Worker(
        Channel(adopt(channel_fd)),
        limits_of=lambda options: RenderingLimits(options.n_threads).while_rendering,
        on_loaded=gc.freeze,  # what is imported and loaded stays: collections need not look at it again
    )
    return worker.run()


def _read(arguments: list[str]) -> tuple[int, int] | None:
    """By hand: argparse takes 6 ms of every load."""
    match arguments:
        case ["--channel-fd", fd, "--parent-pid", pid] if fd.isdecimal() and pid.isdecimal():
            return int(fd), int(pid)
        case _:
            return None


def _tie_to(parent_pid: int) -> None:
    """End with the parent, whatever this process is doing then (THREATS W10).

    The signal follows the parent's *thread* that started us. It is armed only from here on: a parent that
    died before has left us to somebody else.
    """
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(_EXIT_ERROR)


def _settle_process() -> None:
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


def _settle_descriptors() -> None:
    """Nothing on stdin, and what a library prints goes to the log: the protocol has a descriptor of its
    own."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if null != 0:
        os.close(null)
    os.dup2(2, 1)


if __name__ == "__main__":
    code = _EXIT_ERROR
    try:
        code = main(sys.argv[1:])
    except BaseException:  # the keeper reads the last lines of this log
        traceback.print_exc()
    sys.stderr.flush()
    # Not through the interpreter's shutdown, which would stop a busy preparation in the middle of native
    # code.
    os._exit(code)
