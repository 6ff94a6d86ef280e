"""The pool of cells: which sequence has which, what is kept of those that ended, and what gives way first.

A sequence that runs holds an id and the cells of its tokens. When it ends, both may be *retained*, so that a
later prompt that begins alike need not compute its beginning again: that one's id then shares the cells.

                find, open, attach, fill ──> running ── retain ──> retained ── make_room ──> given up
                                                └────── release ──────────────────────────> free

Every decoding step passes over retained cells, too: beside 2,560 of them a stream of a small model took 8.9
instead of 7.1 ms a step. So while anybody computes, what can be held elsewhere (`hibernation.py`) leaves
the cells for there. Where it cannot, those that ended last are kept, in at most half of the pool, and more
only while it is little. When cells run out retained ones go first, the least recently used from its end on:
what several have in common is at their beginnings.

Owns the ids, the tree and the order of use. Imports the tree, the ids and the protocol of backends.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Final, Protocol

from runner.engine.continuations import Continuations
from runner.engine.prefix import NO_MATCH, Match, PrefixTree
from runner.engine.slots import Slots

LEAST_SHARED: Final = 16
"""Tokens. Fewer are computed soon enough, and would take an id from a longer prefix."""
KEPT_FREELY: Final = 4
"""As many as ended last are kept whatever they cost: people go on with what they have just read."""
KEPT_CELLS: Final = 512
"""Cells that all may have where more are kept."""
_TRIM: Final = 64
"""Cells given up at a time, since dropping some passes over the whole pool."""
_GIVEN_UP_MAX: Final = 1024
"""Beginnings remembered, to tell a prompt that was given up from one that was never there."""


class Leaving(enum.Enum):
    """What becomes of a retained sequence that leaves the cells."""

    HELD = enum.auto()
    """Nothing is lost: all of it is elsewhere."""
    CHEAP = enum.auto()
    """It is lost, and soon computed again."""
    LOST = enum.auto()


class CellMemory(Protocol):
    """What of a backend is used here; see `runner.engine.backend.Backend`."""

    def copy_cells(self, source_id: int, target_id: int, count: int) -> bool: ...

    def drop_cells(self, sequence_id: int, from_position: int = 0) -> bool: ...

    def share_beginning(self, source_id: int, target_id: int, count: int) -> None: ...


class CellPool:
    """`max_retained` is 0 for what cannot be shared. Namespaces keep apart what must not be shared."""

    def __init__(self, memory: CellMemory, *, n_cells: int, max_running: int, max_retained: int) -> None:
        self._memory = memory
        self.n_cells = n_cells
        self._max_retained = max_retained
        self._slots = Slots(max_running + max_retained)
        self._tree = PrefixTree()
        self._running: set[int] = set()
        self._retained: dict[int, Hashable] = {}
        """With their namespaces, least recently used first."""
        self._awaited: dict[int, object] = {}
        """Retained ids that will be used again for certain, and by whom."""
        self._given_up: dict[int, None] = {}
        """Hashes of beginnings, oldest first."""
        self._continuations = Continuations()
        self._continuing: set[int] = set()
        """Ids of sequences that went on from where others had ended."""
        self._n_used = 0
        self._private = itertools.count()
        self.hold: Callable[[int, Hashable, bool], Leaving] = lambda slot, namespace, may_cut: Leaving.LOST
        """Called before cells of a retained id are given up, to hold what they have elsewhere; `may_cut`: if
        not all of it, then its beginning."""
        self.may_hold: Callable[[int], bool] = lambda slot: True
        """Whether that would cost nothing else its place there."""

    def __repr__(self) -> str:
        return (
            f"<CellPool: {self._n_used} cells of {len(self._running)} running, "
            f"{self.n_retained} of {len(self._retained)} retained, {self.n_free} free>"
        )

    @property
    def can_share(self) -> bool:
        return self._max_retained > 0

    @property
    def n_used(self) -> int:
        """Cells of running sequences, each counted once."""
        return self._n_used

    @property
    def n_retained(self) -> int:
        """Cells that only retained prefixes have."""
        return self._tree.n_cells - self._n_used

    @property
    def n_free(self) -> int:
        return self.n_cells - self._tree.n_cells

    # beginning

    def find(self, tokens: Sequence[int], namespace: Hashable | None) -> Match:
        """What is there of a prompt; of its last token the logits are needed, so that it is always computed.

        Nothing when it is less than `LEAST_SHARED`.
        """
        if namespace is None or not self.can_share:
            return NO_MATCH
        match = self._tree.longest_match(tokens[:-1], namespace)
        return match if match.count >= LEAST_SHARED else NO_MATCH

    def count_in_use(self, match: Match) -> int:
        """Of what was found, the cells that running sequences have anyway."""
        if not match.count:
            return 0
        return self._tree.count_shared(min(match.holders), match.count, self._running)

    def was_given_up(self, tokens: Sequence[int], namespace: Hashable | None) -> bool:
        """Whether something that began like these tokens had to make room."""
        return _beginning(tokens, namespace) in self._given_up

    def open(self, namespace: Hashable | None) -> int:
        """An id for a sequence that begins to run. None: it shares with nobody."""
        slot = self._slots.acquire()
        self._tree.add(slot, ("private", next(self._private)) if namespace is None else namespace)
        self._running.add(slot)
        return slot

    def goes_on(self, prompt: Sequence[int], namespace: Hashable | None) -> bool:
        """Whether a prompt begins with all of what some sequence ended with, be it kept or not."""
        return namespace is not None and self._continuations.is_one(prompt, namespace)

    def expect_back(self, slot: int) -> None:
        """What this sequence leaves will be used again, as something was before it."""
        self._continuing.add(slot)

    def is_expected_back(self, slot: int) -> bool:
        """Whether what is retained will be used again, as it was before."""
        return slot in self._continuing

    def awaited_by(self, slot: int) -> object | None:
        """Who comes back for certain for what is retained."""
        return self._awaited.get(slot)

    def attach(self, slot: int, match: Match) -> bool:
        """Let a running sequence have what was found, and nothing else.

        False when the engine's memory has not kept all that is needed of it; the sequence then has nothing.
        """
        self.cut(slot, 0)
        source = min(match.holders)
        if not self._memory.copy_cells(source, slot, match.count):
            return False
        self._n_used += match.count - self.count_in_use(match)
        self._tree.attach(slot, source, match.count)
        self._note_use(match)
        return True

    def bring(
        self,
        slot: int,
        tokens: Sequence[int],
        namespace: Hashable,
        *,
        n_saved: int,
        fill: Callable[[], bool],
        shares_beginning: bool,
    ) -> bool:
        """Let a running sequence, which has nothing, have `tokens` out of what `fill` puts into its cells, of
        which these are the first of `n_saved`, and which have room beside those of running sequences. False
        when it would not.

        `shares_beginning`: what others have of it is not kept twice.
        """
        self.make_room(n_saved)
        if not fill():
            return False
        if len(tokens) < n_saved:
            self._memory.drop_cells(slot, len(tokens))
        match = self._tree.longest_match(tokens, namespace) if shares_beginning else NO_MATCH
        if match.count:
            source = min(match.holders)
            self._memory.share_beginning(source, slot, match.count)
            self._tree.attach(slot, source, match.count)
            self._note_use(match)
        self._tree.extend(slot, tokens[match.count :])
        self._n_used = self._tree.count_held(self._running)
        return True

    def fill(self, slot: int, tokens: Sequence[int]) -> None:
        """These were computed, and are in cells of its own."""
        self._tree.extend(slot, tokens)
        self._n_used += len(tokens)

    def cut(self, slot: int, count: int) -> bool:
        """Drop what a running sequence has beyond `count` tokens, and what a failed pass may have left there.

        False when the memory can only drop all of it, and has.
        """
        could = self._memory.drop_cells(slot, count)
        if not could:
            self._memory.drop_cells(slot)
        self._tree.cut(slot, count if could else 0)
        self._n_used = self._tree.count_held(self._running)
        return could

    # ending

    def release(self, slot: int) -> None:
        """A running sequence has ended, and nothing is kept of it."""
        self._running.remove(slot)
        self._forget(slot)
        self._n_used = self._tree.count_held(self._running)
        self.keep_half()

    def retain(self, slot: int, namespace: Hashable | None, *, awaited_by: object | None = None) -> None:
        """A running sequence has ended; keep its tokens as long as there is room.

        `awaited_by` comes back for them: they are given up after all others, and until `expect_no_longer`.

        1. What is too short, or cannot be shared, is not kept.
        2. Nor is what others have almost all of, be it this one or an older one: a conversation's last turn
           contains the turns before.
        3. No more than `max_retained` are kept, with half of the cells; of those that did not end just now,
           little.
        """
        if namespace is None or not self.can_share or self._tree.length(slot) < LEAST_SHARED:  # 1
            self.release(slot)
            return
        self._running.remove(slot)
        self._n_used = self._tree.count_held(self._running)
        self._retained[slot] = namespace
        self._continuations.ended(self._tree.tokens(slot), namespace)
        if awaited_by is not None:
            self._awaited[slot] = awaited_by
        for held in list(self._retained):  # 2
            if self._tree.count_own(held) < LEAST_SHARED:
                self._give_up(held, is_known=True)
        while len(self._retained) > self._max_retained:  # 3
            self.give_up_oldest()
        self._keep_little()
        self.keep_half()

    def expect_no_longer(self, awaited_by: object) -> None:
        """It has come back, or will not."""
        self._awaited = {slot: who for slot, who in self._awaited.items() if who is not awaited_by}

    def make_room(self, n_rows: int) -> None:
        """Give up retained cells, as far as there are any, until so many are free."""
        while self._retained and self.n_free < n_rows:
            self._trim(self._by_use()[0], n_rows - self.n_free)

    def keep_half(self) -> None:
        """Give up what is retained beyond half of the cells.

        Called whenever a sequence leaves cells that others retain, and before each step.
        """
        while self.n_retained > self.n_cells // 2:
            self._trim(self._by_use()[0], self.n_retained - self.n_cells // 2)

    def _keep_little(self) -> None:
        """Give up what did not end just now."""
        while self.n_retained > KEPT_CELLS:
            n_older = max(0, len(self._retained) - len(self._awaited) - KEPT_FREELY)
            older = self._by_use()[:n_older]
            if not older:
                return
            self._give_up(older[0])

    def unburden(self) -> None:
        """Give up what costs those who compute more than it would to bring it back, where that costs nobody
        else his place there:

        1. What is held elsewhere then, unless it has less of its own than in common with somebody running: to
           free the little, all of it would be copied, out and in again.
        2. Of that and of what is soon computed again all but little.
        """
        for slot in self._by_use():  # 1
            n_common = self._tree.count_shared(slot, self._tree.length(slot), self._running)
            if n_common <= self._tree.count_own(slot) and self._try_to_hold(slot) is Leaving.HELD:
                self._give_up(slot)
        for slot in self._by_use():  # 2
            if self.n_retained <= KEPT_CELLS:
                return
            if self._try_to_hold(slot) is not Leaving.LOST:
                self._give_up(slot)

    def give_up_oldest(self) -> bool:
        """Free what was not used for longest; False when nothing is retained."""
        if not self._retained:
            return False
        self._give_up(self._by_use()[0])
        return True

    def forget_retained(self) -> None:
        """Free all that is retained, and hold nothing of it."""
        for slot in tuple(self._retained):
            self._drop(slot)

    # what is held elsewhere

    def retained(self) -> tuple[tuple[int, Hashable], ...]:
        """What is kept of sequences that ended: ids with their namespaces, the next to be given up first."""
        return tuple((slot, self._retained[slot]) for slot in self._by_use())

    def tokens(self, slot: int) -> list[int]:
        return self._tree.tokens(slot)

    def shorten(self, slot: int, count: int) -> bool:
        """Let a retained one keep only its first `count` cells; False when the memory cannot, and nothing has
        changed."""
        if not self._memory.drop_cells(slot, count):
            return False
        self._tree.cut(slot, count)
        return True

    def count_own(self, slot: int) -> int:
        """Cells that nobody else has."""
        return self._tree.count_own(slot)

    # within

    def _note_use(self, match: Match) -> None:
        """Of what was found: a single retained one is the most recently used now."""
        (source, *others) = match.holders
        if not others and source in self._retained:
            self._retained[source] = self._retained.pop(source)

    def _try_to_hold(self, slot: int) -> Leaving:
        """All of it, and only where that would cost nothing else its place."""
        return self.hold(slot, self._retained[slot], False) if self.may_hold(slot) else Leaving.LOST

    def _trim(self, slot: int, n_wanted: int) -> None:
        """Take cells from its end; all of it, when it is held elsewhere, little would be left, or others have
        the rest."""
        n_trimmed = -(-n_wanted // _TRIM) * _TRIM
        n_left = self._tree.length(slot) - n_trimmed
        is_all = n_trimmed >= self._tree.count_own(slot) or n_left < LEAST_SHARED
        is_all = is_all or self.hold(slot, self._retained[slot], False) is Leaving.HELD
        if is_all or not self._memory.drop_cells(slot, n_left):
            self._give_up(slot)
        else:
            self._tree.cut(slot, n_left)

    def _by_use(self) -> list[int]:
        """What is retained, the next to be given up first."""
        awaited = [slot for slot in self._retained if slot in self._awaited]
        return [slot for slot in self._retained if slot not in self._awaited] + awaited

    def _give_up(self, slot: int, *, is_known: bool = False) -> None:
        """`is_known`: others have it."""
        if not is_known:
            self.hold(slot, self._retained[slot], True)
        self._drop(slot, is_known=is_known)

    def _drop(self, slot: int, *, is_known: bool = False) -> None:
        namespace = self._retained.pop(slot)
        self._awaited.pop(slot, None)
        if not is_known:
            self._given_up[_beginning(self._tree.tokens(slot), namespace)] = None
            if len(self._given_up) > _GIVEN_UP_MAX:
                del self._given_up[next(iter(self._given_up))]
        self._forget(slot)

    def _forget(self, slot: int) -> None:
        self._continuing.discard(slot)
        self._memory.drop_cells(slot)
        self._tree.remove(slot)
        self._slots.release(slot)


def _beginning(tokens: Sequence[int], namespace: Hashable | None) -> int:
    return hash((namespace, tuple(tokens[:LEAST_SHARED])))
