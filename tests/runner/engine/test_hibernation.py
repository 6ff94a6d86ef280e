"""What is held of a pool, and saved at its end, with the scripted backend."""

from __future__ import annotations

import attrs
import pytest

from runner.engine.cells import KEPT_CELLS, LEAST_SHARED, Leaving
from runner.engine.hibernation import LEAST_SAVED, LITTLE_OWN
from runner.engine.prefix import Namespace
from tests.support.hibernation_bench import BIG, OURS, ROOMY, Bench, known, state_of, tokens_of


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


def test_others_leave_the_cells_before_a_state_is_put_there(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, order = Bench(attrs.evolve(ROOMY, max_retained=3)), []
    bench.hold(tokens_of(1))
    bench.leave(tokens_of(2))

    def note(name: str) -> None:
        call = getattr(bench.backend, name)

        def noted(*arguments: object) -> object:
            order.append(name)
            return call(*arguments)

        monkeypatch.setattr(bench.backend, name, noted)

    note("save_state")
    note("restore_state")
    assert bench.restore_held(tokens_of(1))
    assert order == ["save_state", "restore_state"]


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


@pytest.mark.parametrize(("length", "is_held"), [(LEAST_SAVED - 1, False), (LEAST_SAVED, True)])
def test_who_computes_is_freed_of_what_can_be_held(length: int, is_held: bool) -> None:
    bench = Bench(attrs.evolve(ROOMY, max_retained=3))
    bench.leave(tokens_of(1, length))
    bench.cells.unburden()
    assert (bench.held(), bench.cells.n_retained) == (([1], 0) if is_held else ([], length))
    bench = Bench(attrs.evolve(ROOMY, max_retained=3), host_bytes=0)
    bench.leave(tokens_of(1, 600))
    bench.cells.unburden()
    assert bench.cells.n_retained == 600  # it would be lost


@pytest.mark.parametrize(("n_more", "n_left"), [(0, 4), (1, 3)])
def test_who_computes_is_freed_of_all_but_little_of_what_is_soon_computed_again(
    n_more: int, n_left: int
) -> None:
    bench, beginning = Bench(attrs.evolve(ROOMY, max_retained=4)), tokens_of(1, KEPT_CELLS - 160 + n_more)
    bench.cells.retain(bench.run(beginning), OURS)
    for first in range(2000, 6000, 1000):
        slot, rest = bench.cells.open(OURS), tokens_of(first, 40)
        assert bench.cells.attach(slot, bench.cells.find([*beginning, *rest], OURS))
        bench.grow(slot, len(beginning), rest)
        bench.cells.retain(slot, OURS)
    bench.cells.unburden()
    assert (bench.held(), len(bench.cells.retained())) == ([], n_left)


@pytest.mark.parametrize(("n_own", "is_held"), [(299, False), (300, True)])
def test_what_has_most_in_common_with_somebody_running_stays_while_it_is_little(
    n_own: int, is_held: bool
) -> None:
    bench, beginning = Bench(attrs.evolve(ROOMY, max_retained=3)), tokens_of(1, 300)
    bench.run(beginning)
    slot, rest = bench.cells.open(OURS), tokens_of(2000, n_own)
    assert bench.cells.attach(slot, bench.cells.find([*beginning, *rest], OURS))
    bench.grow(slot, len(beginning), rest)
    bench.end(slot)
    bench.cells.unburden()
    assert (bench.held(), bench.cells.n_retained) == (([1], 0) if is_held else ([], n_own))


def test_what_is_soon_computed_again_stays_where_others_that_leave_free_enough() -> None:
    bench = Bench(attrs.evolve(ROOMY, max_retained=3))
    for first, length in [(1, LEAST_SAVED - 1), (2, KEPT_CELLS)]:
        bench.leave(tokens_of(first, length))
    bench.cells.unburden()
    assert (bench.held(), bench.cells.n_retained) == ([2], LEAST_SAVED - 1)


def test_what_can_be_held_once_others_have_left_leaves_with_the_next_step() -> None:
    bench, beginning = Bench(attrs.evolve(ROOMY, max_retained=3)), tokens_of(1, 100)
    bench.cells.retain(bench.run([*beginning, *tokens_of(2000, 60)]), OURS)
    slot, rest = bench.cells.open(OURS), tokens_of(3000, 200)
    assert bench.cells.attach(slot, bench.cells.find([*beginning, *rest], OURS))
    bench.grow(slot, len(beginning), rest)
    bench.cells.retain(slot, OURS)
    left = []
    for _ in range(3):
        bench.hibernation.relieve()
        left.append(bench.cells.n_retained)
    assert left == [160, 0, 0]


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
