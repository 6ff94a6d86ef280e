"""Models that are wanted, in memory or on their way out, and the table that finds them.

Owns the indexes (by model, by load, by ticket) and the sums over them; decides nothing. Imports digests and
its neighbours. Read on in `lifecycle.py` (states) and `core.py` (who writes all this).
"""

from __future__ import annotations

import math
from collections import deque
from functools import reduce
from operator import add

import attrs

from runner.domain.device_bytes import DeviceBytes
from runner.oci.digest import Digest
from runner.scheduling.ledger import Ledger
from runner.scheduling.lifecycle import SERVING, InstanceState, Trigger, next_state
from runner.scheduling.queues import Waiter, WaitingLine
from runner.scheduling.rules import SchedulingRules

HISTORY_KEPT = 32
"""States that an instance remembers; a wait across more of them is told from the oldest one kept."""


@attrs.define(kw_only=True, eq=False)
class Attempt:
    """One attempt to have a model in memory, from sizing to the end of its process.

    `asked_context_size` is what sizing was asked for, 0 for the default; `context_size` what it gave, 0 while
    it is not done.
    """

    load_id: int
    asked_context_size: int = 0
    context_size: int = 0
    footprint: DeviceBytes = attrs.field(factory=DeviceBytes)

    @property
    def is_sized(self) -> bool:
        return self.context_size > 0


@attrs.define(kw_only=True, eq=False)
class Instance:
    """One model, or the annex of one. Owned by the core; nobody else writes it.

    An annex is memory that the worker of a model (`owner_id`) takes beside its load, for some requests only:
    its context for embeddings. It is sized, reserved, leased and evicted as a model is.

    `attempt` is the present one. `growth` is the next one, sized while this one still serves, for those who
    need a larger context. `leases` map tickets to the time they were granted. `away_since_s` is when it last
    ceased to be ready: what its requests waited before that, they waited for each other and not for room.
    Times in seconds, core's clock.
    """

    model_id: Digest
    name: str
    line: WaitingLine
    leases_limit: int
    waiters_limit: int
    keep_alive_s: float
    owner_id: Digest | None = None
    is_pinned: bool = False
    state: InstanceState = InstanceState.UNLOADED
    since_s: float = 0.0
    attempt: Attempt = attrs.field(factory=lambda: Attempt(load_id=0))
    growth: Attempt | None = None
    leases: dict[int, float] = attrs.field(factory=dict)
    ready_since_s: float = 0.0
    idle_since_s: float = 0.0
    cooled_at_s: float = 0.0
    away_since_s: float = -math.inf
    noted_wait: str = ""
    history: deque[tuple[InstanceState, float]] = attrs.field(factory=lambda: deque(maxlen=HISTORY_KEPT))

    def move(self, trigger: Trigger, now_s: float) -> None:
        """Take the transition; raises IllegalTransition, after which nothing has changed."""
        former, self.state = self.state, next_state(self.state, trigger)
        self.since_s = now_s
        if former is InstanceState.READY:
            self.away_since_s = now_s
        self.history.append((self.state, now_s))

    @property
    def load_id(self) -> int:
        return self.attempt.load_id

    @property
    def footprint(self) -> DeviceBytes:
        return self.attempt.footprint

    @property
    def context_size(self) -> int:
        return self.attempt.context_size

    @property
    def is_wanted(self) -> bool:
        """Somebody waits for it or uses it."""
        return bool(self.leases) or len(self.line) > 0

    @property
    def is_idle(self) -> bool:
        """In memory, used by nobody and waited for by nobody."""
        return self.state is InstanceState.READY and not self.is_wanted

    @property
    def has_free_lease(self) -> bool:
        return len(self.leases) < self.leases_limit

    @property
    def is_full(self) -> bool:
        """As many callers wait or use it as may: places in use and places in line together."""
        return len(self.leases) + len(self.line) >= self.leases_limit + self.waiters_limit

    def suffices(self, waiter: Waiter) -> bool:
        return waiter.context_size <= self.context_size

    @property
    def expires_at_s(self) -> float:
        """When it has been idle for its keep_alive; infinite while that is not counting."""
        if not self.is_idle or self.is_pinned:
            return math.inf
        return self.idle_since_s + self.keep_alive_s

    @property
    def waits_for_room(self) -> tuple[float, int] | None:
        """Since when the first waits whom only room can help, with a load or a larger one, and how many do;
        None for nobody."""
        match self.state:
            case InstanceState.QUEUED | InstanceState.YIELDING:
                least = -1
            case InstanceState.READY:
                least = self.context_size
            case _:
                return None
        since_s = self.line.oldest_since_s(needing_more_than=least)
        if since_s is None:
            return None
        if self.state is not InstanceState.READY:
            since_s = max(since_s, self.away_since_s)
        return since_s, self.line.count(needing_more_than=least)

    def room_wait_s(self, rules: SchedulingRules) -> float:
        """How long a request waits for others to make room."""
        if self.owner_id is None:
            return rules.room_wait_s
        return min(rules.annex_wait_s, rules.room_wait_s)

    def deadline_s(self, rules: SchedulingRules) -> float:
        """When it needs a look even if nothing happens to it; infinite for never."""
        if self.state is InstanceState.COOLING:
            return self.cooled_at_s
        if self.waits_for_room is not None:
            return self.waits_for_room[0] + self.room_wait_s(rules)
        return self.expires_at_s

    def __repr__(self) -> str:
        return (
            f"<Instance {self.name} {self.state.value}, {len(self.leases)} leased, {len(self.line)} waiting>"
        )


@attrs.frozen(kw_only=True)
class InstanceView:
    """What others may see of an instance at one moment.

    `expires_at_s` None: the time is not running, or never ends. Times in seconds of the core's clock.
    `owner_id`: it is the annex of that model.
    """

    model_id: Digest
    name: str
    state: InstanceState
    since_s: float
    load_id: int
    context_size: int
    reserved: DeviceBytes
    leases: int
    waiting: int
    keep_alive_s: float
    is_pinned: bool
    expires_at_s: float | None
    owner_id: Digest | None = None


@attrs.define
class InstanceTable:
    """All instances, found by model, by the load id of an attempt that goes on, and by ticket.

    The tickets are those of callers who wait for the model or hold a lease of it.
    """

    ledger: Ledger
    by_model: dict[Digest, Instance] = attrs.field(factory=dict, init=False)
    by_load: dict[int, Instance] = attrs.field(factory=dict, init=False)
    by_ticket: dict[int, Instance] = attrs.field(factory=dict, init=False)

    def obtain(
        self, model_id: Digest, name: str, rules: SchedulingRules, *, owner_id: Digest | None = None
    ) -> Instance:
        """The instance of this model or annex, new and unloaded when there was none."""
        instance = self.by_model.get(model_id)
        if instance is None:
            instance = self.by_model[model_id] = Instance(
                model_id=model_id,
                name=name,
                line=WaitingLine(),
                leases_limit=rules.leases_per_model,
                waiters_limit=rules.waiters_per_model,
                keep_alive_s=rules.default_keep_alive_s,
                owner_id=owner_id,
            )
        return instance

    def in_state(self, *states: InstanceState) -> list[Instance]:
        return [instance for instance in self.by_model.values() if instance.state in states]

    def serving(self) -> list[Instance]:
        return [instance for instance in self.by_model.values() if instance.state in SERVING]

    def owner_of(self, annex: Instance) -> Instance | None:
        """None of a model, and while its owner is not there."""
        return None if annex.owner_id is None else self.by_model.get(annex.owner_id)

    def idle(self) -> list[Instance]:
        return [instance for instance in self.by_model.values() if instance.is_idle]

    def leaving(self) -> DeviceBytes:
        """Held by processes that were told to end."""
        return total(self.in_state(InstanceState.STOPPING))

    def in_use(self) -> DeviceBytes:
        """Reserved by models that may not be evicted now."""
        return self.ledger.reserved - total([one for one in self.idle() if not one.is_pinned])

    def pinned(self) -> list[Instance]:
        """Models in memory that make room only by command."""
        return [one for one in self.serving() if one.is_pinned]

    def next_deadline_s(self, rules: SchedulingRules) -> float:
        """When the first instance needs a look; infinite for never."""
        return min((one.deadline_s(rules) for one in self.by_model.values()), default=math.inf)

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
            context_size=instance.context_size,
            reserved=self.ledger.of(instance.load_id),
            leases=len(instance.leases),
            waiting=len(instance.line),
            keep_alive_s=instance.keep_alive_s,
            is_pinned=instance.is_pinned,
            expires_at_s=expires_at_s if expires_at_s < math.inf else None,
            owner_id=instance.owner_id,
        )


def total(instances: list[Instance]) -> DeviceBytes:
    """What these hold together."""
    return reduce(add, (one.footprint for one in instances), DeviceBytes())
