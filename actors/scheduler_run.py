"""One run of the scheduler: messages into the core, effects out of it, and what others see.

The actor's loop hands over each message; nothing here but questions that take time waits, and those are tasks
of the nursery. Imports the core and the loads. Read on in `runner/scheduling/core.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, assert_never

import attrs
import trio

from actors.actor import Reply
from actors.annexes import AnnexTask, Owner
from actors.load import (
    KeeperTold,
    LoadFault,
    LoadNews,
    LoadOver,
    LoadTask,
    Measured,
    NotMeasured,
    Workshop,
    annex_bytes_of,
    bytes_of,
)
from actors.quarantine import QuarantineBook
from actors.refusals import error_of
from actors.scheduler_messages import (
    Asked,
    ExplainModel,
    ExplainRequest,
    Happened,
    ListDecisions,
    MeasureBudgets,
    ModelLease,
    PlanLoad,
    SchedulerMessage,
    SchedulerNotice,
)
from actors.scheduler_status import Board, LoadView, Notice, Row
from actors.worker import WorkerFailing, WorkerLoadFailed, WorkerLoadProgress, WorkerReady
from runner.domain.device_bytes import DeviceBytes
from runner.domain.explained import PlannedDevice, PlannedPart
from runner.errors import RunnerError, Unavailable
from runner.memory.budget import Budgets
from runner.memory.footprint import Footprint
from runner.scheduling import effects, events
from runner.scheduling.core import SchedulerCore
from runner.scheduling.planning import Wish

PLANS_AT_ONCE: Final = 4
"""More wait: each may have sizes measured, beside those that loads wait for."""


class SchedulerRun:
    """What one run of the actor knows beside the core. No method waits."""

    def __init__(
        self,
        core: SchedulerCore,
        tell: Callable[[SchedulerMessage], None],
        board: Board,
        nursery: trio.Nursery,
        workshop: Workshop,
        book: QuarantineBook,
        report: Callable[[SchedulerNotice], None],
        jitter: Callable[[], float],
    ) -> None:
        self._core = core
        self._book = book
        self._tell = tell
        self._board = board
        self._nursery = nursery
        self._workshop = workshop
        self._report = report
        self._jitter = jitter
        self._replies: dict[int, Reply[Any]] = {}
        self._tasks: dict[int, LoadTask | AnnexTask] = {}
        self._views: dict[int, LoadView] = {}
        self._timer = trio.CancelScope()
        self._planners = trio.CapacityLimiter(PLANS_AT_ONCE)
        self._publish()

    # messages in

    def handle(self, message: SchedulerMessage) -> None:
        match message:
            case ListDecisions():
                message.reply.set(self._core.decisions(message.model_id))
            case ExplainModel():
                why = self._core.why_model(message.model_id, message.name, trio.current_time())
                message.reply.set(why)
            case ExplainRequest():
                message.reply.set(self._core.why_request(message.request_id, trio.current_time()))
            case PlanLoad():
                self._nursery.start_soon(self._plan, message)
            case MeasureBudgets():
                self._nursery.start_soon(self._measure, message.reply)
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
                annex = annex_bytes_of(news.footprint)
                self._see(news.load_id, lambda seen: attrs.evolve(seen, options=news.options, annex=annex))
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
        task = self._task_of(effect)
        self._tasks[effect.load_id] = task
        self._nursery.start_soon(task.run)

    def _task_of(self, effect: effects.SizeModel) -> LoadTask | AnnexTask:
        engine = self._workshop.engine.name
        if effect.owner_id is None:
            task = LoadTask(effect.load_id, effect.model_id, effect.context_size, self._workshop)
            self._views[effect.load_id] = LoadView(engine=engine, over=task.over)
            return task
        view = next((one for one in self._core.views() if one.model_id == effect.owner_id), None)
        seen = None if view is None else self._views.get(view.load_id)
        if view is None or seen is None or seen.handle is None:  # it has ended in the meantime
            self._views[effect.load_id] = LoadView(engine=engine)
            return AnnexTask(effect.load_id, DeviceBytes(), None, self._tell)
        self._views[effect.load_id] = LoadView(engine=engine, handle=seen.handle)
        owner = Owner(handle=seen.handle, context_size=view.context_size, over=seen.over)
        return AnnexTask(effect.load_id, seen.annex, owner, self._tell)

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

    # questions that take time

    async def _plan(self, asked: PlanLoad) -> None:
        """Sizes are found as a load finds them; nothing is started but what measures them."""
        shop = self._workshop
        try:
            async with self._planners:
                with await shop.store.lease(asked.model.id) as lease:
                    budgets = await shop.measure_budgets()
                    sized = await shop.size(lease.files, asked.context_size, budgets.budget)
        except RunnerError as error:
            asked.reply.fail(error)
            return
        except Exception as error:  # one plan must not take the workers of all models with it
            self._report(LoadFault(asked.model.id, error))
            asked.reply.fail(RunnerError(f"internal error: {type(error).__name__}"))
            return
        wish = Wish(
            model_id=asked.model.id,
            name=asked.model.name,
            footprint=bytes_of(sized.footprint),
            context_size=sized.options.context_size,
            least_context_size=asked.context_size,
            basis=sized.footprint.basis.value,
        )
        report = self._core.plan(wish, trio.current_time())
        asked.reply.set(attrs.evolve(report, devices=_with_parts(report.devices, sized.footprint)))

    async def _measure(self, reply: Reply[None]) -> None:
        self._happen(_changed(await self._workshop.measure_budgets()))
        reply.set(None)

    # what others see

    def _see(self, load_id: int, change: Callable[[LoadView], LoadView]) -> None:
        """Note news of a load; of one that was dropped meanwhile there is nothing to show."""
        if load_id in self._views:
            self._views[load_id] = change(self._views[load_id])

    def _publish(self) -> None:
        views = self._core.views()
        annexes = {view.owner_id: view.reserved for view in views}
        self._board.show(
            Notice(
                rows=tuple(
                    Row(view, self._views.get(view.load_id), annexes.get(view.model_id, DeviceBytes()))
                    for view in views
                    if view.owner_id is None
                ),
                budget=self._core.budget,
                reserved=self._core.reserved,
                is_draining=self._core.is_draining,
                quarantined=self._core.quarantined,
            )
        )


def _with_parts(devices: tuple[PlannedDevice, ...], footprint: Footprint) -> tuple[PlannedDevice, ...]:
    return tuple(
        attrs.evolve(
            one,
            parts=tuple(
                PlannedPart(part=name, size_bytes=size) for name, size in footprint.parts(one.device)
            ),
        )
        for one in devices
    )


def _changed(budgets: Budgets) -> events.BudgetChanged:
    return events.BudgetChanged(budgets.budget, budgets.ceiling)


def _failure_of(error: RunnerError) -> events.Failure:
    return events.Failure(error.code, str(error))
