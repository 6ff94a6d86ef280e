"""States out and in: what sequences have in cells, as bytes that outlive these cells and the engine.

    retained ── leaves the cells ── hold ──> held ── room is short ── outgoing ──> … saved: known from then on
        └────────── the end ── saved_states ───┴──> …
    held, or known ── find ──> (known: … the bytes) ── restore ──> cells of a sequence that begins

A state holds the keys and values of a sequence's cells and nothing else; where it is put back, going on from
it gives the very logits that going on from the cells would have given. Models that keep a state instead of
cells are left out, and so is what depends on adapters or media: neither can be told from token ids.

Holding a state takes milliseconds; saving it is a matter of somebody else's disk. So only what would be
missed is saved while the engine runs, before it has to go, one state after the other: turns of conversations
and sequences that gave way. Most prompts are never heard of again, and disks wear out.

Imports the pool, held states and the protocol of backends. Used by `sharing.py` and `engine.py`; bytes are
carried by `runner/worker/states.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Final, TypeGuard

import attrs

from runner.engine.backend import Backend
from runner.engine.cells import LEAST_SHARED, CellPool, Leaving
from runner.engine.host_cache import HeldState, HostCache, room_for
from runner.engine.prefix import Namespace, common_length

LEAST_SAVED: Final = 64
"""Tokens. Fewer are computed about as soon as their state is brought."""
LITTLE_OWN: Final = 256
"""Tokens. Fewer behind a long beginning that others have are not worth a state of all."""
SPARE_PARTS: Final = 4
"""Of so many parts of the room for states, one can be had without a loss, as far as saving keeps up; and in
any case room for the largest, grown by such a part. More would be saved for nothing: who goes on from a state
makes it useless."""


@attrs.frozen(kw_only=True, eq=False)
class KnownState:
    """One that was saved, and can be had: what the cells of `tokens` hold."""

    state_id: int
    owner: str
    tokens: list[int]
    size_bytes: int


@attrs.frozen
class Find:
    """A state that has the first `count` tokens of a prompt."""

    state: KnownState | HeldState
    count: int


class Hibernation:
    """Counts the tokens that were held, and those that were put back."""

    def __init__(self, backend: Backend, cells: CellPool, host_bytes: int) -> None:
        """`host_bytes` of memory may be taken for states; with 0 none is held."""
        self._backend = backend
        self._cells = cells
        self._held = HostCache(host_bytes)
        self._known: dict[int, KnownState] = {}
        self._room_bytes = 0
        self._outgoing: HeldState | None = None
        self._is_restoring = False
        self._seen: tuple[int, int] | None = None
        """The burden when cells were last looked through."""
        self.n_saved_tokens = 0
        self.n_restored_tokens = 0
        cells.hold = self.hold
        cells.may_hold = lambda slot: self._backend.state_bytes(slot) <= self._held.spare_bytes

    def __repr__(self) -> str:
        state = "one" if self._outgoing else "none"
        return f"<Hibernation: {self._held!r}, {len(self._known)} known, {state} outgoing>"

    @property
    def n_held_tokens(self) -> int:
        return self._held.n_tokens

    @property
    def prefers_cells(self) -> bool:
        """A state is of use only to a prompt that contains all of its tokens."""
        return not self._backend.facts.cuts_states

    # what is known

    def learn(self, states: Iterable[KnownState]) -> None:
        self._known |= {state.state_id: state for state in states}

    def forget(self, state_id: int) -> None:
        """It cannot be had any more; unknown ids are ignored."""
        self._known.pop(state_id, None)
        for state in self._held:
            if state.state_id == state_id:
                state.state_id = None

    def allow(self, room_bytes: int) -> None:
        """From now on a state of at most so many bytes may be saved while the engine runs; 0: none."""
        self._room_bytes = room_bytes
        self._save_ahead()

    # out of the cells

    def hold(self, slot: int, namespace: Hashable, may_cut: bool = True) -> Leaving:
        """Copy what a retained sequence has in cells, which are about to be given up, unless it is here.

        1. Of what tokens alone do not tell nothing can be held.
        2. Little is not worth it, and neither is a little that is its own of something long, which others
           have: a state is of all its cells. Unless somebody is expected back for just that.
        3. Where states can be cut, what is held of which this one has almost all is of no use any more: the
           turn before.
        4. What is larger than all the room is cut, where that can be done and may be: then its end is lost.
        """
        if not _is_told_by_tokens(namespace) or not self._held.limit_bytes:  # 1
            return Leaving.LOST
        owner, tokens, n_own = namespace.owner, self._cells.tokens(slot), self._cells.count_own(slot)
        is_expected, awaited_by = self._cells.is_expected_back(slot), self._cells.awaited_by(slot)
        is_little = n_own < LITTLE_OWN and 2 * n_own < len(tokens)
        if n_own < LEAST_SAVED or (is_little and not is_expected and awaited_by is None):  # 2
            return Leaving.CHEAP
        for state in self._held:
            if self._replaces(state, tokens, owner):
                state.is_expected |= is_expected
                state.awaited_by = state.awaited_by or awaited_by
                self._held.use(state)
                return Leaving.HELD
        replaced = [
            state
            for state in self._held
            if not self.prefers_cells and state.owner == owner and _has_almost_all(tokens, state.tokens)
        ]  # 3
        if not may_cut and self._backend.state_bytes(slot) > self._held.limit_bytes:
            return Leaving.LOST
        size_bytes = self._shortened(slot, self._held.limit_bytes)  # 4
        tokens = self._cells.tokens(slot)
        if not size_bytes or len(tokens) < LEAST_SAVED:
            return Leaving.LOST
        state = HeldState(
            owner=owner,
            tokens=tokens,
            data=memoryview(b""),
            is_expected=is_expected,
            awaited_by=awaited_by,
            state_id=self._saved_as(tokens, owner),
        )
        if not self._held.add(state, size_bytes, lambda room: self._backend.save_state(slot, room), replaced):
            return Leaving.LOST
        self.n_saved_tokens += len(tokens)
        self._save_ahead()
        return Leaving.HELD

    def expect_no_longer(self, awaited_by: object) -> None:
        """It has come back for what it left, or will not."""
        self._cells.expect_no_longer(awaited_by)
        for state in self._held:
            if state.awaited_by is awaited_by:
                state.awaited_by = None

    def forget_held(self) -> None:
        """Drop all states that are here, but what is on its way out."""
        for state in self._held:
            if not state.is_pinned:
                self._held.drop(state)
        self._held.give_back()

    def relieve(self) -> None:
        """Before each step: out of the cells with what costs those who compute, where states can be cut."""
        if not self._cells.n_retained or self.prefers_cells or not self._held.limit_bytes:
            return
        if (burden := self._burden) != self._seen:
            self._seen = burden  # what has left may let more leave: then it is another one
            self._cells.unburden()

    # out of the engine, while it runs

    @property
    def outgoing(self) -> HeldState | None:
        """To be sent away, until `sent` is called."""
        return self._outgoing

    def sent(self, state_id: int | None) -> None:
        """The outgoing one is saved as `state_id`, or, None, it is not and will not be."""
        state, self._outgoing = self._outgoing, None
        if state is None:
            return
        state.is_pinned = False
        state.state_id = state_id
        if state_id is not None:
            known = KnownState(
                state_id=state_id, owner=state.owner, tokens=state.tokens, size_bytes=len(state.data)
            )
            self.learn([known])
        self._save_ahead()

    # out, at the end

    def saved_states(self, limit_bytes: int) -> Iterator[HeldState]:
        """What is retained or held and was not saved, the most recently used first; each of at most
        `limit_bytes`.

        Of one that is larger the beginning is saved, where the model allows that. Raises MemoryError when
        there is no room for a state. Nothing may run any more; in the end nothing is retained.
        """
        for slot, namespace in reversed(self._cells.retained()):
            if _is_told_by_tokens(namespace) and not self._is_saved(
                self._cells.tokens(slot), namespace.owner
            ):
                yield from self._copied(slot, namespace.owner, limit_bytes)
        self._cells.forget_retained()
        for state in reversed(tuple(self._held)):
            if state.is_pinned or self._is_saved(state.tokens, state.owner):
                continue
            if len(state.data) <= limit_bytes:
                yield state
            elif not self.prefers_cells:
                yield from self._cut(state, limit_bytes)

    def _copied(self, slot: int, owner: str, limit_bytes: int) -> Iterator[HeldState]:
        size_bytes = self._shortened(slot, limit_bytes)
        tokens = self._cells.tokens(slot)
        if not 0 < size_bytes <= limit_bytes or len(tokens) < LEAST_SAVED:
            return
        with room_for(size_bytes) as room, memoryview(room) as data:
            if self._backend.save_state(slot, data):
                yield HeldState(owner=owner, tokens=tokens, data=data)

    def _cut(self, state: HeldState, limit_bytes: int) -> Iterator[HeldState]:
        """Its beginning, by way of the cells."""
        namespace = Namespace(owner=state.owner)
        slot = self._cells.open(namespace)
        whole = Find(state, len(state.tokens))
        if self.has_room_for(whole) and self.restore(slot, namespace, whole, state.tokens, state.data):
            yield from self._copied(slot, state.owner, limit_bytes)
        self._cells.release(slot)

    # in

    def find(
        self, tokens: Sequence[int], namespace: Hashable, usable: Callable[[int], int] = lambda count: count
    ) -> Find | None:
        """The state that has most of `tokens` from the first on, one that is here before others.

        `usable`: of so many tokens those that may be used.
        """
        if not _is_told_by_tokens(namespace) or not self._cells.can_share:
            return None
        wanted, beginning = list(tokens), list(tokens[:LEAST_SAVED])
        best: Find | None = None
        for state in (*self._held, *self._known.values()):
            if state.owner != namespace.owner or state.tokens[:LEAST_SAVED] != beginning:
                continue
            count = usable(common_length(state.tokens, wanted))
            if count < LEAST_SAVED or (self.prefers_cells and count < len(state.tokens)):
                continue
            if best is None or count > best.count:
                best = Find(state, count)
        return best

    def has_room_for(self, find: Find) -> bool:
        """All of a state is put into cells, also where only a part of it is kept there."""
        return len(find.state.tokens) <= self._cells.n_cells - self._cells.n_used

    def restore_held(self, slot: int, namespace: Hashable, find: Find, tokens: Sequence[int]) -> bool:
        """`restore`, of a state that is here. It is not held any longer when the sequence has all of it now,
        or the engine refuses it."""
        state = find.state
        assert isinstance(state, HeldState)
        was_pinned, state.is_pinned = state.is_pinned, True
        self._is_restoring = True  # most often this room is free in a moment
        is_all_taken = find.count == len(state.tokens)
        if is_all_taken and not was_pinned:
            self._held.leaving = state
        is_good = self.restore(slot, namespace, find, tokens, state.data)
        self._held.leaving = None
        self._is_restoring = False
        state.is_pinned = was_pinned
        if not was_pinned and (is_all_taken or not is_good):
            self._held.drop(state)
        elif is_good:
            self._held.use(state)
        self._save_ahead()
        return is_good

    def restore(
        self, slot: int, namespace: Hashable, find: Find, tokens: Sequence[int], data: memoryview
    ) -> bool:
        """Put into cells of a running sequence, which has none, what was found of its `tokens`; False when
        it cannot be, and nothing has changed for it. Only between steps.

        Others leave first: every step passes over all cells up to the last that is taken.
        """
        self.relieve()
        n_saved = len(find.state.tokens)
        if not self._cells.bring(
            slot,
            tokens[: find.count],
            namespace,
            n_saved=n_saved,
            fill=lambda: self._backend.restore_state(slot, data, n_saved),
            shares_beginning=not self.prefers_cells,
        ):
            return False
        self.n_restored_tokens += find.count
        return True

    def close(self) -> None:
        """Drop all that is here."""
        self._outgoing = None
        self._held.clear()

    # within

    def _save_ahead(self) -> None:
        """Let the next state that would be missed be saved, when little room could be had without it."""
        if self._outgoing is not None or not self._room_bytes or self._is_restoring:
            return
        largest_bytes = max((len(state.data) for state in self._held), default=0)
        wanted_bytes = max(
            self._held.limit_bytes // SPARE_PARTS, largest_bytes + largest_bytes // SPARE_PARTS
        )
        if self._held.spare_bytes >= wanted_bytes:
            return
        for state in self._held:
            is_done = state.state_id is not None or state.was_offered or state.is_pinned
            if state.is_expected and not is_done and len(state.data) <= self._room_bytes:
                state.is_pinned = state.was_offered = True
                self._outgoing = state
                return

    def _covers(self, state: KnownState | HeldState, tokens: list[int], owner: str) -> bool:
        """Whoever begins with these tokens can do without them, having that state."""
        if state.owner != owner or (self.prefers_cells and len(state.tokens) != len(tokens)):
            return False
        return _begins_with(state.tokens, tokens)

    @property
    def _burden(self) -> tuple[int, int]:
        """What decides what leaves the cells: looked at again only when it has changed."""
        return self._cells.n_retained, self._held.spare_bytes

    def _replaces(self, state: HeldState, tokens: list[int], owner: str) -> bool:
        """Holding these tokens too would gain next to nothing."""
        if self.prefers_cells:
            return self._covers(state, tokens, owner)
        return state.owner == owner and _has_almost_all(state.tokens, tokens)

    def _saved_as(self, tokens: list[int], owner: str) -> int | None:
        known = self._known.values()
        return next((state.state_id for state in known if self._covers(state, tokens, owner)), None)

    def _is_saved(self, tokens: list[int], owner: str) -> bool:
        """Or is about to be."""
        outgoing = self._outgoing
        is_outgoing = outgoing is not None and self._covers(outgoing, tokens, owner)
        return is_outgoing or self._saved_as(tokens, owner) is not None

    def _shortened(self, slot: int, limit_bytes: int) -> int:
        """The size of its state, once it fits if it can be made to."""
        size_bytes = self._backend.state_bytes(slot)
        n_kept = len(self._cells.tokens(slot))
        while size_bytes > limit_bytes and not self.prefers_cells:
            n_kept = n_kept * limit_bytes // size_bytes - 1  # one less, since some bytes are of no token
            if n_kept < LEAST_SAVED or not self._cells.shorten(slot, n_kept):
                break
            size_bytes = self._backend.state_bytes(slot)
        return size_bytes


def _is_told_by_tokens(namespace: Hashable) -> TypeGuard[Namespace]:
    return isinstance(namespace, Namespace) and not namespace.adapters and not namespace.media


def _has_almost_all(tokens: list[int], other: list[int]) -> bool:
    """Of those of `other`, from the first on."""
    if tokens[:LEAST_SAVED] != other[:LEAST_SAVED]:
        return False
    return len(other) - common_length(other, tokens) < LEAST_SHARED


def _begins_with(tokens: list[int], beginning: list[int]) -> bool:
    """Looks at some of the first before it looks at all."""
    count = len(beginning)
    return tokens[:LEAST_SAVED] == beginning[:LEAST_SAVED] and tokens[:count] == beginning
