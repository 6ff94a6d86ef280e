"""Runs of requests, as far as one must know them to tell which of them ended a worker (L05).

Nothing is kept or computed while no worker has died lately. Afterwards, suspects of one model take turns, and
a death while a suspect runs is the suspect's. The turns end with the suspicion.

Imports `suspects.py`. Read on in `inference.py`, which opens a trial for every run.
"""

from __future__ import annotations

import math
import secrets
from typing import Final
from weakref import WeakKeyDictionary

import attrs
import trio

from runner.api.suspects import Suspects, Verdict
from runner.domain.generation import GenerationRequest
from runner.domain.model import Model
from runner.errors import RequestQuarantined
from runner.oci.digest import Digest

TURN_S: Final = 10.0
"""A suspect that has run for so long lets the next one in, although it may still end its worker."""


class Trials:
    """Of all models. `enter` before each run; the trial is closed when the run is over."""

    def __init__(self, suspects: Suspects | None = None) -> None:
        self._suspects = suspects if suspects is not None else Suspects(secrets.token_bytes(32))
        self._turns: dict[Digest, _Turn] = {}
        self._explained: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        """Workers on which suspects run, or have died: a death there is theirs."""

    async def enter(self, model: Model, *requests: GenerationRequest) -> Trial:
        """At once, or when the suspects before it have had their turns. Raises RequestQuarantined."""
        trial = Trial(self, model.id, requests)
        if self._suspects.is_empty:
            return trial
        match self._verdict(trial):
            case Verdict.QUARANTINED:
                raise RequestQuarantined(model.name)
            case Verdict.SUSPECT:
                turn = self._turns.setdefault(model.id, _Turn())
                try:
                    await turn.take(trial)
                except BaseException:
                    trial.close()
                    raise
                if self._verdict(trial) is Verdict.QUARANTINED:  # by an identical one that went before
                    trial.close()
                    raise RequestQuarantined(model.name)
                trial.is_suspect = True
        return trial

    def _verdict(self, trial: Trial) -> Verdict:
        return self._suspects.verdict(self._fingerprint(trial), trio.current_time())

    def _fingerprint(self, trial: Trial) -> bytes:
        if trial.fingerprint is None:
            trial.fingerprint = self._suspects.fingerprint(trial.model_id, *trial.requests)
        return trial.fingerprint

    # what trials tell

    def began(self, trial: Trial, worker: object) -> None:
        if trial.is_suspect:
            self._explained[worker] = self._explained.get(worker, 0) + 1

    def ended_well(self, trial: Trial) -> None:
        if not self._suspects.is_empty:
            self._suspects.cleared(self._fingerprint(trial))

    def ended_in_a_death(self, trial: Trial, worker: object) -> None:
        if trial.is_suspect or worker not in self._explained:
            self._suspects.killed(self._fingerprint(trial), trio.current_time())

    def closed(self, trial: Trial, worker: object | None) -> None:
        if worker is not None and trial.is_suspect and not trial.was_killed:
            self._explained[worker] -= 1
            if not self._explained[worker]:
                del self._explained[worker]
        turn = self._turns.get(trial.model_id)
        if turn is not None:
            turn.leave(trial)
            if turn.is_free:
                del self._turns[trial.model_id]

    def __repr__(self) -> str:
        return f"<Trials {self._suspects!r}, {len(self._turns)} models with turns>"


@attrs.define(eq=False)
class Trial:
    """One run, of one request or of one for each of several prompts. Close it, whatever happened."""

    _trials: Trials
    model_id: Digest
    requests: tuple[GenerationRequest, ...]
    is_suspect: bool = attrs.field(default=False, init=False)
    was_killed: bool = attrs.field(default=False, init=False)
    fingerprint: bytes | None = attrs.field(default=None, init=False)
    _worker: object | None = attrs.field(default=None, init=False)
    _turn_over_s: float = attrs.field(default=math.inf, init=False)
    _is_closed: bool = attrs.field(default=False, init=False)

    def began(self, worker: object) -> None:
        """The request goes to this worker."""
        self._worker = worker
        self._turn_over_s = trio.current_time() + TURN_S
        self._trials.began(self, worker)

    def ended_well(self) -> None:
        """The generation has come to an end, good or bad, and the worker lives."""
        self._trials.ended_well(self)

    def ended_in_a_death(self) -> None:
        """The worker died; told once, before `close`."""
        assert self._worker is not None
        self.was_killed = True
        self._trials.ended_in_a_death(self, self._worker)

    def close(self) -> None:
        """Sync, idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._trials.closed(self, self._worker)

    @property
    def turn_left_s(self) -> float:
        """Infinite while it waits for its worker."""
        return self._turn_over_s - trio.current_time()


class _Turn:
    """One suspect of a model at a time, in order of arrival."""

    def __init__(self) -> None:
        self._line: list[Trial] = []
        """The first has the turn."""
        self._changed = trio.Event()

    async def take(self, trial: Trial) -> None:
        self._line.append(trial)
        while self._line[0] is not trial:
            with trio.move_on_after(max(0.0, self._line[0].turn_left_s)):
                await self._changed.wait()
            if self._line[0] is not trial and self._line[0].turn_left_s <= 0:
                self.leave(self._line[0])
        await trio.lowlevel.checkpoint()

    def leave(self, trial: Trial) -> None:
        if trial in self._line:
            self._line.remove(trial)
            self._changed.set()
            self._changed = trio.Event()

    @property
    def is_free(self) -> bool:
        return not self._line
