"""Blocking work of transfers in threads: cut off when its task is cancelled.

Imports the switch that wakes a blocked thread, `runner/registry/abort.py`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Generic, TypeVar

import attrs
import trio

from runner.errors import RegistryUnavailable, TransferAborted
from runner.registry.abort import Abort
from runner.registry.retrying import pause_before

T = TypeVar("T")

GRACE_S = 2.0


async def run_abortable(action: Callable[[], T], abort: Abort, *, limiter: trio.CapacityLimiter) -> T:
    """The result of `action`, which runs in a thread and obeys `abort`; its error is raised as it is.

    When the task is cancelled, the switch is thrown, and the thread ends before this returns; but one that is
    where no switch reaches (a name that nobody resolves) is left to itself after GRACE_S.
    """
    run = _Run(action, abort)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope(shield=True) as patience:
            nursery.start_soon(run.abort_when_cancelled, patience)
            try:
                await trio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=limiter)
            except Exception as error:  # out of the nursery, so that it is no group
                run.error = error
        nursery.cancel_scope.cancel()
    if run.has_result:
        return run.results[0]
    if run.error is None or isinstance(run.error, TransferAborted):
        await trio.lowlevel.checkpoint_if_cancelled()  # who was cancelled is told so, and nothing else
    raise run.error or TransferAborted("the transfer was given up")


class _Run(Generic[T]):
    """One call in a thread, and what came of it."""

    def __init__(self, action: Callable[[], T], abort: Abort) -> None:
        self._action = action
        self._abort = abort
        self._has_begun = False
        self.results: list[T] = []
        self.error: Exception | None = None

    @property
    def has_result(self) -> bool:
        return bool(self.results)

    def __call__(self) -> None:
        self._has_begun = True
        self._abort.raise_if_aborted()
        self.results.append(self._action())

    async def abort_when_cancelled(self, patience: trio.CancelScope) -> None:
        try:
            await trio.sleep_forever()
        finally:
            if not self.has_result and self.error is None:  # else its connection may be somebody else's now
                self._abort.abort()
                patience.deadline = trio.current_time() + (GRACE_S if self._has_begun else 0.0)


async def run_all(actions: Iterable[Callable[[], Awaitable[T]]], *, at_once: int) -> tuple[T, ...]:
    """Results of all, so many side by side, in order. The first error cancels the others and is raised as it
    is."""
    results: dict[int, T] = {}
    errors: list[Exception] = []
    n_actions = 0
    places = trio.Semaphore(at_once)

    async def run(index: int, action: Callable[[], Awaitable[T]]) -> None:
        try:
            async with places:
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
