"""A world for the scheduler's core: it plays the shell, the workers and the callers.

It objects to every effect that a sound scheduler must not ask for, and checks what must hold after every
event.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from runner.oci.digest import Digest
from runner.scheduling import effects, events
from runner.scheduling.core import SchedulerCore
from runner.scheduling.instances import InstanceView
from runner.scheduling.lifecycle import HOLDING_MEMORY, InstanceState
from runner.scheduling.rules import SchedulingRules

LOADING, READY, STOPPING = InstanceState.LOADING, InstanceState.READY, InstanceState.STOPPING


def model_id(name: str) -> Digest:
    return Digest.of(name.encode())


class World:
    """`budget` and footprints are plain bytes. Time stands still unless a test moves it."""

    def __init__(self, budget: int = 100, **rules: Any) -> None:
        self.rules = SchedulingRules(**rules)
        self.core = SchedulerCore(self.rules, budget_bytes=budget)
        self.now_s = 1000.0
        self.budget = budget
        self.timer_s: float | None = None
        self.names: dict[Digest, str] = {}
        self.answers: dict[int, effects.Answer] = {}
        self.waiting: set[int] = set()
        self.leases: dict[int, int] = {}
        self.sizing: dict[int, Digest] = {}
        self.sized: dict[int, int] = {}
        self.workers: dict[int, InstanceState] = {}
        self.footprints: dict[int, int] = {}
        self.model_of: dict[int, Digest] = {}
        self.drain_deadline_s = math.inf
        self.has_shrunk = False
        self._tickets = itertools.count(1)

    # events

    def send(self, event: events.Event) -> tuple[effects.Effect, ...]:
        done = self.core.handle(event, self.now_s)
        for effect in done:
            self._carry_out(effect)
        self.check()
        return done

    def want(self, name: str, keep_alive_s: float | None = None) -> int:
        """A request for a lease; returns its ticket."""
        self.names[model_id(name)] = name
        ticket = self._new_ticket()
        self.send(
            events.LeaseRequested(
                ticket=ticket, model_id=model_id(name), name=name, keep_alive_s=keep_alive_s
            )
        )
        return ticket

    def preload(self, name: str, keep_alive_s: float | None = None) -> int:
        self.names[model_id(name)] = name
        ticket = self._new_ticket()
        self.send(
            events.PreloadRequested(
                ticket=ticket, model_id=model_id(name), name=name, keep_alive_s=keep_alive_s
            )
        )
        return ticket

    def release(self, ticket: int) -> tuple[effects.Effect, ...]:
        self.leases.pop(ticket, None)
        return self.send(events.LeaseReleased(ticket))

    def leave(self, ticket: int) -> tuple[effects.Effect, ...]:
        self.waiting.discard(ticket)
        self.leases.pop(ticket, None)
        return self.send(events.CallerLeft(ticket))

    def unload(self, *names: str) -> int:
        """Unload these models, or all without a name; returns the ticket."""
        ticket = self._new_ticket()
        self.send(events.UnloadRequested(ticket, tuple(model_id(name) for name in names) or None))
        return ticket

    def drain(self, grace_s: float = 0.0) -> int:
        ticket = self._new_ticket()
        self.drain_deadline_s = min(self.drain_deadline_s, self.now_s + grace_s)
        self.send(events.DrainRequested(ticket, grace_s))
        return ticket

    def size(self, name: str, footprint: int) -> tuple[effects.Effect, ...]:
        return self.size_load(self.load_id(name), footprint)

    def size_load(self, load_id: int, footprint: int) -> tuple[effects.Effect, ...]:
        del self.sizing[load_id]
        self.sized[load_id] = footprint
        return self.send(events.ModelSized(load_id, footprint))

    def fail_sizing(self, name: str, failure: events.Failure) -> tuple[effects.Effect, ...]:
        return self.send(events.SizingFailed(self.load_id(name), failure))

    def ready(self, name: str) -> tuple[effects.Effect, ...]:
        return self.ready_load(self.load_id(name))

    def ready_load(self, load_id: int) -> tuple[effects.Effect, ...]:
        """The worker says that it is ready; it may have been told to stop meanwhile."""
        if self.workers[load_id] is LOADING:
            self.workers[load_id] = READY
        return self.send(events.WorkerReady(load_id))

    def fail_load(self, name: str, failure: events.Failure) -> tuple[effects.Effect, ...]:
        return self.send(events.WorkerLoadFailed(self.load_id(name), failure))

    def fail_worker(self, name: str) -> tuple[effects.Effect, ...]:
        return self.fail_worker_of(self.load_id(name))

    def fail_worker_of(self, load_id: int) -> tuple[effects.Effect, ...]:
        """The worker serves nobody any more; leases of it are void."""
        self.workers[load_id] = STOPPING
        self._void(load_id)
        return self.send(events.WorkerFailing(load_id))

    def end(self, name: str) -> tuple[effects.Effect, ...]:
        """The process is gone, as it was told."""
        return self.end_load(self.load_id(name))

    def crash(
        self, name: str, cause: str = "signal SIGSEGV", jitter: float = 0.0
    ) -> tuple[effects.Effect, ...]:
        return self.end_load(self.load_id(name), cause=cause, is_crash=True, jitter=jitter)

    def end_load(
        self, load_id: int, *, cause: str = "stopped", is_crash: bool = False, jitter: float = 0.0
    ) -> tuple[effects.Effect, ...]:
        """The process is gone; leases of it are void."""
        del self.workers[load_id]
        del self.footprints[load_id]
        self._void(load_id)
        ended = events.WorkerEnded(load_id=load_id, cause=cause, is_crash=is_crash, jitter=jitter)
        return self.send(ended)

    def set_budget(self, budget: int) -> tuple[effects.Effect, ...]:
        self.budget = budget
        self.has_shrunk = self.reserved > budget
        return self.send(events.BudgetChanged(budget))

    def advance(self, seconds: float) -> tuple[effects.Effect, ...]:
        """Let time pass, with every timer going off on the way."""
        target_s, done = self.now_s + seconds, []
        while self.timer_s is not None and self.timer_s <= target_s:
            self.now_s, self.timer_s = max(self.now_s, self.timer_s), None
            done.extend(self.send(events.Ticked()))
        self.now_s = target_s
        return tuple(done)

    def load(self, name: str, footprint: int, keep_alive_s: float | None = None) -> int:
        """Bring a model into memory with one lease; returns the ticket of the lease."""
        ticket = self.want(name, keep_alive_s)
        self.size(name, footprint)
        self.ready(name)
        assert isinstance(self.answers[ticket], effects.GrantLease)
        return ticket

    def load_idle(self, name: str, footprint: int, keep_alive_s: float | None = None) -> None:
        self.release(self.load(name, footprint, keep_alive_s))

    # looks

    def view(self, name: str) -> InstanceView:
        return next(view for view in self.core.views() if view.name == name)

    def state(self, name: str) -> InstanceState:
        views = {view.name: view for view in self.core.views()}
        return views[name].state if name in views else InstanceState.UNLOADED

    def load_id(self, name: str) -> int:
        return self.view(name).load_id

    def refusal(self, ticket: int) -> effects.Refusal:
        answer = self.answers[ticket]
        assert isinstance(answer, effects.Refuse)
        return answer.refusal

    @property
    def reserved(self) -> int:
        return sum(self.footprints.values())

    # the shell's side

    def _void(self, load_id: int) -> None:
        self.leases = {ticket: held for ticket, held in self.leases.items() if held != load_id}

    def _new_ticket(self) -> int:
        ticket = next(self._tickets)
        self.waiting.add(ticket)
        return ticket

    def _carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.SizeModel(load_id, digest):
                assert load_id not in self.model_of, "a load id is used twice"
                self.model_of[load_id] = self.sizing[load_id] = digest
            case effects.StartWorker(load_id):
                self._start(load_id)
            case effects.StopWorker(load_id):
                assert self.workers[load_id] is not STOPPING, "stopped twice"
                is_leased = load_id in self.leases.values()
                assert self.drain_deadline_s <= self.now_s or not is_leased, "a leased model is a victim"
                self.workers[load_id] = STOPPING
            case effects.DropLoad(load_id):
                assert load_id not in self.workers
                assert (self.sizing.pop(load_id, None) is None) != (self.sized.pop(load_id, None) is None)
            case effects.ArmTimer(at_s):
                assert at_s is None or at_s > self.now_s, "a timer in the past"
                self.timer_s = at_s
            case _:
                self._take_answer(effect)

    def _start(self, load_id: int) -> None:
        self.footprints[load_id] = self.sized.pop(load_id)
        assert self.reserved <= self.budget, "started beyond the budget"
        running = [self.model_of[one] for one in self.workers]
        assert self.model_of[load_id] not in running, "one model, two workers"
        self.workers[load_id] = LOADING

    def _take_answer(self, answer: effects.Answer) -> None:
        assert answer.ticket in self.waiting, "answered twice, or after the caller left"
        self.waiting.discard(answer.ticket)
        self.answers[answer.ticket] = answer
        if isinstance(answer, effects.GrantLease | effects.ConfirmPreload):
            assert self.workers[answer.load_id] is READY, "granted what is not ready"
        if isinstance(answer, effects.GrantLease):
            self.leases[answer.ticket] = answer.load_id
            held = [load_id for load_id in self.leases.values() if load_id == answer.load_id]
            assert len(held) <= self.rules.leases_per_model, "more leases than there may be"

    def check(self) -> None:
        """What must hold after every event."""
        views = self.core.views()
        assert self.core.budget_bytes == self.budget
        assert self.core.reserved_bytes == self.reserved == sum(view.reserved_bytes for view in views)
        if self.reserved <= self.budget:
            self.has_shrunk = False
        assert self.reserved <= self.budget or self.has_shrunk, "reserved beyond a budget that did not shrink"
        assert self.core.open_tickets == self.waiting | set(self.leases)
        assert {view.load_id for view in views if view.state in HOLDING_MEMORY} == set(self.workers)
        for view in views:
            self._check_view(view)
        assert len(self.core.decisions()) <= self.rules.decisions_kept

    def _check_view(self, view: InstanceView) -> None:
        held = [ticket for ticket, load_id in self.leases.items() if load_id == view.load_id]
        assert view.leases == len(held)
        assert 0 <= view.waiting <= self.rules.waiters_per_model
        assert view.state is not InstanceState.UNLOADED, "an instance that is neither wanted nor in memory"
        if view.state in HOLDING_MEMORY:
            assert self.workers[view.load_id] is view.state
            assert view.reserved_bytes == self.footprints[view.load_id]
        else:
            assert view.waiting > 0, "work that nobody waits for"
        if view.state is LOADING:
            assert view.waiting > 0, "a load that nobody waits for"
        if view.state is READY and view.waiting:
            assert view.leases == self.rules.leases_per_model, "somebody waits beside a free lease"
        if view.expires_at_s is not None:
            assert self.timer_s is not None and self.timer_s <= view.expires_at_s < math.inf
