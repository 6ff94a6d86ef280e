"""What is saved of a pool and put back into it, with the scripted backend."""

from __future__ import annotations

import attrs
import pytest

from runner.domain.engine import EngineOptions
from runner.engine.cells import LEAST_SHARED, CellPool
from runner.engine.fake import ScriptedBackend
from runner.engine.hibernation import LEAST_SAVED, Hibernation
from runner.engine.prefix import Namespace

OPTIONS = EngineOptions(context_size=400, n_cells=400, max_sequences=2, max_retained=2, prefill_chunk=400)
BIG = 1 << 30
OURS = Namespace()


class Bench:
    def __init__(self, options: EngineOptions = OPTIONS, *, cuts_states: bool = True) -> None:
        self.backend = ScriptedBackend(options)
        self.backend._facts = attrs.evolve(self.backend.facts, cuts_states=cuts_states)
        self.cells = CellPool(
            self.backend,
            n_cells=options.n_cells,
            max_running=options.max_sequences,
            max_retained=options.max_retained,
        )
        self.hibernation = Hibernation(self.backend, self.cells)

    def run(self, tokens: list[int], namespace: Namespace | None = OURS) -> int:
        """A running sequence of these."""
        slot = self.cells.open(namespace)
        batch, n_rows = self.backend.batch, len(tokens)
        batch.tokens[:n_rows] = tokens
        batch.positions[:n_rows] = range(n_rows)
        batch.sequence_ids[:n_rows] = slot
        batch.wants_logits[:n_rows] = 0
        self.cells.make_room(n_rows)
        self.backend.decode(n_rows)
        self.cells.fill(slot, tokens)
        return slot

    def leave(self, tokens: list[int], namespace: Namespace | None = OURS) -> None:
        self.cells.retain(self.run(tokens, namespace), namespace)

    def saved(self, limit_bytes: int = BIG) -> list[tuple[str, tuple[int, ...], bytes]]:
        return [
            (one.owner, one.tokens, bytes(one.data)) for one in self.hibernation.saved_states(limit_bytes)
        ]

    def restore(self, tokens: tuple[int, ...], data: bytes, namespace: Namespace = OURS) -> bool:
        return self.hibernation.restore(tokens, namespace, memoryview(bytearray(data)))


def tokens_of(first: int, count: int = 100) -> list[int]:
    return [(first + index) % 256 for index in range(count)]


def state_of(tokens: list[int]) -> bytes:
    bench = Bench(attrs.evolve(OPTIONS, n_cells=4096, prefill_chunk=2048))
    bench.leave(tokens)
    ((_, _, data),) = bench.saved()
    return data


def test_what_was_used_last_is_saved_first() -> None:
    bench = Bench()
    bench.leave(tokens_of(1))
    bench.leave(tokens_of(2), Namespace(owner="o"))
    assert [(owner, tokens[0]) for owner, tokens, _ in bench.saved()] == [("o", 2), ("", 1)]


@pytest.mark.parametrize(("count", "n_saved"), [(LEAST_SAVED - 1, 0), (LEAST_SAVED, 1), (LEAST_SAVED + 1, 1)])
def test_what_is_computed_soon_enough_is_not_saved(count: int, n_saved: int) -> None:
    bench = Bench()
    bench.leave(tokens_of(1, count))
    assert len(bench.saved()) == n_saved


@pytest.mark.parametrize("namespace", [Namespace(adapters=("a",)), Namespace(media=("m",)), None])
def test_what_tokens_alone_do_not_tell_is_not_saved(namespace: Namespace | None) -> None:
    bench = Bench()
    bench.leave(tokens_of(1), namespace)
    assert bench.saved() == []


def test_what_is_larger_than_allowed_is_saved_in_part_or_not_at_all() -> None:
    size_bytes = len(state_of(tokens_of(1)))
    for cuts_states in (True, False):
        bench = Bench(cuts_states=cuts_states)
        bench.leave(tokens_of(1))
        assert [len(data) for _, _, data in bench.saved(size_bytes)] == [size_bytes]
        parts = bench.saved(size_bytes - 1)
        assert len(parts) == (1 if cuts_states else 0)
        for _, tokens, data in parts:
            assert list(tokens) == tokens_of(1)[: len(tokens)]
            assert len(data) < size_bytes
        assert bench.saved(LEAST_SAVED * 4) == []


def test_what_is_put_back_is_found_and_shared() -> None:
    bench, tokens = Bench(), tokens_of(1)
    assert bench.hibernation.count_spared(tokens, tokens, OURS) == len(tokens) - 1
    assert bench.restore(tuple(tokens), state_of(tokens))
    assert bench.hibernation.n_restored_tokens == len(tokens) == bench.cells.n_retained
    assert bench.hibernation.count_spared(tokens, tokens, OURS) == 0
    match = bench.cells.find([*tokens, 7], OURS)
    assert match.count == len(tokens)
    assert bench.cells.find([*tokens, 7], Namespace(owner="o")).count == 0
    slot = bench.cells.open(OURS)
    assert bench.cells.attach(slot, match)
    assert bench.cells.n_used == len(tokens)


def test_it_is_worth_its_while_from_so_many_tokens_on() -> None:
    bench, tokens = Bench(), tokens_of(1)
    count = bench.hibernation.count_spared
    assert count(tokens, tokens[: LEAST_SAVED + 1], OURS) == LEAST_SAVED
    assert count(tokens, tokens[:LEAST_SAVED], OURS) == 0
    assert count(tokens, tokens, None) == 0
    bench.leave(tokens[: LEAST_SHARED + 21])
    assert count(tokens, [*tokens, 7], OURS) == 0  # the rest is computed soon enough


def test_with_a_window_a_state_is_of_use_only_as_a_whole() -> None:
    bench, tokens = Bench(cuts_states=False), tokens_of(1)
    assert bench.hibernation.count_spared(tokens, tokens, OURS) == 0
    assert bench.hibernation.count_spared(tokens, [*tokens, 7], OURS) == len(tokens)


def test_the_oldest_make_room_for_what_is_put_back_and_running_ones_do_not() -> None:
    bench = Bench()
    for first in (1, 2):
        bench.leave(tokens_of(first, 90))
    assert bench.restore(tuple(tokens_of(3)), state_of(tokens_of(3)))  # of two ids
    assert [tokens[0] for _, tokens, _ in bench.saved()] == [3, 2]
    bench.run(tokens_of(9, 250))
    assert bench.restore(tuple(tokens_of(4, 150)), state_of(tokens_of(4, 150)))
    assert [tokens[0] for _, tokens, _ in bench.saved()] == [4]
    assert not bench.restore(tuple(tokens_of(5, 151)), state_of(tokens_of(5, 151)))
    assert bench.cells.n_used == 250
    assert bench.cells.n_free == 0


def test_what_the_engine_refuses_takes_nothing() -> None:
    bench, tokens = Bench(), tuple(tokens_of(1))
    assert not bench.restore(tokens, b"no state of anything")
    assert not bench.restore(tokens[:-1], state_of(list(tokens)))
    assert not bench.restore(tokens[: LEAST_SHARED - 1], state_of(list(tokens))[: LEAST_SHARED - 1])
    assert (bench.cells.n_retained, bench.cells.n_free, bench.backend.cells_used) == (0, 400, 0)
    assert bench.hibernation.n_restored_tokens == 0
    assert bench.restore(tokens, state_of(list(tokens)))


def test_where_nothing_is_shared_nothing_is_put_back() -> None:
    bench, tokens = Bench(attrs.evolve(OPTIONS, max_retained=0)), tokens_of(1)
    assert not bench.restore(tuple(tokens), state_of(tokens))
