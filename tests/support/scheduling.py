"""A world for the scheduler's core: it plays the shell, the workers and the callers.

It objects to every effect that a sound scheduler must not ask for, and checks what must hold after every
event.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from runner.domain.device_bytes import DeviceBytes
from runner.domain.quarantine import FailedLoads
from runner.oci.digest import Digest
from runner.scheduling import effects, events
from runner.scheduling.core import SchedulerCore
from runner.scheduling.instances import InstanceView
from runner.scheduling.lifecycle import HOLDING_MEMORY, InstanceState
from runner.scheduling.rules import SchedulingRules

LOADING, READY, YIELDING, STOPPING = (
    InstanceState.LOADING,
    InstanceState.READY,
    InstanceState.YIELDING,
    InstanceState.STOPPING,
)
CONTEXT_SIZE = 1000
"""What a load of the world gets when nobody asks for more."""


def model_id(name: str) -> Digest:
    return Digest.of(name.encode())


def on_host(size: int | DeviceBytes) -> DeviceBytes:
    return DeviceBytes.on_host(size) if isinstance(size, int) else size


_NO_SWAPS = {"min_residency_s": math.inf, "linger_s": 0.0}


class World:
    """Plain numbers for budget and footprints are bytes of host memory. Time stands still unless a test moves
    it. Idle models may go at once, and models in use give way to nobody, unless a test sets these rules."""

    def __init__(self, budget: int | DeviceBytes = 100, **rules: Any) -> None:
        self.rules = SchedulingRules(**{**_NO_SWAPS, **rules})
        self.core = SchedulerCore(self.rules, budget=on_host(budget))
        self.now_s = 1000.0
        self.budget = self.ceiling = on_host(budget)
        self.timer_s: float | None = None
        self.kept: tuple[FailedLoads, ...] = ()
        self.names: dict[Digest, str] = {}
        self.answers: dict[int, effects.Answer] = {}
        self.waiting: set[int] = set()
        self.leases: dict[int, int] = {}
        self.sizing: dict[int, Digest] = {}
        self.asked: dict[int, int] = {}
        self.sized: dict[int, DeviceBytes] = {}
        self.workers: dict[int, InstanceState] = {}
        self.contexts: dict[int, int] = {}
        self.footprints: dict[int, DeviceBytes] = {}
        self.pinned: set[Digest] = set()
        self.wanted: dict[int, Digest] = {}
        self.needs: dict[int, int] = {}
        self.pins: dict[int, bool | None] = {}
        self.model_of: dict[int, Digest] = {}
        self.drain_deadline_s = math.inf
        self.has_shrunk = False
        self.is_commanded = False
        self._tickets = itertools.count(1)

    # events

    def send(self, event: events.Event) -> tuple[effects.Effect, ...]:
        done = self.core.handle(event, self.now_s)
        for effect in done:
            self._carry_out(effect)
        self.check()
        return done

    def want(self, name: str, keep_alive_s: float | None = None, **wish: Any) -> int:
        """A request for a lease; returns its ticket."""
        return self._ask(events.LeaseRequested, name, {"keep_alive_s": keep_alive_s, **wish})

    def want_annex(self, name: str, keep_alive_s: float | None = None) -> int:
        """What this model takes beside its load is known as `name` with a plus."""
        return self.want(f"{name}+", keep_alive_s, owner_id=model_id(name))

    def preload(self, name: str, keep_alive_s: float | None = None, **wish: Any) -> int:
        return self._ask(events.PreloadRequested, name, {"keep_alive_s": keep_alive_s, **wish})

    def _ask(
        self,
        kind: type[events.LeaseRequested] | type[events.PreloadRequested],
        name: str,
        wish: dict[str, Any],
    ) -> int:
        self.names[model_id(name)] = name
        ticket = self._new_ticket()
        self.wanted[ticket] = model_id(name)
        self.needs[ticket] = wish.get("context_size", 0)
        self.pins[ticket] = wish.get("pin")
        self.send(kind(ticket=ticket, model_id=model_id(name), name=name, **wish))
        return ticket

    def release(self, ticket: int) -> tuple[effects.Effect, ...]:
        self.leases.pop(ticket, None)
        return self.send(events.LeaseReleased(ticket))

    def leave(self, ticket: int) -> tuple[effects.Effect, ...]:
        self.waiting.discard(ticket)
        self.leases.pop(ticket, None)
        return self.send(events.CallerLeft(ticket))

    def unquarantine(self, name: str) -> int:
        ticket = self._new_ticket()
        self.send(events.UnquarantineRequested(ticket=ticket, model_id=model_id(name)))
        return ticket

    def unload(self, *names: str) -> int:
        """Unload these models, or all without a name; returns the ticket."""
        ticket = self._new_ticket()
        self.is_commanded = True
        self.send(events.UnloadRequested(ticket, tuple(model_id(name) for name in names) or None))
        self.is_commanded = False
        return ticket

    def drain(self, grace_s: float = 0.0) -> int:
        ticket = self._new_ticket()
        self.drain_deadline_s = min(self.drain_deadline_s, self.now_s + grace_s)
        self.send(events.DrainRequested(ticket, grace_s))
        return ticket

    def size(
        self, name: str, footprint: int | DeviceBytes, context_size: int | None = None
    ) -> tuple[effects.Effect, ...]:
        """The latest attempt of this model, which may be the next, larger one, is sized."""
        load_id = max(one for one, digest in self.sizing.items() if digest == model_id(name))
        return self.size_load(load_id, footprint, context_size)

    def size_load(
        self, load_id: int, footprint: int | DeviceBytes, context_size: int | None = None
    ) -> tuple[effects.Effect, ...]:
        """With the context that was asked for, unless another one is given."""
        del self.sizing[load_id]
        self.sized[load_id] = on_host(footprint)
        given = self.asked[load_id] or CONTEXT_SIZE if context_size is None else context_size
        self.contexts[load_id] = given
        return self.send(events.ModelSized(load_id, on_host(footprint), given))

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
        """Its worker dies by itself, whatever it is doing."""
        load_id = self.load_id(name)
        return self.end_load(
            load_id,
            cause=cause,
            is_crash=True,
            is_load_crash=self.workers[load_id] is LOADING,
            jitter=jitter,
        )

    def end_load(
        self,
        load_id: int,
        *,
        cause: str = "stopped",
        is_crash: bool = False,
        is_load_crash: bool = False,
        jitter: float = 0.0,
    ) -> tuple[effects.Effect, ...]:
        """The process is gone; leases of it are void."""
        del self.workers[load_id]
        del self.footprints[load_id]
        self._void(load_id)
        ended = events.WorkerEnded(
            load_id=load_id, cause=cause, is_crash=is_crash, is_load_crash=is_load_crash, jitter=jitter
        )
        return self.send(ended)

    def set_budget(
        self, budget: int | DeviceBytes, ceiling: int | DeviceBytes | None = None
    ) -> tuple[effects.Effect, ...]:
        self.budget = on_host(budget)
        self.ceiling = self.budget if ceiling is None else on_host(ceiling)
        self.has_shrunk = not self.is_within_budget
        return self.send(events.BudgetChanged(self.budget, None if ceiling is None else self.ceiling))

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
    def reserved(self) -> DeviceBytes:
        return sum(self.footprints.values(), DeviceBytes())

    @property
    def is_within_budget(self) -> bool:
        return not (self.reserved - self.budget).positive()

    def waiting_for(self, digest: Digest) -> list[int]:
        return [ticket for ticket in self.waiting if self.wanted.get(ticket) == digest]

    # the shell's side

    def _note_pin(self, answer: effects.GrantLease | effects.ConfirmPreload) -> None:
        pin, digest = self.pins[answer.ticket], self.model_of[answer.load_id]
        if pin is not None:
            (self.pinned.add if pin else self.pinned.discard)(digest)

    def _check_pin(self, load_id: int) -> None:
        """Only a command, a drain, or a larger context for itself may stop a pinned model."""
        digest = self.model_of[load_id]
        if digest in self.pinned and self.workers[load_id] is READY:
            is_growing = any(
                self.model_of[one] == digest
                for one in self.sized
                if self.contexts[one] > self.contexts[load_id]
            )
            assert self.is_commanded or self.core.is_draining or is_growing, "a pinned model is a victim"

    def _void(self, load_id: int) -> None:
        self.leases = {ticket: held for ticket, held in self.leases.items() if held != load_id}

    def _new_ticket(self) -> int:
        ticket = next(self._tickets)
        self.waiting.add(ticket)
        return ticket

    def _carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.SizeModel(load_id, digest, context_size):
                assert load_id not in self.model_of, "a load id is used twice"
                self.model_of[load_id] = self.sizing[load_id] = digest
                self.asked[load_id] = context_size
            case effects.StartWorker(load_id):
                self._start(load_id)
            case effects.StopWorker(load_id):
                assert self.workers[load_id] is not STOPPING, "stopped twice"
                is_leased = load_id in self.leases.values()
                assert self.drain_deadline_s <= self.now_s or not is_leased, "a leased model is a victim"
                self._check_pin(load_id)
                self.workers[load_id] = STOPPING
            case effects.DropLoad(load_id):
                assert load_id not in self.workers
                assert (self.sizing.pop(load_id, None) is None) != (self.sized.pop(load_id, None) is None)
            case effects.KeepQuarantine(records):
                assert records != self.kept, "written down without need"
                self.kept = records
            case effects.ArmTimer(at_s):
                assert at_s is None or at_s >= self.now_s, "a timer in the past"
                self.timer_s = at_s
            case _:
                self._take_answer(effect)

    def _start(self, load_id: int) -> None:
        self.footprints[load_id] = self.sized.pop(load_id)
        beyond = (self.reserved - self.budget).positive()
        assert not any(self.footprints[load_id][device] for device in beyond.devices), "beyond the budget"
        running = [self.model_of[one] for one in self.workers]
        assert self.model_of[load_id] not in running, "one model, two workers"
        self.workers[load_id] = LOADING

    def _take_answer(self, answer: effects.Answer) -> None:
        assert answer.ticket in self.waiting, "answered twice, or after the caller left"
        self.waiting.discard(answer.ticket)
        self.answers[answer.ticket] = answer
        if isinstance(answer, effects.GrantLease | effects.ConfirmPreload):
            assert self.workers[answer.load_id] is READY, "granted what is not ready"
            assert self.contexts[answer.load_id] >= self.needs[answer.ticket], "granted what is too small"
            self._note_pin(answer)
        if isinstance(answer, effects.GrantLease):
            self.leases[answer.ticket] = answer.load_id
            held = [load_id for load_id in self.leases.values() if load_id == answer.load_id]
            assert len(held) <= self.rules.leases_per_model, "more leases than there may be"

    def check(self) -> None:
        """What must hold after every event."""
        views = self.core.views()
        self.pinned &= {view.model_id for view in views}
        assert self.core.budget == self.budget
        assert self.core.reserved == self.reserved == sum((view.reserved for view in views), DeviceBytes())
        if self.is_within_budget:
            self.has_shrunk = False
        assert self.is_within_budget or self.has_shrunk, "reserved beyond a budget that did not shrink"
        self._check_pressure(views)
        assert self.core.open_tickets == self.waiting | set(self.leases)
        assert {view.load_id for view in views if view.state in HOLDING_MEMORY} == set(self.workers)
        for view in views:
            self._check_view(view, views)
        assert len(self.core.decisions()) <= self.rules.decisions_kept

    def _check_pressure(self, views: tuple[InstanceView, ...]) -> None:
        """Above the ceiling no model stays idle that would help, unless it is pinned."""
        leaving = sum((view.reserved for view in views if view.state is STOPPING), DeviceBytes())
        over = (self.reserved - leaving - self.ceiling).positive()
        for view in views:
            is_idle = view.state is READY and not view.leases and not view.waiting and not view.is_pinned
            assert not (is_idle and any(view.reserved[device] for device in over.devices)), "idle, no room"

    def _check_view(self, view: InstanceView, views: tuple[InstanceView, ...]) -> None:
        held = [ticket for ticket, load_id in self.leases.items() if load_id == view.load_id]
        assert view.leases == len(held)
        assert view.waiting >= 0
        assert view.waiting <= self.rules.waiters_per_model + self.rules.leases_per_model
        assert view.state is not InstanceState.UNLOADED, "an instance that is neither wanted nor in memory"
        if view.state in HOLDING_MEMORY:
            assert self.workers[view.load_id] is (READY if view.state is YIELDING else view.state)
            assert view.reserved == self.footprints[view.load_id]
            assert view.is_pinned == (view.model_id in self.pinned)
        else:
            assert view.waiting > 0, "work that nobody waits for"
        if view.state is LOADING:
            assert view.waiting > 0, "a load that nobody waits for"
        if view.state is YIELDING:
            assert len(views) > 1 or view.waiting, "it gives way to nobody"
        if view.state is READY and view.waiting and view.leases < self.rules.leases_per_model:
            needs = [self.needs[one] for one in self.waiting_for(view.model_id)]
            assert min(needs) > view.context_size, "somebody waits beside a free lease"
        if view.expires_at_s is not None:
            assert self.timer_s is not None and self.timer_s <= view.expires_at_s < math.inf
