"""`keep_alive` as clients write it: how long a model stays loaded after its last request.

A duration (`"5m"`, `"90s"`), a number of seconds, 0 (unload when the last request ends), or anything negative
(never). Shared by the dialects that take it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from runner.api.structure import By, Fault
from runner.units import parse_duration

_TEXT_MAX = 32  # characters; longer than any duration


def read_keep_alive(value: Any) -> float:
    """Seconds; `inf` is never. Raises Fault."""
    seconds = _seconds(value)
    return math.inf if seconds < 0 else seconds


def _seconds(value: Any) -> float:
    if type(value) in (int, float):
        return float(value)
    if type(value) is not str:
        raise Fault("must be a duration such as 5m, or a number of seconds")
    if len(value) > _TEXT_MAX:
        raise Fault(f"must have at most {_TEXT_MAX} characters")
    try:
        return parse_duration(value)
    except ValueError as error:
        raise Fault(str(error)) from None


KeepAlive = Annotated[float, By(read_keep_alive)]
