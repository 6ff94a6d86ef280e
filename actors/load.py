"""One attempt to have a model in memory, as a task: hold its files, choose its sizes, wait for room, keep its
worker, and tell when the process is gone.

    lease the files ─> Measured ─> (may start) ─> keeper's news ─> files released ─> LoadOver
                   └─> NotMeasured

Cancelling is the only way to stop it, at every stage. `LoadOver` is told exactly once for every load that was
allowed to start, after the files were released, so that a model whose unloading was reported can be removed.

Imports the keeper's events and the store's lease. Read on in `actors/scheduler.py`, which runs these tasks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import trio

from actors.leases import StoreLeases
from actors.sizing import EngineSettings as EngineSettings
from actors.sizing import Sized, Sizer, Watch, at_least
from actors.worker import (
    DeathReport,
    KeeperEvent,
    Launcher,
    WorkerEnded,
    WorkerFailing,
    WorkerLoadFailed,
    WorkerLoadProgress,
    WorkerReady,
    WorkerSpec,
)
from runner.domain.device_bytes import DeviceBytes
from runner.domain.engine import EngineOptions
from runner.domain.model import ModelFiles
from runner.errors import RunnerError
from runner.memory.budget import Budgets
from runner.memory.footprint import Footprint
from runner.memory.limits import private_limit_bytes
from runner.oci.digest import Digest

# what a load tells


@attrs.frozen(kw_only=True)
class Measured:
    """The files are held, and the sizes were chosen for these budgets."""

    load_id: int
    options: EngineOptions
    footprint: Footprint
    budgets: Budgets


@attrs.frozen
class NotMeasured:
    load_id: int
    error: RunnerError


@attrs.frozen
class KeeperTold:
    load_id: int
    event: WorkerLoadProgress | WorkerReady | WorkerFailing | WorkerLoadFailed


@attrs.frozen
class LoadOver:
    """Nothing is left of the worker. `cause` is a phrase that clients may see.

    `is_crash`: neither asked to end, nor ended in order after it could not load the model. `is_load_crash`:
    it died by itself, with the model not in memory yet.
    """

    load_id: int
    cause: str
    is_crash: bool
    is_load_crash: bool


LoadNews = Measured | NotMeasured | KeeperTold | LoadOver


@attrs.frozen
class LoadFault:
    """An error of ours in the task of one load. It ended that load and nothing else."""

    model_id: Digest
    error: Exception


# the task


@attrs.frozen(kw_only=True)
class Workshop:
    """What all loads work with. `report` hears of deaths and faults as they happen; `measure_budgets` takes
    into account what is reserved already."""

    store: StoreLeases
    launch: Launcher
    measure_budgets: Callable[[], Awaitable[Budgets]]
    sizer: Sizer
    engine: EngineSettings
    tell: Callable[[LoadNews], None]
    report: Callable[[DeathReport | LoadFault], None]

    async def size(self, files: ModelFiles, context_size: int, budget: DeviceBytes) -> Sized:
        """The options that a load of these files would be given, and what it would take.

        `context_size` is the least that is wanted, 0 for the default, which may be smaller where the budget
        is. A context that was asked for is not cut for the budget, only where the model has less.
        """
        sized = await self.sizer.size(files, self.engine, budget)
        if sized.options.context_size >= context_size:
            return sized
        return await self.sizer.size(at_least(files, context_size), self.engine, budget)


@attrs.define(eq=False)
class LoadTask:
    """`context_size` is the least that is wanted of it, in tokens; 0 for the default."""

    load_id: int
    model_id: Digest
    context_size: int
    _workshop: Workshop
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _may_start: trio.Event = attrs.field(factory=trio.Event, init=False)
    over: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when nothing is left of it; `LoadOver` has been told."""
    _cause: str = attrs.field(default="stopped before it was started", init=False)
    _is_crash: bool = attrs.field(default=False, init=False)
    _is_load_crash: bool = attrs.field(default=False, init=False)

    def start_worker(self) -> None:
        """Its memory is reserved: from here on `LoadOver` will be told."""
        self._may_start.set()

    def stop(self) -> None:
        """Give up, whatever it is doing; harmless when it is over."""
        self._scope.cancel()

    async def run(self) -> None:
        try:
            with self._scope:
                await self._hold_and_keep()
        except Exception as error:  # one load must not take the workers of all others with it
            self._fail(error)
        finally:
            if self._may_start.is_set():
                over = LoadOver(self.load_id, self._cause, self._is_crash, self._is_load_crash)
                self._workshop.tell(over)
            self.over.set()

    async def _hold_and_keep(self) -> None:
        shop = self._workshop
        try:
            lease = await shop.store.lease(self.model_id)
        except RunnerError as error:
            shop.tell(NotMeasured(self.load_id, error))
            return
        with lease:
            budgets = await shop.measure_budgets()
            sized = await shop.size(lease.files, self.context_size, budgets.budget)
            shop.tell(
                Measured(
                    load_id=self.load_id,
                    options=sized.options,
                    footprint=sized.footprint,
                    budgets=budgets,
                )
            )
            await self._may_start.wait()
            spec = WorkerSpec(
                model=lease.files.model,
                files=lease.files,
                options=sized.options,
                engine=shop.engine.name,
                private_bytes_max=private_limit_bytes(sized.footprint),
            )
            with shop.sizer.watch(sized) as watch:
                await shop.launch(spec, partial(self._on_keeper_event, watch))

    def _on_keeper_event(self, watch: Watch, event: KeeperEvent) -> None:
        if isinstance(event, WorkerReady):
            watch(event.handle)
        if isinstance(event, WorkerEnded):  # told on as LoadOver, when the files are released as well
            self._cause = event.report.cause
            self._is_crash = event.report.is_crash
            self._is_load_crash = event.report.is_load_crash
            self._workshop.report(event.report)
        else:
            self._workshop.tell(KeeperTold(self.load_id, event))

    def _fail(self, error: Exception) -> None:
        self._workshop.report(LoadFault(self.model_id, error))
        self._cause = f"internal error: {type(error).__name__}"
        self._is_crash = True
        if not self._may_start.is_set():
            self._workshop.tell(NotMeasured(self.load_id, RunnerError(self._cause)))


def annex_bytes_of(footprint: Footprint) -> DeviceBytes:
    """What embeddings take more, device by device."""
    return DeviceBytes({one.device: one.total_bytes for one in footprint.annex})


def bytes_of(footprint: Footprint) -> DeviceBytes:
    """What a load takes, device by device."""
    return DeviceBytes({one.device: footprint.bytes_on(one.device) for one in footprint.devices})
