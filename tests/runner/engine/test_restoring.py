"""What is saved of a pool while it runs, and put back into it, with the scripted backend."""

from __future__ import annotations

import attrs
import pytest

from runner.engine.hibernation import LEAST_SAVED, SPARE_PARTS, Find, KnownState
from runner.engine.host_cache import HeldState
from runner.engine.prefix import Namespace
from tests.support.hibernation_bench import BIG, OPTIONS, OURS, ROOMY, Bench, known, state_of, tokens_of

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


def test_all_that_is_held_can_be_dropped_but_what_is_on_its_way_out() -> None:
    bench = crowded()
    bench.hibernation.forget_held()
    assert bench.held() == [1]
    bench.hibernation.sent(None)
    bench.hibernation.forget_held()
    assert (bench.held(), bench.hibernation._held.used_bytes) == ([], 0)


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
    for host_bytes, held in [(2 * size_bytes, [2, 3]), (2 * size_bytes - 1, [3]), (size_bytes, [3])]:
        bench = Bench(host_bytes=host_bytes)
        for first in (2, 1):
            bench.hold(tokens_of(first, 150))
        bench.leave(tokens_of(3, 150))
        bench.run(tokens_of(9, 200))
        if host_bytes < 2 * size_bytes:  # there is room for one only
            assert bench.held() == [1]
        assert bench.restore_held(tokens_of(1, 150))
        assert bench.held() == held
        cache = bench.hibernation._held
        assert cache.used_bytes + sum(room.present_bytes for room in cache._left) <= host_bytes


def test_nobody_takes_the_place_of_what_is_put_back_in_part() -> None:
    size_bytes = len(state_of(tokens_of(1, 150)))
    bench = Bench(host_bytes=2 * size_bytes)
    for first in (2, 1):
        bench.hold(tokens_of(first, 150))
    bench.leave(tokens_of(3, 100))
    assert bench.restore_held(tokens_of(1, 150), 100)
    assert bench.held() == [2, 1]
    assert bench.hibernation._held.used_bytes == 2 * size_bytes


def test_an_exchange_with_a_state_that_is_refused_leaves_no_more_than_there_is_room_for() -> None:
    size_bytes = len(state_of(tokens_of(1, 150)))
    bench = Bench(host_bytes=size_bytes)
    bench.hold(tokens_of(1, 150))
    bench.leave(tokens_of(2, 150))
    bench.backend.restore_state = lambda *_: False
    assert not bench.restore_held(tokens_of(1, 150))
    assert bench.held() == [2]
    assert bench.hibernation._held.used_bytes == size_bytes


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
    bench = Bench(host_bytes=0)
    for first in (1, 2):
        bench.leave(tokens_of(first, 90))
    bench.run(tokens_of(9, 190))
    assert bench.restore(tokens_of(3, 120), state_of(tokens_of(3, 120))) is not None
    assert [slot for slot, _ in bench.cells.retained()] == [1]
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
