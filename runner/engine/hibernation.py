"""States out and in: what sequences have in cells, as bytes that outlive these cells and the engine.

    retained ── cells run out ── may_go ──> outgoing ──> … saved, and known from then on
        └────── the end ── saved_states ──> …
    known, or outgoing still ── find ──> … the bytes ── restore ──> cells of a sequence that begins

A state holds the keys and values of a sequence's cells and nothing else; where it is put back, going on from
it gives the very logits that going on from the cells would have given. Models that keep a state instead of
cells are left out, and so is what depends on adapters or media: neither can be told from token ids.

Taking a state out of cells is quick, and sending it is not: so it is copied when its cells are given up, and
sent piece by piece between steps, while nothing else is copied. What would have to go meanwhile goes last,
or is lost; so that this is rare, what goes next is saved ahead while cells are scarce. Memory for states is
mapped and shared, so that it is counted as the process's and returned at once, and not kept by an allocator.

Imports the pool and the protocol of backends. Used by `sharing.py` and `engine.py`; bytes are carried by
`runner/worker/states.py`.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Final

import attrs

from runner.engine.backend import Backend
from runner.engine.cells import CellPool
from runner.engine.prefix import Namespace, common_length

LEAST_SAVED: Final = 64
"""Tokens. Fewer are computed about as soon as their state is brought."""


@attrs.frozen(kw_only=True, eq=False)
class KnownState:
    """One that was saved, and can be had: what the cells of `tokens` hold."""

    state_id: int
    owner: str
    tokens: list[int]
    size_bytes: int


@attrs.frozen(kw_only=True, eq=False)
class OutgoingState:
    """One that is being saved; `data` is valid until it is, or until the next one is asked for."""

    owner: str
    tokens: list[int]
    data: memoryview


@attrs.frozen
class Find:
    """A state that has the first `count` tokens of a prompt."""

    state: KnownState | OutgoingState
    count: int


class Hibernation:
    """Counts the tokens that were saved while the engine runs, and those that were put back."""

    def __init__(self, backend: Backend, cells: CellPool) -> None:
        self._backend = backend
        self._cells = cells
        self._known: dict[int, KnownState] = {}
        self._room_bytes = 0
        self._outgoing: OutgoingState | None = None
        self._outgoing_room: mmap.mmap | None = None
        self._outgoing_slot = 0
        """Whose it was."""
        self._n_ahead = 0
        """Of all that was ever retained, so many were saved ahead, or are gone."""
        self._seen: tuple[int, int] | None = None
        """Of the pool, when it was looked at last for what to save ahead."""
        self.n_saved_tokens = 0
        self.n_restored_tokens = 0
        cells.may_go = self.may_go

    def __repr__(self) -> str:
        state = "one" if self._outgoing else "none"
        return f"<Hibernation: {len(self._known)} known, {state} outgoing>"

    # what is known

    def learn(self, states: Iterable[KnownState]) -> None:
        self._known |= {state.state_id: state for state in states}

    def forget(self, state_id: int) -> None:
        """It cannot be had any more; unknown ids are ignored."""
        self._known.pop(state_id, None)

    def allow(self, room_bytes: int) -> None:
        """From now on a state of at most so many bytes may be saved when its cells are given up; 0: none."""
        self._room_bytes = room_bytes

    # out, while the engine runs

    @property
    def outgoing(self) -> OutgoingState | None:
        """To be sent away, until `sent` is called."""
        return self._outgoing

    def sent(self, state_id: int | None) -> None:
        """The outgoing one is saved as `state_id`, or, None, it is not and will not be."""
        outgoing, self._outgoing = self._outgoing, None
        room, self._outgoing_room = self._outgoing_room, None
        if outgoing is None or room is None:
            return
        self._seen = None
        size_bytes = len(outgoing.data)
        outgoing.data.release()
        room.close()
        if state_id is None:
            self._cells.copied.discard(self._outgoing_slot)
        else:
            self.n_saved_tokens += len(outgoing.tokens)
            self.learn(
                [
                    KnownState(
                        state_id=state_id,
                        owner=outgoing.owner,
                        tokens=outgoing.tokens,
                        size_bytes=size_bytes,
                    )
                ]
            )

    def may_go(self, slot: int, namespace: Hashable, *, may_cut: bool = True) -> bool:
        """Asked before cells of a retained sequence are given up; False when it had better be another's.

        `may_cut`: of one whose state is too large, the end is given up, so that the beginning can be saved.

        1. What is saved, or not worth it, may go, and so may what cannot be saved. It is worth it when
           somebody will come back for it: a turn of a conversation, or a sequence that gave way.
        2. While one is on its way out, nothing else is.
        3. Else it is saved as a whole: it is copied here and now.
        """
        if not self._room_bytes or not isinstance(namespace, Namespace):  # 1
            return True
        if namespace.adapters or namespace.media or not self._cells.is_expected_back(slot):
            return True
        if self._cells.count_own(slot) < LEAST_SAVED:
            return True
        if slot in self._cells.copied or self._is_saved(self._cells.tokens(slot), namespace.owner):
            return True
        if self._outgoing is not None:  # 2
            return False
        if not may_cut and self._backend.state_bytes(slot) > self._room_bytes:
            return True
        size_bytes = self._shortened(slot, self._room_bytes)  # 3
        tokens = self._cells.tokens(slot)
        if 0 < size_bytes <= self._room_bytes and len(tokens) >= LEAST_SAVED:
            self._cells.copied.add(slot)
            self._copy(slot, namespace.owner, tokens, size_bytes)
        return True

    def can_free(self, n_cells: int) -> bool:
        """Whether so many can be had without losing what can be saved: not yet, while one is on its way out.

        What has to go for them, and is not saved, is from now on.
        """
        n_spare = self._cells.n_free
        for slot, namespace in self._cells.retained():
            if n_spare >= n_cells:
                return True
            if not self.may_go(slot, namespace, may_cut=False):
                return False
            n_spare += self._cells.count_own(slot)
        return True

    def save_ahead(self) -> None:
        """Save what would go next, when less than half of the cells are free or can go without a loss: who
        comes next may need so many at once.

        No oftener than sequences are retained, whatever becomes of what is saved; and looked at only when
        something has changed since.
        """
        cells = self._cells
        self._n_ahead = max(self._n_ahead, cells.n_ever_retained - cells.n_heads)
        seen = cells.n_ever_retained, cells.n_free // LEAST_SAVED
        if not self._room_bytes or self._outgoing is not None or seen == self._seen:
            return
        if cells.n_free >= cells.n_cells // 2 or self._n_ahead == cells.n_ever_retained:
            return
        self._seen = seen
        self.can_free(cells.n_cells // 2)
        if self.outgoing is not None:
            self._n_ahead += 1

    # out, at the end

    def saved_states(self, limit_bytes: int) -> Iterator[OutgoingState]:
        """What is retained and was not saved, the most recently used first; each of at most `limit_bytes`.

        Of one that is larger the beginning is saved, and the rest given up, where the model allows that.
        Raises MemoryError when there is no room for a state.
        """
        for slot, namespace in reversed(self._cells.retained()):
            if not isinstance(namespace, Namespace) or namespace.adapters or namespace.media:
                continue
            if self._is_saved(self._cells.tokens(slot), namespace.owner):
                continue
            size_bytes = self._shortened(slot, limit_bytes)
            tokens = self._cells.tokens(slot)
            if not 0 < size_bytes <= limit_bytes or len(tokens) < LEAST_SAVED:
                continue
            with room_for(size_bytes) as room, memoryview(room) as data:
                if self._backend.save_state(slot, data):
                    yield OutgoingState(owner=namespace.owner, tokens=tokens, data=data)

    # in

    def find(
        self, tokens: Sequence[int], namespace: Hashable, usable: Callable[[int], int] = lambda count: count
    ) -> Find | None:
        """The state that has most of `tokens` from the first on, one that is here still before others.

        `usable`: of so many tokens those that may be used.
        """
        if not isinstance(namespace, Namespace) or namespace.adapters or namespace.media:
            return None
        if not self._cells.can_share:
            return None
        wanted, beginning = list(tokens), list(tokens[:LEAST_SAVED])
        best: Find | None = None
        for state in self._all():
            if state.owner != namespace.owner or state.tokens[:LEAST_SAVED] != beginning:
                continue
            count = usable(common_length(state.tokens, wanted))
            if count < LEAST_SAVED or (self._needs_exact_end and count < len(state.tokens)):
                continue
            if best is None or count > best.count:
                best = Find(state, count)
        return best

    def has_room_for(self, find: Find) -> bool:
        """All of a state is put into cells, also where only a part of it is kept there."""
        return len(find.state.tokens) <= self._cells.n_cells - self._cells.n_used

    def restore(
        self, slot: int, namespace: Hashable, find: Find, tokens: Sequence[int], data: memoryview
    ) -> bool:
        """Put into cells of a running sequence, which has none, what was found of its `tokens`; False when
        it cannot be, and nothing has changed for it. Only between steps."""
        n_saved = len(find.state.tokens)
        if not self._cells.bring(
            slot,
            tokens[: find.count],
            namespace,
            n_saved=n_saved,
            fill=lambda: self._backend.restore_state(slot, data, n_saved),
            shares_beginning=not self._needs_exact_end,
        ):
            return False
        self.n_restored_tokens += find.count
        return True

    def close(self) -> None:
        """Drop what is on its way out."""
        self.sent(None)

    # within

    @property
    def _needs_exact_end(self) -> bool:
        """A state is of use only to a prompt that contains all of its tokens."""
        return not self._backend.facts.cuts_states

    def _all(self) -> Iterator[KnownState | OutgoingState]:
        if self._outgoing is not None:
            yield self._outgoing
        yield from self._known.values()

    def _is_saved(self, tokens: list[int], owner: str) -> bool:
        """Or is about to be: whoever begins with them can do without them."""
        count = len(tokens)
        return any(
            state.owner == owner
            and (len(state.tokens) == count if self._needs_exact_end else len(state.tokens) >= count)
            and state.tokens[:LEAST_SAVED] == tokens[:LEAST_SAVED]
            and state.tokens[:count] == tokens
            for state in self._all()
        )

    def _copy(self, slot: int, owner: str, tokens: list[int], size_bytes: int) -> None:
        try:
            room = room_for(size_bytes)
        except MemoryError:
            return
        data = memoryview(room)
        if self._backend.save_state(slot, data):
            self._outgoing = OutgoingState(owner=owner, tokens=tokens, data=data)
            self._outgoing_room = room
            self._outgoing_slot = slot
        else:
            data.release()
            room.close()

    def _shortened(self, slot: int, limit_bytes: int) -> int:
        """The size of its state, once it fits if it can be made to."""
        size_bytes = self._backend.state_bytes(slot)
        n_kept = len(self._cells.tokens(slot))
        while size_bytes > limit_bytes and not self._needs_exact_end:
            n_kept = n_kept * limit_bytes // size_bytes - 1  # one less, since some bytes are of no token
            if n_kept < LEAST_SAVED or not self._cells.shorten(slot, n_kept):
                break
            size_bytes = self._backend.state_bytes(slot)
        return size_bytes


def room_for(size_bytes: int) -> mmap.mmap:
    """Memory for one state. Raises MemoryError when there is none."""
    try:
        return mmap.mmap(-1, size_bytes)
    except OSError:
        raise MemoryError(f"no room for a state of {size_bytes} bytes") from None
