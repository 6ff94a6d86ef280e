"""`keep_alive` as clients write it: how long a model stays loaded after its last request.

A duration (`"5m"`, `"90s"`), a number of seconds, 0 (unload when the last request ends), or anything negative
(never). Shared by the dialects that take it; what it means is the domain's.
"""

from __future__ import annotations

from typing import Annotated, Any

from runner.api.structure import By, Fault
from runner.domain import settings


def read_keep_alive(value: Any) -> float:
    """Seconds; `inf` is never. Raises Fault."""
    try:
        return settings.read_keep_alive(value)
    except ValueError as error:
        raise Fault(str(error)) from None


KeepAlive = Annotated[float, By(read_keep_alive)]
