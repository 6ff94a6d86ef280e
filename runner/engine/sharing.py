"""Who shares whose cells: what a sequence finds when it begins, and whom it waits for.

    arrives ── look_up ──> begin ──┬── computes what is not there
                                   ├── waits for its leader ── part_from_leaders ──> computes the rest
                                   └── waits for a saved state ── bring_state ─────> computes the rest

Requests often arrive together and begin alike, with nothing of it in cells yet. The oldest of them then
computes what they have in common, and the others wait and share it: that takes as many passes as if it were
alone, and each of them would take as many again. What neither cells nor a leader have may have been saved:
then it is brought into the cells of the sequence that begins, be it a new one, or one that was preempted and
has lost what it had.

Imports the pool, the tree, saved states and the sequences. Used by `engine.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import attrs

from runner.domain.engine import CacheMiss
from runner.engine.cells import LEAST_SHARED, CellPool
from runner.engine.hibernation import LEAST_SAVED, Find, Hibernation, KnownState
from runner.engine.prefix import NO_MATCH, Match, common_length
from runner.engine.sequence import Sequence, SequenceRequest


@attrs.frozen
class Prospect:
    """What a sequence would begin with: what is in cells, and a leader that is about to compute `n_awaited`
    tokens of it; or a saved state that has more than both. `n_shared` of its tokens take no cells that
    running sequences do not have anyway."""

    match: Match = NO_MATCH
    leader: Sequence | None = None
    n_awaited: int = 0
    n_shared: int = 0
    saved: Find | None = None


class Sharing:
    """Counts hits, the tokens of these, and misses by their reason; all else the pool knows.

    A prompt that is computed alone is cut every `chunk` tokens. Where it is cut decides the last bits of what
    comes out, so a request with a seed, which is asked to be repeatable, shares only up to such a place.
    """

    def __init__(self, cells: CellPool, hibernation: Hibernation, chunk: int) -> None:
        self._cells = cells
        self._hibernation = hibernation
        self._chunk = chunk
        self.n_hits = 0
        self.n_reused_tokens = 0
        self.misses = dict.fromkeys(CacheMiss, 0)

    def __repr__(self) -> str:
        return f"<Sharing: {self.n_hits} hits, {sum(self.misses.values())} misses>"

    def look_up(self, sequence: Sequence, running: Iterable[Sequence]) -> Prospect:
        """Changes nothing. A prompt that is echoed with logprobs is computed, whoever else has it."""
        if sequence.echo is not None and sequence.echo.is_scored:
            return Prospect()
        match = self._find(sequence)
        n_in_use = self._cells.count_in_use(match)
        leader, n_awaited = self._find_leader(sequence, running, match.count)
        saved = self._find_saved(sequence, max(match.count, n_awaited))
        if saved is not None:
            return Prospect(match, n_shared=n_in_use, saved=saved)
        return Prospect(match, leader, n_awaited, max(n_awaited, n_in_use))

    def begin(self, sequence: Sequence, prospect: Prospect, now_s: float) -> None:
        """Give it an id, and the cells that were found."""
        request = sequence.request
        sequence.start(self._cells.open(request.namespace), now_s)
        if self._cells.goes_on(request.prompt_tokens, request.namespace):
            self._cells.expect_back(sequence.slot)
        self._hibernation.expect_no_longer(sequence)
        sequence.miss = self._reason_of_miss(request)
        if prospect.saved is not None:
            self._begin_with(sequence, prospect.saved, prospect.n_shared)
            return
        if prospect.match.count:
            self._attach(sequence, prospect.match)
        sequence.follow(prospect.leader, prospect.n_awaited)

    def part_from_leaders(self, running: Iterable[Sequence]) -> None:
        """Share what a leader has now, or look for another when it is not going to have it."""
        for sequence in running:
            leader = sequence.leader
            if leader is None or (leader.is_running and leader.n_filled < sequence.n_awaited):
                continue
            self._look_again(sequence, running)

    def bring_state(self, state_id: int, data: memoryview | None, running: Iterable[Sequence]) -> bool:
        """To those who wait for it; None when it cannot be had. False when the engine refuses it.

        Only between steps.
        """
        is_good = True
        for sequence in running:
            found = sequence.found
            if found is None or not isinstance(found.state, KnownState) or found.state.state_id != state_id:
                continue
            sequence.stop_waiting()
            if data is None or not self._hibernation.has_room_for(found):
                self._look_again(sequence, running)
            elif not self._restore(sequence, found, data):
                is_good = False
                self._look_again(sequence, running)
        return is_good

    def _reason_of_miss(self, request: SequenceRequest) -> CacheMiss:
        """If it turns out to be one."""
        if request.namespace is None:
            return CacheMiss.DISABLED
        if not self._cells.can_share:
            return CacheMiss.UNSUPPORTED
        is_given_up = self._cells.was_given_up(request.prompt_tokens, request.namespace)
        return CacheMiss.GIVEN_UP if is_given_up else CacheMiss.NEW

    def _begin_with(self, sequence: Sequence, saved: Find, n_shared: int) -> None:
        """At once when it is here."""
        if isinstance(saved.state, KnownState):
            sequence.await_state(saved, n_shared)
            return
        namespace = sequence.request.namespace
        if self._hibernation.has_room_for(saved) and self._hibernation.restore_held(
            sequence.slot, namespace, saved, sequence.tokens
        ):
            sequence.attach(saved.count)
        else:
            self._look_again(sequence, ())

    def _restore(self, sequence: Sequence, found: Find, data: memoryview) -> bool:
        namespace = sequence.request.namespace
        if not self._hibernation.restore(sequence.slot, namespace, found, sequence.tokens, data):
            return False
        sequence.attach(found.count)
        return True

    def _look_again(self, sequence: Sequence, running: Iterable[Sequence]) -> None:
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

    def _find_saved(self, sequence: Sequence, n_had: int) -> Find | None:
        """Worth its while when it has so many tokens more than are had without it."""
        usable = partial(self._usable, sequence)
        found = self._hibernation.find(sequence.tokens[:-1], sequence.request.namespace, usable)
        return found if found is not None and found.count - n_had >= LEAST_SAVED else None

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
