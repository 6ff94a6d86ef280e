"""Which sequences share the next forward pass: preemption, admission and the rows of a step.

Policies as pure functions over `Candidate`s, which `sequence.Sequence` is one of. One rule carries all three:
**a running sequence owns a cell for every token it already has**, filled or not. While the tokens of all
running sequences fit the pool, every step can run for everybody, so nothing here ever asks whether a row will
find a cell.

Imports nothing of ours. Called by `engine.py` in the order of this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import attrs


class Candidate(Protocol):
    """What the policies look at. `n_tokens` counts prompt and answer so far, `n_filled` those in cells,
    `n_remaining` the tokens that may still come."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def n_filled(self) -> int: ...

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


def choose_victims(running: Sequence[C], n_cells: int) -> list[C]:
    """Who is preempted before the step, youngest first, so that the others' tokens fit the pool.

    `running` is sorted oldest first. The oldest stays whatever it needs, since one sequence alone always
    fits: so the engine as a whole never stands still, and the oldest is never held up by younger ones.
    """
    excess = sum(candidate.n_tokens for candidate in running) - n_cells
    victims: list[C] = []
    for candidate in reversed(running[1:]):
        if excess <= 0:
            break
        victims.append(candidate)
        excess -= candidate.n_tokens
    return victims


def count_admissions(
    waiting: Iterable[Candidate], running: Sequence[Candidate], *, n_cells: int, max_sequences: int
) -> int:
    """How many of `waiting`, from its front, may run from the next step on.

    1. No more than `max_sequences` run.
    2. Somebody always runs: the first is admitted into an empty engine.
    3. Else a newcomer must fit with its tokens and room to grow for itself and for all who run (`room_of`),
       so that it is not preempted right away.
    4. Nobody overtakes: a small request does not pass a large one, or the large one might wait for ever.
    """
    planned = sum(candidate.n_tokens + room_of(candidate, n_cells, max_sequences) for candidate in running)
    n_running = len(running)
    n_admitted = 0
    for candidate in waiting:
        planned += candidate.n_tokens + room_of(candidate, n_cells, max_sequences)
        is_alone = n_running + n_admitted == 0
        if n_running + n_admitted == max_sequences or (planned > n_cells and not is_alone):
            break
        n_admitted += 1
    return n_admitted


def room_of(candidate: Candidate, n_cells: int, max_sequences: int) -> int:
    """Cells to keep for what a sequence will still produce: at most its share of half the pool.

    More would leave cells idle that most answers never reach; much less and a preempted sequence would return
    only to be preempted again a few tokens later, each time prefilling everything anew.
    """
    return min(candidate.n_remaining, n_cells // (2 * max_sequences))


def plan_step(running: Iterable[C], prefill_budget: int, *, decoded_last: bool) -> list[Chunk[C]]:
    """The rows of the next step, whose forward pass decodes or prefills. `running` is sorted oldest first.

    1. Who lacks a single token (everybody who is decoding) takes part in every decoding step.
    2. A prefilling step has `prefill_budget` rows at most (and at least 1), for the oldest prompts first.
    3. Where there is work of both kinds, they take turns: a stream's gap is one step of each at most.

    Mixed passes are rejected for what they cost: with flash attention on a CPU, a tile of 64 rows computes
    every cell that any of them sees, so that 64 rows of a prompt beside 6 streams of 512 tokens took 653 ms,
    and alone 324 ms, with 74 ms for the streams (llama.cpp's `flash_attn_ext_tiled` skips what none of the
    rows sees). Taking turns also shows the tokens of a decoding step before the next chunk is computed.
    """
    singles: list[Chunk[C]] = []
    prompts: list[Chunk[C]] = []
    budget = prefill_budget
    for candidate in running:
        n_pending = candidate.n_tokens - candidate.n_filled
        if n_pending == 1:
            singles.append(Chunk(candidate, candidate.n_filled, 1, True))
        elif budget > 0:
            count = min(n_pending, budget)
            budget -= count
            prompts.append(Chunk(candidate, candidate.n_filled, count, count == n_pending))
    return prompts if prompts and (decoded_last or not singles) else singles
