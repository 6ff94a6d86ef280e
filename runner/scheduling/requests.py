"""What became of single requests: when each asked, what it waited for, what it was given. Bounded.

Callers that name themselves (`request_id`) are remembered, others are not. Imports digests and states. Read
on in `callers.py`, which writes it.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterable

import attrs

from runner.oci.digest import Digest
from runner.scheduling.lifecycle import InstanceState


class Outcome(enum.Enum):
    """Where a request stands with the scheduler; the values are for people."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    REFUSED = "refused"
    LEFT = "left"


@attrs.frozen(kw_only=True)
class RequestRecord:
    """One request. Times in seconds of the core's clock.

    `ahead` is how many waited for the model before it. `waits` pairs states of the model with the seconds
    that the request waited in each. `refusal` is the reason it was refused for. `label` is what the client
    calls the request; several may have the same one.
    """

    request_id: str
    model_id: Digest
    model: str
    asked_at_s: float
    ahead: int
    outcome: Outcome = Outcome.WAITING
    waits: tuple[tuple[InstanceState, float], ...] = ()
    granted_at_s: float | None = None
    ended_at_s: float | None = None
    refusal: str | None = None
    label: str | None = None


@attrs.define
class RequestLog:
    """The latest requests by ticket; one request may ask twice, when a worker died under it."""

    limit: int
    _records: OrderedDict[int, RequestRecord] = attrs.field(factory=OrderedDict, init=False)

    def __len__(self) -> int:
        return len(self._records)

    def asked(self, ticket: int, record: RequestRecord) -> None:
        self._records[ticket] = record
        if len(self._records) > self.limit:
            self._records.popitem(last=False)

    def granted(self, ticket: int, now_s: float, history: Iterable[tuple[InstanceState, float]]) -> None:
        record = self._records.get(ticket)
        if record is not None:
            waits = waited_in(history, record.asked_at_s, now_s)
            self._records[ticket] = attrs.evolve(
                record, outcome=Outcome.RUNNING, granted_at_s=now_s, waits=waits
            )

    def refused(
        self, ticket: int, now_s: float, why: str, history: Iterable[tuple[InstanceState, float]] = ()
    ) -> None:
        record = self._records.get(ticket)
        if record is not None:
            waits = waited_in(history, record.asked_at_s, now_s)
            self._records[ticket] = attrs.evolve(
                record, outcome=Outcome.REFUSED, ended_at_s=now_s, refusal=why, waits=waits
            )

    def left(self, ticket: int, now_s: float) -> None:
        """The caller went while it waited."""
        self._end(ticket, Outcome.LEFT, now_s)

    def ended(self, ticket: int, now_s: float) -> None:
        """The lease was released, or ended with its worker."""
        self._end(ticket, Outcome.ENDED, now_s)

    def of(self, request_id: str) -> tuple[RequestRecord, ...]:
        """Everything asked by the request with this id, or by those with this label, oldest first."""
        return tuple(one for one in self._records.values() if request_id in (one.request_id, one.label))

    def latest(self, model_id: Digest, limit: int) -> tuple[RequestRecord, ...]:
        """The last requests for a model, oldest first."""
        return tuple(one for one in self._records.values() if one.model_id == model_id)[-limit:]

    def _end(self, ticket: int, outcome: Outcome, now_s: float) -> None:
        record = self._records.get(ticket)
        if record is not None:
            self._records[ticket] = attrs.evolve(record, outcome=outcome, ended_at_s=now_s)


def waited_in(
    history: Iterable[tuple[InstanceState, float]], from_s: float, to_s: float
) -> tuple[tuple[InstanceState, float], ...]:
    """Seconds between two times in each state of a model; `history` pairs states with when they began.

    States without time are left out; a state met twice is summed up at its first place.
    """
    seconds: dict[InstanceState, float] = {}
    entries = list(history)
    ends = [since_s for _, since_s in entries[1:]] + [to_s]
    for (state, since_s), until_s in zip(entries, ends, strict=False):
        passed_s = min(until_s, to_s) - max(since_s, from_s)
        if passed_s > 0:
            seconds[state] = seconds.get(state, 0.0) + passed_s
    return tuple(seconds.items())
