"""What is saved of a pool and put back into it, with the scripted backend."""

from __future__ import annotations

import attrs
import pytest

from runner.domain.engine import EngineOptions
from runner.engine.cells import KEPT_FREELY, CellPool
from runner.engine.fake import ScriptedBackend
from runner.engine.hibernation import LEAST_SAVED, Find, Hibernation, KnownState
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
        slot = self.run(tokens, namespace)
        self.cells.expect_back(slot)
        self.cells.retain(slot, namespace)

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

    def outgoing(self) -> list[int] | None:
        outgoing = self.hibernation.outgoing
        return None if outgoing is None else outgoing.tokens

    def found(self, tokens: list[int], namespace: Namespace | None = OURS) -> int:
        """Of a prompt that goes on with one token more."""
        find = self.hibernation.find(tokens, namespace)
        return 0 if find is None else find.count


def known(tokens: list[int], state_id: int = 1, owner: str = "") -> KnownState:
    return KnownState(state_id=state_id, owner=owner, tokens=tokens, size_bytes=4 * len(tokens))


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
            assert tokens == tokens_of(1)[: len(tokens)]
            assert len(data) < size_bytes
        assert bench.saved(LEAST_SAVED * 4) == []


def test_what_was_saved_while_the_engine_ran_is_not_saved_again() -> None:
    bench = Bench()
    for first in (1, 2):
        bench.leave(tokens_of(first))
    bench.hibernation.learn([known(tokens_of(1, 120))])
    assert [tokens[0] for _, tokens, _ in bench.saved()] == [2]


# while the engine runs


def test_what_is_given_up_is_saved_first_and_found_at_once() -> None:
    bench, tokens = Bench(), tokens_of(1)
    bench.hibernation.allow(BIG)
    bench.leave(tokens)
    assert bench.outgoing() is None
    bench.cells.give_up_oldest()
    assert bench.outgoing() == tokens
    assert bench.found([*tokens, 7]) == len(tokens)
    bench.hibernation.sent(5)
    assert bench.outgoing() is None
    assert bench.hibernation.n_saved_tokens == len(tokens)
    find = bench.hibernation.find([*tokens, 7], OURS)
    assert find is not None and isinstance(find.state, KnownState)
    assert (find.state.state_id, find.state.size_bytes) == (5, len(state_of(tokens)))


def test_what_could_not_be_sent_is_not_found() -> None:
    bench, tokens = Bench(), tokens_of(1)
    bench.hibernation.allow(BIG)
    bench.leave(tokens)
    bench.cells.give_up_oldest()
    bench.hibernation.sent(None)
    assert (bench.outgoing(), bench.found(tokens), bench.hibernation.n_saved_tokens) == (None, 0, 0)


@pytest.mark.parametrize(("count", "is_saved"), [(LEAST_SAVED - 1, False), (LEAST_SAVED, True)])
def test_what_is_worth_little_is_given_up_for_nothing(count: int, is_saved: bool) -> None:
    bench = Bench()
    bench.hibernation.allow(BIG)
    bench.leave(tokens_of(1, count))
    bench.cells.give_up_oldest()
    assert (bench.outgoing() is not None) is is_saved


@pytest.mark.parametrize(("n_own", "is_saved"), [(LEAST_SAVED - 1, False), (LEAST_SAVED, True)])
def test_what_others_have_is_not_lost(n_own: int, is_saved: bool) -> None:
    bench = Bench()
    bench.hibernation.allow(BIG)
    bench.leave(tokens_of(1))
    slot = bench.cells.open(OURS)
    assert bench.cells.attach(slot, bench.cells.find([*tokens_of(1), 7], OURS))
    bench.leave(tokens_of(9))  # of two ids; the first has none of its own
    assert bench.outgoing() is None
    bench.cells.retain(slot, OURS)
    bench = Bench()
    bench.hibernation.allow(BIG)
    first = bench.run(tokens_of(1))
    second = bench.cells.open(OURS)
    assert bench.cells.attach(second, bench.cells.find([*tokens_of(1), 7], OURS))
    bench.grow(second, 100, tokens_of(200, n_own))
    bench.cells.expect_back(second)
    bench.cells.retain(second, OURS)
    bench.cells.give_up_oldest()
    assert (bench.outgoing() is not None) is is_saved
    bench.cells.release(first)


def test_what_nobody_is_expected_back_for_is_given_up_for_nothing() -> None:
    bench = Bench()
    bench.hibernation.allow(BIG)
    bench.cells.retain(bench.run(tokens_of(1)), OURS)
    bench.cells.give_up_oldest()
    assert bench.outgoing() is None
    bench.cells.retain(bench.run(tokens_of(2)), OURS, awaited_by=bench)
    bench.cells.give_up_oldest()
    assert bench.outgoing() == tokens_of(2)


@pytest.mark.parametrize("namespace", [Namespace(adapters=("a",)), Namespace(media=("m",))])
def test_what_tokens_alone_do_not_tell_is_given_up_for_nothing(namespace: Namespace) -> None:
    bench = Bench()
    bench.hibernation.allow(BIG)
    bench.leave(tokens_of(1), namespace)
    bench.cells.give_up_oldest()
    assert bench.outgoing() is None


def test_nothing_is_saved_before_it_may_be() -> None:
    bench = Bench()
    bench.leave(tokens_of(1))
    bench.cells.give_up_oldest()
    assert bench.outgoing() is None


def test_a_state_takes_no_more_than_it_may() -> None:
    size_bytes = len(state_of(tokens_of(1)))
    for cuts_states, room_bytes, n_saved in [
        (True, size_bytes, 100),
        (False, size_bytes, 100),
        (False, size_bytes - 1, None),
        (True, LEAST_SAVED * 4, None),
    ]:
        bench = Bench(cuts_states=cuts_states)
        bench.hibernation.allow(room_bytes)
        bench.leave(tokens_of(1))
        bench.cells.give_up_oldest()
        outgoing = bench.outgoing()
        assert (None if outgoing is None else len(outgoing)) == n_saved
        bench.hibernation.close()
    bench = Bench()
    bench.hibernation.allow(size_bytes - 1)
    bench.leave(tokens_of(1))
    bench.cells.give_up_oldest()
    outgoing = bench.outgoing()
    assert outgoing is not None and LEAST_SAVED <= len(outgoing) < 100
    assert outgoing == tokens_of(1)[: len(outgoing)]


def test_of_one_state_a_part_of_which_has_to_go_all_is_saved() -> None:
    bench = Bench()
    bench.hibernation.allow(BIG)
    bench.leave(tokens_of(1, 190))
    bench.leave(tokens_of(2, 60))  # more than half of the pool
    assert bench.outgoing() == tokens_of(1, 190)
    assert bench.cells.n_retained == 186
    bench.hibernation.sent(1)
    bench.cells.make_room(400)
    assert bench.outgoing() is None  # of the rest all is saved, and the other is not worth it


def test_while_one_is_on_its_way_others_wait_unless_they_must_go() -> None:
    bench = Bench()
    bench.hibernation.allow(BIG)
    bench.leave(tokens_of(1, 150))
    bench.leave(tokens_of(2, 110))
    assert bench.outgoing() == tokens_of(1, 150)
    bench.leave(tokens_of(3, 100))  # of two ids, the one that is saved already goes
    assert bench.cells.n_retained == 210  # more than half, since something would be lost
    slot = bench.run(tokens_of(4, 190))
    bench.cells.expect_back(slot)
    bench.cells.retain(slot, OURS)
    assert bench.cells.n_retained == 290  # one had to go for its id, and is lost
    bench.hibernation.sent(1)
    bench.cells.keep_half()
    assert bench.outgoing() == tokens_of(3, 100)
    assert bench.cells.n_retained <= 200


def test_what_can_be_had_again_goes_before_what_cannot() -> None:
    bench = Bench()
    bench.hibernation.allow(BIG)
    bench.leave(tokens_of(1, 70))
    bench.leave(tokens_of(2, 70))
    bench.cells.may_go(bench.cells.retained()[1][0], OURS)
    assert bench.outgoing() == tokens_of(2, 70)
    bench.cells.give_up_oldest()
    assert [bench.cells.find([*tokens_of(first), 7], OURS).count for first in (1, 2)] == [70, 0]


def test_room_that_costs_nothing_is_told_from_room_that_does() -> None:
    bench = Bench()
    bench.hibernation.allow(BIG)
    for first in (1, 2):
        bench.leave(tokens_of(first))
    assert bench.hibernation.can_free(200)
    assert bench.outgoing() is None
    assert bench.hibernation.can_free(300)
    assert bench.outgoing() == tokens_of(1)
    assert not bench.hibernation.can_free(301)
    bench.hibernation.sent(1)
    assert bench.hibernation.can_free(301)
    assert bench.outgoing() == tokens_of(2)


def test_what_goes_next_is_saved_ahead_when_cells_are_scarce_and_once() -> None:
    bench = Bench()
    bench.hibernation.allow(BIG)
    bench.leave(tokens_of(1))
    bench.hibernation.save_ahead()
    assert bench.outgoing() is None  # there is room enough
    bench.leave(tokens_of(3))
    running = bench.run(tokens_of(2))
    bench.hibernation.save_ahead()
    assert bench.outgoing() == tokens_of(1)
    for outgoing in (tokens_of(1), None):  # two were retained, so that two are saved, or are not
        bench.hibernation.sent(None)
        bench.hibernation.save_ahead()
        assert bench.outgoing() == outgoing
    bench.cells.retain(running, OURS)
    assert bench.outgoing() == tokens_of(1)  # has to go, of two ids


def test_a_state_that_begins_with_another_makes_it_superfluous_where_states_can_be_cut() -> None:
    for cuts_states in (True, False):
        bench = Bench(cuts_states=cuts_states)
        bench.hibernation.allow(BIG)
        bench.hibernation.learn([known(tokens_of(1, 101))])
        bench.leave(tokens_of(1))
        bench.cells.give_up_oldest()
        assert (bench.outgoing() is None) is cuts_states
        bench = Bench(cuts_states=cuts_states)
        bench.hibernation.allow(BIG)
        bench.hibernation.learn([known(tokens_of(1)), known(tokens_of(1), 2, owner="o")])
        bench.leave(tokens_of(1))
        bench.cells.give_up_oldest()
        assert bench.outgoing() is None


def test_no_memory_for_a_state_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size_bytes: int) -> None:
        raise MemoryError

    monkeypatch.setattr("runner.engine.hibernation.room_for", refuse)
    bench = Bench()
    bench.hibernation.allow(BIG)
    bench.leave(tokens_of(1))
    bench.cells.give_up_oldest()
    assert (bench.outgoing(), bench.cells.n_retained) == (None, 0)


# in


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
    assert [tokens[0] for _, tokens, _ in bench.saved()] == [2]
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


ROOMY = attrs.evolve(OPTIONS, n_cells=4096, context_size=4096, prefill_chunk=2048, max_retained=8)


@pytest.mark.parametrize("cuts_states", [True, False])
def test_what_is_trimmed_bit_by_bit_is_saved_once(cuts_states: bool) -> None:
    bench = Bench(ROOMY, cuts_states=cuts_states)
    bench.hibernation.allow(BIG)
    bench.leave(tokens_of(1, 1500))
    saved = []
    while bench.cells.n_retained:
        bench.cells.make_room(bench.cells.n_free + 64)
        outgoing = bench.outgoing()
        if outgoing is not None:
            saved.append(len(outgoing))
            bench.hibernation.sent(len(saved))
    assert saved == [1500]


def test_saving_ahead_cuts_nothing_off() -> None:
    bench = Bench(ROOMY)
    bench.leave(tokens_of(1, 1500))
    running = bench.run(tokens_of(9, 700))
    bench.hibernation.allow(2000)
    bench.hibernation.save_ahead()
    assert bench.cells.n_retained == 1500
    bench.cells.release(running)


def test_of_one_that_is_cut_to_be_saved_no_more_is_given_up_than_must_be() -> None:
    bench = Bench(ROOMY)
    bench.hibernation.allow(len(state_of(tokens_of(1, 1500))))
    bench.leave(tokens_of(1, 2040))
    assert bench.cells.n_retained == 2040
    bench.leave(tokens_of(200, 40))
    assert bench.cells.n_retained >= 1500


def test_what_ended_just_now_does_not_go_for_what_is_not_saved_yet() -> None:
    bench = Bench(ROOMY)
    bench.hibernation.allow(BIG)
    for first in range(1, KEPT_FREELY + 1):
        bench.leave(tokens_of(first, 200))
    bench.cells.may_go(bench.cells.retained()[-1][0], OURS)
    assert bench.outgoing() is not None
    bench.cells.retain(bench.run(tokens_of(99, 300)), OURS)
    assert bench.cells.find([*tokens_of(99, 300), 7], OURS).count == 300
