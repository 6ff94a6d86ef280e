"""Tells workers how many threads to use: cores are divided among those that are generating.

    scheduler ──launch──> CoreSharing.launch ──launch──> keeper
                               ^        │ set_threads
                     on_activity└─ WorkerHandle

It sits between the scheduler and the keepers, and sees which workers are ready and which have gone. A handle
says when its worker becomes active or idle, within the call that opens or ends its only stream. So the new
number reaches the worker before the request does, and no token costs anything here.

Imports the keeper's events, the policy of `runner/scheduling/cores.py` and readings of `runner/hardware`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import attrs
import trio

from actors.worker import KeeperEvent, Launcher, WorkerEnded, WorkerFailing, WorkerReady, WorkerSpec
from actors.worker_handle import WorkerHandle
from runner.hardware.cpu import own_processors
from runner.hardware.cpu_time import busy_s, family_busy_s, n_runnable
from runner.scheduling.cores import FORGOTTEN_SHARE, CoreClaim, cores_left, cores_taken, divide_cores

FIRST_LOOK_S: Final = 0.25
"""After workers have become active; two readings of the kernel's clock ticks must not be closer."""
LOOK_INTERVAL_S: Final = 1.0
_SAMPLES, _SAMPLE_INTERVAL_S = 3, 0.0003


@attrs.frozen(kw_only=True)
class WorkReading:
    """Processor seconds so far: of all programs, and of this one with all its children."""

    at_s: float
    busy_s: float
    ours_s: float


ReadWork = Callable[[], WorkReading | None]
"""None when the system does not tell."""


def read_work() -> WorkReading | None:
    total_s, ours_s = busy_s(own_processors()), family_busy_s()
    if total_s is None or ours_s is None:
        return None
    return WorkReading(at_s=trio.current_time(), busy_s=total_s, ours_s=ours_s)


def count_busy_now() -> int | None:
    """Threads of others that go on running; for a moment when none of our workers is. Blocks for 1 ms.

    Whoever is about to wait, as the client whose request this is, has time to do so. None when the system
    does not tell.
    """
    fewest: int | None = None
    for _ in range(_SAMPLES):
        n_threads = n_runnable()
        if n_threads is None:
            return fewest
        fewest = n_threads - 1 if fewest is None else min(fewest, n_threads - 1)
        if fewest <= 0:
            return 0
        time.sleep(_SAMPLE_INTERVAL_S)
    return fewest


@attrs.define
class _Span:
    """What others have used over some time, that need not have been without gaps."""

    elapsed_s: float = 0.0
    others_s: float = 0.0

    def add(self, before: WorkReading | None, after: WorkReading | None) -> None:
        """Nothing where the system does not tell."""
        if before is not None and after is not None:
            self.elapsed_s += after.at_s - before.at_s
            self.others_s += (after.busy_s - before.busy_s) - (after.ours_s - before.ours_s)

    @property
    def others_cores(self) -> float | None:
        """Cores that programs other than ours kept busy; None while that is not known well enough."""
        return self.others_s / self.elapsed_s if self.elapsed_s >= FIRST_LOOK_S else None


@attrs.define
class _Member:
    handle: WorkerHandle
    is_active: bool = False


class CoreSharing:
    """Divides `n_cores` of a machine with `n_processors` among the workers that `launch` keeps."""

    def __init__(
        self,
        launch: Launcher,
        n_cores: int,
        *,
        n_processors: int | None = None,
        read: ReadWork = lambda: None,
        count_busy: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._launch = launch
        self._n_cores = n_cores
        self._n_processors = n_processors if n_processors is not None else n_cores
        self._read = read
        self._count_busy = count_busy
        self._taken = 0
        self._ids = itertools.count(1)
        self._members: dict[int, _Member] = {}
        self._activity = trio.Event()
        self._since: WorkReading | None = None
        """The last one."""
        self._active = _Span()
        """Of times when our workers were active, not judged yet."""

    @property
    def n_cores_left(self) -> int:
        """What other programs leave to our workers, as far as it is known."""
        return cores_left(self._n_cores, self._n_processors, self._taken)

    async def launch(self, spec: WorkerSpec, report: Callable[[KeeperEvent], None]) -> None:
        """Keep one worker until it is gone, as the launcher does that was given; see `actors/worker.py`."""
        load_id = next(self._ids)

        def see(event: KeeperEvent) -> None:
            match event:
                case WorkerReady():
                    self._add(load_id, event.handle)
                case WorkerFailing() | WorkerEnded():
                    self._remove(load_id)
            report(event)

        try:
            await self._launch(spec, see)
        finally:
            self._remove(load_id)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """While workers are active, look at what others use, and divide anew when that changes."""
        task_status.started()
        while True:
            await self._activity.wait()
            pause_s = FIRST_LOOK_S
            while self._activity.is_set():
                await trio.sleep(pause_s)
                if self._activity.is_set():
                    self._look()
                pause_s = LOOK_INTERVAL_S

    def _add(self, load_id: int, handle: WorkerHandle) -> None:
        """It keeps the threads it was loaded with until it becomes active."""
        self._members[load_id] = _Member(handle)
        handle.on_activity = partial(self._change, load_id)

    def _remove(self, load_id: int) -> None:
        member = self._members.pop(load_id, None)
        if member is not None and member.is_active:
            self._divide()
            self._rest_if_idle()

    def _change(self, load_id: int, is_active: bool) -> None:
        member = self._members.get(load_id)
        if member is None or member.is_active == is_active:
            return
        if is_active and not self._activity.is_set():
            self._look_back()
            self._activity.set()
        member.is_active = is_active
        self._divide()
        self._rest_if_idle()

    def _rest_if_idle(self) -> None:
        if self._activity.is_set() and not any(member.is_active for member in self._members.values()):
            self._activity = trio.Event()
            self._look()

    def _look_back(self) -> None:
        """Before the first worker becomes active: judge what others did while none was.

        What was seen an hour ago must not slow the first answer, and what has been there all along must not
        surprise it. Who was busy and is so no longer does not count.
        """
        before, self._since = self._since, self._read()
        pause = _Span()
        pause.add(before, self._since)
        others_cores = pause.others_cores
        if others_cores is None:
            return
        if others_cores > FORGOTTEN_SHARE and (n_busy := self._count_busy()) is not None:
            others_cores = min(others_cores, n_busy)
        self._active = _Span()
        self._judge(others_cores)

    def _look(self) -> None:
        """Judge what others did while our workers were active; short times are judged together."""
        before, self._since = self._since, self._read()
        self._active.add(before, self._since)
        others_cores = self._active.others_cores
        if others_cores is not None:
            self._active = _Span()
            self._judge(others_cores)

    def _judge(self, others_cores: float) -> None:
        taken = cores_taken(self._taken, others_cores)
        if taken != self._taken:
            self._taken = taken
            self._divide()

    def _divide(self) -> None:
        """Idle workers are not told: their number counts when they become active, and is sent then."""
        claims = [
            CoreClaim(load_id=load_id, threads_max=member.handle.threads_max)
            for load_id, member in self._members.items()
            if member.is_active
        ]
        for load_id, n_threads in divide_cores(self.n_cores_left, claims).items():
            self._members[load_id].handle.set_threads(n_threads)

    def __repr__(self) -> str:
        n_active = sum(member.is_active for member in self._members.values())
        return f"<CoreSharing {n_active} of {len(self._members)} active on {self.n_cores_left} cores>"
