"""Callers of the core: who stands in line, who is granted a model, who is refused and with which numbers.

Part of `core.py`, which says when. Every ticket is answered exactly once, or not at all after its caller
left.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from runner.domain.device_bytes import DeviceBytes
from runner.scheduling import effects, events
from runner.scheduling.decisions import Action, amounts
from runner.scheduling.instances import Instance
from runner.scheduling.lifecycle import InstanceState
from runner.scheduling.pace import retry_after_s
from runner.scheduling.protection import InQuarantine, LeftAlone
from runner.scheduling.queues import Waiter, Want
from runner.scheduling.requests import RequestRecord
from runner.scheduling.state import SchedulerState


@attrs.define
class Callers:
    _state: SchedulerState

    # who comes

    def remember(self, event: events.ModelWanted, ahead: int) -> None:
        """Note a request that named itself, for `why`."""
        if event.request_id is None:
            return
        record = RequestRecord(
            request_id=event.request_id,
            label=event.label,
            model_id=event.model_id,
            model=event.name,
            asked_at_s=self._state.now_s,
            ahead=ahead,
        )
        self._state.requests.asked(event.ticket, record)

    def stand_in_line(self, instance: Instance, waiter: Waiter) -> None:
        instance.line.join(waiter)
        self._state.table.by_ticket[waiter.ticket] = instance

    def leave_line(self, instance: Instance, ticket: int) -> bool:
        """False when this ticket does not wait here."""
        if not instance.line.leave(ticket):
            return False
        del self._state.table.by_ticket[ticket]
        self._state.protection.abandoned(ticket)
        self._state.requests.left(ticket, self._state.now_s)
        return True

    # grants

    def grant(self, instance: Instance, waiter: Waiter) -> None:
        """The model is ready, suffices, and has a free lease if one is wanted."""
        state = self._state
        if waiter.keep_alive_s is not None:
            instance.keep_alive_s = waiter.keep_alive_s
        if waiter.pin is not None:
            instance.is_pinned = waiter.pin
        state.requests.granted(waiter.ticket, state.now_s, instance.history)
        if waiter.want is Want.PRELOAD:
            instance.idle_since_s = state.now_s
            state.table.by_ticket.pop(waiter.ticket, None)
            state.requests.ended(waiter.ticket, state.now_s)
            state.protection.succeeded(waiter.ticket)
            state.do(effects.ConfirmPreload(waiter.ticket, instance.load_id))
            return
        instance.leases[waiter.ticket] = state.now_s
        state.table.by_ticket[waiter.ticket] = instance
        state.protection.granted(waiter.ticket, state.now_s)
        state.do(effects.GrantLease(waiter.ticket, instance.load_id))

    def grant_waiting(self, instance: Instance) -> None:
        """Everything that a ready model can give: preloads, then leases in the order of the line."""
        if instance.state is not InstanceState.READY:
            return
        for waiter in instance.line.take_preloads(instance.context_size):
            self.grant(instance, waiter)
        while instance.has_free_lease:
            first = instance.line.take_lease(instance.context_size)
            if first is None:
                return
            self.grant(instance, first)

    def take_back(self, instance: Instance, ticket: int) -> None:
        """A lease ends; its place goes to the first in line."""
        state = self._state
        del state.table.by_ticket[ticket]
        state.pace.use_ended(instance.model_id, state.now_s - instance.leases.pop(ticket))
        state.requests.ended(ticket, state.now_s)
        state.protection.succeeded(ticket)
        instance.idle_since_s = state.now_s
        self.grant_waiting(instance)
        if not instance.is_wanted:
            state.pace.became_idle(instance.model_id, state.now_s)

    def void_leases(self, instance: Instance) -> None:
        """The worker serves nobody any more."""
        for ticket in instance.leases:
            del self._state.table.by_ticket[ticket]
            self._state.requests.ended(ticket, self._state.now_s)
        instance.leases.clear()

    # refusals

    def refuse(
        self, ticket: int, refusal: effects.Refusal, why: str, instance: Instance | None = None
    ) -> None:
        state = self._state
        state.table.by_ticket.pop(ticket, None)
        state.protection.abandoned(ticket)
        state.requests.refused(ticket, state.now_s, why, instance.history if instance is not None else ())
        state.do(effects.Refuse(ticket, refusal))

    def refuse_all(
        self, instance: Instance, waiters: Iterable[Waiter], refusal: effects.Refusal, why: str
    ) -> None:
        for waiter in waiters:
            self.refuse(waiter.ticket, refusal, why, instance)

    def refuse_draining(self, ticket: int, instance: Instance | None = None) -> None:
        self.refuse(ticket, effects.NoNewWork(), "the daemon is shutting down", instance)

    def is_left_alone(self, event: events.ModelWanted) -> bool:
        """Refused at once, when workers of this model keep crashing, or its loads do."""
        refusal = self._state.protection.refusal(event.model_id, event.name, event.ticket, self._state.now_s)
        if refusal is None:
            return False
        self.remember(event, ahead=0)
        self.refuse(event.ticket, refusal, refusal.why)
        return True

    def refuse_after_crash(self, instance: Instance, refusal: LeftAlone | InQuarantine) -> None:
        """All who wait still: there will be no worker for now."""
        waiters = instance.line.take_all()
        numbers = {"waiting": len(waiters), **refusal.numbers}
        self._state.note(instance, Action.REFUSE, refusal.why, numbers)
        self.refuse_all(instance, waiters, refusal, refusal.why)

    def refuse_overflow(self, instance: Instance, ticket: int) -> None:
        waiting = len(instance.line)
        expected_s = self.expected_wait_s(instance)
        why = "its line is full"
        numbers = {"waiting": waiting, "leases": len(instance.leases), "expected_s": expected_s}
        self._state.note(instance, Action.REFUSE, why, numbers)
        refusal = effects.LineFull(
            model=instance.name, waiting=waiting, retry_after_s=retry_after_s(expected_s)
        )
        self.refuse(ticket, refusal, why, instance)

    def refuse_for_room(
        self,
        instance: Instance,
        waiters: Iterable[Waiter],
        why: str,
        *,
        needed: DeviceBytes | None = None,
    ) -> None:
        """`needed` is the footprint of the present attempt, unless they need another."""
        state, table = self._state, self._state.table
        needed = instance.footprint if needed is None else needed
        in_use = table.in_use()
        free = (state.ledger.budget - in_use).positive()
        refusal = effects.NoRoom(
            model=instance.name,
            needed=needed,
            free=free,
            in_use=in_use,
            retry_after_s=retry_after_s(self._room_expected_s(instance, needed)),
        )
        state.note(
            instance,
            Action.REFUSE,
            why,
            {
                **amounts("needed_bytes", needed),
                **amounts("free_bytes", free),
                **amounts("in_use_bytes", in_use),
                **amounts("budget_bytes", state.ledger.budget),
            },
            others=tuple(one.name for one in table.serving() if one is not instance),
        )
        self.refuse_all(instance, waiters, refusal, why)

    def fail(self, instance: Instance, waiters: Iterable[Waiter], failure: events.Failure) -> None:
        """The load they waited for cannot be."""
        waiters = tuple(waiters)
        self._state.note(instance, Action.FAIL, failure.message, {"waiting": len(waiters)})
        refusal = effects.CannotLoad(model=instance.name, failure=failure)
        self.refuse_all(instance, waiters, refusal, failure.message)

    # expectations

    def expected_wait_s(self, instance: Instance) -> float:
        """Until whoever joins the line now is served: the line's length times the measured use, side by side,
        after what is left of the load."""
        pace = self._state.pace
        rounds = len(instance.line) / instance.leases_limit
        served_s = rounds * pace.use_s(instance.model_id)
        if instance.state is InstanceState.READY:
            return served_s
        load_s = pace.load_s(instance.model_id, instance.footprint)
        if instance.state is InstanceState.LOADING:
            load_s = max(0.0, load_s - (self._state.now_s - instance.since_s))
        return load_s + served_s

    def _room_expected_s(self, instance: Instance, needed: DeviceBytes) -> float:
        """Until the requests of a model in use have ended and this one is loaded."""
        pace = self._state.pace
        drains = [pace.drain_s(one.model_id) for one in self._state.table.serving() if one.leases]
        return min(drains, default=0.0) + pace.stop_s + pace.load_s(instance.model_id, needed)
