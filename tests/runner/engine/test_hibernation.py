"""What is saved of a pool and put back into it, with the scripted backend."""

from __future__ import annotations

import attrs
import pytest

from runner.domain.engine import EngineOptions
from runner.engine.cells import KEPT_CELLS, LEAST_SHARED, CellPool, Leaving
from runner.engine.fake import ScriptedBackend
from runner.engine.hibernation import LEAST_SAVED, LITTLE_OWN, SPARE_PARTS, Find, Hibernation, KnownState
from runner.engine.host_cache import HeldState
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


@pytest.mark.parametrize("is_held", [False, True])
def test_what_is_larger_than_allowed_is_saved_in_part_or_not_at_all(is_held: bool) -> None:
    size_bytes = len(state_of(tokens_of(1)))
    for cuts_states in (True, False):
        for limit_bytes, least, most in [
            (size_bytes, 100, 100),
            (size_bytes - 1, LEAST_SAVED if cuts_states else 0, 99 if cuts_states else 0),
            (LEAST_SAVED * 256, 0, 0),
        ]:
            bench = Bench(cuts_states=cuts_states)
            (bench.hold if is_held else bench.leave)(tokens_of(1))
            parts = bench.saved(limit_bytes)
            assert least <= sum(len(tokens) for _, tokens, _ in parts) <= most
            for _, tokens, data in parts:
                assert tokens == tokens_of(1)[: len(tokens)]
                assert data == state_of(tokens)
            assert bench.cells.n_retained == bench.backend.cells_used == 0


def test_what_was_saved_while_the_engine_ran_is_not_saved_again() -> None:
    bench = Bench()
    for first in (1, 2):
        bench.leave(tokens_of(first))
    bench.hibernation.learn([known(tokens_of(1, 120))])
    assert [tokens[0] for _, tokens, _ in bench.saved()] == [2]


def test_what_is_held_is_saved_after_what_is_retained_and_what_was_saved_before_is_not() -> None:
    bench = Bench()
    for first in (1, 2, 3):
        bench.hold(tokens_of(first))
    bench.leave(tokens_of(4))
    bench.hibernation.learn([known(tokens_of(2, 120))])
    assert [tokens[0] for _, tokens, _ in bench.saved()] == [4, 3, 1]


# out of the cells


def test_what_leaves_the_cells_is_held_and_found() -> None:
    bench, tokens = Bench(), tokens_of(1)
    bench.leave(tokens)
    assert (bench.held(), bench.found([*tokens, 7])) == ([], 0)
    bench.cells.give_up_oldest()
    assert bench.found([*tokens, 7]) == bench.hibernation.n_held_tokens == len(tokens)
    assert bench.hibernation.n_saved_tokens == len(tokens)
    assert bench.found([*tokens, 7], Namespace(owner="o")) == 0


@pytest.mark.parametrize(("count", "is_held"), [(LEAST_SAVED - 1, False), (LEAST_SAVED, True)])
def test_what_is_worth_little_is_given_up_for_nothing(count: int, is_held: bool) -> None:
    bench = Bench()
    bench.leave(tokens_of(1, count))
    slot, _ = bench.cells.retained()[0]
    assert bench.cells.hold(slot, OURS, False) is (Leaving.HELD if is_held else Leaving.CHEAP)
    bench.cells.give_up_oldest()
    assert bool(bench.held()) is is_held


@pytest.mark.parametrize(
    ("n_own", "is_expected", "is_held"),
    [(LEAST_SAVED - 1, True, False), (LEAST_SAVED, True, True), (99, False, False), (100, False, True)],
)
def test_a_little_that_is_its_own_is_held_only_for_who_comes_back(
    n_own: int, is_expected: bool, is_held: bool
) -> None:
    bench = Bench()
    first = bench.run(tokens_of(1))
    second = bench.cells.open(OURS)
    assert bench.cells.attach(second, bench.cells.find([*tokens_of(1), 7], OURS))
    bench.grow(second, 100, tokens_of(200, n_own))
    if is_expected:
        bench.cells.expect_back(second)
    bench.cells.retain(second, OURS)
    bench.cells.give_up_oldest()
    assert bool(bench.held()) is is_held
    bench.cells.release(first)


@pytest.mark.parametrize("namespace", [Namespace(adapters=("a",)), Namespace(media=("m",))])
def test_what_tokens_alone_do_not_tell_is_not_held(namespace: Namespace) -> None:
    bench = Bench()
    bench.leave(tokens_of(1), namespace)
    slot, _ = bench.cells.retained()[0]
    assert bench.cells.hold(slot, namespace, False) is Leaving.LOST
    bench.cells.give_up_oldest()
    assert bench.held() == []


def test_without_room_nothing_is_held_and_with_less_than_it_takes_the_beginning_where_it_can_be_cut() -> None:
    size_bytes = len(state_of(tokens_of(1)))
    for cuts_states, host_bytes, least, most in [
        (True, 0, 0, 0),
        (True, size_bytes, 100, 100),
        (False, size_bytes, 100, 100),
        (False, size_bytes - 1, 0, 0),
        (True, size_bytes - 1, LEAST_SAVED, 99),
        (True, LEAST_SAVED * 256, 0, 0),
    ]:
        bench = Bench(cuts_states=cuts_states, host_bytes=host_bytes)
        bench.hold(tokens_of(1))
        assert least <= bench.hibernation.n_held_tokens <= most
        if bench.hibernation.n_held_tokens:
            (state,) = bench.hibernation._held
            assert bytes(state.data) == state_of(tokens_of(1)[: len(state.tokens)])


def test_what_nobody_will_miss_goes_first_and_of_it_the_least_recently_used() -> None:
    size_bytes = len(state_of(tokens_of(1)))
    bench = Bench(host_bytes=3 * size_bytes)
    for first in (1, 2, 3):
        bench.hold(tokens_of(first))
    bench.hold(tokens_of(1))  # as if it had come back
    assert bench.held() == [2, 3, 1]
    bench.hold(tokens_of(4))
    assert bench.held() == [3, 1, 4]
    bench.hibernation.allow(BIG)
    bench.hibernation.sent(None)
    assert bench.outgoing() == tokens_of(1)
    bench.hibernation.sent(1)
    bench.hold(tokens_of(5))
    assert bench.held() == [3, 4, 5]
    bench.hibernation.allow(0)
    bench.hibernation.sent(None)
    for first in (6, 7):
        bench.cells.retain(bench.run(tokens_of(first)), OURS)  # nobody is expected back for it
        bench.cells.give_up_oldest()
    assert bench.held() == [4, 5, 7]
    assert bench.hibernation._held.used_bytes == 3 * size_bytes


@pytest.mark.parametrize(("n_own", "is_held"), [(LITTLE_OWN - 1, False), (LITTLE_OWN, True)])
def test_much_that_is_its_own_is_held_behind_any_beginning(n_own: int, is_held: bool) -> None:
    bench = Bench(ROOMY)
    first = bench.run(tokens_of(1, 1000))
    second = bench.cells.open(OURS)
    assert bench.cells.attach(second, bench.cells.find([*tokens_of(1, 1000), 7], OURS))
    bench.grow(second, 1000, tokens_of(200, n_own))
    bench.cells.retain(second, OURS)
    bench.cells.give_up_oldest()
    assert bool(bench.held()) is is_held
    bench.cells.release(first)


def test_a_few_cells_cost_no_more_than_these_where_all_would_not_be_held() -> None:
    bench = Bench(ROOMY, host_bytes=len(state_of(tokens_of(1, 1000))))
    bench.leave(tokens_of(1, 1400))
    bench.cells.make_room(bench.cells.n_free + 8)
    assert (bench.held(), bench.cells.n_retained) == ([], 1400 - 64)
    bench.cells.give_up_oldest()
    assert len(state_of(tokens_of(1, bench.hibernation.n_held_tokens))) <= len(state_of(tokens_of(1, 1000)))
    assert bench.hibernation.n_held_tokens > 990


def test_the_turn_before_goes_only_for_the_turn_that_replaces_it() -> None:
    bench = Bench(host_bytes=2 * len(state_of(tokens_of(1))))
    bench.cells.retain(bench.run(tokens_of(9)), OURS, awaited_by=bench)
    bench.cells.give_up_oldest()
    bench.hold(tokens_of(1))
    bench.hold(tokens_of(1, 120))  # for which there is no room
    assert bench.found([*tokens_of(1), 7]) == 100


def test_what_somebody_waits_for_does_not_go_until_nobody_does() -> None:
    size_bytes = len(state_of(tokens_of(1)))
    bench, somebody = Bench(host_bytes=2 * size_bytes), object()
    bench.cells.retain(bench.run(tokens_of(1)), OURS, awaited_by=somebody)
    bench.cells.give_up_oldest()
    for first in (2, 3):
        bench.hold(tokens_of(first))
    assert bench.held() == [1, 3]
    bench.leave(tokens_of(4, 150))
    bench.cells.give_up_oldest()
    assert bench.held() == [1, 3]  # beside it there is no room for so much
    bench.hibernation.expect_no_longer(somebody)
    bench.hold(tokens_of(5))
    assert bench.held() == [3, 5]


def test_others_leave_the_cells_before_a_state_is_put_there() -> None:
    bench, order = Bench(attrs.evolve(ROOMY, max_retained=3)), []
    bench.hold(tokens_of(1))
    bench.leave(tokens_of(2, KEPT_CELLS + 1))
    save, restore = bench.backend.save_state, bench.backend.restore_state
    bench.backend.save_state = lambda *a: order.append("save") or save(*a)  # type: ignore[method-assign,func-returns-value]
    bench.backend.restore_state = lambda *a: order.append("restore") or restore(*a)  # type: ignore[method-assign,func-returns-value]
    assert bench.restore_held(tokens_of(1))
    assert order == ["save", "restore"]


@pytest.mark.parametrize("cuts_states", [True, False])
def test_a_turn_replaces_the_turn_before_where_states_can_be_cut(cuts_states: bool) -> None:
    bench = Bench(cuts_states=cuts_states)
    bench.hold(tokens_of(1))
    bench.hold(tokens_of(1, 150), Namespace(owner="o"))
    bench.hold(tokens_of(1, 150))
    lengths = [len(state.tokens) for state in bench.hibernation._held]
    assert lengths == ([150, 150] if cuts_states else [100, 150, 150])
    bench.hold(tokens_of(1, 120))
    assert len(bench.held()) == (2 if cuts_states else 4)


@pytest.mark.parametrize(("n_other", "is_replaced"), [(LEAST_SHARED - 1, True), (LEAST_SHARED, False)])
def test_a_turn_replaces_one_that_it_has_almost_all_of_and_is_replaced_by_one(
    n_other: int, is_replaced: bool
) -> None:
    alike, other = tokens_of(1), tokens_of(1)[:-n_other] + tokens_of(200, n_other)
    for first, second in [(alike, [*other, *tokens_of(7)]), ([*alike, *tokens_of(7)], other)]:
        bench = Bench()
        bench.hold(first)
        bench.hold(second)
        assert len(bench.held()) == (1 if is_replaced else 2)
        assert bench.found([*first, 7]) >= len(first) - (n_other if is_replaced else 0)


def test_of_one_state_a_part_of_which_has_to_go_all_is_held_and_all_goes() -> None:
    bench = Bench()
    bench.leave(tokens_of(1, 190))
    bench.leave(tokens_of(2, 60))  # more than half of the pool
    assert (bench.held(), bench.cells.n_retained) == ([1], 60)
    assert bench.found([*tokens_of(1, 190), 7]) == 190


@pytest.mark.parametrize("n_more", [0, 1])
def test_who_computes_is_freed_of_all_but_little_that_can_be_held(n_more: int) -> None:
    bench = Bench(attrs.evolve(ROOMY, max_retained=3))
    bench.leave(tokens_of(1, KEPT_CELLS - 100 + n_more))
    bench.leave(tokens_of(2, 100))
    bench.cells.unburden()
    assert bench.held() == ([1] if n_more else [])
    bench = Bench(attrs.evolve(ROOMY, max_retained=3), host_bytes=0)
    bench.leave(tokens_of(1, 600))
    bench.cells.unburden()
    assert bench.cells.n_retained == 600  # it would be lost


@pytest.mark.parametrize(("missing_bytes", "is_freed"), [(0, True), (1, False)])
def test_who_computes_is_not_freed_at_the_cost_of_what_would_be_missed(
    missing_bytes: int, is_freed: bool
) -> None:
    size_bytes = len(state_of(tokens_of(1, KEPT_CELLS + 1)))
    bench = Bench(ROOMY, host_bytes=2 * size_bytes - missing_bytes)
    bench.hold(tokens_of(1, KEPT_CELLS + 1))
    bench.leave(tokens_of(2, KEPT_CELLS + 1))
    bench.cells.unburden()
    assert bench.held() == ([1, 2] if is_freed else [1])
    assert bench.cells.n_retained == (0 if is_freed else KEPT_CELLS + 1)
    bench.cells.make_room(bench.cells.n_cells)  # now it must be
    assert bench.held() == ([1, 2] if is_freed else [2])


def test_no_memory_for_a_state_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size_bytes: int) -> None:
        raise MemoryError

    monkeypatch.setattr("runner.engine.host_cache.room_for", refuse)
    bench = Bench()
    bench.hold(tokens_of(1))
    assert (bench.held(), bench.cells.n_retained) == ([], 0)


def test_all_that_is_held_can_be_dropped_but_what_is_on_its_way_out() -> None:
    bench = crowded()
    bench.hibernation.forget_held()
    assert bench.held() == [1]
    bench.hibernation.sent(None)
    bench.hibernation.forget_held()
    assert (bench.held(), bench.hibernation._held.used_bytes) == ([], 0)


# out of the engine, while it runs


def crowded(room_bytes: int = BIG) -> Bench:
    """There is room for two states, and they are there."""
    bench = Bench(host_bytes=2 * len(state_of(tokens_of(1))))
    for first in (1, 2):
        bench.hold(tokens_of(first))
    bench.hibernation.allow(room_bytes)
    return bench


@pytest.mark.parametrize(("missing_bytes", "is_saved"), [(0, False), (1, True)])
def test_what_would_go_next_is_saved_ahead_once_little_is_spare(missing_bytes: int, is_saved: bool) -> None:
    """Small ones: a quarter of the room."""
    size_bytes = len(state_of(tokens_of(1)))
    bench = Bench(attrs.evolve(ROOMY, max_retained=8), host_bytes=8 * size_bytes - 4 * missing_bytes)
    bench.hibernation.allow(BIG)
    for first in range(1, 7):
        bench.hold(tokens_of(first))
    assert bench.outgoing() == (tokens_of(1) if is_saved else None)
    if is_saved:
        bench.hibernation.sent(1)
        assert bench.outgoing() is None  # that one can go


@pytest.mark.parametrize(("missing_bytes", "is_saved"), [(0, False), (1, True)])
def test_room_for_one_as_large_as_the_largest_is_spare(missing_bytes: int, is_saved: bool) -> None:
    size_bytes = len(state_of(tokens_of(1)))
    bench = Bench(host_bytes=2 * size_bytes + size_bytes // SPARE_PARTS - missing_bytes)
    bench.hibernation.allow(BIG)
    bench.hold(tokens_of(1))
    assert (bench.outgoing() is not None) is is_saved


def test_states_are_saved_one_after_the_other_and_each_once() -> None:
    bench = crowded()
    assert bench.outgoing() == tokens_of(1)
    bench.hibernation.sent(5)
    assert bench.outgoing() == tokens_of(2)
    bench.hibernation.sent(None)
    assert bench.outgoing() is None
    find = bench.hibernation.find([*tokens_of(1), 7], OURS)
    assert find is not None and isinstance(find.state, HeldState)  # it is here still
    bench.hold(tokens_of(3))
    find = bench.hibernation.find([*tokens_of(1), 7], OURS)
    assert find is not None and isinstance(find.state, KnownState)
    assert (find.state.state_id, find.state.size_bytes) == (5, len(state_of(tokens_of(1))))


def test_what_nobody_is_expected_back_for_is_not_saved() -> None:
    bench = crowded(room_bytes=0)
    for state in bench.hibernation._held:
        state.is_expected = state.tokens[0] == 2
    bench.hibernation.allow(BIG)
    assert bench.outgoing() == tokens_of(2)


@pytest.mark.parametrize(("missing_bytes", "is_saved"), [(0, True), (1, False)])
def test_nothing_is_saved_that_is_larger_than_what_may_be(missing_bytes: int, is_saved: bool) -> None:
    bench = crowded(len(state_of(tokens_of(1))) - missing_bytes)
    assert (bench.outgoing() is not None) is is_saved
    bench = crowded(room_bytes=0)
    assert bench.outgoing() is None


def test_what_is_on_its_way_out_stays_until_it_is_sent_and_is_found() -> None:
    bench = crowded()
    bench.hibernation._held.limit_bytes += len(state_of(tokens_of(1))) // 2
    assert bench.restore_held(tokens_of(1))
    assert bench.held() == [2, 1]
    bench.cells.forget_retained()
    for first in (3, 4):
        bench.hold(tokens_of(first))
    assert bench.held() == [1, 4]
    bench.hold(tokens_of(1, 130))
    assert [len(state.tokens) for state in bench.hibernation._held] == [100, 130]
    bench.hibernation.sent(1)
    bench.hold(tokens_of(5))
    assert 1 not in bench.held()[:-2]


def test_what_was_saved_already_is_not_saved_again() -> None:
    for cuts_states, saved in [(True, known(tokens_of(1, 101))), (False, known(tokens_of(1)))]:
        bench = Bench(cuts_states=cuts_states, host_bytes=len(state_of(tokens_of(1))))
        bench.hibernation.allow(BIG)
        bench.hibernation.learn([saved])
        bench.hold(tokens_of(1))
        assert bench.outgoing() is None
        bench.hibernation.forget(1)  # it is gone there
        bench.hibernation.allow(BIG)
        assert bench.outgoing() == tokens_of(1)


# in


def test_what_is_put_back_whole_is_not_held_any_longer_and_a_part_is() -> None:
    for n_wanted, n_held in [(100, 0), (70, 1)]:
        bench = Bench()
        bench.hold(tokens_of(1))
        assert bench.restore_held(tokens_of(1), n_wanted)
        assert bench.cells.n_used == bench.backend.cells_used == n_wanted
        assert len(bench.held()) == n_held
        assert bench.hibernation.n_restored_tokens == n_wanted


def test_others_make_room_for_what_comes_back_and_are_held_beside_it() -> None:
    size_bytes = len(state_of(tokens_of(1, 150)))
    for host_bytes, held in [(3 * size_bytes, [2, 3]), (3 * size_bytes - 1, [3]), (size_bytes, [])]:
        bench = Bench(host_bytes=host_bytes)
        for first in (2, 1):
            bench.hold(tokens_of(first, 150))
        bench.leave(tokens_of(3, 150))
        bench.run(tokens_of(9, 200))
        if host_bytes == size_bytes:  # there is room for one only
            assert bench.held() == [1]
        assert bench.restore_held(tokens_of(1, 150))
        assert bench.held() == held
        assert bench.hibernation._held.used_bytes <= host_bytes


def test_what_is_held_and_refused_is_dropped() -> None:
    bench = Bench()
    bench.hold(tokens_of(1))
    (state,) = bench.hibernation._held
    state.data[0] ^= 1
    assert not bench.restore_held(tokens_of(1))
    assert (bench.held(), bench.cells.n_used) == ([], 0)


def test_what_is_put_back_belongs_to_the_sequence_and_is_shared() -> None:
    bench, tokens = Bench(), tokens_of(1)
    slot = bench.restore(tokens, state_of(tokens))
    assert slot is not None
    assert (bench.hibernation.n_restored_tokens, bench.cells.n_used) == (100, 100)
    match = bench.cells.find([*tokens, 7], OURS)
    assert match.count == len(tokens)
    assert bench.cells.find([*tokens, 7], Namespace(owner="o")).count == 0
    bench.cells.retain(slot, OURS)
    assert bench.cells.n_retained == 100


def test_of_a_state_only_what_is_wanted_is_kept() -> None:
    bench, tokens = Bench(), tokens_of(1)
    assert bench.restore(tokens, state_of(tokens), 70) is not None
    assert bench.cells.n_used == bench.backend.cells_used == 70
    assert bench.hibernation.n_restored_tokens == 70


def test_what_others_have_of_a_state_is_kept_once_where_states_can_be_cut() -> None:
    for cuts_states, n_cells in [(True, 160), (False, 220)]:
        bench, tokens = Bench(cuts_states=cuts_states), tokens_of(1)
        other = bench.run([*tokens[:60], *tokens_of(200, 60)])
        assert bench.restore(tokens, state_of(tokens)) is not None
        assert bench.cells.n_used == bench.backend.cells_used == n_cells
        bench.cells.release(other)
        assert bench.cells.n_used == bench.backend.cells_used == 100


def test_a_state_is_found_by_whose_it_is_and_from_so_many_tokens_on() -> None:
    bench, tokens = Bench(), tokens_of(1)
    bench.hibernation.learn([known(tokens), known(tokens_of(1, 80), 2), known(tokens_of(1, 90), 3, "o")])
    assert bench.found([*tokens, 7]) == 100
    assert bench.found(tokens[:LEAST_SAVED]) == LEAST_SAVED
    assert bench.found(tokens[: LEAST_SAVED - 1]) == 0
    assert bench.found([*tokens, 7], Namespace(owner="o")) == 90
    for namespace in (Namespace(owner="other"), Namespace(adapters=("a",)), Namespace(media=("m",)), None):
        assert bench.found([*tokens, 7], namespace) == 0
    bench.hibernation.forget(1)
    bench.hibernation.forget(99)
    assert bench.found([*tokens, 7]) == 80


def test_with_a_window_a_state_is_of_use_only_as_a_whole() -> None:
    bench, tokens = Bench(cuts_states=False), tokens_of(1)
    bench.hibernation.learn([known(tokens)])
    assert bench.found(tokens[:-1]) == 0
    assert bench.found(tokens) == len(tokens)
    assert bench.hibernation.find(tokens, OURS, lambda count: count - 1) is None


def test_the_oldest_make_room_for_what_is_put_back_and_running_ones_do_not() -> None:
    bench = Bench()
    for first in (1, 2):
        bench.leave(tokens_of(first, 90))
    bench.run(tokens_of(9, 190))
    assert bench.restore(tokens_of(3, 120), state_of(tokens_of(3, 120))) is not None
    assert [slot for slot, _ in bench.cells.retained()] == [1]
    assert bench.held() == [1]
    assert bench.cells.n_used == 310
    bench = Bench()
    bench.run(tokens_of(9, 250))
    assert not bench.hibernation.has_room_for(Find(known(tokens_of(5, 151)), 70))
    assert bench.hibernation.has_room_for(Find(known(tokens_of(5, 150)), 70))
    assert bench.restore(tokens_of(4, 150), state_of(tokens_of(4, 150))) is not None
    assert (bench.cells.n_used, bench.cells.n_free) == (400, 0)


def test_what_the_engine_refuses_takes_nothing() -> None:
    bench, tokens = Bench(), tokens_of(1)
    assert bench.restore(tokens, b"no state of anything") is None
    assert bench.restore(tokens[:-1], state_of(tokens)) is None
    assert (bench.cells.n_used, bench.cells.n_free, bench.backend.cells_used) == (0, 400, 0)
    assert bench.hibernation.n_restored_tokens == 0
    assert bench.restore(tokens, state_of(tokens)) is not None


def test_where_nothing_is_shared_nothing_is_found() -> None:
    bench, tokens = Bench(attrs.evolve(OPTIONS, max_retained=0)), tokens_of(1)
    bench.hibernation.learn([known(tokens)])
    assert bench.found(tokens) == 0
