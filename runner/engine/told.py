"""What an engine tells of its steps. Values only."""

from __future__ import annotations

import attrs

from runner.domain.engine import EngineCounts
from runner.domain.events import ChoiceEnded, Embedded, Failed, Finished, PromptText, TextDelta

EngineEvent = PromptText | TextDelta | ChoiceEnded | Embedded | Finished | Failed


@attrs.frozen
class StepOutput:
    """What one step did. `events` pairs request ids with events, in order; Finished or Failed is the last.

    `step_s` is what it took, `computing_s` of that the forward passes.
    """

    events: list[tuple[str, EngineEvent]]
    prefill_tokens: int
    decode_tokens: int
    step_s: float
    computing_s: float


@attrs.define
class StepUnderWay:
    """What becomes a `StepOutput`; `now_s` is when it began."""

    now_s: float
    events: list[tuple[str, EngineEvent]] = attrs.field(factory=list)
    prefill_tokens: int = 0
    decode_tokens: int = 0


@attrs.frozen(kw_only=True)
class EngineStatistics:
    """`cells_used` are those of running sequences, `cells_retained` what is kept beside them, and
    `host_tokens` what is kept in host memory."""

    running: int
    waiting: int
    cells_used: int
    cells_retained: int
    host_tokens: int
    n_cells: int
    step_index: int
    counts: EngineCounts
