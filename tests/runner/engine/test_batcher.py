"""The policies of a step: rows, admission, preemption, and that together they finish every load."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from runner.engine.batcher import (
    LEAST_CHUNK,
    Chunk,
    count_planned,
    may_join,
    must_preempt,
    next_chunk,
    plan_step,
    room_of,
    share_rows,
)


@attrs.define(eq=False)
class Fake:
    """A sequence as the policies see it; also the whole of it, for the simulation below."""

    n_tokens: int
    n_filled: int = 0
    n_remaining: int = 0
    arrival: int = 0

    @property
    def n_pending(self) -> int:
        return self.n_tokens - self.n_filled


def decoding(n_tokens: int, n_remaining: int = 10) -> Fake:
    return Fake(n_tokens, n_tokens - 1, n_remaining)


fakes = st.builds(
    lambda n_tokens, filled, remaining: Fake(n_tokens, min(filled, n_tokens - 1), remaining),
    st.integers(1, 200),
    st.integers(0, 200),
    st.integers(1, 200),
)
running_lists = st.lists(fakes, max_size=8)


# rows


def streams_of(running: list[Fake]) -> list[Fake]:
    return [fake for fake in running if fake.n_pending == 1]


def prompts_of(running: list[Fake]) -> list[Fake]:
    return [fake for fake in running if fake.n_pending > 1]


@given(running_lists, st.integers(1, 100))
def test_every_stream_is_in_every_decoding_step(running: list[Fake], budget: int) -> None:
    chunks = plan_step(running, budget, decoded_last=False)
    if streams_of(running):
        assert [chunk.sequence for chunk in chunks] == streams_of(running)
        assert all(chunk.is_single for chunk in chunks)


@given(running_lists, st.integers(1, 100))
def test_prompts_share_the_budget_and_use_it_up(running: list[Fake], budget: int) -> None:
    chunks = plan_step(running, budget, decoded_last=True)
    pending = sum(fake.n_pending for fake in prompts_of(running))
    if pending:
        assert {id(chunk.sequence) for chunk in chunks} <= {id(fake) for fake in prompts_of(running)}
        assert sum(chunk.count for chunk in chunks) == min(budget, pending)


@given(running_lists, st.integers(1, 100), st.booleans())
def test_a_step_has_work_whenever_there_is_any_and_both_kinds_take_turns(
    running: list[Fake], budget: int, decoded_last: bool
) -> None:
    decodes = plan_step(running, budget, decoded_last=decoded_last)[:1] == [
        Chunk(fake, fake.n_filled, 1, True) for fake in streams_of(running)[:1]
    ]
    if streams_of(running) and prompts_of(running):
        assert decodes != decoded_last
    elif running:
        assert plan_step(running, budget, decoded_last=decoded_last)


@given(running_lists, st.integers(1, 100), st.booleans())
def test_a_chunk_continues_its_sequence_and_is_last_exactly_at_its_end(
    running: list[Fake], budget: int, decoded_last: bool
) -> None:
    chunks = plan_step(running, budget, decoded_last=decoded_last)
    assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
    for chunk in chunks:
        assert chunk.count > 0
        assert chunk.start == chunk.sequence.n_filled
        assert chunk.is_last == (chunk.start + chunk.count == chunk.sequence.n_tokens)


pendings = st.lists(st.integers(2, 100), max_size=8)


@given(pendings, st.integers(1, 100))
def test_rows_are_used_up_and_half_of_them_are_the_oldest_prompts(pending: list[int], budget: int) -> None:
    rows = share_rows(pending, budget)
    assert sum(rows) == min(budget, sum(pending))
    assert all(0 <= count <= most for count, most in zip(rows, pending, strict=True))
    if pending:
        assert rows[0] >= min(pending[0], budget / 2)


@given(pendings, st.integers(1, 100))
def test_beside_the_oldest_nobody_gets_rows_while_a_shorter_one_wants_more(
    pending: list[int], budget: int
) -> None:
    rows = share_rows(pending, budget)
    for index, count in list(enumerate(rows))[1:]:
        if count:
            assert all(
                rows[other] == pending[other]
                for other in range(len(pending))
                if (pending[other], other) < (pending[index], index)
            )


def test_a_short_prompt_passes_a_long_one_and_equals_come_one_after_the_other() -> None:
    assert share_rows([1000, 400, 20], 64) == [32, 12, 20]
    assert share_rows([1000, 10], 64) == [54, 10]
    assert share_rows([100, 100, 100], 64) == [64, 0, 0]
    assert share_rows([30, 30, 30], 64) == [30, 30, 4]
    assert share_rows([], 64) == []


def test_streams_come_first_whatever_their_age_and_then_the_prompt() -> None:
    prompt, one, other = running = [Fake(100), decoding(5), decoding(9)]
    assert plan_step(running, 64, decoded_last=False) == [Chunk(one, 4, 1, True), Chunk(other, 8, 1, True)]
    assert plan_step(running, 64, decoded_last=True) == [Chunk(prompt, 0, 64, False)]


def test_nobody_runs_and_nothing_is_planned() -> None:
    assert plan_step([], 64, decoded_last=True) == []


# the size of chunks

LIMIT_S = 0.25


def test_a_chunk_that_took_too_long_is_halved_until_the_next_one_will_not() -> None:
    assert next_chunk(64, 64, LIMIT_S, 64, limit_s=LIMIT_S) == 64
    assert next_chunk(64, 64, LIMIT_S * 1.01, 64, limit_s=LIMIT_S) == 32
    assert next_chunk(64, 64, LIMIT_S * 3, 64, limit_s=LIMIT_S) == 16
    assert next_chunk(64, 64, 100.0, 64, limit_s=LIMIT_S) == LEAST_CHUNK


def test_a_chunk_grows_when_twice_as_much_stays_well_below_the_limit_and_not_beyond_the_most() -> None:
    assert next_chunk(16, 16, LIMIT_S * 0.32, 64, limit_s=LIMIT_S) == 32
    assert next_chunk(16, 16, LIMIT_S * 0.34, 64, limit_s=LIMIT_S) == 16
    assert next_chunk(64, 64, 0.0, 64, limit_s=LIMIT_S) == 64
    assert next_chunk(32, 32, 0.0, 40, limit_s=LIMIT_S) == 40


def test_a_small_chunk_tells_nothing_of_a_full_one_unless_it_was_slow_already() -> None:
    assert next_chunk(32, 3, 0.0, 64, limit_s=LIMIT_S) == 32
    assert next_chunk(32, 16, LIMIT_S, 64, limit_s=LIMIT_S) == 16


@given(st.integers(1, 512), st.integers(1, 512), st.floats(0, 100), st.integers(1, 512))
def test_chunks_stay_within_their_bounds(chunk: int, n_rows: int, elapsed_s: float, most: int) -> None:
    chunk = min(chunk, most)
    assert min(chunk, LEAST_CHUNK) <= next_chunk(chunk, n_rows, elapsed_s, most, limit_s=LIMIT_S) <= most


# preemption


def choose_victims(running: list[Fake], n_cells: int) -> list[Fake]:
    """As the engine does it; nothing is shared."""
    kept = list(running)
    while must_preempt(planned(kept), len(kept), n_cells):
        kept.pop()
    return running[len(kept) :][::-1]


def planned(running: list[Fake]) -> int:
    return count_planned(sum(fake.n_filled for fake in running), running)


@given(running_lists, st.integers(1, 2000))
def test_victims_are_the_youngest_and_no_more_than_needed(running: list[Fake], n_cells: int) -> None:
    victims = choose_victims(running, n_cells)
    kept = running[: len(running) - len(victims)]
    assert victims == running[len(kept) :][::-1]
    if victims:
        assert kept, "the oldest is never a victim"
        assert sum(fake.n_tokens for fake in [*kept, victims[-1]]) > n_cells
    if len(kept) > 1:
        assert sum(fake.n_tokens for fake in kept) <= n_cells


def test_a_pool_that_is_exactly_full_has_no_victim_and_one_token_more_has() -> None:
    running = [decoding(6), decoding(4)]
    assert choose_victims(running, 10) == []
    assert choose_victims(running, 9) == running[1:]


# admission


def admitted(waiting: list[Fake], running: list[Fake], n_cells: int = 1000, max_sequences: int = 4) -> int:
    """As the engine does it; nothing is shared."""
    running = list(running)
    n_admitted = 0
    for newcomer in waiting:
        if not may_join(
            newcomer,
            newcomer.n_tokens,
            running,
            n_planned=planned(running),
            n_cells=n_cells,
            max_sequences=max_sequences,
        ):
            break
        running.append(newcomer)
        n_admitted += 1
    return n_admitted


def test_no_more_than_the_most_sequences_run() -> None:
    assert admitted([decoding(1)] * 5, []) == 4
    assert admitted([decoding(1)] * 5, [decoding(1)] * 3) == 1
    assert admitted([decoding(1)] * 5, [decoding(1)] * 4) == 0


def test_the_first_is_admitted_into_an_empty_engine_whatever_its_size() -> None:
    assert admitted([Fake(1000, 0, 0), Fake(1)], []) == 1


def test_a_newcomer_fits_with_room_to_grow_and_with_a_cell_less_it_waits() -> None:
    running = [decoding(400, n_remaining=1000)]  # its room: 1000 // (2 * 4) = 125
    assert admitted([Fake(350, 0, 1000)], running) == 1
    assert admitted([Fake(351, 0, 1000)], running) == 0


def test_what_is_shared_is_not_needed_again() -> None:
    running = [decoding(400, n_remaining=1000)]
    newcomer = Fake(800, 0, 1000)
    sizes = {"n_planned": planned(running), "n_cells": 1000, "max_sequences": 4}
    assert may_join(newcomer, 350, running, **sizes)
    assert not may_join(newcomer, 351, running, **sizes)


def test_a_short_answer_needs_only_its_own_room() -> None:
    assert room_of(Fake(10, 0, 5), 1000, 4) == 5
    assert room_of(Fake(10, 0, 500), 1000, 4) == 125


def test_a_small_request_does_not_overtake_a_large_one() -> None:
    assert admitted([Fake(900, 0, 10), Fake(1, 0, 1)], [decoding(400)]) == 0


@given(running_lists, running_lists, st.integers(1, 3000), st.integers(1, 8))
def test_admission_never_makes_a_victim(
    waiting: list[Fake], running: list[Fake], n_cells: int, max_sequences: int
) -> None:
    """Who was admitted runs, and who ran goes on, if the pool was not overfull before."""
    for fake in waiting:
        fake.n_filled = 0
    if choose_victims(running, n_cells) or len(running) > max_sequences:
        return
    count = admitted(waiting, running, n_cells, max_sequences)
    assert len(running) + count <= max_sequences
    assert choose_victims([*running, *waiting[:count]], n_cells) == []
    if waiting and not running:
        assert count >= 1


# together


requests = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(0, 50)), max_size=12)


@given(requests, st.integers(100, 300), st.integers(1, 5), st.integers(1, 32))
def test_every_request_ends_in_the_order_rules_allow_and_within_a_bounded_number_of_steps(
    load: list[tuple[int, int, int]], n_cells: int, max_sequences: int, budget: int
) -> None:
    """A whole engine of fakes: (prompt, answer, arrival step) of each; the context is 100 tokens."""
    arriving = sorted(
        (Fake(prompt, 0, answer, arrival) for prompt, answer, arrival in load), key=lambda fake: fake.arrival
    )
    order = {id(fake): index for index, fake in enumerate(arriving)}
    waiting: list[Fake] = []
    running: list[Fake] = []
    # a preempted sequence begins again, but only while an older one advances
    work = sum(prompt + answer for prompt, answer, _ in load)
    decoded_last = False
    for step in range(60 + 2 * work * (len(load) + 1)):
        if not (arriving or waiting or running):
            return
        while arriving and arriving[0].arrival <= step:
            waiting.append(arriving.pop(0))
        for victim in choose_victims(running, n_cells):
            running.remove(victim)
            victim.n_filled = 0
            waiting.insert(0, victim)
        count = admitted(waiting, running, n_cells, max_sequences)
        running += waiting[:count]
        del waiting[:count]
        assert [order[id(fake)] for fake in running] == sorted(order[id(fake)] for fake in running)
        assert not (running and waiting) or order[id(running[-1])] < order[id(waiting[0])]
        assert sum(fake.n_tokens for fake in running) <= n_cells
        chunks = plan_step(running, budget, decoded_last=decoded_last)
        assert bool(chunks) == bool(running)
        decoded_last = chunks[0].is_single if chunks else False
        for chunk in chunks:
            chunk.sequence.n_filled += chunk.count
            if chunk.is_last:
                chunk.sequence.n_tokens += 1
                chunk.sequence.n_remaining -= 1
        running = [fake for fake in running if fake.n_remaining > 0]
    raise AssertionError("some request never ended")
