"""How the scripted engine breaks: by signals, without a word, not at all, by its memory.

Imports nothing of ours.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final, NoReturn

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
