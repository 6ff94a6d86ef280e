"""Decisions and requests as they are told: the core's memory in values of `runner.domain.explained`.

Pure; times become seconds before the answer. Read on in `decisions.py` and `requests.py`, which remember.
"""

from __future__ import annotations

from collections.abc import Iterable

from runner.domain.explained import ToldDecision, ToldRequest, ToldWait, WhyReport
from runner.oci.digest import Digest
from runner.scheduling.decisions import Decision
from runner.scheduling.instances import InstanceTable
from runner.scheduling.lifecycle import InstanceState
from runner.scheduling.planning import NOT_LOADED
from runner.scheduling.requests import Outcome, RequestRecord, waited_in
from runner.scheduling.state import SchedulerState

DECISIONS_TOLD = 50
REQUESTS_TOLD = 20


def why_model(state: SchedulerState, model_id: Digest, name: str) -> WhyReport:
    """The latest decisions about a model, those about others that name it, and its latest requests."""
    instance = state.table.by_model.get(model_id)
    known = name if instance is None else instance.name
    decisions = [one for one in state.decisions.latest() if one.model_id == model_id or known in one.others]
    requests = state.requests.latest(model_id, REQUESTS_TOLD)
    return WhyReport(
        model=known,
        model_id=str(model_id),
        state=NOT_LOADED if instance is None else instance.state.value,
        decisions=_decisions(decisions[-DECISIONS_TOLD:], state.now_s),
        requests=tuple(_request(state, one) for one in requests),
    )


def why_request(state: SchedulerState, request_id: str) -> WhyReport | None:
    """What is known of requests with this id or label; None when that is nothing.

    Decisions are those about the model of the last one while it waited.
    """
    records = state.requests.of(request_id)
    if not records:
        return None
    last = records[-1]
    until_s = last.granted_at_s or last.ended_at_s or state.now_s
    decisions = [
        one
        for one in state.decisions.latest()
        if (one.model_id == last.model_id or last.model in one.others)
        and records[0].asked_at_s <= one.at_s <= until_s
    ]
    instance = state.table.by_model.get(last.model_id)
    return WhyReport(
        model=last.model,
        model_id=str(last.model_id),
        state=NOT_LOADED if instance is None else instance.state.value,
        decisions=_decisions(decisions[-DECISIONS_TOLD:], state.now_s),
        requests=tuple(_request(state, one) for one in records),
    )


def _decisions(decisions: Iterable[Decision], now_s: float) -> tuple[ToldDecision, ...]:
    return tuple(
        ToldDecision(
            ago_s=now_s - one.at_s,
            model=one.model,
            action=one.action.value,
            why=one.why,
            numbers=dict(one.numbers),
            others=one.others,
            times=one.times,
        )
        for one in decisions
    )


def _request(state: SchedulerState, record: RequestRecord) -> ToldRequest:
    waited_until_s = record.granted_at_s or record.ended_at_s or state.now_s
    waits = record.waits
    if record.outcome is Outcome.WAITING:
        waits = _waits_so_far(state.table, record, state.now_s)
    ran_s = None
    if record.granted_at_s is not None:
        ran_s = (state.now_s if record.ended_at_s is None else record.ended_at_s) - record.granted_at_s
    return ToldRequest(
        request_id=record.request_id,
        label=record.label,
        model=record.model,
        model_id=str(record.model_id),
        asked_ago_s=state.now_s - record.asked_at_s,
        outcome=record.outcome.value,
        ahead=record.ahead,
        waited_s=waited_until_s - record.asked_at_s,
        waits=tuple(ToldWait(state=one.value, waited_s=waited_s) for one, waited_s in waits),
        ran_s=ran_s,
        refusal=record.refusal,
    )


def _waits_so_far(
    table: InstanceTable, record: RequestRecord, now_s: float
) -> tuple[tuple[InstanceState, float], ...]:
    instance = table.by_model.get(record.model_id)
    return () if instance is None else waited_in(instance.history, record.asked_at_s, now_s)
