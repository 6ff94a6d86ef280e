"""How the scripted engine breaks: by signals, without a word, not at all, by its memory.

Of ours it imports the errors.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final, NoReturn

from runner.errors import LoadingFailed

_SIGNALS: Final = {"segv": signal.SIGSEGV, "bus": signal.SIGBUS, "kill": signal.SIGKILL}
CRASHES: Final = frozenset(_SIGNALS) | {"abort", "exit", "exception"}


def crash(how: str) -> None:
    if how in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[how])
    elif how == "abort":
        os.abort()
    elif how == "exit":
        os._exit(3)
    raise RuntimeError(f"a scripted crash ({how})")


def hang() -> NoReturn:
    while True:
        time.sleep(60)


grown: list[bytearray] = []
"""What was grown by, kept for ever."""


def grow(size_mib: int) -> None:
    """Touched, so that it is there and not only promised."""
    grown.append(bytearray(b"x") * (size_mib << 20))


def misbehave_in_load(wish: str, fraction: float) -> None:
    """As a directive in the file says: at each report of the load, or when half of it is done."""
    name, _, argument = wish.partition(" ")
    if name == "slow":
        time.sleep(int(argument) / 1000 / 4)  # a quarter at each of the four reports
    elif fraction < 0.5:
        return
    elif name == "fail":
        raise LoadingFailed("the scripted engine was told not to load this file")
    elif name == "crash":
        crash(argument)
    elif name == "hang":
        hang()
    elif name == "grow":
        grow(int(argument))
