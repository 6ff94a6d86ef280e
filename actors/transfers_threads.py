"""Blocking work of transfers in threads: cut off when its task is cancelled, never left behind.

Imports the switch that wakes a blocked thread, `runner/registry/abort.py`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import attrs
import trio

from runner.errors import RegistryUnavailable, TransferAborted
from runner.registry.abort import Abort
from runner.registry.retrying import pause_before

T = TypeVar("T")


async def run_abortable(action: Callable[[], T], abort: Abort, *, limiter: trio.CapacityLimiter) -> T:
    """The result of `action`, which runs in a thread and obeys `abort`; its error is raised as it is.

    When the task is cancelled, the switch is thrown, and the thread has ended before this returns: what it
    uses may be closed then.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        abort.raise_if_aborted()
        results.append(action())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_throw_when_cancelled, abort, results, errors)
        try:
            await trio.to_thread.run_sync(run, limiter=limiter)
        except Exception as error:  # out of the nursery, so that it is no group
            errors.append(error)
        nursery.cancel_scope.cancel()
    if not errors:
        return results[0]
    if isinstance(errors[0], TransferAborted):
        await trio.lowlevel.checkpoint_if_cancelled()  # whoever was cancelled is told so, and nothing else
    raise errors[0]


async def _throw_when_cancelled(abort: Abort, *ends: Sequence[object]) -> None:
    try:
        await trio.sleep_forever()
    finally:
        if not any(ends):  # else the thread has ended, and its connection may be somebody else's
            abort.abort()


async def run_all(actions: Iterable[Callable[[], Awaitable[T]]]) -> tuple[T, ...]:
    """Results of all, side by side, in order. The first error cancels the others and is raised as it is."""
    results: dict[int, T] = {}
    errors: list[Exception] = []
    n_actions = 0

    async def run(index: int, action: Callable[[], Awaitable[T]]) -> None:
        try:
            results[index] = await action()
        except Exception as error:
            errors.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for index, action in enumerate(actions):
            n_actions += 1
            nursery.start_soon(run, index, action)
    if errors:
        raise errors[0]
    return tuple(results[index] for index in range(n_actions))


@attrs.frozen(kw_only=True)
class RemoteThreads:
    """The threads that small requests take turns in, and the chance that spreads repetitions."""

    limiter: trio.CapacityLimiter
    chance: Callable[[], float] = random.random

    async def ask(self, request: Callable[[Abort], T], on_retry: Callable[[str], None]) -> T:
        """The result of a request, made again as often as S06 allows; `on_retry` is told why each time.

        Raises what the request raises, RegistryUnavailable when it was made often enough.
        """
        attempt = 1
        while True:
            try:
                return await self.ask_once(request)
            except RegistryUnavailable as error:
                attempt += 1
                pause_s = pause_before(attempt, error, chance=self.chance())
                if pause_s is None:
                    raise
                on_retry(f"{error}; trying again")
            await trio.sleep(pause_s)

    async def ask_once(self, request: Callable[[Abort], T]) -> T:
        """The result of a request that is made once. Raises what it raises."""
        abort = Abort()
        return await run_abortable(partial(request, abort), abort, limiter=self.limiter)
