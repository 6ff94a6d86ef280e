"""Which models are in memory, and who may use them: the shell of `runner/scheduling/core.py`.

The handle, then the actor; messages are in `actors/scheduler_messages.py`. The loop waits for its mailbox
only: `actors/scheduler_run.py` hands each event to the core and carries out what comes back. Everything slow
is a task of the nursery, one per load (`actors/load.py`), and tells the mailbox its outcomes. So the end of
this actor, for whatever reason, ends its workers, and the next start begins with none.

Read on in `runner/scheduling/core.py`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import attrs
import trio

from actors.actor import Address
from actors.annexes import ANNEX_KEEP_S
from actors.budget import MeasureBudget
from actors.leases import StoreLeases
from actors.load import EngineSettings, Workshop
from actors.quarantine import Forgetful, QuarantineBook, QuarantineTrouble, Records
from actors.scheduler_messages import (
    Asked,
    ExplainModel,
    ExplainRequest,
    Happened,
    ListDecisions,
    MeasureBudgets,
    ModelLease,
    PlanLoad,
    Question,
    SchedulerMessage,
    SchedulerNotice,
)
from actors.scheduler_run import SchedulerRun
from actors.scheduler_status import Board
from actors.sizing import HeaderSizer, Sizer
from actors.worker import Launcher
from runner.domain.device_bytes import DeviceBytes
from runner.domain.explained import PlanReport, WhyReport
from runner.domain.model import Model
from runner.domain.quarantine import FailedLoads
from runner.domain.status import SchedulerStatus, UnloadReport, UnquarantineReport, WorkerStatus
from runner.errors import FieldFault, InvalidParameter, RequestNotFound
from runner.memory.budget import Budgets
from runner.oci.digest import Digest
from runner.scheduling import effects, events
from runner.scheduling.core import SchedulerCore
from runner.scheduling.decisions import Decision
from runner.scheduling.quarantine import LoadQuarantine
from runner.scheduling.rules import SchedulingRules

W = TypeVar("W", events.LeaseRequested, events.PreloadRequested)

OPEN_ASKS_MAX = 4096  # the lines are shorter; this bounds them all together


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


# handle


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
        label: str | None = None,
        has_annex: bool = False,
    ) -> ModelLease:
        """A lease of the model, which is loaded first when it is not in memory.

        `keep_alive_s` is how long it stays in memory afterwards: None keeps what is set, 0 unloads it when
        its last lease ends, infinite keeps it. `context_size` is the least that a sequence must hold, in
        tokens; a model that is loaded with less is loaded again when its requests have ended. `pin` keeps the
        model in memory until a command ends that. `request_id` and `label` are what `why` knows the request
        by. `has_annex`: with the memory that embeddings take beside a model that generates.

        Raises QueueFull, InsufficientMemory, LoadingFailed (or what else kept it from loading:
        InvalidModelFile, LoadTimeout, ModelNotFound, StoreDamaged), Draining, and InvalidParameter for a
        context that the model cannot have.
        """
        wanted = self._wanted(events.LeaseRequested, model, keep_alive_s, context_size, pin=pin)
        wanted = attrs.evolve(wanted, request_id=request_id, label=label)
        lease: ModelLease = await self._ask(wanted)
        if not has_annex:
            return lease
        try:
            return lease.with_annex(await self._annex_lease(model))
        except BaseException:
            lease.release()
            raise

    async def _annex_lease(self, model: Model) -> ModelLease:
        """A lease of the model must be held meanwhile."""
        wanted = events.LeaseRequested(
            ticket=next(self._tickets),
            model_id=annex_id(model.id),
            name=f"{model.name} (embeddings)",
            keep_alive_s=ANNEX_KEEP_S,
            owner_id=model.id,
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

    async def plan(self, model: Model, *, context_size: int | None = None) -> PlanReport:
        """What a request for this model would meet now. Nothing is done, but its sizes may be measured.

        Raises InvalidParameter for a context that the model cannot have, and what keeps it from being sized.
        """
        check_context(model, context_size)
        return await self.address.ask(lambda reply: PlanLoad(model, context_size or 0, reply))

    async def why_model(self, model_id: Digest, name: str) -> WhyReport:
        """Decisions about a model, and what became of requests for it; `name` is for one not loaded."""
        return await self.address.ask(lambda reply: ExplainModel(model_id, name, reply))

    async def why_request(self, request_id: str) -> WhyReport:
        """What became of requests with this id or label. Raises RequestNotFound when nothing is known."""
        why: WhyReport | None = await self.address.ask(lambda reply: ExplainRequest(request_id, reply))
        if why is None:
            raise RequestNotFound(request_id)
        return why

    async def measure_budgets(self) -> None:
        """Returns when what was configured of budgets before holds."""
        await self.address.ask(MeasureBudgets)

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
                tell, board = self._handle.address.tell, self._handle.board
                run = SchedulerRun(core, tell, board, nursery, workshop, book, self._report, self._jitter)
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
            budgets = await measure()
            self._handle.address.tell(Happened(events.BudgetChanged(budgets.budget, budgets.ceiling)))


def annex_id(model_id: Digest) -> Digest:
    """What the core knows a model's annex by."""
    return Digest.of(f"annex of {model_id}".encode())


def check_context(model: Model, context_size: int | None) -> None:
    """Raises InvalidParameter for a context beyond what the model was trained for."""
    most = model.trained_context_size
    if context_size is not None and most is not None and context_size > most:
        raise InvalidParameter(
            FieldFault("context_size", f"must be at most {most} for {model.name}, and is {context_size}")
        )
