"""What was decided and why: a bounded memory of frozen records, with the numbers that decided.

Imports digests and amounts. Read on in `state.py`, through which everybody writes it, and in `requests.py`
for what became of single requests.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Mapping

import attrs

from runner.domain.device_bytes import HOST_MEMORY, DeviceBytes
from runner.oci.digest import Digest


class Action(enum.Enum):
    LOAD = "load"
    READY = "ready"
    QUEUE = "queue"
    REFUSE = "refuse"
    EVICT = "evict"
    YIELD = "yield"
    RESUME = "resume"
    RELOAD = "reload"
    UNLOAD = "unload"
    CANCEL = "cancel"
    DELAY = "delay"
    CRASH = "crash"
    FAIL = "fail"


@attrs.frozen
class Decision:
    """One decision about one model. `numbers` carry their unit in the name; `at_s` is the core's clock.

    `others` are the names of models that it was weighed against. `times` counts how often the same was
    decided in a row, the last time at `at_s`.
    """

    at_s: float
    model_id: Digest
    model: str
    action: Action = attrs.field(kw_only=True)
    why: str = attrs.field(kw_only=True)
    numbers: Mapping[str, float] = attrs.field(factory=dict, kw_only=True)
    others: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    times: int = attrs.field(default=1, kw_only=True)


@attrs.define
class DecisionLog:
    """The latest decisions, oldest first; older ones are forgotten.

    A refusal like the last decision about its model only counts that one up, so that a flood of requests does
    not wash out what led to it. It is fresh again at each power of two.
    """

    limit: int
    _kept: OrderedDict[int, Decision] = attrs.field(factory=OrderedDict, init=False)
    _last_of: dict[Digest, int] = attrs.field(factory=dict, init=False)
    _next_number: int = attrs.field(default=0, init=False)
    _fresh: list[Decision] = attrs.field(factory=list, init=False)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, decision: Decision) -> None:
        last_number = self._last_of.get(decision.model_id)
        last = self._kept.get(last_number) if last_number is not None else None
        if last_number is not None and last is not None and _is_repetition(last, decision):
            decision = attrs.evolve(decision, times=last.times + 1)
            del self._kept[last_number]
        self._keep(decision)
        if decision.times & (decision.times - 1) == 0:
            self._fresh.append(decision)

    def take_fresh(self) -> tuple[Decision, ...]:
        """Those added since this was called last."""
        fresh = tuple(self._fresh)
        self._fresh.clear()
        return fresh

    def latest(self, model_id: Digest | None = None) -> tuple[Decision, ...]:
        """Decisions about one model, or about all; oldest first."""
        return tuple(one for one in self._kept.values() if model_id in (None, one.model_id))

    def _keep(self, decision: Decision) -> None:
        self._kept[self._next_number] = decision
        self._last_of[decision.model_id] = self._next_number
        self._next_number += 1
        if len(self._kept) > self.limit:
            number, forgotten = self._kept.popitem(last=False)
            if self._last_of.get(forgotten.model_id) == number:
                del self._last_of[forgotten.model_id]


def _is_repetition(last: Decision, decision: Decision) -> bool:
    return decision.action is Action.REFUSE and last.action is Action.REFUSE and last.why == decision.why


def amounts(name: str, size: DeviceBytes) -> dict[str, float]:
    """`{name: bytes}` for host memory; where GPUs are among the devices, one number for each."""
    if all(device == HOST_MEMORY for device in size.devices):
        return {name: size[HOST_MEMORY]}
    return {f"{name}_{device}": amount for device, amount in size.as_dict().items()}
