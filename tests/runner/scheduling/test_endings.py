"""Callers who wait for processes to end are answered when these are gone."""

from __future__ import annotations

from runner.domain.status import UnloadReport
from runner.scheduling.effects import ReportDrained, ReportUnloaded
from runner.scheduling.endings import Drain, Unloads

REPORT = UnloadReport(unloaded=("a",), in_use=())


def test_an_unload_is_answered_once_when_all_its_processes_are_gone() -> None:
    unloads = Unloads()
    unloads.add(1, {10, 11}, REPORT)
    assert unloads.answers({10, 11}) == []
    assert unloads.answers({11, 12}) == []
    assert unloads.answers({10, 12}) == [ReportUnloaded(1, REPORT)]
    assert unloads.answers(set()) == []


def test_a_caller_who_left_is_not_answered() -> None:
    unloads, drain = Unloads(), Drain()
    unloads.add(1, set(), REPORT)
    unloads.forget(1)
    drain.begin(2, 30.0)
    drain.forget(2)
    assert unloads.answers(set()) == [] and drain.answers() == []
    assert unloads.tickets == drain.tickets == frozenset()


def test_a_drain_goes_on_for_ever_and_its_earliest_deadline_counts() -> None:
    drain = Drain()
    for ticket, deadline_s in ((1, 30.0), (2, 10.0), (3, 20.0)):
        drain.begin(ticket, deadline_s)
    assert drain.deadline_s == 10.0
    assert drain.answers() == [ReportDrained(1), ReportDrained(2), ReportDrained(3)]
    assert drain.answers() == []
    assert drain.has_begun
