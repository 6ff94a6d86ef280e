"""The pool of cells: what is found, what is kept, what gives way, and that its counts are the memory's."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runner.engine.cells import KEPT_FREELY, LEAST_SHARED, CellPool
from runner.engine.prefix import NO_MATCH, Namespace, common_length

HERE, THERE = Namespace(), Namespace(owner="other")
N_CELLS = 1024


class Memory:
    """Cells as a backend has them: of each id, numbers that no other cell has."""

    def __init__(self) -> None:
        self.cells: dict[int, list[int]] = {}
        self.numbers = itertools.count()
        self.keeps_all = True
        self.drops_parts = True

    def compute(self, slot: int, count: int) -> None:
        self.cells.setdefault(slot, []).extend(itertools.islice(self.numbers, count))

    def copy_cells(self, source_id: int, target_id: int, count: int) -> bool:
        assert not self.cells.get(target_id)
        if self.keeps_all:
            self.cells[target_id] = self.cells[source_id][:count]
        return self.keeps_all

    def drop_cells(self, sequence_id: int, from_position: int = 0) -> bool:
        if from_position and not self.drops_parts:
            return False
        del self.cells.setdefault(sequence_id, [])[from_position:]
        return True

    def share_beginning(self, source_id: int, target_id: int, count: int) -> None:
        self.cells[target_id][:count] = self.cells[source_id][:count]

    @property
    def n_used(self) -> int:
        return len({number for numbers in self.cells.values() for number in numbers})


class Bench:
    def __init__(self, *, n_cells: int = N_CELLS, max_running: int = 4, max_retained: int = 3) -> None:
        self.memory = Memory()
        self.pool = CellPool(self.memory, n_cells=n_cells, max_running=max_running, max_retained=max_retained)

    def begin(self, tokens: list[int], namespace: Namespace | None = HERE) -> tuple[int, int]:
        """A sequence of these tokens in cells: its id, and how many of them were there."""
        match = self.pool.find([*tokens, -1], namespace)
        slot = self.pool.open(namespace)
        if match.count:
            assert self.pool.attach(slot, match)
        rest = tokens[match.count :]
        self.pool.make_room(len(rest))
        self.memory.compute(slot, len(rest))
        self.pool.fill(slot, rest)
        self.check()
        return slot, match.count

    def retain(self, tokens: list[int], namespace: Namespace | None = HERE) -> int:
        slot, n_found = self.begin(tokens, namespace)
        self.pool.retain(slot, namespace)
        self.check()
        return n_found

    def check(self) -> None:
        assert self.pool.n_used + self.pool.n_retained == self.memory.n_used
        assert self.pool.n_free == N_CELLS - self.memory.n_used or self.pool.n_cells != N_CELLS


@pytest.fixture
def bench() -> Bench:
    return Bench()


def run_of(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def test_what_ended_is_found_again_but_for_the_last_token_of_the_prompt(bench: Bench) -> None:
    tokens = run_of(0, 100)
    assert bench.retain(tokens) == 0
    assert bench.pool.find(tokens, HERE).count == 99
    assert bench.pool.find([*tokens, 7], HERE).count == 100
    assert bench.pool.find([*tokens[:50], -5, -6], HERE).count == 50
    assert repr(bench.pool) == "<CellPool: 0 cells of 0 running, 100 of 1 retained, 924 free>"


def test_a_few_tokens_are_not_worth_it(bench: Bench) -> None:
    bench.retain(run_of(0, 100))
    assert bench.pool.find([*run_of(0, LEAST_SHARED - 1), -1, -2], HERE) == NO_MATCH
    assert bench.pool.find([*run_of(0, LEAST_SHARED), -1, -2], HERE).count == LEAST_SHARED
    bench.retain(run_of(500, LEAST_SHARED - 1))
    assert bench.pool.n_retained == 100
    bench.retain(run_of(600, LEAST_SHARED))
    assert bench.pool.n_retained == 100 + LEAST_SHARED


def test_namespaces_see_nothing_of_each_other_and_none_sees_nothing_at_all(bench: Bench) -> None:
    tokens = run_of(0, 100)
    bench.retain(tokens, THERE)
    assert bench.pool.find(tokens, HERE) == NO_MATCH
    assert bench.pool.find(tokens, None) == NO_MATCH
    bench.begin(tokens, None)
    bench.retain(tokens, None)
    assert bench.pool.n_retained == 100


def test_a_running_sequence_is_shared_too_and_its_cells_count_once(bench: Bench) -> None:
    first, _ = bench.begin(run_of(0, 100))
    second, n_found = bench.begin([*run_of(0, 80), *run_of(900, 20)])
    assert n_found == 80
    assert bench.pool.n_used == 120
    bench.pool.release(first)
    bench.check()
    assert bench.pool.n_used == 100
    bench.pool.release(second)
    bench.check()
    assert bench.pool.n_used == 0


def test_cells_in_use_are_told_from_those_that_are_only_retained(bench: Bench) -> None:
    bench.retain([*run_of(0, 50), *run_of(100, 50)])
    bench.begin([*run_of(0, 50), *run_of(200, 10)])
    match = bench.pool.find([*run_of(0, 50), *run_of(100, 50), 1], HERE)
    assert match.count == 100
    assert bench.pool.count_in_use(match) == 50
    assert bench.pool.count_in_use(NO_MATCH) == 0


def test_a_conversations_turn_replaces_the_turns_before_it(bench: Bench) -> None:
    bench.retain(run_of(0, 100))
    assert bench.retain(run_of(0, 200)) == 100
    assert bench.retain([*run_of(0, 195), *run_of(900, 100)]) == 195
    assert "295 of 1 retained" in repr(bench.pool)


def test_no_more_than_the_most_are_retained_and_the_least_recently_used_goes_first(bench: Bench) -> None:
    for first in (0, 1000, 2000):
        bench.retain(run_of(first, 40))
    slot, n_found = bench.begin(run_of(0, 60))  # so that it is the second that goes
    assert n_found == 40
    bench.pool.release(slot)
    bench.retain(run_of(3000, 40))
    found = {first: bench.pool.find(run_of(first, 60), HERE).count for first in (0, 1000, 2000, 3000)}
    assert found == {0: 40, 1000: 0, 2000: 40, 3000: 40}
    assert bench.pool.was_given_up(run_of(1000, 60), HERE)
    assert not bench.pool.was_given_up(run_of(1000, 60), THERE)
    assert not bench.pool.was_given_up(run_of(4000, 60), HERE)


def test_what_somebody_comes_back_for_goes_last_unless_nobody_does_any_more(bench: Bench) -> None:
    bench.retain(run_of(0, 40))
    somebody = object()
    slot, _ = bench.begin(run_of(1000, 40))
    bench.pool.retain(slot, HERE, awaited_by=somebody)
    bench.retain(run_of(2000, 40))
    for gone in (0, 2000):
        bench.pool.give_up_oldest()
        assert bench.pool.was_given_up(run_of(gone, 20), HERE)
    bench.retain(run_of(3000, 40))
    bench.pool.expect_no_longer(somebody)
    bench.pool.give_up_oldest()
    assert bench.pool.was_given_up(run_of(1000, 20), HERE)


def test_half_of_the_pool_is_retained_at_most_and_ends_go_before_beginnings(bench: Bench) -> None:
    bench.retain(run_of(0, 500))
    assert bench.pool.n_retained == 500
    bench.retain(run_of(1000, 100))
    assert 448 < bench.pool.n_retained <= N_CELLS // 2
    assert bench.pool.find(run_of(0, 500), HERE).count == 500 - 128
    assert bench.pool.find(run_of(1000, 101), HERE).count == 100


@pytest.mark.parametrize(("length", "n_kept"), [(102, 5), (103, 4)])
def test_more_than_a_few_are_kept_while_it_is_little(length: int, n_kept: int) -> None:
    """Five of 102 tokens take 510 cells, and of 103 more than 512."""
    bench = Bench(n_cells=4096, max_running=4, max_retained=8)
    for index in range(KEPT_FREELY + 1):
        bench.retain(run_of(1000 * index, length))
    found = [bench.pool.find(run_of(1000 * index, length), HERE).count for index in range(KEPT_FREELY + 1)]
    assert found == [0] * (KEPT_FREELY + 1 - n_kept) + [length - 1] * n_kept


def test_those_that_ended_last_are_kept_whatever_they_cost() -> None:
    bench = Bench(n_cells=4096, max_running=4, max_retained=8)
    for index in range(KEPT_FREELY):
        bench.retain(run_of(1000 * index, 500))
    assert bench.pool.n_retained == 500 * KEPT_FREELY


def test_those_that_somebody_comes_back_for_are_not_given_up_for_what_they_cost() -> None:
    bench = Bench(n_cells=4096, max_running=8, max_retained=8)
    for index in range(KEPT_FREELY + 2):
        slot, _ = bench.begin(run_of(1000 * index, 300))
        bench.pool.retain(slot, HERE, awaited_by=object())
    assert bench.pool.n_retained == 300 * (KEPT_FREELY + 2)


def test_a_single_one_that_is_too_long_keeps_its_beginning(bench: Bench) -> None:
    bench.retain(run_of(0, 1000))
    assert bench.pool.find(run_of(0, 1000), HERE).count == 488


def test_what_was_shared_with_a_running_sequence_counts_when_that_has_ended(bench: Bench) -> None:
    bench.retain(run_of(0, 400))
    running, n_found = bench.begin([*run_of(0, 380), 7])
    assert n_found == 380
    bench.retain(run_of(1000, 400))
    assert bench.pool.n_retained == 420
    bench.pool.release(running)
    assert 448 < bench.pool.n_retained <= N_CELLS // 2


def test_room_is_made_of_what_is_retained_and_of_nothing_else(bench: Bench) -> None:
    bench.retain(run_of(0, 300))
    running, _ = bench.begin(run_of(5000, 600))
    bench.pool.make_room(100)
    assert bench.pool.n_free == 124
    bench.pool.make_room(124)
    assert bench.pool.find(run_of(0, 300), HERE).count == 299
    bench.pool.make_room(125)
    assert bench.pool.find(run_of(0, 300), HERE).count == 300 - 64
    bench.check()
    bench.pool.make_room(N_CELLS)
    assert bench.pool.n_retained == 0
    assert bench.pool.n_used == 600
    bench.pool.release(running)
    assert not bench.pool.give_up_oldest()


def test_what_others_share_goes_with_the_last_of_them(bench: Bench) -> None:
    for tail in (1000, 2000):
        bench.retain([*run_of(0, 200), *run_of(tail, 20)])
    assert bench.pool.n_retained == 240
    assert bench.pool.give_up_oldest()
    assert bench.pool.find(run_of(0, 200), HERE).count == 199
    assert bench.pool.give_up_oldest()
    assert bench.pool.n_retained == bench.memory.n_used == 0


def test_what_the_memory_has_not_kept_is_not_attached(bench: Bench) -> None:
    bench.retain(run_of(0, 100))
    match = bench.pool.find(run_of(0, 100), HERE)
    bench.memory.keeps_all = False
    slot = bench.pool.open(HERE)
    assert not bench.pool.attach(slot, match)
    assert bench.pool.n_used == 0
    bench.check()


def test_a_sequence_is_cut_or_dropped_as_the_memory_can(bench: Bench) -> None:
    slot, _ = bench.begin(run_of(0, 100))
    assert bench.pool.cut(slot, 60)
    assert bench.pool.n_used == 60
    bench.memory.drops_parts = False
    assert not bench.pool.cut(slot, 30)
    assert bench.pool.n_used == bench.memory.n_used == 0
    bench.pool.release(slot)
    bench.retain(run_of(0, 600))  # has to be cut, and cannot be
    assert bench.pool.n_retained == bench.memory.n_used == 0


def test_where_nothing_can_be_shared_nothing_is_kept() -> None:
    bench = Bench(max_retained=0)
    assert not bench.pool.can_share
    assert bench.retain(run_of(0, 100)) == 0
    assert bench.retain(run_of(0, 100)) == 0
    assert bench.memory.n_used == 0


def test_O08_what_was_given_up_is_remembered_within_bounds() -> None:
    bench = Bench(max_retained=1)
    for index in range(1100):
        bench.retain(run_of(index * 100, LEAST_SHARED))
    assert len(bench.pool._given_up) == 1024
    assert not bench.pool.was_given_up(run_of(0, 50), HERE)
    assert bench.pool.was_given_up(run_of(1098 * 100, 50), HERE)


class PoolMachine(RuleBasedStateMachine):
    """Sequences begin, grow and end as they like; the pool and the memory agree on every cell."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(n_cells=256, max_running=3, max_retained=2)
        self.running: dict[int, tuple[list[int], Namespace | None]] = {}

    @precondition(lambda self: len(self.running) < 3)
    @rule(
        kind=st.integers(0, 2),
        n_shared=st.integers(0, 70),
        n_own=st.integers(1, 30),
        salt=st.integers(0, 3),
        namespace=st.sampled_from([HERE, THERE, None]),
    )
    def begin(self, kind: int, n_shared: int, n_own: int, salt: int, namespace: Namespace | None) -> None:
        tokens = [*run_of(kind * 1000, n_shared), *run_of(10_000 + salt * 100, n_own)]
        if self.bench.pool.n_used + len(tokens) > 256:
            return
        before = [held for held, name in self.running.values() if name == namespace is not None]
        slot, n_found = self.bench.begin(tokens, namespace)
        assert n_found >= max(
            (n for held in before if (n := common_length(held, tokens)) >= LEAST_SHARED), default=0
        )
        self.running[slot] = tokens, namespace

    @precondition(lambda self: self.running)
    @rule(data=st.data(), is_kept=st.booleans())
    def end(self, data: st.DataObject, is_kept: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.running)))
        _, namespace = self.running.pop(slot)
        if is_kept:
            self.bench.pool.retain(slot, namespace)
        else:
            self.bench.pool.release(slot)

    @rule(n_rows=st.integers(1, 300))
    def make_room(self, n_rows: int) -> None:
        self.bench.pool.make_room(n_rows)
        assert self.bench.pool.n_free >= n_rows or self.bench.pool.n_retained == 0

    @invariant()
    def the_counts_are_the_memorys(self) -> None:
        pool, memory = self.bench.pool, self.bench.memory
        held = {number for slot in self.running for number in memory.cells[slot]}
        assert pool.n_used == len(held)
        assert pool.n_used + pool.n_retained == memory.n_used <= 256
        assert pool.n_retained <= 128
        assert len(pool._retained) <= 2
        assert pool._slots.n_free == 5 - len(self.running) - len(pool._retained)

    @invariant()
    def running_sequences_keep_theirs(self) -> None:
        for slot, (tokens, _) in self.running.items():
            assert self.bench.pool._tree.tokens(slot) == tokens
            assert len(self.bench.memory.cells[slot]) == len(tokens)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
