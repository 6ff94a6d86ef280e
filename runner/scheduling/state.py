"""Everything that the scheduler's core owns, and the notes that its parts leave: effects and decisions.

The parts are `callers.py` (who waits, who is granted what), `loads.py` (the steps of a load) and
`room_making.py` (who goes); `core.py` joins them. They share this one object and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import attrs

from runner.domain.device_bytes import DeviceBytes
from runner.scheduling.decisions import Action, Decision, DecisionLog
from runner.scheduling.effects import Effect
from runner.scheduling.endings import Drain, Unloads
from runner.scheduling.instances import Instance, InstanceTable
from runner.scheduling.ledger import Ledger
from runner.scheduling.pace import Pace
from runner.scheduling.protection import Protection
from runner.scheduling.requests import RequestLog
from runner.scheduling.rules import SchedulingRules

_NO_NUMBERS: Mapping[str, float] = MappingProxyType({})


@attrs.define
class SchedulerState:
    """One run of the scheduler.

    `ceiling`: above it idle models have to go. `look_at_s`: when the passing of time alone may change who
    makes room.
    """

    rules: SchedulingRules
    ledger: Ledger
    ceiling: DeviceBytes
    protection: Protection
    table: InstanceTable = attrs.field(init=False)
    unloads: Unloads = attrs.field(factory=Unloads, init=False)
    drain: Drain = attrs.field(factory=Drain, init=False)
    pace: Pace = attrs.field(factory=Pace, init=False)
    decisions: DecisionLog = attrs.field(init=False)
    requests: RequestLog = attrs.field(init=False)
    now_s: float = attrs.field(default=-math.inf, init=False)
    look_at_s: float = attrs.field(default=math.inf, init=False)
    _next_load_id: int = attrs.field(default=1, init=False)
    _effects: list[Effect] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.table = InstanceTable(self.ledger)
        self.decisions = DecisionLog(self.rules.decisions_kept)
        self.requests = RequestLog(self.rules.requests_kept)

    def do(self, *asked: Effect) -> None:
        """Ask the shell for these, in this order."""
        self._effects.extend(asked)

    def take_effects(self) -> tuple[Effect, ...]:
        done, self._effects = self._effects, []
        return tuple(done)

    def new_load_id(self) -> int:
        load_id = self._next_load_id
        self._next_load_id += 1
        return load_id

    def note(
        self,
        instance: Instance,
        action: Action,
        why: str,
        numbers: Mapping[str, float] = _NO_NUMBERS,
        *,
        others: tuple[str, ...] = (),
    ) -> None:
        """Remember a decision about this model, with the numbers and the other models that decided."""
        decision = Decision(
            self.now_s,
            instance.model_id,
            instance.name,
            action=action,
            why=why,
            numbers=numbers,
            others=others,
        )
        self.decisions.add(decision)
