"""The scheduler's decisions: which models are in memory, who waits, who may use them, who goes.

`handle(event, now_s)` takes what happened and returns what to do; no I/O, no clock, no randomness, no log.
Every event ends in the same settling: delays that are over, idle models that expired, waiters who waited too
long, loads that now have room. So no event can leave work undone that the next one would have to remember.

Imports domain values and its neighbours in this package. Read on in `lifecycle.py` (states), `eviction.py`
(who makes room), `queues.py` (who waits) and `actors/scheduler.py` (the shell).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import assert_never

from runner.domain.status import UnloadReport
from runner.errors import LoadingFailed
from runner.oci.digest import Digest
from runner.scheduling import effects, events
from runner.scheduling.backoff import CrashLog
from runner.scheduling.decisions import Action, Decision, DecisionLog
from runner.scheduling.endings import Drain, Unloads
from runner.scheduling.eviction import plan_room
from runner.scheduling.instances import Instance, InstanceTable, InstanceView
from runner.scheduling.ledger import Ledger
from runner.scheduling.lifecycle import HOLDING_MEMORY, InstanceState, Trigger
from runner.scheduling.queues import Rates, Waiter, Want
from runner.scheduling.rules import SchedulingRules


class SchedulerCore:
    """Owns every instance, reservation and unanswered ticket.

    One task calls it. A time before the last one is taken as the last one.
    """

    def __init__(self, rules: SchedulingRules, *, budget_bytes: int) -> None:
        self._rules = rules
        self._ledger = Ledger(budget_bytes)
        self._table = InstanceTable(self._ledger)
        self._unloads = Unloads()
        self._drain = Drain()
        self._crashes = CrashLog(rules.backoff)
        self._rates = Rates()
        self._decisions = DecisionLog(rules.decisions_kept)
        self._next_load_id = 1
        self._armed_at_s: float | None = None
        self._effects: list[effects.Effect] = []
        self._latest_decisions: tuple[Decision, ...] = ()
        self._now_s = -math.inf

    # what the shell calls

    def handle(self, event: events.Event, now_s: float) -> tuple[effects.Effect, ...]:
        """Everything to do because of this event, in order. `now_s` is monotonic seconds."""
        self._now_s = max(now_s, self._now_s)
        self._dispatch(event)
        self._settle()
        self._latest_decisions = self._decisions.take_fresh()
        done, self._effects = self._effects, []
        return tuple(done)

    def views(self) -> tuple[InstanceView, ...]:
        """All instances at this moment, in the order they were first wanted."""
        return self._table.views()

    def decisions(self, model_id: Digest | None = None) -> tuple[Decision, ...]:
        """The latest decisions about one model, or about all, oldest first."""
        return self._decisions.latest(model_id)

    @property
    def latest_decisions(self) -> tuple[Decision, ...]:
        """Those of the last event."""
        return self._latest_decisions

    @property
    def budget_bytes(self) -> int:
        return self._ledger.budget_bytes

    @property
    def reserved_bytes(self) -> int:
        return self._ledger.reserved_bytes

    @property
    def is_draining(self) -> bool:
        return self._drain.has_begun

    @property
    def open_tickets(self) -> frozenset[int]:
        """Tickets of callers who wait or hold a lease."""
        return frozenset(self._table.by_ticket) | self._unloads.tickets | self._drain.tickets

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
        2. The model is ready, and it is only wanted in memory or a lease is free: granted at once.
        3. The line is full: refused, with the time after which a place may be expected.
        4. Otherwise it waits; the first who waits for an unloaded model begins its load.
        """
        if self._drain.has_begun:  # 1
            self._refuse(event.ticket, effects.NoNewWork())
            return
        instance = self._table.obtain(event.model_id, event.name, self._rules)
        waiter = Waiter(ticket=event.ticket, want=want, keep_alive_s=event.keep_alive_s, since_s=self._now_s)
        if instance.state is InstanceState.READY and (want is Want.PRELOAD or instance.has_free_lease):
            self._grant(instance, waiter)  # 2
        elif instance.line.is_full:  # 3
            self._refuse_overflow(instance, event.ticket)
        else:  # 4
            instance.line.join(waiter)
            self._table.by_ticket[event.ticket] = instance
            if instance.state is InstanceState.UNLOADED:
                self._begin(instance)

    def _on_lease_released(self, ticket: int) -> None:
        instance = self._table.by_ticket.get(ticket)
        if instance is None or ticket not in instance.leases:
            return
        del self._table.by_ticket[ticket]
        self._rates.lease_ended(self._now_s - instance.leases.pop(ticket))
        instance.idle_since_s = self._now_s
        self._grant_waiting(instance)

    def _on_caller_left(self, ticket: int) -> None:
        self._unloads.forget(ticket)
        self._drain.forget(ticket)
        instance = self._table.by_ticket.get(ticket)
        if instance is None:
            return
        if instance.line.leave(ticket):
            del self._table.by_ticket[ticket]
            self._cancel_if_unwanted(instance)
        else:
            self._on_lease_released(ticket)

    def _on_unload_requested(self, event: events.UnloadRequested) -> None:
        """Stop the idle ones, report those in use, wait for what is ending already."""
        wanted = tuple(self._table.by_model) if event.model_ids is None else dict.fromkeys(event.model_ids)
        chosen = [self._table.by_model[one] for one in wanted if one in self._table.by_model]
        for instance in chosen:
            if instance.is_idle:
                self._stop(instance, Action.UNLOAD, "somebody asked for it")
        ending = [instance for instance in chosen if instance.state is InstanceState.STOPPING]
        report = UnloadReport(
            unloaded=tuple(instance.name for instance in ending),
            in_use=tuple(instance.name for instance in chosen if instance not in ending),
        )
        self._unloads.add(event.ticket, {instance.load_id for instance in ending}, report)

    def _on_drain_requested(self, event: events.DrainRequested) -> None:
        """Refuse all who wait and give up their loads; settling stops the models that are in memory."""
        self._drain.begin(event.ticket, self._now_s + event.grace_s)
        for instance in tuple(self._table.by_model.values()):
            self._refuse_all(instance.line.take_all(), effects.NoNewWork())
            self._cancel_if_unwanted(instance)

    def _on_model_sized(self, event: events.ModelSized) -> None:
        """Refused at once when it exceeds the whole budget; otherwise it queues for room."""
        instance = self._table.by_load.get(event.load_id)
        if instance is None:
            return
        instance.move(Trigger.SIZED, self._now_s)
        instance.footprint_bytes = event.footprint_bytes
        instance.is_queueing_noted = False
        if event.footprint_bytes > self._ledger.budget_bytes:
            self._refuse_for_room(instance, instance.line.take_all(), "larger than the whole budget")
            self._cancel_if_unwanted(instance)

    def _on_sizing_failed(self, event: events.SizingFailed) -> None:
        instance = self._table.by_load.get(event.load_id)
        if instance is not None:
            self._fail_waiting(instance, event.failure)
            self._cancel_if_unwanted(instance)

    def _on_worker_ready(self, event: events.WorkerReady) -> None:
        instance = self._table.by_load.get(event.load_id)
        if instance is None or instance.state is InstanceState.STOPPING:
            return  # its end was decided while the news was on its way
        load_s = self._now_s - instance.since_s
        instance.move(Trigger.LOADED, self._now_s)
        instance.idle_since_s = self._now_s
        self._rates.load_ended(load_s)
        self._note(instance, Action.READY, "the worker is ready", load_s=load_s)
        for waiter in instance.line.take_preloads():
            del self._table.by_ticket[waiter.ticket]
            self._grant(instance, waiter)
        self._grant_waiting(instance)

    def _on_worker_load_failed(self, event: events.WorkerLoadFailed) -> None:
        instance = self._table.by_load.get(event.load_id)
        if instance is None or instance.state is InstanceState.STOPPING:
            return
        self._end_worker(instance)
        self._fail_waiting(instance, event.failure)

    def _on_worker_failing(self, event: events.WorkerFailing) -> None:
        """Nobody is granted this worker any more; who comes now waits for the next one."""
        instance = self._table.by_load.get(event.load_id)
        if instance is not None and instance.state is not InstanceState.STOPPING:
            instance.move(Trigger.FAILING, self._now_s)
            self._void_leases(instance)

    def _on_worker_ended(self, event: events.WorkerEnded) -> None:
        """The memory is free, and leases of the worker are void.

        1. It was told to end: nothing was lost.
        2. It crashed: callers who still wait get the next worker, after a delay.
        3. It ended while it loaded: all who wait get that error.
        """
        instance = self._table.by_load.get(event.load_id)
        if instance is None:
            return
        former = instance.state
        instance.move(Trigger.GONE, self._now_s)
        self._ledger.give_back(event.load_id)
        self._void_leases(instance)
        if event.is_crash or former is not InstanceState.STOPPING:  # 2, 3
            record = self._crashes.add(instance.model_id, self._now_s, event.jitter)
            delay_s = record.not_before_s - self._now_s
            self._note(instance, Action.CRASH, event.cause, crashes=record.crashes, delay_s=delay_s)
        if former is InstanceState.LOADING:  # 3
            message = f"the worker of {instance.name} ended while it loaded the model ({event.cause})"
            self._fail_waiting(instance, events.Failure(LoadingFailed.code, message))
        self._forget_load(instance)

    def _on_budget_changed(self, event: events.BudgetChanged) -> None:
        """Loads that wait for room and were sized for a larger budget are sized again, for this one."""
        self._ledger.budget_bytes = event.budget_bytes
        for instance in self._table.in_state(InstanceState.QUEUED):
            if instance.footprint_bytes > event.budget_bytes:
                self._drop_load(instance)
                self._size(instance, Trigger.RESIZED)

    # settling: what is due after every event

    def _settle(self) -> None:
        self._start_cooled()
        self._stop_for_drain()
        self._unload_expired()
        self._refuse_overdue()
        self._give_room()
        self._answer_endings()
        self._arm_timer()

    def _start_cooled(self) -> None:
        for instance in self._table.in_state(InstanceState.COOLING):
            if instance.cooled_at_s <= self._now_s:
                self._size(instance, Trigger.COOLED)

    def _stop_for_drain(self) -> None:
        if not self._drain.has_begun:
            return
        for instance in self._table.in_state(InstanceState.READY):
            if instance.is_idle or self._drain.deadline_s <= self._now_s:
                self._stop(
                    instance, Action.UNLOAD, "the daemon is shutting down", leases=len(instance.leases)
                )

    def _unload_expired(self) -> None:
        for instance in self._table.idle():
            if instance.expires_at_s <= self._now_s:
                idle_s = self._now_s - instance.idle_since_s
                self._stop(instance, Action.UNLOAD, "idle for its keep_alive", idle_s=idle_s)

    def _refuse_overdue(self) -> None:
        for instance in self._table.in_state(InstanceState.QUEUED):
            overdue = instance.line.take_overdue(self._now_s, self._rules.room_wait_s)
            if overdue:
                self._refuse_for_room(instance, overdue, "models in use made no room in time")
                self._cancel_if_unwanted(instance)

    def _give_room(self) -> None:
        """Start what fits, evict for what can be made to fit, note who has to wait."""
        demands = self._table.demands(self._now_s)
        if not demands:
            return
        plan = plan_room(
            demands,
            self._table.candidates(),
            free_bytes=self._ledger.free_bytes,
            leaving_bytes=self._table.leaving_bytes(),
            overtaking_s=self._rules.overtaking_s,
        )
        for load_id in plan.starts:
            self._load(self._table.by_load[load_id])
        for eviction in plan.evictions:
            victim = self._table.by_load[eviction.victim_id]
            self._stop(
                victim,
                Action.EVICT,
                f"idle for longest, makes room for {self._table.by_load[eviction.for_id].name}",
                freed_bytes=victim.footprint_bytes,
                shortage_bytes=eviction.shortage_bytes,
                idle_s=self._now_s - victim.idle_since_s,
            )
        for instance in self._table.in_state(InstanceState.QUEUED):
            self._note_queueing(instance, is_blocked=instance.load_id in plan.blocked)

    def _answer_endings(self) -> None:
        self._effects.extend(self._unloads.answers(self._table.by_load))
        if self._drain.has_begun and not self._table.by_model:
            self._effects.extend(self._drain.answers())

    def _arm_timer(self) -> None:
        at_s = self._table.next_deadline_s(self._rules.room_wait_s)
        if self._table.by_model and self._drain.deadline_s > self._now_s:
            at_s = min(at_s, self._drain.deadline_s)
        wanted = at_s if at_s < math.inf else None
        if wanted != self._armed_at_s:
            self._armed_at_s = wanted
            self._effects.append(effects.ArmTimer(wanted))

    # steps of a load

    def _begin(self, instance: Instance) -> None:
        not_before_s = self._crashes.not_before_s(instance.model_id)
        if not_before_s <= self._now_s:
            self._size(instance, Trigger.WANTED)
            return
        instance.move(Trigger.BACKED_OFF, self._now_s)
        instance.cooled_at_s = not_before_s
        delay_s = not_before_s - self._now_s
        self._note(instance, Action.DELAY, "its worker crashed a moment ago", delay_s=delay_s)

    def _size(self, instance: Instance, trigger: Trigger) -> None:
        instance.move(trigger, self._now_s)
        instance.load_id = self._next_load_id
        self._next_load_id += 1
        self._table.by_load[instance.load_id] = instance
        self._effects.append(effects.SizeModel(instance.load_id, instance.model_id))

    def _load(self, instance: Instance) -> None:
        free_bytes = self._ledger.free_bytes
        self._ledger.reserve(instance.load_id, instance.footprint_bytes)
        instance.move(Trigger.ROOM_RESERVED, self._now_s)
        self._note(
            instance,
            Action.LOAD,
            "it is wanted and fits",
            needed_bytes=instance.footprint_bytes,
            free_bytes=free_bytes,
            budget_bytes=self._ledger.budget_bytes,
            waiting=len(instance.line),
        )
        self._effects.append(effects.StartWorker(instance.load_id))

    def _stop(self, instance: Instance, action: Action, why: str, **numbers: float) -> None:
        self._note(instance, action, why, **numbers)
        self._end_worker(instance)

    def _end_worker(self, instance: Instance) -> None:
        instance.move(Trigger.STOP_ASKED, self._now_s)
        self._effects.append(effects.StopWorker(instance.load_id))

    def _void_leases(self, instance: Instance) -> None:
        for ticket in instance.leases:
            del self._table.by_ticket[ticket]
        instance.leases.clear()

    def _cancel_if_unwanted(self, instance: Instance) -> None:
        """A load for which nobody waits any more is given up; what is in memory or ending is left alone."""
        if instance.is_wanted:
            return
        if instance.state is InstanceState.LOADING:
            self._stop(instance, Action.CANCEL, "nobody waits for it any more")
        elif instance.state not in HOLDING_MEMORY:
            self._drop_load(instance)
            instance.move(Trigger.NOT_WANTED, self._now_s)
            self._forget_load(instance)

    def _drop_load(self, instance: Instance) -> None:
        """Give up an attempt that has no worker; there is none yet while the instance cools."""
        if self._table.by_load.pop(instance.load_id, None) is not None:
            self._effects.append(effects.DropLoad(instance.load_id))

    def _forget_load(self, instance: Instance) -> None:
        """The attempt is over: begin the next one when somebody waits, else forget the instance."""
        self._table.by_load.pop(instance.load_id, None)
        instance.footprint_bytes = 0
        if len(instance.line):
            self._begin(instance)
        else:
            del self._table.by_model[instance.model_id]

    # answers

    def _grant(self, instance: Instance, waiter: Waiter) -> None:
        if waiter.keep_alive_s is not None:
            instance.keep_alive_s = waiter.keep_alive_s
        if waiter.want is Want.PRELOAD:
            instance.idle_since_s = self._now_s
            self._effects.append(effects.ConfirmPreload(waiter.ticket, instance.load_id))
            return
        instance.leases[waiter.ticket] = self._now_s
        self._table.by_ticket[waiter.ticket] = instance
        self._effects.append(effects.GrantLease(waiter.ticket, instance.load_id))

    def _grant_waiting(self, instance: Instance) -> None:
        while instance.state is InstanceState.READY and instance.has_free_lease:
            waiter = instance.line.take_lease()
            if waiter is None:
                return
            self._grant(instance, waiter)

    def _refuse(self, ticket: int, refusal: effects.Refusal) -> None:
        self._table.by_ticket.pop(ticket, None)
        self._effects.append(effects.Refuse(ticket, refusal))

    def _refuse_all(self, waiters: Iterable[Waiter], refusal: effects.Refusal) -> None:
        for waiter in waiters:
            self._refuse(waiter.ticket, refusal)

    def _refuse_overflow(self, instance: Instance, ticket: int) -> None:
        is_loaded = instance.state is InstanceState.READY
        refusal = effects.LineFull(
            model=instance.name,
            waiting=len(instance.line),
            retry_after_s=self._rates.retry_after_s(instance.leases_limit if is_loaded else None),
        )
        self._note(instance, Action.REFUSE, "its line is full", waiting=refusal.waiting)
        self._refuse(ticket, refusal)

    def _refuse_for_room(self, instance: Instance, waiters: tuple[Waiter, ...], why: str) -> None:
        in_use_bytes = self._table.in_use_bytes()
        refusal = effects.NoRoom(
            model=instance.name,
            needed_bytes=instance.footprint_bytes,
            free_bytes=max(0, self._ledger.budget_bytes - in_use_bytes),
            in_use_bytes=in_use_bytes,
        )
        self._note(
            instance,
            Action.REFUSE,
            why,
            needed_bytes=refusal.needed_bytes,
            free_bytes=refusal.free_bytes,
            in_use_bytes=in_use_bytes,
            budget_bytes=self._ledger.budget_bytes,
        )
        self._refuse_all(waiters, refusal)

    def _fail_waiting(self, instance: Instance, failure: events.Failure) -> None:
        waiters = instance.line.take_all()
        self._note(instance, Action.FAIL, failure.message, waiting=len(waiters))
        self._refuse_all(waiters, effects.CannotLoad(model=instance.name, failure=failure))

    def _note(self, instance: Instance, action: Action, why: str, **numbers: float) -> None:
        about = instance.model_id, instance.name
        self._decisions.add(Decision(self._now_s, *about, action=action, why=why, numbers=numbers))

    def _note_queueing(self, instance: Instance, *, is_blocked: bool) -> None:
        """Once per wait, since every event looks at those who wait."""
        if not instance.is_queueing_noted:
            instance.is_queueing_noted = True
            self._note(
                instance,
                Action.QUEUE,
                "everything else is in use" if is_blocked else "room is being made",
                needed_bytes=instance.footprint_bytes,
                free_bytes=self._ledger.free_bytes,
                waiting=len(instance.line),
            )
