"""How many bytes the models may take in all, as functions that the scheduler asks from time to time.

Imports `runner.hardware` and `runner.memory`. Read on in `actors/scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from runner.hardware.probe import free_memory_bytes
from runner.hardware.process_memory import children_private_bytes
from runner.memory.fit import memory_budget

MeasureBudget = Callable[[], Awaitable[int]]
"""The budget at this moment, in bytes."""


async def share_of_free_memory() -> int:
    """80 % of what is free or held by our workers.

    Their part has to be counted: otherwise the budget would shrink with every load, and the same bytes would
    be taken off twice. Asked in a thread, since the system's answer may take some milliseconds.
    """
    return await trio.to_thread.run_sync(_share_of_free_memory)


def fixed(budget_bytes: int) -> MeasureBudget:
    """A budget that somebody has configured; whether the machine has that much is theirs to know."""

    async def measure() -> int:
        await trio.lowlevel.checkpoint()
        return budget_bytes

    return measure


def _share_of_free_memory() -> int:
    return memory_budget(free_memory_bytes() + children_private_bytes())
