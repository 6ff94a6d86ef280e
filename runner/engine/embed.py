"""Embeddings in the engine: which inputs share the next forward pass, and how rows become vectors.

Owns every request for embeddings from `submit` to its last event. Plain synchronous code of the thread that
steps; `engine.py` lets passes of this kind and of generations take turns. Imports numpy, the backend's
protocol and the domain.

    requests ──one input of each in turn──> group ──passes──> pooled rows ──> Embedded … Finished

Inputs that fit into a pass together are a group. One that is longer than a pass is a group of its own, in
several passes; where a model must see all of an input at once (`EmbeddingFacts.is_whole`), passes are as long
as the longest input.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import attrs
import numpy as np
import numpy.typing as npt

from runner.domain.events import Embedded, Failed, Finished, FinishReason, Timings, Usage
from runner.engine.backend import DecodeResult, EmbeddingContext, EmbeddingFacts, Pooling
from runner.errors import EngineFailed, FieldFault, InvalidParameter, LoadingFailed

TOLD_BYTES_MAX: Final = 512 * 1024
"""Vectors of one step: half a frame's worth."""

EmbeddingEvent = Embedded | Finished | Failed


@attrs.frozen(kw_only=True)
class EmbeddingRequest:
    """`inputs` are token ids, none empty or longer than `EmbeddingFacts.input_max`; `submitted_s` as of
    `SequenceRequest`."""

    request_id: str
    inputs: tuple[tuple[int, ...], ...]
    dimensions: int | None = None
    submitted_s: float = 0.0

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.inputs))

    @property
    def n_tokens_longest(self) -> int:
        return max(map(len, self.inputs))


@attrs.define(eq=False)
class _Task:
    """A request with what was done of it."""

    request: EmbeddingRequest
    n_taken: int = 0
    n_told: int = 0
    begun_s: float | None = None


@attrs.define(eq=False)
class _Part:
    """One input in a group; `total` sums up its rows, or is the one that counts."""

    task: _Task
    input_index: int
    n_done: int = 0
    total: npt.NDArray[np.float32] | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.task.request.inputs[self.input_index]

    @property
    def is_done(self) -> bool:
        return self.n_done == len(self.tokens)


class Embedder:
    """Requests take turns, input by input. The context is opened when the first one comes."""

    def __init__(
        self,
        facts: EmbeddingFacts | None,
        open_context: Callable[[], EmbeddingContext],
        *,
        n_threads: int,
        clock: Callable[[], float],
    ) -> None:
        """`facts` None: there are no embeddings to be had, and none may be asked for."""
        self._facts = facts
        self._open_context = open_context
        self._n_threads = n_threads
        self._clock = clock
        self._context: EmbeddingContext | None = None
        self._waiting: deque[_Task] = deque()
        """Those with inputs that no group has had yet."""
        self._alive: dict[str, _Task] = {}
        self._group: list[_Part] = []
        self._suspects: deque[_Part] = deque()
        """Of a group that failed: each is tried alone."""

    def __repr__(self) -> str:
        return f"<Embedder: {len(self._alive)} requests, {'open' if self._context else 'not opened'}>"

    @property
    def has_work(self) -> bool:
        return bool(self._alive)

    @property
    def n_running(self) -> int:
        """Requests that have had an input in a pass."""
        return sum(task.begun_s is not None for task in self._alive.values())

    @property
    def n_waiting(self) -> int:
        return len(self._alive) - self.n_running

    def submit(self, request: EmbeddingRequest) -> None:
        """Raises InvalidParameter when the id is in use, or this model makes no embeddings."""
        if self._facts is None:
            raise InvalidParameter(FieldFault("model", "makes no embeddings"))
        if request.request_id in self._alive:
            raise InvalidParameter(FieldFault("request_id", "is in use"))
        task = self._alive[request.request_id] = _Task(request)
        self._waiting.append(task)

    def cancel(self, request_id: str) -> bool:
        """End a request without an event; False when there is none. Only between steps."""
        task = self._alive.pop(request_id, None)
        if task is None:
            return False
        self._drop(task)
        return True

    def set_threads(self, n_threads: int) -> None:
        self._n_threads = n_threads
        if self._context is not None:
            self._context.set_threads(n_threads)

    def close(self) -> None:
        """Cancel everything and free the context."""
        for request_id in list(self._alive):
            self.cancel(request_id)
        if self._context is not None:
            self._context.close()
            self._context = None

    def advance(self, rows_max: int) -> tuple[list[tuple[str, EmbeddingEvent]], int]:
        """One forward pass: what happened, and the number of its rows, which are at most `rows_max` where an
        input may take several passes. Only when there is work."""
        events: list[tuple[str, EmbeddingEvent]] = []
        try:
            context = self._opened()
        except LoadingFailed:
            for task in list(self._alive.values()):
                self._fail(task, "there is no memory for a context that makes embeddings", events)
            return events, 0
        assert self._facts is not None
        limit = context.batch.size if self._facts.is_whole else min(context.batch.size, rows_max)
        if not self._group:
            self._group = self._next_group(limit)
        spans = self._fill(context, limit)
        n_rows = spans[-1][2]
        if context.decode(n_rows) is not DecodeResult.DONE:
            self._recover(context, events)
            return events, n_rows
        for part, first, end in spans:
            self._pool(part, context, first, end)
        if all(part.is_done for part in self._group):
            context.forget()
            group, self._group = self._group, []
            for part in group:
                self._tell(part, events)
        return events, n_rows

    # groups

    def _opened(self) -> EmbeddingContext:
        if self._context is None:
            self._context = self._open_context()
            self._context.set_threads(self._n_threads)
        return self._context

    def _next_group(self, n_rows: int) -> list[_Part]:
        """1. A suspect alone.  2. The next input, whatever its length, and one after the other of those whose
        turn comes next, as long as they fit."""
        if self._suspects:  # 1
            return [self._suspects.popleft()]
        assert self._facts is not None
        limit = min(n_rows, self._facts.group_rows)
        parts_max = max(1, min(self._facts.max_sequences, TOLD_BYTES_MAX // (4 * self._facts.n_dimensions)))
        group: list[_Part] = []
        n_planned = 0
        while self._waiting and len(group) < parts_max:  # 2
            task = self._waiting[0]
            part = _Part(task, task.n_taken)
            n_planned += len(part.tokens)
            if group and n_planned > limit:
                break
            group.append(part)
            self._take(task)
        return group

    def _take(self, task: _Task) -> None:
        """Its next input is in a group; others come before the one after it."""
        if task.begun_s is None:
            task.begun_s = self._clock()
        task.n_taken += 1
        self._waiting.popleft()
        if task.n_taken < len(task.request.inputs):
            self._waiting.append(task)

    def _fill(self, context: EmbeddingContext, limit: int) -> list[tuple[_Part, int, int]]:
        """Put rows into the batch: parts with their first row and the one after their last.

        Where there are several they are new, and fit the limit together.
        """
        batch, row = context.batch, 0
        spans: list[tuple[_Part, int, int]] = []
        for sequence_id, part in enumerate(self._group):
            count = min(len(part.tokens) - part.n_done, limit - row)
            rows = slice(row, row + count)
            batch.tokens[rows] = part.tokens[part.n_done : part.n_done + count]
            batch.positions[rows] = range(part.n_done, part.n_done + count)
            batch.sequence_ids[rows] = sequence_id
            batch.wants_logits[rows] = 1
            spans.append((part, row, row + count))
            row += count
        return spans

    def _pool(self, part: _Part, context: EmbeddingContext, first: int, end: int) -> None:
        assert self._facts is not None
        part.n_done += end - first
        match self._facts.pooling:
            case Pooling.FIRST:
                if part.total is None:
                    part.total = context.vector(first).copy()
            case Pooling.LAST:
                part.total = context.vector(end - 1).copy()
            case Pooling.MEAN:
                if part.total is None:
                    part.total = np.zeros(self._facts.n_dimensions, np.float32)
                for row in range(first, end):
                    part.total += context.vector(row)

    # ends

    def _tell(self, part: _Part, events: list[tuple[str, EmbeddingEvent]]) -> None:
        task = part.task
        request_id = task.request.request_id
        if request_id not in self._alive:
            return  # another of its inputs has failed
        assert part.total is not None
        vector = normalised(part.total, task.request.dimensions)
        if vector is None:
            self._fail(task, "the model produced numbers that are not finite", events)
            return
        events.append((request_id, Embedded(part.input_index, vector.astype("<f4").tobytes())))
        task.n_told += 1
        if task.n_told == len(task.request.inputs):
            events.append((request_id, self._finished(task)))
            del self._alive[request_id]

    def _finished(self, task: _Task) -> Finished:
        assert task.begun_s is not None
        request, now_s = task.request, self._clock()
        return Finished(
            reason=FinishReason.STOP,
            usage=Usage(prompt_tokens=request.n_tokens, completion_tokens=0),
            timings=Timings(
                queued_s=max(0.0, task.begun_s - request.submitted_s),
                prefill_s=max(0.0, now_s - task.begun_s),
                decode_s=0.0,
            ),
        )

    def _recover(self, context: EmbeddingContext, events: list[tuple[str, EmbeddingEvent]]) -> None:
        """After a failed pass: who fails alone has failed, and nobody else has."""
        context.forget()
        group, self._group = self._group, []
        if len(group) == 1:
            self._fail(group[0].task, "the engine could not compute this request", events)
        else:
            self._suspects += [_Part(part.task, part.input_index) for part in group]

    def _fail(self, task: _Task, message: str, events: list[tuple[str, EmbeddingEvent]]) -> None:
        request_id = task.request.request_id
        events.append((request_id, Failed(code=EngineFailed.code, message=message)))
        self._alive.pop(request_id, None)
        self._drop(task)

    def _drop(self, task: _Task) -> None:
        """Nothing of it is computed any more. Between steps a group is of one long input."""
        if task in self._waiting:
            self._waiting.remove(task)
        self._suspects = deque(part for part in self._suspects if part.task is not task)
        if any(part.task is task for part in self._group):
            self._group = []
            if self._context is not None:
                self._context.forget()


def normalised(total: npt.NDArray[np.float32], dimensions: int | None) -> npt.NDArray[np.float32] | None:
    """The first `dimensions` numbers as a vector of length 1, or of 0 where all are 0; None where any of them
    is not finite. A sum needs no division first: length 1 is what becomes of it anyway."""
    cut = total[:dimensions].astype(np.float64)
    length = float(np.sqrt(cut @ cut))
    if not np.isfinite(length):
        return None
    return (cut / length if length else cut).astype(np.float32)
