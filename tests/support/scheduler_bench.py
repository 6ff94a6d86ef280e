"""A scheduler in a test's nursery, with workers that do what the test says and a store that counts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from actors.deaths import DeathKind
from actors.leases import Pins, StoreLease
from actors.scheduler import SchedulerActor, SchedulerHandle, SchedulerSettings
from actors.scheduler_messages import ModelLease, SchedulerNotice
from actors.watchdog import WatchdogRules, WorkWatch
from actors.worker import (
    DeathReport,
    KeeperEvent,
    WorkerEnded,
    WorkerFailing,
    WorkerLoadFailed,
    WorkerLoadProgress,
    WorkerReady,
    WorkerSpec,
)
from actors.worker_handle import Outbox, WorkerHandle
from runner.domain.device_bytes import DeviceBytes
from runner.domain.model import Model, ModelFiles
from runner.domain.quarantine import FailedLoads
from runner.domain.status import WorkerStatus
from runner.errors import LoadingFailed, RunnerError
from runner.memory.budget import Budgets
from runner.memory.footprint import OVERHEAD_BYTES
from runner.oci.digest import Digest
from runner.oci.reference import Reference
from runner.wire.messages import Loaded

MIB = 1024**2
FOOTPRINT = 300 * MIB
"""What each model of the bench needs: 44 MiB of weights, no cells, and the flat allowance."""


def model_named(name: str) -> Model:
    return Model(
        id=Digest.of(name.encode()),
        tags=(Reference.parse(f"ai/{name}"),),
        created_s=0,
        size_bytes=1000,
        format="gguf",
        architecture="llama",
        quantization="MOSTLY_Q4_1",
        parameters="135M",
        context_size=None,
        trained_context_size=2048,
    )


class CountingStore:
    """Every model exists. `error`, once set, is what a lease raises."""

    def __init__(self) -> None:
        self.pins = Pins()
        self.error: Exception | None = None
        self._models: dict[Digest, Model] = {}

    def add(self, model: Model) -> Model:
        self._models[model.id] = model
        return model

    async def lease(self, model_id: Digest) -> StoreLease:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.pins.add(model_id)
        files = ModelFiles(
            model=self._models[model_id],
            weights=(Path("/blobs/weights"),),
            weights_bytes=FOOTPRINT - OVERHEAD_BYTES,
            kv_bytes_per_cell=0,
        )
        return StoreLease(files, self.pins)


@attrs.define(eq=False)
class FakeWorker:
    """One worker that was started. `kill` ends it; the scheduler stops it by cancelling."""

    spec: WorkerSpec
    handle: WorkerHandle
    kind: DeathKind = DeathKind.EXIT
    phase: str = "loading"
    _death: trio.Event = attrs.field(factory=trio.Event)
    _cause: str = "stopped"

    def kill(self, cause: str = "signal SIGKILL") -> None:
        self._cause = cause
        self._death.set()


class FakeKeepers:
    """A launcher. Workers take `load_s` to load and `stop_s` to end; `load_error`, once set, fails them."""

    def __init__(self, load_s: float = 2.0, stop_s: float = 1.0) -> None:
        self.load_s = load_s
        self.stop_s = stop_s
        self.load_error: RunnerError | None = None
        self.fault: Exception | None = None
        self.started: list[str] = []
        self.running: dict[str, FakeWorker] = {}

    async def __call__(self, spec: WorkerSpec, report: Callable[[KeeperEvent], None]) -> None:
        name = spec.model.name
        assert name not in self.running, "one model, two workers"
        self.started.append(name)
        if self.fault is not None:
            raise self.fault
        worker = self.running[name] = FakeWorker(spec, _handle_of(spec))
        was_requested = True
        try:
            await self._live(worker, report)
            was_requested = False
        finally:
            worker.handle.fail(RunnerError(worker._cause))
            with trio.CancelScope(shield=True):
                await trio.sleep(self.stop_s)
            del self.running[name]
            report(WorkerEnded(_death_of(worker, was_requested)))

    async def _live(self, worker: FakeWorker, report: Callable[[KeeperEvent], None]) -> None:
        with trio.move_on_after(self.load_s / 2):
            await worker._death.wait()
            report(WorkerLoadFailed(LoadingFailed(f"the worker ended ({worker._cause})")))
            return
        report(WorkerLoadProgress(0.5))
        await trio.sleep(self.load_s / 2)
        if self.load_error is not None:
            worker.kind = DeathKind.LOADING_FAILED
            report(WorkerLoadFailed(self.load_error))
            return
        worker.phase = "serving"
        report(WorkerReady(worker.handle, worker.handle.loaded))
        await worker._death.wait()
        worker.handle.fail(RunnerError(worker._cause))
        report(WorkerFailing(worker._cause))


class QuarantineInMemory:
    """The file that outlives a scheduler. `written`: how often it was."""

    def __init__(self) -> None:
        self.records: tuple[FailedLoads, ...] = ()
        self.written = 0

    async def read(self) -> tuple[FailedLoads, ...]:
        await trio.lowlevel.checkpoint()
        return self.records

    async def write(self, records: tuple[FailedLoads, ...]) -> None:
        await trio.lowlevel.checkpoint()
        self.records = records
        self.written += 1


@attrs.define
class Bench:
    """A running scheduler and all that it works with."""

    handle: SchedulerHandle
    store: CountingStore
    keepers: FakeKeepers
    budget_bytes: int = 3 * FOOTPRINT
    budget_error: Exception | None = None
    notices: list[SchedulerNotice] = attrs.field(factory=list)
    quarantine: QuarantineInMemory = attrs.field(factory=lambda: QuarantineInMemory())

    def model(self, name: str) -> Model:
        return self.store.add(model_named(name))

    def row(self, name: str) -> WorkerStatus:
        return next(row for row in self.handle.snapshot().workers if row.model == f"ai/{name}")

    def states(self) -> dict[str, str]:
        return {row.model.removeprefix("ai/"): row.state for row in self.handle.snapshot().workers}

    def leases(self) -> int:
        return sum(row.leases for row in self.handle.snapshot().workers)

    async def measure_budget(self, reserved: DeviceBytes) -> Budgets:
        await trio.lowlevel.checkpoint()
        if self.budget_error is not None:
            raise self.budget_error
        budget = DeviceBytes.on_host(self.budget_bytes)
        return Budgets(budget, budget)

    def actor(self, settings: SchedulerSettings) -> SchedulerActor:
        return SchedulerActor(
            self.handle,
            self.store,
            self.keepers,
            self.measure_budget,
            settings,
            quarantine=self.quarantine,
            report=self.notices.append,
            jitter=lambda: 0.0,
        )


def new_bench() -> Bench:
    return Bench(SchedulerHandle(), CountingStore(), FakeKeepers())


@asynccontextmanager
async def running(bench: Bench, settings: SchedulerSettings | None = None) -> AsyncIterator[trio.Nursery]:
    """The bench's scheduler, and a nursery for callers. Afterwards nothing is left of it."""
    with trio.fail_after(100_000):
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.actor(settings or SchedulerSettings()).run)
            yield nursery
            nursery.cancel_scope.cancel()
    assert_nothing_left(bench)


def assert_nothing_left(bench: Bench) -> None:
    assert bench.keepers.running == {}
    assert repr(bench.store.pins) == "<Pins 0 leases on 0 models, 0 blobs held>"
    statistics = bench.handle.address.statistics()
    assert (statistics.queued, statistics.open_asks) == (0, 0)
    assert bench.handle.snapshot().workers == ()


class Caller:
    """Acquires in a task of its own; holds the lease until the test releases it."""

    def __init__(self) -> None:
        self.lease: ModelLease | None = None
        self.error: RunnerError | None = None
        self.scope = trio.CancelScope()

    async def acquire(self, bench: Bench, name: str, keep_alive_s: float | None = None) -> None:
        with self.scope:
            try:
                self.lease = await bench.handle.acquire(bench.model(name), keep_alive_s=keep_alive_s)
            except RunnerError as error:
                self.error = error


def crowd(bench: Bench, nursery: trio.Nursery, name: str, count: int) -> list[Caller]:
    callers = [Caller() for _ in range(count)]
    for caller in callers:
        nursery.start_soon(caller.acquire, bench, name)
    return callers


async def settle() -> None:
    """Let every task do what it can do without time passing."""
    await trio.testing.wait_all_tasks_blocked()


def _handle_of(spec: WorkerSpec) -> WorkerHandle:
    loaded = Loaded(
        engine_version="scripted",
        context_size=spec.options.context_size,
        trained_context_size=2048,
        n_vocab=256,
        n_cells=spec.options.n_cells,
        max_sequences=spec.options.max_sequences,
        load_s=0.1,
    )
    return WorkerHandle(
        model=spec.model.name,
        loaded=loaded,
        pid=4711,
        outbox=Outbox(1000),
        resident_bytes=lambda: 123,
        watch=WorkWatch(WatchdogRules(), spec.files.weights_bytes),
    )


def _death_of(worker: FakeWorker, was_requested: bool) -> DeathReport:
    return DeathReport(
        model=worker.spec.model.name,
        model_id=str(worker.spec.model.id),
        engine_version="scripted",
        pid=4711,
        kind=DeathKind.STOPPED if was_requested else worker.kind,
        cause=worker._cause,
        exit_code=0 if worker._cause == "stopped" else None,
        signal=None,
        phase=worker.phase,
        lived_s=1.0,
        stderr_tail="",
        request_ids=(),
        was_requested=was_requested,
    )
