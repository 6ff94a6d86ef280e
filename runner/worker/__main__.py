"""`python -m runner.worker --channel-fd N --parent-pid P [--ahead ENGINE]`: a model in a process of its own.

Started by `actors/process.py` and by nobody else. Before anything is imported that might take time or start
threads, the process is tied to its parent's life and its descriptors are put in order. With `--ahead` it then
imports what it will need for that engine, and says hello only after that. Read on in `loop.py`.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback

from runner.worker.birth import read_arguments, settle_descriptors, settle_process, tie_to

_USAGE = "usage: python -m runner.worker --channel-fd N --parent-pid P [--ahead llama|scripted]\n"
_EXIT_USAGE = 2
_EXIT_ERROR = 1


def main(arguments: list[str]) -> int:
    """Does not return while the daemon lives, except for wrong usage."""
    arguments, engine = _split_engine(arguments)
    numbers = read_arguments(arguments)
    if numbers is None:
        sys.stderr.write(_USAGE)
        return _EXIT_USAGE
    channel_fd, parent_pid = numbers
    tie_to(parent_pid)
    settle_process()
    settle_descriptors()
    gc.disable()  # until the load is over: what comes until then stays, and a tenth of the time is saved
    if engine is not None:
        from runner.worker.ahead import import_ahead

        import_ahead(engine)

    from runner.worker.channel import Channel, adopt
    from runner.worker.limits import RenderingLimits
    from runner.worker.loop import Worker

    worker = Worker(
        Channel(adopt(channel_fd)),
        limits_of=lambda options: RenderingLimits(options.n_threads).while_rendering,
        on_loaded=_collect_from_now_on,
    )
    return worker.run()


def _split_engine(arguments: list[str]) -> tuple[list[str], str | None]:
    match arguments:
        case [*others, "--ahead", ("llama" | "scripted") as engine]:
            return others, engine
        case _:
            return arguments, None


def _collect_from_now_on() -> None:
    """What is imported and loaded stays: collections need not look at it again."""
    gc.freeze()
    gc.enable()


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
