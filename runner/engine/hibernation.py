"""States out and in: what is retained of sequences that ended, as bytes that outlive the engine.

    retained ── saved_states ──> bytes … bytes ── restore ──> retained, as if it had just ended

A state holds the keys and values of a sequence's cells and nothing else; where it is put back, going on from
it gives the very logits that going on from the cells would have given. Models that keep a state instead of
cells are left out, and so is what depends on adapters or media: neither can be told from token ids.

Memory for states is mapped and shared, so that it is counted as the process's and returned at once, and not
kept by an allocator. Imports the pool and the protocol of backends. Used by `engine.py`.
"""

from __future__ import annotations

import mmap
from collections.abc import Hashable, Iterator, Sequence
from typing import Final

import attrs

from runner.engine.backend import Backend
from runner.engine.cells import LEAST_SHARED, CellPool
from runner.engine.prefix import Namespace, common_length

LEAST_SAVED: Final = 64
"""Tokens. Fewer are computed about as soon as their state is brought."""


@attrs.frozen(eq=False)
class SavedState:
    """What the cells of `tokens` hold; `data` is valid until the next one is asked for."""

    owner: str
    tokens: tuple[int, ...]
    data: memoryview


class Hibernation:
    """Counts the tokens that were put back."""

    def __init__(self, backend: Backend, cells: CellPool) -> None:
        self._backend = backend
        self._cells = cells
        self.n_restored_tokens = 0

    def __repr__(self) -> str:
        return f"<Hibernation: {self.n_restored_tokens} tokens restored>"

    def saved_states(self, limit_bytes: int) -> Iterator[SavedState]:
        """What is retained, the most recently used first; each of at most `limit_bytes`.

        Of one that is larger the beginning is saved, and the rest given up, where the model allows that.
        Raises MemoryError when there is no room for a state.
        """
        for slot, namespace in self._cells.retained():
            if not isinstance(namespace, Namespace) or namespace.adapters or namespace.media:
                continue
            size_bytes = self._shortened(slot, limit_bytes)
            tokens = tuple(self._cells.tokens(slot))
            if not 0 < size_bytes <= limit_bytes or len(tokens) < LEAST_SAVED:
                continue
            with room_for(size_bytes) as room, memoryview(room) as data:
                if self._backend.save_state(slot, data):
                    yield SavedState(namespace.owner, tokens, data)

    def count_spared(self, saved: Sequence[int], prompt: Sequence[int], namespace: Hashable | None) -> int:
        """Tokens of a prompt that a state of `saved` would spare it, and that are not in cells: 0 when it is
        not worth its while. Changes nothing."""
        if namespace is None or list(saved[:LEAST_SAVED]) != list(prompt[:LEAST_SAVED]):
            return 0
        count = common_length(list(saved), list(prompt[:-1]))
        if count < LEAST_SAVED or (self._needs_exact_end and count < len(saved)):
            return 0
        n_spared = count - self._cells.find(prompt, namespace).count
        return n_spared if n_spared >= LEAST_SAVED else 0

    def restore(self, tokens: Sequence[int], namespace: Hashable, state: memoryview) -> bool:
        """Put a state back, to be found like any other retained prefix; False when it cannot be. Only between
        steps."""
        count = len(tokens)
        if not self._cells.can_share or count < LEAST_SHARED:
            return False
        if not self._cells.adopt(
            tokens, namespace, lambda slot: self._backend.restore_state(slot, state, count)
        ):
            return False
        self.n_restored_tokens += count
        return True

    @property
    def _needs_exact_end(self) -> bool:
        """A state is of use only to a prompt that contains all of its tokens."""
        return not self._backend.facts.cuts_states

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
