"""The engine: continuous batching over one backend, one step at a time.

Plain synchronous code, used by one thread. Owns every sequence from `submit` to its last event. Imports the
rest of this package, `runner.domain` and `runner.errors`. What goes into a step is decided in `batcher.py`,
what is known of cells in `cells.py`; read those first.
"""

from __future__ import annotations

import bisect
import secrets
import time
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Final

import attrs

from runner.domain.engine import EngineCounts, EngineOptions, host_cache_bytes
from runner.domain.events import Failed, FinishReason, TextDelta
from runner.engine.backend import Backend, DecodeResult
from runner.engine.batcher import (
    ALONE_LIMIT_S,
    FIRST_CHUNK,
    STEP_LIMIT_S,
    Chunk,
    count_planned,
    fit_outputs,
    may_join,
    must_preempt,
    next_chunk,
    plan_step,
)
from runner.engine.cells import CellPool
from runner.engine.choices import Choices
from runner.engine.choosing import Chooser
from runner.engine.constraints import ConstraintBroken
from runner.engine.deferring import new_matcher
from runner.engine.echo import Echo
from runner.engine.embed import Embedder, EmbeddingRequest
from runner.engine.hibernation import Hibernation, KnownState
from runner.engine.host_cache import HeldState
from runner.engine.logprobs import Scorer
from runner.engine.rows import fill_batch, scores_prompt
from runner.engine.sampler import SamplerPlan, UnusableLogits, plan_sampler
from runner.engine.sequence import Sequence, SequenceRequest, SequenceState
from runner.engine.sharing import Sharing
from runner.engine.told import EngineEvent, EngineStatistics, StepOutput, StepUnderWay
from runner.errors import ContextLengthExceeded, EngineFailed, FieldFault, InvalidParameter

__all__ = ["Engine", "EngineEvent", "EngineStatistics", "SequenceRequest", "StepOutput"]

_NO_NUMBERS: Final = "the model produced numbers that are not finite"


class Engine:
    """Sequences wait in order of arrival, run together, and end; the backend runs in the calling thread."""

    def __init__(
        self,
        backend: Backend,
        options: EngineOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`backend` must have been loaded with the same `options`. `clock` is the one of `submitted_s`;
        `stopwatch` times the steps, whose size depends on it."""
        self._backend = backend
        self._options = options
        self._context_size = min(options.context_size, options.n_cells)
        self._clock = clock
        self._stopwatch = stopwatch
        self._cells = CellPool(
            backend,
            n_cells=options.n_cells,
            max_running=options.max_sequences,
            max_retained=options.max_retained if backend.facts.shares_cells else 0,
        )
        first_chunk = min(FIRST_CHUNK, options.prefill_chunk)
        host_bytes = host_cache_bytes(backend.facts.devices, options.n_cells, options.host_cells)
        self.hibernation = Hibernation(backend, self._cells, host_bytes)
        self._sharing = Sharing(self._cells, self.hibernation, first_chunk)
        self._embedder = Embedder(
            backend.facts.embedding, backend.open_embedding, n_threads=options.n_threads, clock=clock
        )
        self._embedded_last = self._decoded_last = False
        self._alive: dict[str, Choices] = {}
        self._waiting: list[Sequence] = []
        """Oldest first; preempted ones are among them, at the place of their arrival."""
        self._running: list[Sequence] = []
        """Oldest first."""
        self._n_submitted = 0
        self._n_preemptions = 0
        self._step_index = 0
        self.step_s = self._computing_s = 0.0  # of the last step
        self._chunks = {True: first_chunk, False: first_chunk}
        """Rows of a prefilling step beside streams, and where there are none."""
        self._stands_still = False
        """All wait for a saved state."""

    def __repr__(self) -> str:
        return f"<Engine: {len(self._running)} running, {len(self._waiting)} waiting>"

    @property
    def has_work(self) -> bool:
        """Something that can be computed, or may be."""
        return (bool(self._alive) and not self._stands_still) or self._embedder.has_work

    @property
    def wanted_state(self) -> KnownState | None:
        """The next saved state that somebody waits for, until `bring_state` is called for it."""
        for sequence in self._running:
            if sequence.found is not None and isinstance(sequence.found.state, KnownState):
                return sequence.found.state
        return None

    def bring_state(self, state_id: int, data: memoryview | None) -> bool:
        """It has come, or, None, it will not: whoever waits for it goes on. False when the engine refuses
        it. Only between steps."""
        self._stands_still = False
        return self._sharing.bring_state(state_id, data, self._running)

    @property
    def n_running(self) -> int:
        return len(self._running) + self._embedder.n_running

    @property
    def n_waiting(self) -> int:
        return len(self._waiting) + self._embedder.n_waiting

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            running=self.n_running,
            waiting=self.n_waiting,
            cells_used=self._cells.n_used,
            cells_retained=self._cells.n_retained,
            host_tokens=self.hibernation.n_held_tokens,
            n_cells=self._options.n_cells,
            step_index=self._step_index,
            counts=EngineCounts(
                preemptions=self._n_preemptions,
                reuse_hits=self._sharing.n_hits,
                reused_tokens=self._sharing.n_reused_tokens,
                saved_tokens=self.hibernation.n_saved_tokens,
                restored_tokens=self.hibernation.n_restored_tokens,
                misses=tuple(self._sharing.misses.values()),
            ),
        )

    def submit(self, request: SequenceRequest | EmbeddingRequest) -> None:
        """Queue a request. Raises ContextLengthExceeded when the prompt leaves no room for one token, and
        InvalidParameter when it is empty or the id is in use; then nothing has changed. Of embeddings as
        `Embedder.submit` does."""
        if isinstance(request, EmbeddingRequest):
            self._embedder.submit(request)
            return
        n_prompt = len(request.prompt_tokens)
        if n_prompt == 0:
            raise InvalidParameter(FieldFault("prompt", "must hold at least one token"))
        if n_prompt >= self._context_size:
            raise ContextLengthExceeded(n_prompt, self._context_size)
        if request.request_id in self._alive:
            raise InvalidParameter(FieldFault("request_id", "is in use"))
        sequences = [self._new_sequence(request, index) for index in range(request.n)]
        self._stands_still = False
        self._alive[request.request_id] = Choices(sequences)
        self._waiting += sequences

    def cancel(self, request_id: str) -> None:
        """End its sequences at once, without an event; unknown ids are ignored. Only between steps."""
        if self._embedder.cancel(request_id):
            return
        choices = self._alive.get(request_id)
        for sequence in () if choices is None else tuple(choices.alive):
            self._end(sequence)

    def set_threads(self, n_threads: int) -> None:
        """Use so many threads from the next step on, but no more than the options say."""
        self._backend.set_threads(min(n_threads, self._options.n_threads))
        self._embedder.set_threads(min(n_threads, self._options.n_threads))

    def step(self) -> StepOutput:
        """Run one forward pass, which adds one token to every stream or some tokens to prompts, or computes
        embeddings, in turns.

        A sequence that cannot go on gets a Failed; the others do not notice.
        """
        begin_s = self._stopwatch()
        self._computing_s = 0.0
        step = StepUnderWay(self._clock())
        self._embedded_last = self._embedder.has_work and not (self._embedded_last and self._alive)
        if self._embedded_last:
            self._embed(step)
        else:
            self._generate(step)
        self._step_index += 1
        self.step_s = self._stopwatch() - begin_s
        return StepOutput(
            step.events, step.prefill_tokens, step.decode_tokens, self.step_s, self._computing_s
        )

    def _embed(self, step: StepUnderWay) -> None:
        begin_s = self._stopwatch()
        events, step.prefill_tokens = self._embedder.advance(self._prefill_chunk)
        step.events += events
        self._computing_s = self._stopwatch() - begin_s
        if step.prefill_tokens:
            self._adapt_chunk(step.prefill_tokens, self._computing_s)

    def _generate(self, step: StepUnderWay) -> None:
        while must_preempt(self._count_planned(), len(self._running), self._options.n_cells):
            self._preempt(self._running[-1])
        self._cells.keep_half()
        if self._waiting:
            self._end_the_satisfied(step)
            self._admit(step.now_s)
        self.hibernation.relieve()
        self._advance(step)

    def forget_retained(self) -> None:
        """Free what is kept of sequences that ended, and save none of it. Only between steps."""
        self._cells.forget_retained()
        self.hibernation.forget_held()

    def saved_states(self, limit_bytes: int) -> Iterator[HeldState]:
        """Cancel everything, and give out what is worth keeping and was not saved, in states of at most
        `limit_bytes`, the most recently used first. Raises MemoryError. The engine can only be closed
        afterwards."""
        for request_id in list(self._alive):
            self.cancel(request_id)
        return self.hibernation.saved_states(limit_bytes)

    def close_annex(self) -> None:
        """Free what embeddings take beside generations, until they are asked for again; theirs end."""
        self._embedder.close()

    def close(self) -> None:
        """Cancel everything and close the backend."""
        for request_id in list(self._alive):
            self.cancel(request_id)
        self.hibernation.close()
        self._embedder.close()
        self._backend.close()

    # who takes part

    def _new_sequence(self, request: SequenceRequest, choice_index: int) -> Sequence:
        """Of several answers with one seed, each has its own seed."""
        sampling = request.sampling
        if sampling.seed is not None and choice_index:
            sampling = attrs.evolve(sampling, seed=sampling.seed + choice_index)
        forbidden = tuple(sorted(self._backend.end_of_generation)) if request.ignore_eos else ()
        plan = plan_sampler(
            sampling,
            fresh_seed=secrets.randbits(32),
            context_size=self._context_size,
            prompt=request.prompt_tokens,
            forbidden=forbidden,
        )
        n_tokens_max = self._context_size
        if request.max_tokens is not None:
            n_tokens_max = min(n_tokens_max, len(request.prompt_tokens) + request.max_tokens)
        echo = None
        if request.echo and choice_index == 0:
            echo = Echo(request.prompt_tokens, self._backend.token_text, self._new_scorer(request))
        self._n_submitted += 1
        return Sequence(
            request,
            order=self._n_submitted,
            n_tokens_max=n_tokens_max,
            chooser=self._new_chooser(request, plan),
            choice_index=choice_index,
            echo=echo,
        )

    def _new_chooser(self, request: SequenceRequest, plan: SamplerPlan) -> Chooser:
        sampler = self._backend.new_sampler(plan)
        matcher = new_matcher(request.constraint, request.reasoning, self._backend)
        return Chooser(sampler, self._backend.logits, matcher, self._new_scorer(request))

    def _new_scorer(self, request: SequenceRequest) -> Scorer | None:
        if request.logprobs is None:
            return None
        return Scorer(self._backend.logits, self._backend.token_text, request.logprobs)

    def _end_the_satisfied(self, step: StepUnderWay) -> None:
        """Those who asked for no token at all."""
        for sequence in [sequence for sequence in self._waiting if sequence.is_full]:
            self._finish(sequence, FinishReason.LENGTH, [], step)

    def _count_planned(self) -> int:
        return count_planned(self._cells.n_used, self._running)

    def _preempt(self, sequence: Sequence) -> None:
        """What it has is retained, until others need the room."""
        self._running.remove(sequence)
        self._cells.retain(sequence.slot, sequence.request.namespace, awaited_by=sequence)
        sequence.preempt()
        bisect.insort(self._waiting, sequence, key=attrgetter("order"))
        self._n_preemptions += 1

    def _admit(self, now_s: float) -> None:
        while self._waiting and len(self._running) < self._options.max_sequences:
            sequence = self._waiting[0]
            prospect = self._sharing.look_up(sequence, self._running)
            if not may_join(
                sequence,
                sequence.n_tokens - prospect.n_shared,
                self._running,
                n_planned=self._count_planned(),
                n_cells=self._options.n_cells,
                max_sequences=self._options.max_sequences,
            ):
                return
            del self._waiting[0]
            self._sharing.begin(sequence, prospect, now_s)
            bisect.insort(self._running, sequence, key=attrgetter("order"))

    def _end(self, sequence: Sequence, *, keep: bool = True) -> None:
        """`keep`: what it computed may be used again."""
        if sequence.is_running:
            self._running.remove(sequence)
            if keep:
                self._cells.retain(sequence.slot, sequence.request.namespace)
            else:
                self._cells.release(sequence.slot)
        else:
            self._waiting.remove(sequence)
            self.hibernation.expect_no_longer(sequence)
        sequence.end()
        self._stands_still = False
        choices = self._alive[sequence.request.request_id]
        choices.alive.remove(sequence)
        if not choices.alive:
            del self._alive[sequence.request.request_id]

    # the forward pass

    def _advance(self, step: StepUnderWay) -> None:
        """Decode one batch; where there are no cells although our count says so, make room until there are.

        Some memory layouts (sliding windows, recurrent states) count otherwise than we do. The retry is
        within the step, since the next one would admit the victim again.
        """
        while chunks := self._plan():
            result = self._decode(chunks)
            if result is DecodeResult.DONE:
                self._collect(chunks, step)
            elif result is DecodeResult.FAILED:
                self._advance_one_by_one(chunks, step)
            elif self._cells.give_up_oldest():
                continue
            elif len(self._running) > 1:
                self._preempt(self._running[-1])
                continue
            else:
                self._fail(chunks[0].sequence, "the model's memory has no room for this request", step)
            self._decoded_last = chunks[0].is_single
            return
        self._stands_still = self.wanted_state is not None

    def _plan(self) -> list[Chunk[Sequence]]:
        self._sharing.part_from_leaders(self._running)
        taking_part = [sequence for sequence in self._running if not sequence.is_waiting]
        return self._plan_for(taking_part, decoded_last=self._decoded_last)

    def _plan_for(self, sequences: list[Sequence], *, decoded_last: bool) -> list[Chunk[Sequence]]:
        n_rows = self._prefill_chunk
        if any(sequence.is_repeatable and sequence.n_pending > 1 for sequence in sequences):
            n_rows = min(n_rows, FIRST_CHUNK)
        chunks = plan_step(sequences, n_rows, decoded_last=decoded_last)
        if any(scores_prompt(chunk.sequence) for chunk in chunks):
            return fit_outputs(chunks, self._backend.facts.n_outputs, scores_prompt)
        return chunks

    def _advance_one_by_one(self, chunks: list[Chunk[Sequence]], step: StepUnderWay) -> None:
        """After a failed pass: who fails alone has failed, and nobody else has.

        First drop what the pass may have left in cells, for everybody; where only all can be dropped
        (recurrent states), the sequence is computed anew, here and now, since it would fail with the others
        again.
        """
        for chunk in chunks:
            sequence = chunk.sequence
            if not self._cells.cut(sequence.slot, chunk.start):
                sequence.n_filled = 0
        for chunk in chunks:
            self._advance_alone(chunk, step)

    def _advance_alone(self, chunk: Chunk[Sequence], step: StepUnderWay) -> None:
        """Bring one sequence to where `chunk` would have brought it."""
        sequence = chunk.sequence
        while sequence.is_running and sequence.n_filled < chunk.start + chunk.count:
            parts = self._plan_for([sequence], decoded_last=False)
            if self._decode(parts) is DecodeResult.DONE:
                self._collect(parts, step)
            else:
                self._fail(sequence, "the engine could not compute this request", step)

    def _decode(self, chunks: list[Chunk[Sequence]]) -> DecodeResult:
        n_rows = fill_batch(self._backend.batch, chunks)
        self._cells.make_room(n_rows)
        begin_s = self._stopwatch()
        result = self._backend.decode(n_rows)
        elapsed_s = self._stopwatch() - begin_s
        self._computing_s += elapsed_s
        if not chunks[0].is_single:
            self._adapt_chunk(n_rows, elapsed_s)
        return result

    @property
    def _has_streams(self) -> bool:
        return any(sequence.state is SequenceState.DECODING for sequence in self._running)

    @property
    def _prefill_chunk(self) -> int:
        return self._chunks[self._has_streams]

    def _adapt_chunk(self, n_rows: int, elapsed_s: float) -> None:
        n_most = self._options.prefill_chunk
        limit_s = STEP_LIMIT_S if self._has_streams else ALONE_LIMIT_S
        chunk = next_chunk(self._prefill_chunk, n_rows, elapsed_s, n_most, limit_s=limit_s)
        self._chunks[self._has_streams] = chunk

    def _collect(self, chunks: list[Chunk[Sequence]], step: StepUnderWay) -> None:
        """Account for the rows of a pass that succeeded, and sample after every last token."""
        now_s = self._clock()
        row = 0
        for chunk in chunks:
            row += chunk.count
            sequence = chunk.sequence
            if not sequence.is_running:
                continue  # another answer to the same request has failed
            self._cells.fill(sequence.slot, sequence.tokens[chunk.start : chunk.start + chunk.count])
            sequence.n_filled += chunk.count
            if sequence.state is SequenceState.DECODING:
                step.decode_tokens += chunk.count
            else:
                step.prefill_tokens += chunk.count
            if sequence.echo is not None and not self._echo(sequence, chunk, row - chunk.count, step):
                continue
            if chunk.is_last:
                self._sample(sequence, row - 1, now_s, step)

    def _echo(self, sequence: Sequence, chunk: Chunk[Sequence], first_row: int, step: StepUnderWay) -> bool:
        """Tell of the prompt what `chunk` has computed; False when the sequence has failed."""
        assert sequence.echo is not None
        try:
            text = sequence.echo.advance(chunk.start, chunk.start + chunk.count, first_row)
        except UnusableLogits:
            self._fail(sequence, _NO_NUMBERS, step)
            return False
        if text is not None:
            step.events.append((sequence.request.request_id, text))
        return True

    def _sample(self, sequence: Sequence, row: int, now_s: float, step: StepUnderWay) -> None:
        """Choose the token that follows `row`, show its text, and end the sequence when it is time to:

        1. the model ended its turn; 2. a stop string was met; 3. its constraint lets nothing follow;
        4. `max_tokens` or the context was reached.
        """
        try:
            token_id = sequence.chooser.choose(row)
        except UnusableLogits:
            self._fail(sequence, _NO_NUMBERS, step)
            return
        except ConstraintBroken:
            self._fail(sequence, "the constraint became too complex to follow", step)
            return
        if sequence.n_generated == 0:
            self._sharing.count(sequence)
        sequence.add_token(token_id, now_s)
        if self._backend.is_end_of_generation(token_id):
            self._finish(sequence, FinishReason.STOP, sequence.flush(ended_by_model=True), step)
            return
        for delta in sequence.add_text(self._backend.token_piece(token_id)):
            step.events.append((sequence.request.request_id, delta))
        if sequence.met_stop_string:
            self._finish(sequence, FinishReason.STOP, [], step)
        elif sequence.chooser.is_complete:
            self._finish(sequence, FinishReason.STOP, sequence.flush(ended_by_model=True), step)
        elif sequence.is_full:
            self._finish(sequence, FinishReason.LENGTH, sequence.flush(ended_by_model=False), step)

    def _finish(
        self, sequence: Sequence, reason: FinishReason, rest: list[TextDelta], step: StepUnderWay
    ) -> None:
        request_id = sequence.request.request_id
        step.events += [(request_id, delta) for delta in rest]
        step.events.append((request_id, self._alive[request_id].ending(sequence, reason)))
        self._end(sequence)

    def _fail(self, sequence: Sequence, message: str, step: StepUnderWay) -> None:
        """Other answers to the same request end with it."""
        request_id = sequence.request.request_id
        step.events.append((request_id, Failed(code=EngineFailed.code, message=message)))
        for other in tuple(self._alive[request_id].alive):
            self._end(other, keep=False)
