"""What is done about models whose workers crash: wait longer each time, stop trying, refuse to load.

Joins the delays of `backoff.py` (L03), the breaker of `breaker.py` (L04) and the quarantine of
`quarantine.py` (L06) into the questions that the core asks. Pure; no clock. Read on in `core.py`.
"""

from __future__ import annotations

import attrs

from runner.domain.quarantine import FailedLoads
from runner.oci.digest import Digest
from runner.scheduling.backoff import BackoffRules, CrashLog, CrashRecord
from runner.scheduling.breaker import BreakerRules, Breakers
from runner.scheduling.quarantine import LoadQuarantine


@attrs.frozen(kw_only=True)
class LeftAlone:
    """Workers of the model keep crashing; no new one is started for this request."""

    model: str
    retry_after_s: float

    @property
    def why(self) -> str:
        return "its workers keep crashing"

    @property
    def numbers(self) -> dict[str, float]:
        return {"retry_after_s": self.retry_after_s}


@attrs.frozen(kw_only=True)
class InQuarantine:
    """Loading the model has crashed the engine `crashes` times, last by `cause`."""

    model: str
    crashes: int
    cause: str

    @property
    def why(self) -> str:
        return "it is in quarantine: loading it crashes the engine"

    @property
    def numbers(self) -> dict[str, float]:
        return {"crashes": self.crashes}


@attrs.frozen(kw_only=True)
class Crash:
    """What follows from one. `refusal` is for everybody who waits for the model, None when they may go on."""

    record: CrashRecord
    refusal: LeftAlone | InQuarantine | None = None


class Protection:
    """Of all models. Tickets are those of requests; times are the core's clock."""

    def __init__(
        self,
        backoff: BackoffRules | None = None,
        breaker: BreakerRules | None = None,
        quarantine: LoadQuarantine | None = None,
    ) -> None:
        self._crashes = CrashLog(backoff or BackoffRules())
        self._breakers = Breakers(breaker or BreakerRules())
        self._quarantine = quarantine or LoadQuarantine("")
        self._has_changed = False
        self._shown = self._find_quarantined()

    # what requests ask

    def refusal(
        self, model_id: Digest, name: str, ticket: int, now_s: float
    ) -> LeftAlone | InQuarantine | None:
        """None when the request may go on; it may be a probe then, so tell what becomes of it."""
        in_quarantine = self._in_quarantine(model_id, name)
        if in_quarantine is not None:
            return in_quarantine
        retry_after_s = self._breakers.admit(model_id, ticket, now_s)
        return LeftAlone(model=name, retry_after_s=retry_after_s) if retry_after_s else None

    def would_refuse(self, model_id: Digest, name: str, now_s: float) -> LeftAlone | InQuarantine | None:
        """What `refusal` would answer, without making anything a probe."""
        in_quarantine = self._in_quarantine(model_id, name)
        if in_quarantine is not None:
            return in_quarantine
        retry_after_s = self._breakers.refuses_s(model_id, now_s)
        return LeftAlone(model=name, retry_after_s=retry_after_s) if retry_after_s else None

    def _in_quarantine(self, model_id: Digest, name: str) -> InQuarantine | None:
        record = self._quarantine.quarantined(model_id)
        if record is None:
            return None
        return InQuarantine(model=name, crashes=record.crashes, cause=record.cause)

    def not_before_s(self, model_id: Digest) -> float:
        """The earliest time of the next start; in the past for a model that has not crashed lately."""
        return self._crashes.not_before_s(model_id)

    # what becomes of them

    def granted(self, ticket: int, now_s: float) -> None:
        self._breakers.granted(ticket, now_s)

    def succeeded(self, ticket: int) -> None:
        """It was served, and its worker lives."""
        self._breakers.succeeded(ticket)

    def abandoned(self, ticket: int) -> None:
        """It was refused, or its caller left."""
        self._breakers.abandoned(ticket)

    # what workers do

    def loaded(self, model_id: Digest) -> None:
        """A worker has this model in memory: whatever crashed earlier loads was not the model."""
        self._lift(model_id)

    def crashed(
        self, model_id: Digest, name: str, cause: str, *, while_loading: bool, now_s: float, jitter: float
    ) -> Crash:
        """A worker died. `while_loading`: by itself, before the model was in memory."""
        record = self._crashes.add(model_id, now_s, jitter)
        opened = self._breakers.crashed(model_id, now_s)
        if while_loading:
            self._quarantine.crashed(model_id, name, cause)
            self._changed()
            failed = self._quarantine.quarantined(model_id)
            if failed is not None:
                refusal = InQuarantine(model=name, crashes=failed.crashes, cause=failed.cause)
                return Crash(record=record, refusal=refusal)
        if opened is not None:
            return Crash(record=record, refusal=LeftAlone(model=name, retry_after_s=opened.open_s))
        return Crash(record=record)

    # the quarantine, for commands and for those who write it down

    def lift(self, model_id: Digest) -> FailedLoads | None:
        """By command: may be loaded again. What was known of its crashes, if anything."""
        return self._lift(model_id)

    def quarantined(self) -> tuple[FailedLoads, ...]:
        """Models that are not loaded any more."""
        return self._shown

    def take_changed(self) -> tuple[FailedLoads, ...] | None:
        """What is to be written down, when it has changed since this was asked last."""
        has_changed, self._has_changed = self._has_changed, False
        return self._quarantine.records() if has_changed else None

    def _lift(self, model_id: Digest) -> FailedLoads | None:
        lifted = self._quarantine.lift(model_id)
        if lifted is not None:
            self._changed()
        return lifted

    def _changed(self) -> None:
        self._has_changed = True
        self._shown = self._find_quarantined()

    def _find_quarantined(self) -> tuple[FailedLoads, ...]:
        return tuple(one for one in self._quarantine.records() if self._quarantine.holds(one))
