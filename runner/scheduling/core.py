"""The scheduler's decisions: which models are in memory, who waits, who may use them, who goes.

`handle(event, now_s)` takes what happened and returns what to do; no I/O, no clock, no randomness, no log.
Every event ends in the same settling: delays that are over, idle models that expired, waiters who waited too
long, loads that now have room. So no event can leave work undone that the next one would have to remember.

Imports domain values and its neighbours in this package. Read on in `callers.py` (who is granted what),
`loads.py` (the steps of a load), `room_making.py` (who goes), `lifecycle.py` (states) and
`actors/scheduler.py` (the shell).
"""

from __future__ import annotations

import math
from typing import assert_never

from runner.domain.device_bytes import DeviceBytes
from runner.domain.explained import PlanReport, WhyReport
from runner.domain.quarantine import FailedLoads
from runner.domain.status import UnloadReport
from runner.errors import LoadingFailed
from runner.oci.digest import Digest
from runner.scheduling import effects, events, explaining
from runner.scheduling.callers import Callers
from runner.scheduling.decisions import Action, Decision
from runner.scheduling.instances import Instance, InstanceView
from runner.scheduling.ledger import Ledger
from runner.scheduling.lifecycle import InstanceState, Trigger
from runner.scheduling.loads import Loads
from runner.scheduling.planning import Planning, Wish
from runner.scheduling.protection import Crash, Protection
from runner.scheduling.quarantine import LoadQuarantine
from runner.scheduling.queues import Waiter, Want
from runner.scheduling.requests import RequestRecord
from runner.scheduling.room_making import RoomMaking
from runner.scheduling.rules import SchedulingRules
from runner.scheduling.state import SchedulerState


class SchedulerCore:
    """Owns every instance, reservation and unanswered ticket.

    One task calls it. A time before the last one is taken as the last one.
    """

    def __init__(
        self, rules: SchedulingRules, *, budget: DeviceBytes, quarantine: LoadQuarantine | None = None
    ) -> None:
        protection = Protection(rules.backoff, rules.breaker, quarantine)
        self._state = SchedulerState(rules, Ledger(budget), ceiling=budget, protection=protection)
        self._table = self._state.table
        self._callers = Callers(self._state)
        self._loads = Loads(self._state, self._callers)
        self._room = RoomMaking(self._state, self._callers, self._loads)
        self._armed_at_s: float | None = None
        self._latest_decisions: tuple[Decision, ...] = ()

    # what the shell calls

    def handle(self, event: events.Event, now_s: float) -> tuple[effects.Effect, ...]:
        """Everything to do because of this event, in order. `now_s` is monotonic seconds."""
        self._state.now_s = max(now_s, self._state.now_s)
        self._dispatch(event)
        self._settle()
        self._latest_decisions = self._state.decisions.take_fresh()
        if (records := self._state.protection.take_changed()) is not None:
            self._state.do(effects.KeepQuarantine(records))
        return self._state.take_effects()

    def views(self) -> tuple[InstanceView, ...]:
        """All instances at this moment, in the order they were first wanted."""
        return self._table.views()

    def decisions(self, model_id: Digest | None = None) -> tuple[Decision, ...]:
        """The latest decisions about one model, or about all, oldest first."""
        return self._state.decisions.latest(model_id)

    def requests(self, request_id: str) -> tuple[RequestRecord, ...]:
        """What became of a request that named itself, once for each time it asked; empty when forgotten."""
        return self._state.requests.of(request_id)

    def plan(self, wish: Wish, now_s: float) -> PlanReport:
        """What a request for this model would meet now; nothing is done."""
        self._state.now_s = max(now_s, self._state.now_s)
        return Planning(self._state, self._callers, self._loads, self._room).report(wish)

    def why_model(self, model_id: Digest, name: str, now_s: float) -> WhyReport:
        """What is known of a model; `name` is for one that is not loaded."""
        self._state.now_s = max(now_s, self._state.now_s)
        return explaining.why_model(self._state, model_id, name)

    def why_request(self, request_id: str, now_s: float) -> WhyReport | None:
        """What is known of requests with this id or label, None when that is nothing."""
        self._state.now_s = max(now_s, self._state.now_s)
        return explaining.why_request(self._state, request_id)

    @property
    def latest_decisions(self) -> tuple[Decision, ...]:
        """Those of the last event."""
        return self._latest_decisions

    @property
    def budget(self) -> DeviceBytes:
        return self._state.ledger.budget

    @property
    def reserved(self) -> DeviceBytes:
        return self._state.ledger.reserved

    @property
    def quarantined(self) -> tuple[FailedLoads, ...]:
        """Models that are not loaded any more."""
        return self._state.protection.quarantined()

    @property
    def is_draining(self) -> bool:
        return self._state.drain.has_begun

    @property
    def open_tickets(self) -> frozenset[int]:
        """Tickets of callers who wait or hold a lease."""
        return frozenset(self._table.by_ticket) | self._state.unloads.tickets | self._state.drain.tickets

    # one method per event

    def _dispatch(self, event: events.Event) -> None:
        match event:
            case events.LeaseRequested():
                self._on_wanted(event, Want.LEASE)
            case events.PreloadRequested():
                self._on_wanted(event, Want.PRELOAD)
            case events.LeaseReleased():
                self._on_lease_released(event.ticket)
            case events.CallerLeft():
                self._on_caller_left(event.ticket)
            case events.UnloadRequested():
                self._on_unload_requested(event)
            case events.DrainRequested():
                self._on_drain_requested(event)
            case events.UnquarantineRequested():
                self._on_unquarantine_requested(event)
            case events.ModelSized():
                self._on_model_sized(event)
            case events.SizingFailed():
                self._on_sizing_failed(event)
            case events.WorkerReady():
                self._on_worker_ready(event)
            case events.WorkerLoadFailed():
                self._on_worker_load_failed(event)
            case events.WorkerFailing():
                self._on_worker_failing(event)
            case events.WorkerEnded():
                self._on_worker_ended(event)
            case events.BudgetChanged():
                self._on_budget_changed(event)
            case events.Ticked():
                self._armed_at_s = None  # a timer that went off is not armed any more; settling does the rest
            case _:
                assert_never(event)

    def _on_wanted(self, event: events.LeaseRequested | events.PreloadRequested, want: Want) -> None:
        """Answer, or stand in line.

        1. The daemon is draining: refused.
        2. Its workers keep crashing, or loading it crashes the engine: refused.
        3. The model is ready, what is loaded suffices, and it is only wanted in memory or a lease is free:
           granted at once.
        4. As many use it or wait as may: refused, with the time after which a place may be expected.
        5. Otherwise it waits; the first who waits for an unloaded model begins its load, and one who needs
           more than a load that has no worker yet would give has that one sized again.
        """
        if self._state.drain.has_begun:  # 1
            self._callers.remember(event, ahead=0)
            self._callers.refuse_draining(event.ticket)
            return
        if self._callers.is_left_alone(event):  # 2
            return
        instance = self._table.obtain(event.model_id, event.name, self._state.rules, owner_id=event.owner_id)
        self._state.pace.wanted(event.model_id, self._state.now_s)
        self._callers.remember(event, ahead=len(instance.line))
        waiter = _waiter(event, want, self._state.now_s)
        if _can_grant(instance, waiter):
            self._callers.grant(instance, waiter)  # 3
        elif instance.is_full:  # 4
            self._callers.refuse_overflow(instance, event.ticket)
        else:  # 5
            self._callers.stand_in_line(instance, waiter)
            if instance.state is InstanceState.UNLOADED:
                self._loads.begin(instance)
            elif instance.state is InstanceState.QUEUED and not instance.suffices(waiter):
                self._loads.resize(instance)

    def _on_lease_released(self, ticket: int) -> None:
        instance = self._table.by_ticket.get(ticket)
        if instance is not None and ticket in instance.leases:
            self._callers.take_back(instance, ticket)

    def _on_caller_left(self, ticket: int) -> None:
        self._state.unloads.forget(ticket)
        self._state.drain.forget(ticket)
        instance = self._table.by_ticket.get(ticket)
        if instance is None:
            return
        if self._callers.leave_line(instance, ticket):
            self._loads.cancel_if_unwanted(instance)
        else:
            self._on_lease_released(ticket)

    def _on_unload_requested(self, event: events.UnloadRequested) -> None:
        """Stop the idle ones, pinned or not, report those in use, wait for what is ending already."""
        wanted = tuple(self._table.by_model) if event.model_ids is None else dict.fromkeys(event.model_ids)
        known = (self._table.by_model[one] for one in wanted if one in self._table.by_model)
        chosen = [one for one in known if one.owner_id is None]  # annexes go with their models
        for instance in chosen:
            if instance.is_idle:
                self._loads.stop(instance, Action.UNLOAD, "somebody asked for it")
        ending = [instance for instance in chosen if instance.state is InstanceState.STOPPING]
        report = UnloadReport(
            unloaded=tuple(instance.name for instance in ending),
            in_use=tuple(instance.name for instance in chosen if instance not in ending),
        )
        self._state.unloads.add(event.ticket, {instance.load_id for instance in ending}, report)

    def _on_drain_requested(self, event: events.DrainRequested) -> None:
        """Refuse all who wait and give up their loads; settling stops the models that are in memory."""
        self._state.drain.begin(event.ticket, self._state.now_s + event.grace_s)
        for instance in tuple(self._table.by_model.values()):
            for waiter in instance.line.take_all():
                self._callers.refuse_draining(waiter.ticket, instance)
            self._loads.cancel_if_unwanted(instance)

    def _on_unquarantine_requested(self, event: events.UnquarantineRequested) -> None:
        protection = self._state.protection
        before = protection.quarantined()
        lifted = protection.lift(event.model_id)
        self._state.do(
            effects.ReportFreed(
                ticket=event.ticket,
                was_quarantined=lifted in before,
                crashes=lifted.crashes if lifted is not None else 0,
            )
        )

    def _on_model_sized(self, event: events.ModelSized) -> None:
        instance = self._table.by_load.get(event.load_id)
        if instance is None:
            return
        if instance.growth is not None and instance.growth.load_id == event.load_id:
            self._loads.growth_sized(instance, instance.growth, event)
        else:
            self._loads.sized(instance, event)

    def _on_sizing_failed(self, event: events.SizingFailed) -> None:
        instance = self._table.by_load.get(event.load_id)
        if instance is None:
            return
        if instance.load_id == event.load_id:
            self._callers.fail(instance, instance.line.take_all(), event.failure)
            self._loads.cancel_if_unwanted(instance)
        else:  # of the next, larger one: what is loaded goes on
            needy = instance.line.take_needing(instance.context_size)
            self._callers.fail(instance, needy, event.failure)

    def _on_worker_ready(self, event: events.WorkerReady) -> None:
        instance = self._table.by_load.get(event.load_id)
        if instance is None or instance.state is InstanceState.STOPPING:
            return  # its end was decided while the news was on its way
        now_s = self._state.now_s
        load_s = now_s - instance.since_s
        instance.move(Trigger.LOADED, now_s)
        instance.ready_since_s = instance.idle_since_s = now_s
        if event.max_sequences is not None:
            instance.leases_limit = event.max_sequences
        self._state.protection.loaded(instance.model_id)
        if instance.owner_id is None:  # an annex takes no time, which says nothing of loads
            self._state.pace.load_ended(instance.model_id, instance.footprint, load_s)
        self._state.note(instance, Action.READY, "the worker is ready", {"load_s": load_s})
        self._callers.grant_waiting(instance)

    def _on_worker_load_failed(self, event: events.WorkerLoadFailed) -> None:
        instance = self._table.by_load.get(event.load_id)
        if instance is None or instance.state is InstanceState.STOPPING:
            return
        self._loads.end_worker(instance)
        self._callers.fail(instance, instance.line.take_all(), event.failure)

    def _on_worker_failing(self, event: events.WorkerFailing) -> None:
        """Nobody is granted this worker any more; who comes now waits for the next one."""
        instance = self._table.by_load.get(event.load_id)
        if instance is not None and instance.state is not InstanceState.STOPPING:
            instance.move(Trigger.FAILING, self._state.now_s)
            self._callers.void_leases(instance)

    def _on_worker_ended(self, event: events.WorkerEnded) -> None:
        """The memory is free, and leases of the worker are void.

        1. It was told to end: nothing was lost.
        2. It crashed: callers who still wait get the next worker, after a delay ...
        3. ... unless there will be none for now, which they are told.
        4. It ended while it loaded: all who wait get that error.
        """
        instance = self._table.by_load.get(event.load_id)
        if instance is None:
            return
        former, state = instance.state, self._state
        if former is InstanceState.STOPPING:
            state.pace.stop_ended(state.now_s - instance.since_s)
        instance.move(Trigger.GONE, state.now_s)
        state.ledger.give_back(event.load_id)
        self._callers.void_leases(instance)
        is_crash = event.is_crash or former is not InstanceState.STOPPING
        crash = self._note_crash(instance, event) if is_crash else None
        if former is InstanceState.LOADING:  # 4
            message = f"the worker of {instance.name} ended while it loaded the model ({event.cause})"
            failure = events.Failure(LoadingFailed.code, message)
            self._callers.fail(instance, instance.line.take_all(), failure)
        if crash is not None and crash.refusal is not None:  # 3
            self._callers.refuse_after_crash(instance, crash.refusal)
        self._loads.over(instance, is_crash=is_crash)

    def _note_crash(self, instance: Instance, event: events.WorkerEnded) -> Crash:
        state = self._state
        crash = state.protection.crashed(
            instance.model_id,
            instance.name,
            event.cause,
            while_loading=event.is_load_crash,
            now_s=state.now_s,
            jitter=event.jitter,
        )
        delay_s = crash.record.not_before_s - state.now_s
        numbers = {"crashes": crash.record.crashes, "delay_s": delay_s}
        state.note(instance, Action.CRASH, event.cause, numbers)
        return crash

    def _on_budget_changed(self, event: events.BudgetChanged) -> None:
        """Loads that were sized for a larger budget and wait for room are sized again, for this one."""
        self._state.ledger.budget = event.budget
        self._state.ceiling = event.budget if event.ceiling is None else event.ceiling
        for instance in self._table.in_state(InstanceState.QUEUED):
            if not instance.footprint.fits_in(event.budget):
                self._loads.resize(instance)
        for instance in self._table.serving():
            if instance.growth is not None and not instance.growth.footprint.fits_in(event.budget):
                self._loads.drop_growth(instance)  # settling begins the next one

    # settling: what is due after every event

    def _settle(self) -> None:
        self._start_cooled()
        self._stop_for_drain()
        self._unload_expired()
        self._room.refuse_overdue()
        self._room.relieve_pressure()
        self._loads.follow_needs()
        self._room.give_room()
        self._answer_endings()
        self._arm_timer()

    def _start_cooled(self) -> None:
        for instance in self._table.in_state(InstanceState.COOLING):
            if instance.cooled_at_s <= self._state.now_s:
                self._loads.size(instance, Trigger.COOLED)

    def _stop_for_drain(self) -> None:
        drain = self._state.drain
        if not drain.has_begun:
            return
        for instance in self._table.serving():
            if not instance.leases or drain.deadline_s <= self._state.now_s:
                numbers = {"leases": len(instance.leases)}
                self._loads.stop(instance, Action.UNLOAD, "the daemon is shutting down", numbers)

    def _unload_expired(self) -> None:
        for instance in self._table.idle():
            if instance.expires_at_s <= self._state.now_s:
                idle_s = self._state.now_s - instance.idle_since_s
                self._loads.stop(instance, Action.UNLOAD, "idle for its keep_alive", {"idle_s": idle_s})

    def _answer_endings(self) -> None:
        self._state.do(*self._state.unloads.answers(self._table.by_load))
        if self._state.drain.has_begun and not self._table.by_model:
            self._state.do(*self._state.drain.answers())

    def _arm_timer(self) -> None:
        state = self._state
        at_s = min(self._table.next_deadline_s(state.rules), state.look_at_s)
        if self._table.by_model and state.drain.deadline_s > state.now_s:
            at_s = min(at_s, state.drain.deadline_s)
        wanted = max(at_s, state.now_s) if at_s < math.inf else None  # settling may have made something due
        if wanted != self._armed_at_s:
            self._armed_at_s = wanted
            state.do(effects.ArmTimer(wanted))


def _waiter(event: events.ModelWanted, want: Want, now_s: float) -> Waiter:
    return Waiter(
        ticket=event.ticket,
        want=want,
        since_s=now_s,
        keep_alive_s=event.keep_alive_s,
        pin=event.pin,
        context_size=event.context_size,
    )


def _can_grant(instance: Instance, waiter: Waiter) -> bool:
    return (
        instance.state is InstanceState.READY
        and instance.suffices(waiter)
        and (waiter.want is Want.PRELOAD or instance.has_free_lease)
    )
