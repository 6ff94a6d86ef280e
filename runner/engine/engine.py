"""The engine: continuous batching over one backend, one step at a time.

Plain synchronous code, used by one thread. Owns every sequence from `submit` to its last event. Imports the rest
of this package and `runner.domain`. What goes into a step is decided in `batcher.py`; read that first.
"""

from __future__ import annotations

import attrs

from runner.domain.engine import EngineOptions
from runner.domain.events import Failed, Finished, TextDelta
from runner.domain.sampling import SamplingParams
from runner.engine.backend import Backend

EngineEvent = TextDelta | Finished | Failed


@attrs.frozen(kw_only=True)
class SequenceRequest:
    """One sequence to generate. `prompt_tokens` are checked against the vocabulary and not empty.

    `max_tokens` None means "to the end of the context". `submitted_s` is `time.monotonic()` of the arrival,
    from which the queueing time counts.
    """

    request_id: str
    prompt_tokens: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    submitted_s: float = 0.0


@attrs.frozen
class StepOutput:
    """What one step did. `events` pairs request ids with events, in order; a Finished or Failed is the last."""

    events: list[tuple[str, EngineEvent]]
    prefill_tokens: int
    decode_tokens: int


@attrs.frozen(kw_only=True)
class EngineStatistics:
    running: int
    waiting: int
    cells_used: int
    n_cells: int
    step_index: int


class Engine:
    def __init__(self, backend: Backend, options: EngineOptions) -> None:
        self.backend = backend
        self.options = options

    def submit(self, request: SequenceRequest) -> None:
        """Queue a sequence. Raises ContextLengthExceeded when the prompt leaves no room for one token,
        InvalidParameter when it is empty; then nothing is queued."""
        raise NotImplementedError

    def cancel(self, request_id: str) -> None:
        """End a sequence at once, without an event; unknown ids are ignored."""
        raise NotImplementedError

    @property
    def has_work(self) -> bool:
        raise NotImplementedError

    def step(self) -> StepOutput:
        """Run one forward pass for everybody who can take part. Never raises for one sequence's sake."""
        raise NotImplementedError

    def statistics(self) -> EngineStatistics:
        raise NotImplementedError

    def close(self) -> None:
        """Cancel everything and close the backend."""
        raise NotImplementedError
