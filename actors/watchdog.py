"""How long a worker may go without counted work (L07), and the count itself. Pure.

Work is what frames count: a load's fraction that rises, requests that were judged, tokens that were
prefilled or decoded. A frame alone is none, so a worker whose threads live on while its engine hangs is
found. What honest work takes at worst grows with the bytes it has to touch, so every deadline has a part
that does not depend on size and one that does:

    start        the process is there and greets          fixed
    load         the fraction rises; the whole load       model file
    judgement    a request is rendered and tokenised      request
    first token  prompts are prefilled, step by step      model file, longest prompt without a first token
    next token   a step                                   model file

Imports the wire and the domain. Read on in `actors/worker.py`, which looks at it and ends the worker.
"""

from __future__ import annotations

import math

import attrs

from runner.domain.events import Accepted, TextDelta
from runner.wire.messages import Step


@attrs.frozen(kw_only=True)
class WatchdogRules:
    """Seconds, and bytes or tokens in a second.

    The rates are a tenth or less of what slow machines do: a spinning disk reads 100 MB/s, a tokeniser takes
    1 MB/s. A step reads every weight once, from the disk again when memory is short. `grace_s` is for the
    daemon's own pauses: what a worker said meanwhile has to be read first.
    """

    start_s: float = 30.0
    load_rise_s: float = 20.0
    load_whole_s: float = 60.0
    load_bytes_per_s: float = 10e6
    judgement_s: float = 15.0
    judgement_bytes_per_s: float = 100e3
    step_s: float = 15.0
    step_bytes_per_s: float = 25e6
    prompt_tokens_per_s: float = 200.0
    grace_s: float = 1.0

    def load_rise_limit_s(self, size_bytes: int) -> float:
        """Until the fraction of a load rises again; its first part may read the whole file."""
        return self.load_rise_s + size_bytes / self.load_bytes_per_s

    def load_limit_s(self, size_bytes: int) -> float:
        """Until the model is loaded."""
        return self.load_whole_s + 2 * size_bytes / self.load_bytes_per_s

    def judgement_limit_s(self, request_bytes: int) -> float:
        """Until one of the requests that wait to be accepted or refused is, the largest of this size."""
        return self.judgement_s + request_bytes / self.judgement_bytes_per_s

    def step_limit_s(self, size_bytes: int, prompt_tokens: int = 0) -> float:
        """Until tokens are counted; `prompt_tokens` is the longest prompt without a first token."""
        return self.step_s + size_bytes / self.step_bytes_per_s + prompt_tokens / self.prompt_tokens_per_s


@attrs.define
class LoadWatch:
    """One load of a file of `size_bytes`, from `started_s` on."""

    rules: WatchdogRules
    size_bytes: int
    started_s: float
    _fraction: float = attrs.field(default=-1.0, init=False)
    _risen_s: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._risen_s = self.started_s

    def progressed(self, fraction: float, now_s: float) -> None:
        """The same fraction again is no progress."""
        if fraction > self._fraction:
            self._fraction, self._risen_s = fraction, now_s

    @property
    def due_s(self) -> float:
        return min(self._rise_due_s, self._whole_due_s)

    @property
    def complaint(self) -> str:
        """What is wrong once `due_s` has passed."""
        if self._rise_due_s <= self._whole_due_s:
            return f"no progress for {self.rules.load_rise_limit_s(self.size_bytes):.3g} s"
        return f"not loaded within {self.rules.load_limit_s(self.size_bytes):.3g} s"

    @property
    def _rise_due_s(self) -> float:
        return self._risen_s + self.rules.load_rise_limit_s(self.size_bytes)

    @property
    def _whole_due_s(self) -> float:
        return self.started_s + self.rules.load_limit_s(self.size_bytes)


@attrs.define
class WorkWatch:
    """The open requests of a loaded worker, in two lanes: those that wait to be judged, and those that run.

    Each lane has its clock, which starts when the lane fills and again with each piece of its work. Work is
    counted for the worker and not for each request: one that waits behind others is the engine's business.
    `size_bytes` is the model file's. Times are those of the caller's clock.
    """

    rules: WatchdogRules
    size_bytes: int
    _unjudged: dict[str, int] = attrs.field(factory=dict, init=False)
    """Request ids and their bytes on the wire."""
    _prefilling: dict[str, int] = attrs.field(factory=dict, init=False)
    """Accepted, without a first text: prompt tokens."""
    _speaking: set[str] = attrs.field(factory=set, init=False)
    _judged_s: float = attrs.field(default=0.0, init=False)
    _worked_s: float = attrs.field(default=0.0, init=False)

    def opened(self, request_id: str, size_bytes: int, now_s: float) -> None:
        if not self._unjudged:
            self._judged_s = now_s
        self._unjudged[request_id] = size_bytes

    def closed(self, request_id: str) -> None:
        """Ended, or nobody waits for it any more; unknown ids are ignored."""
        self._unjudged.pop(request_id, None)
        self._prefilling.pop(request_id, None)
        self._speaking.discard(request_id)

    def stepped(self, step: Step, now_s: float) -> None:
        """Called for every frame, so it looks at text only while somebody waits for the first one."""
        if step.prefill_tokens or step.decode_tokens:
            self._worked_s = now_s
        if not self._unjudged and not self._prefilling:
            return
        for request_id, event in step.events:
            if type(event) is TextDelta:
                if self._prefilling.pop(request_id, None) is not None:
                    self._speaking.add(request_id)
            elif self._unjudged.pop(request_id, None) is not None:
                self._judged_s = now_s
                if type(event) is Accepted:
                    self._accepted(request_id, event.prompt_tokens, now_s)

    @property
    def is_idle(self) -> bool:
        return not (self._unjudged or self._prefilling or self._speaking)

    @property
    def due_s(self) -> float:
        """When the worker has made nobody wait longer than it may; infinite while nobody waits."""
        return min(self._judgement_due_s, self._step_due_s)

    @property
    def complaint(self) -> str:
        """What is wrong once `due_s` has passed."""
        is_judgement = self._judgement_due_s <= self._step_due_s
        return f"no progress for {self._judgement_limit_s if is_judgement else self._step_limit_s:.3g} s"

    def _accepted(self, request_id: str, prompt_tokens: int, now_s: float) -> None:
        if not self._prefilling and not self._speaking:
            self._worked_s = now_s
        self._prefilling[request_id] = prompt_tokens

    @property
    def _judgement_due_s(self) -> float:
        return self._judged_s + self._judgement_limit_s if self._unjudged else math.inf

    @property
    def _step_due_s(self) -> float:
        return self._worked_s + self._step_limit_s if self._prefilling or self._speaking else math.inf

    @property
    def _judgement_limit_s(self) -> float:
        return self.rules.judgement_limit_s(max(self._unjudged.values(), default=0))

    @property
    def _step_limit_s(self) -> float:
        return self.rules.step_limit_s(self.size_bytes, max(self._prefilling.values(), default=0))
