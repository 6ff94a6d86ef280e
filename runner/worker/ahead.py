"""What a spare worker does before it says hello: import what a load will need, out of everybody's way.

A spare is started while models are generating, and takes their cores for a third of a second unless it gives
way. So the imports run in a thread of low priority, and where the kernel groups processes by session, the
session has a low priority meanwhile. The main thread, which will run the model, keeps its own: an ordinary
user cannot raise a priority again.

Nothing here may touch a back end of the engine: which devices it may see is not known yet. Standard library
only, until the imports.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOW = 10
"""A tenth of what others get who want the same core: 3 s for the imports. With 19, the lowest, it was 25 s on
a machine with five busy programs to a core, and loads came sooner."""
_ORDINARY = 0
_MODULES = (
    "runner.worker.channel",
    "runner.worker.limits",
    "runner.worker.loop",
    "runner.chat.control_text",
    "runner.chat.template",
)
_ENGINES = {"llama": "runner.engine.llama", "scripted": "runner.engine.fake"}
_AUTOGROUP = Path("/proc/self/autogroup")
_ATTEMPTS = 50
_ATTEMPT_INTERVAL_S = 0.1  # as often as Linux lets all users together change such a group


def import_ahead(engine: str) -> None:
    """Returns when everything is imported that loading with `engine` needs. Raises what an import raises."""
    errors: list[BaseException] = []
    with low_session_priority():
        thread = threading.Thread(target=_import_all, args=(engine, errors), name="imports")
        thread.start()
        thread.join()
    if errors:
        raise errors[0]


def _import_all(engine: str, errors: list[BaseException]) -> None:
    try:
        if sys.platform == "linux":  # where a priority is a thread's
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW)
        for name in (*_MODULES, _ENGINES[engine]):
            importlib.import_module(name)
    except BaseException as error:
        errors.append(error)


@contextmanager
def low_session_priority(autogroup: Path = _AUTOGROUP) -> Iterator[None]:
    """While it lasts, this session gives way to others. Does nothing where sessions are not scheduled as
    groups (no CONFIG_SCHED_AUTOGROUP), or when the session is not ours.

    Raises OSError when the priority cannot be restored: such a process must not run a model.
    """
    if os.getsid(0) != os.getpid() or not _write(autogroup, _LOW):
        yield
        return
    try:
        yield
    finally:
        for _ in range(_ATTEMPTS):
            if _write(autogroup, _ORDINARY):
                break
            time.sleep(_ATTEMPT_INTERVAL_S)
        else:
            raise OSError("the priority of the session could not be restored")


def _write(autogroup: Path, nice: int) -> bool:
    """Whether the kernel took it; it refuses now and then (EAGAIN), or always."""
    try:
        with autogroup.open("wb", buffering=0) as file:
            file.write(str(nice).encode())
    except OSError:
        return False
    return True
