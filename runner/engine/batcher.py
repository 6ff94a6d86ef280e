"""Which sequences share the next forward pass: preemption, admission and the rows of a step.

Policies as pure functions over `Candidate`s, which `sequence.Sequence` is one of. One rule carries all three:
**a running sequence has a cell for every token it already has**, filled or not, its own or shared. While the
tokens of all running sequences fit the pool, every step can run for everybody, once retained prefixes have
made room, so nothing here ever asks whether a row will find a cell.

Imports nothing of ours. Called by `engine.py` in the order of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, Protocol, TypeVar

import attrs


class Candidate(Protocol):
    """What the policies look at. `n_filled` counts its tokens that are in cells, `n_pending` those that it
    still has to compute, `n_remaining` those that may still come."""

    @property
    def n_filled(self) -> int: ...

    @property
    def n_pending(self) -> int: ...

    @property
    def n_remaining(self) -> int: ...


C = TypeVar("C", bound=Candidate)


@attrs.frozen
class Chunk(Generic[C]):
    """Rows of one sequence in one step: its tokens `start` to `start + count`.

    `is_last` chunks end at the last token known, so that the next one is sampled after them.
    """

    sequence: C
    start: int
    count: int
    is_last: bool

    @property
    def is_single(self) -> bool:
        """The one token that its sequence lacked: part of a decoding step."""
        return self.count == 1 and self.is_last


def count_planned(n_used: int, running: Iterable[Candidate]) -> int:
    """Cells that all running sequences need for the tokens they have; `n_used` of them are filled."""
    return n_used + sum(candidate.n_pending for candidate in running)


def must_preempt(n_planned: int, n_running: int, n_cells: int) -> bool:
    """Whether the youngest gives way, and the question is put again without it.

    The oldest stays whatever it needs, since one sequence alone always fits: so the engine as a whole never
    stands still, and the oldest is never held up by younger ones.
    """
    return n_planned > n_cells and n_running > 1


def may_join(
    newcomer: Candidate,
    n_needed: int,
    running: Sequence[Candidate],
    *,
    n_planned: int,
    n_cells: int,
    max_sequences: int,
) -> bool:
    """Whether the first of those who wait may run from the next step on; it needs `n_needed` cells that no
    running sequence has.

    1. No more than `max_sequences` run.
    2. Somebody always runs: the first is admitted into an empty engine.
    3. Else a newcomer must fit with its tokens and room to grow for itself and for all who run (`room_of`),
       so that it is not preempted right away.
    4. Nobody overtakes: a small request does not pass a large one, or the large one might wait for ever.
    """
    if len(running) == max_sequences:
        return False
    room = sum(room_of(candidate, n_cells, max_sequences) for candidate in (newcomer, *running))
    return not running or n_planned + n_needed + room <= n_cells


def room_of(candidate: Candidate, n_cells: int, max_sequences: int) -> int:
    """Cells to keep for what a sequence will still produce: at most its share of half the pool.

    More would leave cells idle that most answers never reach; much less and a preempted sequence would return
    only to be preempted again a few tokens later, each time prefilling everything anew.
    """
    return min(candidate.n_remaining, n_cells // (2 * max_sequences))


def plan_step(running: Iterable[C], prefill_budget: int, *, decoded_last: bool) -> list[Chunk[C]]:
    """The rows of the next step, whose forward pass decodes or prefills. `running` is sorted oldest first.

    1. Who lacks a single token (everybody who is decoding) takes part in every decoding step.
    2. A prefilling step has `prefill_budget` rows at most (and at least 1), as `share_rows` divides them.
    3. Where there is work of both kinds, they take turns: a stream's gap is one step of each at most.

    Mixed passes are rejected for what they cost: with flash attention on a CPU, a tile of 64 rows computes
    every cell that any of them sees, so that 64 rows of a prompt beside 6 streams of 512 tokens took 653 ms,
    and alone 324 ms, with 74 ms for the streams (llama.cpp's `flash_attn_ext_tiled` skips what none of the
    rows sees). Taking turns also shows the tokens of a decoding step before the next chunk is computed.
    """
    singles: list[Chunk[C]] = []
    prompts: list[C] = []
    for candidate in running:
        if candidate.n_pending == 1:
            singles.append(Chunk(candidate, candidate.n_filled, 1, True))
        else:
            prompts.append(candidate)
    if singles and not (prompts and decoded_last):
        return singles
    counts = share_rows([candidate.n_pending for candidate in prompts], prefill_budget)
    return [
        Chunk(candidate, candidate.n_filled, count, count == candidate.n_pending)
        for candidate, count in zip(prompts, counts, strict=True)
        if count
    ]


def fit_outputs(chunks: list[Chunk[C]], n_outputs: int, is_scored: Callable[[C], bool]) -> list[Chunk[C]]:
    """The chunks of a prefilling step, cut so that no more than `n_outputs` rows want logits.

    Scored chunks want those of all their rows, the others of their last one, for which there is always room.
    """
    left = n_outputs - sum(chunk.is_last and not is_scored(chunk.sequence) for chunk in chunks)
    fitted = []
    for chunk in chunks:
        if is_scored(chunk.sequence):
            count = min(chunk.count, left)
            left -= count
            chunk = attrs.evolve(chunk, count=count, is_last=chunk.is_last and count == chunk.count)
        if chunk.count:
            fitted.append(chunk)
    return fitted


def share_rows(pending: Sequence[int], budget: int) -> list[int]:
    """Rows of one step for prompts of which so many tokens are pending, oldest first; as many as there are.

    1. Half of them belong to the oldest, so that it comes to its end whoever arrives after it.
    2. The rest goes to those who are nearest to their end, so that a short prompt takes about twice as long
       beside a long one as it would alone, and does not wait until the long one is done.

    Prompts of equal length are so computed one after the other, which lets the first answer start soonest.
    """
    rows = [0] * len(pending)
    if pending:
        rows[0] = min(pending[0], -(-budget // 2))  # 1
    left = budget - sum(rows)
    for index in sorted(range(len(pending)), key=lambda index: pending[index]):  # 2; stable: oldest first
        more = min(pending[index] - rows[index], left)
        rows[index] += more
        left -= more
    return rows


STEP_LIMIT_S: Final = 0.3
"""The longest that a running stream should wait for a chunk of somebody's prompt. With less, 64 rows at 1500
tokens of context (260 ms) would be cut to 16 (110 ms), and read at six tenths of the speed."""
ALONE_LIMIT_S: Final = 0.75
"""Where nobody waits: a cancelled request should be gone within a second (N23).

Small chunks cost: 64 rows took 394 ms at 1500 tokens, and twice 32 took 640. On a processor, flash attention
computes in tiles of 64 rows, and row by row what is less.
"""
FIRST_CHUNK: Final = 64
"""Rows of a prefilling step before anything is known of the device's speed, and always for requests that are
asked to be repeatable: where a prompt is cut decides the last bits of what comes out."""
LEAST_CHUNK: Final = 8


def next_chunk(chunk: int, n_rows: int, elapsed_s: float, most: int, *, limit_s: float) -> int:
    """Rows of the next prefilling step, after one of `n_rows` rows took `elapsed_s`.

    1. Halved as often as it takes for the next one to stay below the limit, at the rate of this one.
    2. Doubled when that would take less than two thirds of the limit, `most` being what the engine was
       loaded for. Only after a full chunk: a small one tells little of a large one.

    Halves and doubles keep the places few where prompts are cut, on which the last bits of a result depend.
    """
    rate_s = elapsed_s / n_rows
    while chunk > LEAST_CHUNK and chunk * rate_s > limit_s:  # 1
        chunk = max(LEAST_CHUNK, chunk // 2)
    if chunk < most and n_rows >= chunk and 2 * chunk * rate_s < limit_s * 2 / 3:  # 2
        chunk = 2 * chunk
    return min(chunk, most)
