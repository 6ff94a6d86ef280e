"""What was decided and why: a bounded memory of frozen records, with the numbers that decided.

Imports digests only. Read on in `core.py`, which writes it.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping

import attrs

from runner.oci.digest import Digest


class Action(enum.Enum):
    LOAD = "load"
    READY = "ready"
    QUEUE = "queue"
    REFUSE = "refuse"
    EVICT = "evict"
    UNLOAD = "unload"
    CANCEL = "cancel"
    DELAY = "delay"
    CRASH = "crash"
    FAIL = "fail"


@attrs.frozen
class Decision:
    """One decision about one model. `numbers` carry their unit in the name; `at_s` is the core's clock."""

    at_s: float
    model_id: Digest
    model: str
    action: Action = attrs.field(kw_only=True)
    why: str = attrs.field(kw_only=True)
    numbers: Mapping[str, float] = attrs.field(factory=dict, kw_only=True)


@attrs.define
class DecisionLog:
    """The latest decisions, oldest first; older ones are forgotten."""

    limit: int
    _ring: deque[Decision] = attrs.field(init=False)
    _fresh: list[Decision] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._ring = deque(maxlen=self.limit)

    def __len__(self) -> int:
        return len(self._ring)

    def add(self, decision: Decision) -> None:
        self._ring.append(decision)
        self._fresh.append(decision)

    def take_fresh(self) -> tuple[Decision, ...]:
        """Those added since this was called last."""
        fresh = tuple(self._fresh)
        self._fresh.clear()
        return fresh

    def latest(self, model_id: Digest | None = None) -> tuple[Decision, ...]:
        """Decisions about one model, or about all; oldest first."""
        return tuple(decision for decision in self._ring if model_id in (None, decision.model_id))
