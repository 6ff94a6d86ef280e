"""A pool and its hibernation over the scripted backend, for tests of what leaves cells and comes back."""

from __future__ import annotations

import attrs

from runner.domain.engine import EngineOptions
from runner.engine.cells import CellPool
from runner.engine.fake import ScriptedBackend
from runner.engine.hibernation import Find, Hibernation, KnownState
from runner.engine.prefix import Namespace

OPTIONS = EngineOptions(context_size=400, n_cells=400, max_sequences=2, max_retained=2, prefill_chunk=400)
ROOMY = attrs.evolve(OPTIONS, n_cells=4096, context_size=4096, prefill_chunk=2048)
BIG = 1 << 30
OURS = Namespace()


class Bench:
    def __init__(
        self, options: EngineOptions = OPTIONS, *, cuts_states: bool = True, host_bytes: int = BIG
    ) -> None:
        self.backend = ScriptedBackend(options)
        self.backend._facts = attrs.evolve(self.backend.facts, cuts_states=cuts_states)
        self.cells = CellPool(
            self.backend,
            n_cells=options.n_cells,
            max_running=options.max_sequences,
            max_retained=options.max_retained,
        )
        self.hibernation = Hibernation(self.backend, self.cells, host_bytes)

    def run(self, tokens: list[int], namespace: Namespace | None = OURS) -> int:
        """A running sequence of these."""
        slot = self.cells.open(namespace)
        self.grow(slot, 0, tokens)
        return slot

    def grow(self, slot: int, start: int, tokens: list[int]) -> None:
        batch, n_rows = self.backend.batch, len(tokens)
        batch.tokens[:n_rows] = tokens
        batch.positions[:n_rows] = range(start, start + n_rows)
        batch.sequence_ids[:n_rows] = slot
        batch.wants_logits[:n_rows] = 0
        self.cells.make_room(n_rows)
        self.backend.decode(n_rows)
        self.cells.fill(slot, tokens)

    def leave(self, tokens: list[int], namespace: Namespace | None = OURS) -> None:
        """As a turn of a conversation does."""
        self.end(self.run(tokens, namespace), namespace)

    def end(self, slot: int, namespace: Namespace | None = OURS) -> None:
        self.cells.expect_back(slot)
        self.cells.retain(slot, namespace)

    def hold(self, tokens: list[int], namespace: Namespace | None = OURS) -> None:
        """As a turn whose cells somebody else needs."""
        self.leave(tokens, namespace)
        self.cells.make_room(self.cells.n_cells)

    def saved(self, limit_bytes: int = BIG) -> list[tuple[str, list[int], bytes]]:
        return [
            (one.owner, one.tokens, bytes(one.data)) for one in self.hibernation.saved_states(limit_bytes)
        ]

    def restore(self, tokens: list[int], data: bytes, n_wanted: int | None = None) -> int | None:
        """The id of a running sequence that has the first `n_wanted` of the tokens of a state now."""
        count = len(tokens) if n_wanted is None else n_wanted
        slot = self.cells.open(OURS)
        find = Find(known(tokens), count)
        if self.hibernation.restore(slot, OURS, find, tokens, memoryview(bytearray(data))):
            return slot
        self.cells.release(slot)
        return None

    def restore_held(self, tokens: list[int], n_wanted: int | None = None) -> bool:
        """Go on from what is held of these, in a sequence that runs."""
        find = self.hibernation.find([*tokens[:n_wanted], 7], OURS)
        assert find is not None
        return self.hibernation.restore_held(self.cells.open(OURS), OURS, find, tokens[:n_wanted])

    def outgoing(self) -> list[int] | None:
        outgoing = self.hibernation.outgoing
        return None if outgoing is None else outgoing.tokens

    def held(self) -> list[int]:
        """First tokens of what is held, least recently used first."""
        return [state.tokens[0] for state in self.hibernation._held]

    def found(self, tokens: list[int], namespace: Namespace | None = OURS) -> int:
        """Of a prompt that goes on with one token more."""
        find = self.hibernation.find(tokens, namespace)
        return 0 if find is None else find.count


def known(tokens: list[int], state_id: int = 1, owner: str = "") -> KnownState:
    return KnownState(state_id=state_id, owner=owner, tokens=tokens, size_bytes=256 * len(tokens))


def tokens_of(first: int, count: int = 100) -> list[int]:
    return [(first + index) % 256 for index in range(count)]


def state_of(tokens: list[int]) -> bytes:
    bench = Bench(attrs.evolve(OPTIONS, n_cells=4096, prefill_chunk=2048))
    bench.leave(tokens)
    ((_, _, data),) = bench.saved()
    return data
