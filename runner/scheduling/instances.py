"""Models that are wanted, in memory or on their way out, and the table that finds them.

Owns the indexes (by model, by load, by ticket) and the sums over them; decides nothing. Imports digests and
its neighbours. Read on in `lifecycle.py` (states) and `core.py` (who writes all this).
"""

from __future__ import annotations

import math

import attrs

from runner.oci.digest import Digest
from runner.scheduling.eviction import Candidate, Demand
from runner.scheduling.ledger import Ledger
from runner.scheduling.lifecycle import InstanceState, Trigger, next_state
from runner.scheduling.queues import WaitingLine
from runner.scheduling.rules import SchedulingRules


@attrs.define(kw_only=True, eq=False)
class Instance:
    """One model. Owned by the core; nobody else writes it.

    `load_id` numbers the present attempt, from sizing to the end of the process, so that news of former ones
    can be told apart. `leases` maps tickets to the time they were granted. Times in seconds, core's clock.
    """

    model_id: Digest
    name: str
    line: WaitingLine
    leases_limit: int
    keep_alive_s: float
    state: InstanceState = InstanceState.UNLOADED
    since_s: float = 0.0
    load_id: int = 0
    footprint_bytes: int = 0
    leases: dict[int, float] = attrs.field(factory=dict)
    idle_since_s: float = 0.0
    cooled_at_s: float = 0.0
    is_queueing_noted: bool = False

    def move(self, trigger: Trigger, now_s: float) -> None:
        """Take the transition; raises IllegalTransition, after which nothing has changed."""
        self.state = next_state(self.state, trigger)
        self.since_s = now_s

    @property
    def is_wanted(self) -> bool:
        """Somebody waits for it or uses it."""
        return bool(self.leases) or len(self.line) > 0

    @property
    def is_idle(self) -> bool:
        """In memory and used by nobody: the only kind that may be evicted."""
        return self.state is InstanceState.READY and not self.is_wanted

    @property
    def has_free_lease(self) -> bool:
        return len(self.leases) < self.leases_limit

    @property
    def expires_at_s(self) -> float:
        """When it has been idle for its keep_alive; infinite while that is not counting."""
        return self.idle_since_s + self.keep_alive_s if self.is_idle else math.inf

    def deadline_s(self, room_wait_s: float) -> float:
        """When it needs a look even if nothing happens to it; infinite for never."""
        if self.state is InstanceState.COOLING:
            return self.cooled_at_s
        oldest_s = self.line.oldest_since_s()
        if self.state is InstanceState.QUEUED and oldest_s is not None:
            return oldest_s + room_wait_s
        return self.expires_at_s

    def __repr__(self) -> str:
        return (
            f"<Instance {self.name} {self.state.value}, {len(self.leases)} leased, {len(self.line)} waiting>"
        )


@attrs.frozen(kw_only=True)
class InstanceView:
    """What others may see of an instance at one moment.

    `expires_at_s` None: the time is not running, or never ends. Times in seconds of the core's clock.
    """

    model_id: Digest
    name: str
    state: InstanceState
    since_s: float
    load_id: int
    reserved_bytes: int
    leases: int
    waiting: int
    keep_alive_s: float
    expires_at_s: float | None


@attrs.define
class InstanceTable:
    """All instances, found by model, by the load id of an attempt that goes on, and by ticket.

    The tickets are those of callers who wait for the model or hold a lease of it.
    """

    ledger: Ledger
    by_model: dict[Digest, Instance] = attrs.field(factory=dict, init=False)
    by_load: dict[int, Instance] = attrs.field(factory=dict, init=False)
    by_ticket: dict[int, Instance] = attrs.field(factory=dict, init=False)

    def obtain(self, model_id: Digest, name: str, rules: SchedulingRules) -> Instance:
        """The instance of this model, new and unloaded when there was none."""
        instance = self.by_model.get(model_id)
        if instance is None:
            instance = self.by_model[model_id] = Instance(
                model_id=model_id,
                name=name,
                line=WaitingLine(rules.waiters_per_model),
                leases_limit=rules.leases_per_model,
                keep_alive_s=rules.default_keep_alive_s,
            )
        return instance

    def in_state(self, state: InstanceState) -> list[Instance]:
        return [instance for instance in self.by_model.values() if instance.state is state]

    def idle(self) -> list[Instance]:
        return [instance for instance in self.by_model.values() if instance.is_idle]

    def demands(self, now_s: float) -> list[Demand]:
        """Loads that wait for room, in the order of their beginning."""
        queued = sorted(self.in_state(InstanceState.QUEUED), key=lambda instance: instance.load_id)
        return [
            Demand(load_id=one.load_id, needed_bytes=one.footprint_bytes, waited_s=now_s - one.since_s)
            for one in queued
        ]

    def candidates(self) -> list[Candidate]:
        """Models that may be evicted."""
        return [
            Candidate(load_id=one.load_id, size_bytes=one.footprint_bytes, idle_since_s=one.idle_since_s)
            for one in self.idle()
        ]

    def leaving_bytes(self) -> int:
        """Held by processes that were told to end."""
        return sum(one.footprint_bytes for one in self.in_state(InstanceState.STOPPING))

    def in_use_bytes(self) -> int:
        """Reserved by models that may not be evicted."""
        return self.ledger.reserved_bytes - sum(one.footprint_bytes for one in self.idle())

    def next_deadline_s(self, room_wait_s: float) -> float:
        """When the first instance needs a look; infinite for never."""
        return min((one.deadline_s(room_wait_s) for one in self.by_model.values()), default=math.inf)

    def views(self) -> tuple[InstanceView, ...]:
        """All instances at this moment, in the order they were first wanted."""
        return tuple(self._view(instance) for instance in self.by_model.values())

    def _view(self, instance: Instance) -> InstanceView:
        expires_at_s = instance.expires_at_s
        return InstanceView(
            model_id=instance.model_id,
            name=instance.name,
            state=instance.state,
            since_s=instance.since_s,
            load_id=instance.load_id,
            reserved_bytes=self.ledger.of(instance.load_id),
            leases=len(instance.leases),
            waiting=len(instance.line),
            keep_alive_s=instance.keep_alive_s,
            expires_at_s=expires_at_s if expires_at_s < math.inf else None,
        )
