"""Who shares whose cells: what a sequence finds when it begins, and whom it waits for.

    arrives ── look_up ──> begin ──┬── computes what is not there
                                   └── waits for its leader ── part_from_leaders ──> computes the rest

Requests often arrive together and begin alike, with nothing of it in cells yet. The oldest of them then
computes what they have in common, and the others wait and share it: that takes as many passes as if it were
alone, and each of them would take as many again. Imports the pool, the tree and the sequences. Used by
`engine.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from runner.domain.engine import CacheMiss
from runner.engine.cells import LEAST_SHARED, CellPool
from runner.engine.prefix import NO_MATCH, Match, common_length
from runner.engine.sequence import Sequence


@attrs.frozen
class Prospect:
    """What a sequence would begin with: what was found, and a leader that is about to compute `n_awaited`
    tokens of it. `n_shared` of its tokens take no cells that running sequences do not have anyway."""

    match: Match
    leader: Sequence | None
    n_awaited: int
    n_shared: int


class Sharing:
    """Counts hits, the tokens of these, and misses by their reason; all else the pool knows.

    A prompt that is computed alone is cut every `chunk` tokens. Where it is cut decides the last bits of what
    comes out, so a request with a seed, which is asked to be repeatable, shares only up to such a place.
    """

    def __init__(self, cells: CellPool, chunk: int) -> None:
        self._cells = cells
        self._chunk = chunk
        self.n_hits = 0
        self.n_reused_tokens = 0
        self.misses = dict.fromkeys(CacheMiss, 0)

    def __repr__(self) -> str:
        return f"<Sharing: {self.n_hits} hits, {sum(self.misses.values())} misses>"

    def look_up(self, sequence: Sequence, running: Iterable[Sequence]) -> Prospect:
        """Changes nothing. A prompt that is echoed with logprobs is computed, whoever else has it."""
        if sequence.echo is not None and sequence.echo.is_scored:
            return Prospect(NO_MATCH, None, 0, 0)
        match = self._find(sequence)
        leader, n_awaited = self._find_leader(sequence, running, match.count)
        return Prospect(match, leader, n_awaited, max(n_awaited, self._cells.count_in_use(match)))

    def begin(self, sequence: Sequence, prospect: Prospect, now_s: float) -> None:
        """Give it an id, and the cells that were found."""
        request = sequence.request
        sequence.start(self._cells.open(request.namespace), now_s)
        self._cells.expect_no_longer(sequence)
        if prospect.match.count:
            self._attach(sequence, prospect.match)
        elif request.namespace is None:
            sequence.miss = CacheMiss.DISABLED
        elif not self._cells.can_share:
            sequence.miss = CacheMiss.UNSUPPORTED
        elif self._cells.was_given_up(request.prompt_tokens, request.namespace):
            sequence.miss = CacheMiss.GIVEN_UP
        sequence.follow(prospect.leader, prospect.n_awaited)

    def part_from_leaders(self, running: Iterable[Sequence]) -> None:
        """Share what a leader has now, or look for another when it is not going to have it."""
        for sequence in running:
            leader = sequence.leader
            if leader is None or (leader.is_running and leader.n_filled < sequence.n_awaited):
                continue
            sequence.follow(None)
            match = self._find(sequence)
            if match.count > sequence.n_filled:
                self._attach(sequence, match)
            sequence.follow(*self._find_leader(sequence, running, sequence.n_filled))

    def count(self, sequence: Sequence) -> None:
        """Once for each, when its prompt is in cells."""
        if sequence.n_cached:
            self.n_hits += 1
            self.n_reused_tokens += sequence.n_cached
        else:
            self.misses[sequence.miss] += 1

    def _find(self, sequence: Sequence) -> Match:
        match = self._cells.find(sequence.tokens, sequence.request.namespace)
        count = self._usable(sequence, match.count)
        return Match(count, match.holders) if count >= LEAST_SHARED else NO_MATCH

    def _usable(self, sequence: Sequence, n_found: int) -> int:
        """Of so many tokens in cells, those that this sequence may have."""
        return n_found - n_found % self._chunk if sequence.is_repeatable else n_found

    def _attach(self, sequence: Sequence, match: Match) -> None:
        if self._cells.attach(sequence.slot, match):
            sequence.attach(match.count)
        else:
            sequence.attach(0)
            sequence.miss = CacheMiss.WINDOW

    def _find_leader(
        self, sequence: Sequence, running: Iterable[Sequence], n_found: int
    ) -> tuple[Sequence | None, int]:
        """Who is about to compute more of what this one begins with than is in cells, and how much.

        Leaders are older, so that the oldest waits for nobody.
        """
        leader, n_best = None, n_found + LEAST_SHARED - 1
        if sequence.request.namespace is None or not self._cells.can_share:
            return None, 0
        for other in running:
            is_ahead = other.order < sequence.order and other.n_filled < other.n_prompt
            if is_ahead and other.request.namespace == sequence.request.namespace:
                count = self._usable(sequence, common_length(other.tokens, sequence.tokens[:-1]))
                if count > max(n_best, other.n_filled):
                    leader, n_best = other, count
        return leader, n_best if leader is not None else 0
