"""`python -m runner.worker --channel-fd N --parent-pid P`: one model in a process of its own.

Started by `actors/process.py` and by nobody else. Before anything is imported that might take time or start
threads, the process is tied to its parent's life and its descriptors are put in order. Read on in `loop.py`.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback

from runner.worker.birth import read_arguments, settle_descriptors, settle_process, tie_to

_USAGE = "usage: python -m runner.worker --channel-fd N --parent-pid P\n"
_EXIT_USAGE = 2
_EXIT_ERROR = 1


def main(arguments: list[str]) -> int:
    """Does not return while the daemon lives, except for wrong usage."""
    numbers = read_arguments(arguments)
    if numbers is None:
        sys.stderr.write(_USAGE)
        return _EXIT_USAGE
    channel_fd, parent_pid = numbers
    tie_to(parent_pid)
    settle_process()
    settle_descriptors()

    from runner.worker.channel import Channel, adopt
    from runner.worker.limits import RenderingLimits
    from runner.worker.loop import Worker

    worker = Worker(
        Channel(adopt(channel_fd)),
        limits_of=lambda options: RenderingLimits(options.n_threads).while_rendering,
        on_loaded=gc.freeze,  # what is imported and loaded stays: collections need not look at it again
    )
    return worker.run()


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
