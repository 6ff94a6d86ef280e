"""Which models are in memory, and who may use them: the shell of `runner/scheduling/core.py`.

Messages, then the handle, then the actor. The loop waits for its mailbox only: it hands each event to the
core and carries out what comes back. Everything slow is a task of the nursery, one per load
(`actors/load.py`), and tells the mailbox its outcomes. So the end of this actor, for whatever reason, ends
its workers, and the next start begins with none.

Imports the core and the loads. Read on in `runner/scheduling/core.py`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, assert_never

import attrs
import trio

from actors.actor import Address, Reply
from actors.budget import MeasureBudget
from actors.leases import StoreLeases
from actors.load import (
    EngineSettings,
    KeeperTold,
    LoadFault,
    LoadNews,
    LoadOver,
    LoadTask,
    Measured,
    NotMeasured,
    Workshop,
    bytes_of,
)
from actors.quarantine import Forgetful, QuarantineBook, QuarantineTrouble, Records
from actors.refusals import error_of
from actors.scheduler_status import Board, LoadView, Notice, Row
from actors.sizing import HeaderSizer, Sizer
from actors.worker import (
    DeathReport,
    Launcher,
    WorkerFailing,
    WorkerLoadFailed,
    WorkerLoadProgress,
    WorkerReady,
)
from actors.worker_handle import WorkerHandle
from runner.domain.device_bytes import DeviceBytes
from runner.domain.model import Model
from runner.domain.quarantine import FailedLoads
from runner.domain.status import SchedulerStatus, UnloadReport, UnquarantineReport, WorkerStatus
from runner.errors import FieldFault, InvalidParameter, RunnerError, Unavailable
from runner.memory.budget import Budgets
from runner.oci.digest import Digest
from runner.scheduling import effects, events
from runner.scheduling.core import SchedulerCore
from runner.scheduling.decisions import Decision
from runner.scheduling.quarantine import LoadQuarantine
from runner.scheduling.rules import SchedulingRules
from runner.wire.messages import Loaded

W = TypeVar("W", events.LeaseRequested, events.PreloadRequested)

OPEN_ASKS_MAX = 4096  # the lines are shorter; this bounds them all together


# messages


Question = (
    events.LeaseRequested
    | events.PreloadRequested
    | events.UnloadRequested
    | events.DrainRequested
    | events.UnquarantineRequested
)


@attrs.frozen
class Asked:
    """Somebody waits for the answer to this event."""

    event: Question
    reply: Reply[Any]


@attrs.frozen
class ListDecisions:
    model_id: Digest | None
    reply: Reply[tuple[Decision, ...]]


@attrs.frozen
class Happened:
    """Something that the core is told as it is."""

    event: events.Event


SchedulerMessage = Asked | ListDecisions | Happened | LoadNews


# values


@attrs.frozen(kw_only=True)
class SchedulerSettings:
    """One worker runs `engine.max_sequences` requests at once, so many leases are given; more wait in line.

    `swap_wait_s`, `min_residency_s` and `room_wait_s` as in `SchedulingRules`. Budgets are measured before
    each load, and every `budget_interval_s`. A model in quarantine is free of it under another
    `engine_version`.
    """

    queue_limit_per_model: int = 64
    default_keep_alive_s: float = 300.0
    swap_wait_s: float = 30.0
    min_residency_s: float = 5.0
    room_wait_s: float = 120.0
    budget_interval_s: float = 5.0
    engine: EngineSettings = attrs.field(factory=EngineSettings)
    engine_version: str = ""

    def rules(self) -> SchedulingRules:
        return SchedulingRules(
            waiters_per_model=self.queue_limit_per_model,
            leases_per_model=self.engine.max_sequences,
            default_keep_alive_s=self.default_keep_alive_s,
            swap_wait_s=self.swap_wait_s,
            min_residency_s=self.min_residency_s,
            room_wait_s=self.room_wait_s,
        )


SchedulerNotice = Decision | DeathReport | LoadFault | QuarantineTrouble
"""What the actor's `report` hears as it happens, for the log."""


# handle


class ModelLease:
    """The right to use one loaded model; it stays in memory until this is released.

    When the worker dies the lease is void: `worker` refuses, and a new lease has to be acquired.
    """

    def __init__(self, worker: WorkerHandle, give_back: Callable[[], None]) -> None:
        self.worker = worker
        self._give_back: Callable[[], None] | None = give_back

    @property
    def loaded(self) -> Loaded:
        return self.worker.loaded

    def release(self) -> None:
        """Give the model up; again, or after the end of the worker or the scheduler, it changes nothing."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<ModelLease {self.worker!r} {'released' if self._give_back is None else 'held'}>"


class SchedulerHandle:
    """What others know of the scheduler, the same through its restarts.

    Every method but `snapshot` raises Unavailable while it is not running. A caller who is cancelled leaves
    nothing behind, at whatever moment.
    """

    def __init__(self) -> None:
        self.address: Address[SchedulerMessage] = Address("scheduler", capacity=OPEN_ASKS_MAX)
        self.board = Board()
        self._tickets = itertools.count(1)  # never used twice, also not after a restart

    async def acquire(
        self,
        model: Model,
        *,
        keep_alive_s: float | None = None,
        context_size: int | None = None,
        pin: bool | None = None,
        request_id: str | None = None,
    ) -> ModelLease:
        """A lease of the model, which is loaded first when it is not in memory.

        `keep_alive_s` is how long it stays in memory afterwards: None keeps what is set, 0 unloads it when
        its last lease ends, infinite keeps it. `context_size` is the least that a sequence must hold, in
        tokens; a model that is loaded with less is loaded again when its requests have ended. `pin` keeps the
        model in memory until a command ends that. `request_id` is what `why` knows the request by.

        Raises QueueFull, InsufficientMemory, LoadingFailed (or what else kept it from loading:
        InvalidModelFile, LoadTimeout, ModelNotFound, StoreDamaged), Draining, and InvalidParameter for a
        context that the model cannot have.
        """
        wanted = self._wanted(
            events.LeaseRequested, model, keep_alive_s, context_size, pin=pin, request_id=request_id
        )
        lease: ModelLease = await self._ask(wanted)
        return lease

    async def start(
        self,
        model: Model,
        *,
        keep_alive_s: float | None = None,
        context_size: int | None = None,
        pin: bool | None = None,
    ) -> WorkerStatus:
        """Have the model in memory; its idle time begins now. Arguments and errors as those of `acquire`."""
        wanted = self._wanted(events.PreloadRequested, model, keep_alive_s, context_size, pin=pin)
        row: WorkerStatus = await self._ask(wanted)
        return row

    async def unload(self, model_ids: tuple[Digest, ...] | None = None) -> UnloadReport:
        """Unload these models, or all, except those in use; returns when their processes are gone."""
        report: UnloadReport = await self._ask(events.UnloadRequested(next(self._tickets), model_ids))
        return report

    async def drain(self, *, grace_s: float = 0.0) -> None:
        """Refuse all new work from now on, and stop all workers; returns when their processes are gone.

        Those in use are stopped when their last lease ends, at the latest after `grace_s`.
        """
        await self._ask(events.DrainRequested(next(self._tickets), grace_s))

    async def unquarantine(self, model: Model) -> UnquarantineReport:
        """Forget that loads of the model crashed the engine, so that it may be loaded again."""
        asked = events.UnquarantineRequested(ticket=next(self._tickets), model_id=model.id)
        freed: effects.ReportFreed = await self._ask(asked)
        return UnquarantineReport(
            model=model.name, was_quarantined=freed.was_quarantined, crashes=freed.crashes
        )

    def quarantined(self) -> tuple[FailedLoads, ...]:
        """Models that are not loaded any more; sync, and always answers."""
        return self.board.quarantined()

    async def decisions(self, model_id: Digest | None = None) -> tuple[Decision, ...]:
        """The latest decisions about one model, or about all, oldest first."""
        return await self.address.ask(lambda reply: ListDecisions(model_id, reply))

    def snapshot(self) -> SchedulerStatus:
        """The state after the latest event with the numbers of this moment; empty while nothing runs."""
        return self.board.status()

    def _wanted(
        self,
        kind: type[W],
        model: Model,
        keep_alive_s: float | None,
        context_size: int | None,
        *,
        pin: bool | None,
        request_id: str | None = None,
    ) -> W:
        """ValueError for a time that no timer could keep; dialects have refused it before."""
        if keep_alive_s is not None and not keep_alive_s >= 0:
            raise ValueError(f"{keep_alive_s} is no time to keep a model")
        check_context(model, context_size)
        return kind(
            ticket=next(self._tickets),
            model_id=model.id,
            name=model.name,
            keep_alive_s=keep_alive_s,
            context_size=context_size or 0,
            pin=pin,
            request_id=request_id,
        )

    async def _ask(self, event: Question) -> Any:
        """The answer; when the caller is cancelled, everything is taken back.

        The answer may have been given just before: then the core releases what it has granted.
        """
        try:
            return await self.address.ask(lambda reply: Asked(event, reply))
        except trio.Cancelled:
            self.address.tell(Happened(events.CallerLeft(event.ticket)))
            raise


# actor


class SchedulerActor:
    """Makes the scheduler behind a handle run. A supervisor makes a new one for every start."""

    def __init__(
        self,
        handle: SchedulerHandle,
        store: StoreLeases,
        launch: Launcher,
        measure_budget: MeasureBudget,
        settings: SchedulerSettings,
        *,
        sizer: Sizer | None = None,
        quarantine: Records | None = None,
        report: Callable[[SchedulerNotice], None] = lambda notice: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`launch` runs one worker until it is gone, and stops it when cancelled. `quarantine` remembers
        which models crash the engine; without it, that ends with this actor. `jitter` gives [0, 1)."""
        self._handle = handle
        self._store = store
        self._launch = launch
        self._measure_budget = measure_budget
        self._sizer = sizer or HeaderSizer()
        self._quarantine = quarantine or Forgetful()
        self._settings = settings
        self._report = report
        self._jitter = jitter

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; returns when all workers are gone."""
        budgets = await self._measure_budget(DeviceBytes())
        book = QuarantineBook(self._quarantine, lambda text: self._report(QuarantineTrouble(text)))
        known = LoadQuarantine.remembering(self._settings.engine_version, await book.recall())
        core = SchedulerCore(self._settings.rules(), budget=budgets.budget, quarantine=known)
        measure = partial(self._measure_with, core)
        async with trio.open_nursery() as nursery:  # outermost: callers are answered before workers end
            with self._handle.board.open(), self._handle.address.open() as mailbox:
                nursery.start_soon(book.run)
                workshop = self._workshop(measure)
                run = _Run(core, self._handle, nursery, workshop, book, self._report, self._jitter)
                nursery.start_soon(self._sample_budgets, measure)
                task_status.started()
                async for message in mailbox:
                    run.handle(message)

    async def _measure_with(self, core: SchedulerCore) -> Budgets:
        return await self._measure_budget(core.reserved)

    def _workshop(self, measure: Callable[[], Awaitable[Budgets]]) -> Workshop:
        return Workshop(
            store=self._store,
            launch=self._launch,
            measure_budgets=measure,
            sizer=self._sizer,
            engine=self._settings.engine,
            tell=self._handle.address.tell,
            report=self._report,
        )

    async def _sample_budgets(self, measure: Callable[[], Awaitable[Budgets]]) -> None:
        while True:
            await trio.sleep(self._settings.budget_interval_s)
            self._handle.address.tell(Happened(_changed(await measure())))


class _Run:
    """What one run of the actor knows beside the core. No method waits."""

    def __init__(
        self,
        core: SchedulerCore,
        handle: SchedulerHandle,
        nursery: trio.Nursery,
        workshop: Workshop,
        book: QuarantineBook,
        report: Callable[[SchedulerNotice], None],
        jitter: Callable[[], float],
    ) -> None:
        self._core = core
        self._book = book
        self._tell = handle.address.tell
        self._board = handle.board
        self._nursery = nursery
        self._workshop = workshop
        self._report = report
        self._jitter = jitter
        self._replies: dict[int, Reply[Any]] = {}
        self._tasks: dict[int, LoadTask] = {}
        self._views: dict[int, LoadView] = {}
        self._timer = trio.CancelScope()
        self._publish()

    # messages in

    def handle(self, message: SchedulerMessage) -> None:
        match message:
            case ListDecisions():
                message.reply.set(self._core.decisions(message.model_id))
            case Happened():
                self._happen(message.event)
            case Measured() | NotMeasured() | KeeperTold() | LoadOver():
                self._hear(message)
            case Asked():
                self._replies[message.event.ticket] = message.reply
                self._happen(message.event)
            case _:
                assert_never(message)

    def _hear(self, news: LoadNews) -> None:
        match news:
            case Measured():
                self._see(news.load_id, lambda seen: attrs.evolve(seen, options=news.options))
                self._happen(_changed(news.budgets))
                footprint, context_size = bytes_of(news.footprint), news.options.context_size
                self._happen(events.ModelSized(news.load_id, footprint, context_size))
            case NotMeasured():
                self._happen(events.SizingFailed(news.load_id, _failure_of(news.error)))
            case KeeperTold():
                self._hear_keeper(news.load_id, news.event)
            case LoadOver():
                ended = events.WorkerEnded(
                    load_id=news.load_id,
                    cause=news.cause,
                    is_crash=news.is_crash,
                    is_load_crash=news.is_load_crash,
                    jitter=self._jitter(),
                )
                self._happen(ended)
                self._forget(news.load_id)
            case _:
                assert_never(news)

    def _hear_keeper(
        self, load_id: int, event: WorkerLoadProgress | WorkerReady | WorkerFailing | WorkerLoadFailed
    ) -> None:
        match event:
            case WorkerLoadProgress():
                self._see(load_id, lambda seen: attrs.evolve(seen, progress=event.fraction))
                self._publish()
            case WorkerReady():
                self._see(load_id, lambda seen: seen.when_ready(event.handle, trio.current_time()))
                self._happen(events.WorkerReady(load_id, event.loaded.max_sequences))
            case WorkerFailing():
                self._happen(events.WorkerFailing(load_id))
            case WorkerLoadFailed():
                self._happen(events.WorkerLoadFailed(load_id, _failure_of(event.error)))
            case _:
                assert_never(event)

    def _happen(self, event: events.Event) -> None:
        done = self._core.handle(event, trio.current_time())
        self._publish()
        for effect in done:
            self._carry_out(effect)
        if isinstance(event, events.CallerLeft):
            self._answer(event.ticket, lambda reply: reply.fail(Unavailable("the caller left")))
        for decision in self._core.latest_decisions:
            self._report(decision)

    # effects out

    def _carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.SizeModel():
                self._begin(effect)
            case effects.StartWorker():
                self._tasks[effect.load_id].start_worker()
                self._see(effect.load_id, lambda seen: attrs.evolve(seen, started_at_s=trio.current_time()))
            case effects.StopWorker():
                self._tasks[effect.load_id].stop()
            case effects.DropLoad():
                self._tasks[effect.load_id].stop()
                self._forget(effect.load_id)
            case effects.ArmTimer():
                self._arm(effect.at_s)
            case effects.KeepQuarantine():
                self._book.keep(effect.records)
            case effects.ReportFreed():
                self._answer(effect.ticket, lambda reply: reply.set(effect))
            case effects.GrantLease():
                lease = self._lease(effect.ticket, effect.load_id)
                self._answer(effect.ticket, lambda reply: reply.set(lease))
            case effects.ConfirmPreload():
                row = self._board.row(effect.load_id)
                self._answer(effect.ticket, lambda reply: reply.set(row.status(trio.current_time())))
            case effects.ReportUnloaded():
                self._answer(effect.ticket, lambda reply: reply.set(effect.report))
            case effects.ReportDrained():
                self._answer(effect.ticket, lambda reply: reply.set(None))
            case effects.Refuse():
                self._answer(effect.ticket, lambda reply: reply.fail(error_of(effect.refusal)))
            case _:
                assert_never(effect)

    def _begin(self, effect: effects.SizeModel) -> None:
        task = LoadTask(effect.load_id, effect.model_id, effect.context_size, self._workshop)
        self._tasks[effect.load_id] = task
        self._views[effect.load_id] = LoadView(engine=self._workshop.engine.name)
        self._nursery.start_soon(task.run)

    def _forget(self, load_id: int) -> None:
        del self._tasks[load_id]
        del self._views[load_id]
        self._publish()

    def _lease(self, ticket: int, load_id: int) -> ModelLease:
        worker = self._views[load_id].handle
        assert worker is not None, "a lease is granted of a worker that is not ready"
        return ModelLease(worker, partial(self._tell, Happened(events.LeaseReleased(ticket))))

    def _answer(self, ticket: int, give: Callable[[Reply[Any]], None]) -> None:
        """Answer once; nobody waits when the caller has left."""
        reply = self._replies.pop(ticket, None)
        if reply is not None:
            give(reply)

    def _arm(self, at_s: float | None) -> None:
        self._timer.cancel()
        self._timer = trio.CancelScope()
        if at_s is not None:
            self._nursery.start_soon(self._tick, at_s, self._timer)

    async def _tick(self, at_s: float, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep_until(at_s)
            self._tell(Happened(events.Ticked()))

    # what others see

    def _see(self, load_id: int, change: Callable[[LoadView], LoadView]) -> None:
        """Note news of a load; of one that was dropped meanwhile there is nothing to show."""
        if load_id in self._views:
            self._views[load_id] = change(self._views[load_id])

    def _publish(self) -> None:
        self._board.show(
            Notice(
                rows=tuple(Row(view, self._views.get(view.load_id)) for view in self._core.views()),
                budget=self._core.budget,
                reserved=self._core.reserved,
                is_draining=self._core.is_draining,
                quarantined=self._core.quarantined,
            )
        )


def check_context(model: Model, context_size: int | None) -> None:
    """Raises InvalidParameter for a context beyond what the model was trained for."""
    most = model.trained_context_size
    if context_size is not None and most is not None and context_size > most:
        raise InvalidParameter(
            FieldFault("context_size", f"must be at most {most} for {model.name}, and is {context_size}")
        )


def _changed(budgets: Budgets) -> events.BudgetChanged:
    return events.BudgetChanged(budgets.budget, budgets.ceiling)


def _failure_of(error: RunnerError) -> events.Failure:
    return events.Failure(error.code, str(error))
