"""Callers who wait for processes to end: those who asked to unload models, and those who drain the daemon.

Owns their tickets; decides nothing about models. Imports domain values and effects. Read on in `core.py`.
"""

from __future__ import annotations

import math
from collections.abc import Container

import attrs

from runner.domain.status import UnloadReport
from runner.scheduling.effects import ReportDrained, ReportUnloaded


@attrs.define
class _Unload:
    awaited: set[int]
    report: UnloadReport


@attrs.define
class Unloads:
    """Each is answered when the processes it waits for are gone, whatever else is asked meanwhile."""

    _open: dict[int, _Unload] = attrs.field(factory=dict, init=False)

    def add(self, ticket: int, awaited: set[int], report: UnloadReport) -> None:
        """`awaited` are load ids."""
        self._open[ticket] = _Unload(awaited, report)

    def forget(self, ticket: int) -> None:
        """Its caller left; unknown tickets are ignored."""
        self._open.pop(ticket, None)

    def answers(self, running: Container[int]) -> list[ReportUnloaded]:
        """Those whose loads are all over, removed. `running` are the load ids that go on."""
        for unload in self._open.values():
            unload.awaited = {load_id for load_id in unload.awaited if load_id in running}
        done = [ticket for ticket, unload in self._open.items() if not unload.awaited]
        return [ReportUnloaded(ticket, self._open.pop(ticket).report) for ticket in done]

    @property
    def tickets(self) -> frozenset[int]:
        return frozenset(self._open)


@attrs.define
class Drain:
    """Begun once and never taken back. Models in use may be used until `deadline_s`."""

    deadline_s: float = math.inf
    has_begun: bool = False
    _tickets: list[int] = attrs.field(factory=list, init=False)

    def begin(self, ticket: int, deadline_s: float) -> None:
        """The earliest deadline counts."""
        self.has_begun = True
        self.deadline_s = min(self.deadline_s, deadline_s)
        self._tickets.append(ticket)

    def forget(self, ticket: int) -> None:
        """Its caller left, and the drain goes on; unknown tickets are ignored."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)

    def answers(self) -> list[ReportDrained]:
        """For everybody who waits; to be called when nothing runs any more."""
        done = [ReportDrained(ticket) for ticket in self._tickets]
        self._tickets.clear()
        return done

    @property
    def tickets(self) -> frozenset[int]:
        return frozenset(self._tickets)
