"""One-for-one supervision: children are started in order, restarted alone, stopped in reverse order.

    waiting ──> starting ──> running ──> stopping ──> ended
                   ^           │
                   │           v
                   └──── backing off ──> failed     restarts used up: all are stopped, the supervisor fails

A child is an async function that calls `task_status.started()` once it serves. When its first start fails,
that error comes out of `Supervisor.run`; later errors are reported and answered with a restart, by the
rules of `actors/restart.py`. Cancelling `run` stops everything in order, too: each child is shielded from
what surrounds the supervisor and cancelled by it when its turn has come. `Cancelled` and
`KeyboardInterrupt` are never taken for errors.

Imports `actors/restart.py`. Read on in `runner/daemon.py`, where the tree is put together.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import attrs
import trio

from actors.restart import GiveUp, Restart, RestartKind, RestartPolicy, decide, wants_restart


class Run(Protocol):
    """What a child runs: calls `task_status.started()` when it serves, and returns or raises when it ends."""

    def __call__(self, *, task_status: trio.TaskStatus[None]) -> Awaitable[None]: ...


@attrs.frozen(kw_only=True)
class ChildSpec:
    """One child.

    On a stop `ask_to_end`, if given, is called once, and the child has `shutdown_s` to return; then it is
    cancelled and has as long again before the next one's turn comes. Without `ask_to_end` it is cancelled
    at once.
    """

    name: str
    run: Run
    restart: RestartKind = RestartKind.PERMANENT
    policy: RestartPolicy = attrs.field(factory=RestartPolicy)
    ask_to_end: Callable[[], object] | None = None
    shutdown_s: float = 5.0


class ChildState(enum.Enum):
    WAITING = "waiting"
    """Its turn to be started has not come."""
    STARTING = "starting"
    RUNNING = "running"
    BACKING_OFF = "backing off"
    STOPPING = "stopping"
    ENDED = "ended"
    """As it should: it was stopped, or returned and is not to be restarted."""
    FAILED = "failed"


@attrs.frozen
class ChildStatistics:
    """`restarts` since the supervisor started."""

    name: str
    state: ChildState
    restarts: int


@attrs.frozen(kw_only=True)
class ChildCrashed:
    """`error` None: it returned though it should run for ever. `delay_s` None: no further restart."""

    name: str
    error: Exception | None
    restarts: int
    delay_s: float | None


class RestartLimitReached(Exception):
    """A child ended too often; `__cause__` is its last error."""

    def __init__(self, name: str, given_up: GiveUp) -> None:
        super().__init__(f"{name} ended again after {given_up.restarts} restarts in {given_up.window_s:g} s")
        self.name = name


class Supervisor:
    """Runs once: make a new one to start again."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        *,
        report: Callable[[ChildCrashed], None] = lambda crash: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`report` is told of every unexpected end. `jitter` gives numbers of [0, 1)."""
        self._children = [_Child(spec) for spec in specs]
        self._report = report
        self._jitter = jitter
        self._starting = trio.CancelScope()
        self._stopping = trio.Event()
        self._failure: Exception | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start all children, then supervise until `stop` or cancellation; `started()` when all are up.

        Raises the error of a child that fails its first start, and `RestartLimitReached`; in both cases
        after the other children were stopped.
        """
        async with trio.open_nursery() as nursery:
            try:
                with self._starting:
                    await self._start_all(nursery)
                if self._failure is None:
                    task_status.started()
                await self._stopping.wait()
            finally:
                with trio.CancelScope(shield=True):
                    await self._stop_all()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Stop all children in reverse order; `run` then returns. Idempotent, and fit to end a start."""
        self._starting.cancel()
        self._stopping.set()

    def statistics(self) -> tuple[ChildStatistics, ...]:
        """All children in the order of their start."""
        return tuple(
            ChildStatistics(child.spec.name, child.state, child.restarts) for child in self._children
        )

    async def _start_all(self, nursery: trio.Nursery) -> None:
        for child in self._children:
            nursery.start_soon(self._keep, child)
            await child.settled.wait()
            if child.start_error is not None:
                self._fail(child.start_error)
                return

    async def _stop_all(self) -> None:
        for child in reversed(self._children):
            if child.state is not ChildState.WAITING and not child.ended.is_set():
                await child.stop()

    async def _keep(self, child: _Child) -> None:
        """One child's life with all its restarts."""
        try:
            with child.scope:
                await self._run_and_restart(child)
        finally:
            if child.state is not ChildState.FAILED:
                child.state = ChildState.ENDED
            child.settled.set()
            child.ended.set()

    async def _run_and_restart(self, child: _Child) -> None:
        """After each end: 1. it never was up: its error is the supervisor's.  2. It is to end.  3. Again."""
        history: tuple[float, ...] = ()
        while True:
            error = await child.run_once()
            if not child.settled.is_set():
                child.start_error = error
                child.state = ChildState.FAILED
                return
            if child.is_stopping or not wants_restart(child.spec.restart, failed=error is not None):
                if error is not None:
                    self._tell(child, error, delay_s=None)
                return
            now_s = trio.current_time()
            match decide(child.spec.policy, history, now_s=now_s, jitter=self._jitter()):
                case Restart(delay_s, history):
                    self._tell(child, error, delay_s)
                    child.state = ChildState.BACKING_OFF
                    await trio.sleep(delay_s)
                    child.restarts += 1
                case GiveUp() as given_up:
                    self._tell(child, error, delay_s=None)
                    child.state = ChildState.FAILED
                    reached = RestartLimitReached(child.spec.name, given_up)
                    reached.__cause__ = error
                    self._fail(reached)
                    return

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self.stop()

    def _tell(self, child: _Child, error: Exception | None, delay_s: float | None) -> None:
        crash = ChildCrashed(name=child.spec.name, error=error, restarts=child.restarts, delay_s=delay_s)
        self._report(crash)

    def __repr__(self) -> str:
        states = ", ".join(f"{child.spec.name} {child.state.value}" for child in self._children)
        return f"<Supervisor: {states}>"


@attrs.define(eq=False)
class _Child:
    """`settled`: the first start has succeeded or failed. The scope shields from all cancels but our own."""

    spec: ChildSpec
    state: ChildState = ChildState.WAITING
    restarts: int = 0
    is_stopping: bool = False
    start_error: Exception | None = None
    scope: trio.CancelScope = attrs.field(factory=lambda: trio.CancelScope(shield=True))
    settled: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)

    async def run_once(self) -> Exception | None:
        """From start to end; the error it ended with, if any."""
        self.state = ChildState.STARTING
        failed: ExceptionGroup[Exception] | None = None
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._run)
                if not self.is_stopping:
                    self.state = ChildState.RUNNING
                self.settled.set()
        except* Exception as group:
            failed = group
        return None if failed is None else _unwrap(failed)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self.spec.run(task_status=task_status)

    async def stop(self) -> None:
        """Ask, wait, cancel, wait: twice `shutdown_s` at most, even when the child is still busy ending."""
        self.is_stopping = True
        self.state = ChildState.STOPPING
        if self.spec.ask_to_end is not None:
            self.spec.ask_to_end()
            with trio.move_on_after(self.spec.shutdown_s):
                await self.ended.wait()
        self.scope.cancel()
        with trio.move_on_after(self.spec.shutdown_s):
            await self.ended.wait()


def _unwrap(error: Exception) -> Exception:
    """The one error in nested groups of one; what nurseries wrap around it says nothing."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
