"""A worker's steps, added up. Pure; imports the wire and the domain. Used by `worker_handle.py`."""

from __future__ import annotations

import attrs

from runner.domain.engine import CacheMiss
from runner.domain.status import EngineMeters
from runner.wire.messages import Step


@attrs.define
class StepSums:
    """Of all steps of one worker: rows that were prompts, rows that were answers, seconds."""

    prefill_tokens: int = 0
    decode_tokens: int = 0
    steps_s: float = 0.0
    computing_s: float = 0.0
    _last: Step | None = None
    """The last one with steps. Frames are also sent without one."""
    _n_last: int = 0
    """How many."""

    def add(self, step: Step) -> None:
        self.prefill_tokens += step.prefill_tokens
        self.decode_tokens += step.decode_tokens
        self.steps_s += step.step_s
        self.computing_s += step.computing_s
        n_steps = step.step_index - (self._last.step_index if self._last is not None else 0)
        if n_steps > 0:
            self._last, self._n_last = step, n_steps

    def meters(self, now: Step, n_cells: int) -> EngineMeters | None:
        """`now` is the last frame, for what is of the moment. None before the first step.

        Of a frame for several steps, the mean step counts as the last.
        """
        last, n_last = self._last, self._n_last
        if last is None:
            return None
        counts = now.counts
        return EngineMeters(
            batch_prefill_tokens=-(-last.prefill_tokens // n_last),
            batch_decode_tokens=-(-last.decode_tokens // n_last),
            step_s=last.step_s / n_last,
            computing_s=last.computing_s / n_last,
            cells_used=now.cells_used,
            cells_retained=now.cells_retained,
            cells_free=max(0, n_cells - now.cells_used - now.cells_retained),
            host_tokens=now.host_tokens,
            steps=last.step_index,
            prefill_tokens=self.prefill_tokens,
            decode_tokens=self.decode_tokens,
            steps_s=self.steps_s,
            all_computing_s=self.computing_s,
            preemptions=counts.preemptions,
            reuse_hits=counts.reuse_hits,
            reused_tokens=counts.reused_tokens,
            saved_tokens=counts.saved_tokens,
            restored_tokens=counts.restored_tokens,
            reuse_misses={miss.value: n for miss, n in zip(CacheMiss, counts.misses, strict=True)},
        )
