"""The spare worker: started and imported already, it waits for the next model to load.

    quiet ──> starting ──> waiting ──taken──> quiet        until the load that took it is over
                  └────────┴──died──> backing off ──> quiet

Importing takes as long as loading a small model, so a load that finds a spare needs two thirds of the time.
The next spare is started a little after the last load is over, when its first answer has begun, and gives way
to everybody while it imports (`runner/worker/ahead.py`). It has the environment of every worker and no model;
devices come with the load.

A spare is supervised by nobody until it is taken: nothing reads what it prints (a pipe holds 64 KiB), and
what it has sent, its hello, waits for the keeper that takes it. So a keeper sees no difference. Imports the
processes and the back-off of the scheduler. Read on in `actors/worker.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from actors.process import Command, ExitStatus, WorkerProcess
from runner.scheduling.backoff import BackoffRules, CrashRecord, after_crash

BACKOFF = BackoffRules(first_s=1.0, longest_s=300.0, forget_s=600.0)
"""Loads work without a spare, so there is no hurry; and one that always fails must not keep a core busy."""


SETTLE_S = 0.5
"""After a load: its first request is being prefilled then, and a process that starts beside it makes that a
tenth slower."""


@attrs.frozen(kw_only=True)
class SpareEnded:
    """A spare ended before anybody took it. `status` None: it could not be started, as `error` says."""

    pid: int | None
    status: ExitStatus | None
    error: str | None
    stderr_tail: str
    delay_s: float


class SpareWorker:
    """Owns at most one waiting worker. Keepers use it as `actors.process.WorkerSource`."""

    def __init__(
        self,
        *,
        spare_command: Command,
        command: Command,
        directory: Path | None = None,
        backoff: BackoffRules = BACKOFF,
        settle_s: float = SETTLE_S,
        report: Callable[[SpareEnded], None] = lambda ended: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`spare_command` starts a worker to wait, `command` one for a load that finds none waiting."""
        self._spare_command = spare_command
        self._command = command
        self._directory = directory
        self._backoff = backoff
        self._settle_s = settle_s
        self._report = report
        self._jitter = jitter
        self._waiting: WorkerProcess | None = None
        self._watch = trio.CancelScope()
        self._n_loads = 0
        self._quiet = trio.Event()
        self._quiet.set()

    @property
    def waiting(self) -> WorkerProcess | None:
        """Not taken yet; it may still be importing."""
        return self._waiting

    # the keepers' side

    def take_or_start(self) -> WorkerProcess:
        """1. The spare, when it is ready.  2. A new process, when there is none, or it still imports at low
        priority, or it has died and nobody has noticed yet."""
        if self._waiting is not None and self._waiting.has_spoken():
            process, self._waiting = self._waiting, None
            self._watch.cancel()
        else:
            process = WorkerProcess.start(self._command, directory=self._directory)
        if self._n_loads == 0:
            self._quiet = trio.Event()
        self._n_loads += 1
        return process

    def load_over(self) -> None:
        self._n_loads -= 1
        if self._n_loads == 0:
            self._quiet.set()

    # the daemon's side

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep one waiting until cancelled; returns when it is gone. Keepers may come before and after."""
        task_status.started()
        record: CrashRecord | None = None
        while True:
            await self._until_quiet()
            ended = await self._keep_one()
            if ended is not None:
                now_s = trio.current_time()
                record = after_crash(self._backoff, record, now_s, self._jitter())
                delay_s = record.not_before_s - now_s
                self._report(attrs.evolve(ended, delay_s=delay_s))
                await trio.sleep(delay_s)

    async def _until_quiet(self) -> None:
        """Until no load has been under way for a while."""
        quiet: trio.Event | None = None
        while quiet is not self._quiet:
            quiet = self._quiet
            await quiet.wait()
            await trio.sleep(self._settle_s)

    async def _keep_one(self) -> SpareEnded | None:
        """Until somebody has taken it (None), or it has ended."""
        try:
            process = WorkerProcess.start(self._spare_command, directory=self._directory)
        except OSError as error:
            return SpareEnded(pid=None, status=None, error=error.strerror, stderr_tail="", delay_s=0.0)
        self._waiting, self._watch = process, trio.CancelScope()
        try:
            with self._watch:
                await process.until_exit()
        finally:
            was_taken = self._waiting is not process
            if not was_taken:
                self._waiting = None
                await _bury(process)
        if was_taken:
            return None
        return SpareEnded(
            pid=process.pid,
            status=process.status,
            error=None,
            stderr_tail=process.output.text(),
            delay_s=0.0,
        )

    def __repr__(self) -> str:
        state = f"pid {self._waiting.pid}" if self._waiting is not None else "none"
        return f"<SpareWorker {state}, {self._n_loads} loads under way>"


async def _bury(process: WorkerProcess) -> None:
    """End it if it has not, reap it, and remove what it leaves. It has nothing to finish."""
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.supervise)
            await process.stop()
