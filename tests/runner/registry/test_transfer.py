"""Ranges, retries and the plan of one blob, without network or clock."""

from __future__ import annotations

import itertools
import random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import RangeRefused, RegistryUnavailable
from runner.registry.transfer import (
    AbortAttempt,
    BlobPlan,
    ByteRange,
    Fetch,
    GiveUp,
    Look,
    RangeAborted,
    RangeEnded,
    RangeFailed,
    RangeOpened,
    RangeRules,
    RangesRefused,
    Shorten,
    StartOver,
    merged,
    missing,
)

RULES = RangeRules(connections=4, piece_bytes_min=100, piece_bytes_max=1000)
WHOLE = [(0, 4000)]  # pieces of 250


def plan_of(size_bytes: int = 4000, *, rules: RangeRules = RULES) -> BlobPlan:
    return BlobPlan(size_bytes, [(0, size_bytes)], rules)


def fetch(attempt_id: int, start: int, end: int, *, is_whole: bool = False) -> Fetch:
    return Fetch(attempt_id=attempt_id, start=start, end=end, is_whole=is_whole)


def failed(attempt_id: int, position: int, retry_after_s: float | None = None) -> RangeFailed:
    error = RegistryUnavailable("r.example", "it broke off", retry_after_s=retry_after_s)
    return RangeFailed(attempt_id=attempt_id, position=position, error=error, chance=0.0)


def refused(attempt_id: int) -> RangesRefused:
    error = RangeRefused("r.example", "it sent another range")
    return RangesRefused(attempt_id=attempt_id, error=error, chance=0.0)


def opened_plan() -> BlobPlan:
    """Four attempts under way, all answered: 0–250, 250–500, 500–750, 750–1000."""
    plan = plan_of()
    plan.handle(Look({}), 0)
    for attempt_id in range(4):
        plan.handle(RangeOpened(attempt_id), 0)
    return plan


# ranges

RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: ByteRange(*sorted(pair)))
)


@given(RANGES)
def test_merged_ranges_hold_the_same_bytes_without_touching_each_other(ranges):
    result = merged(ranges)
    assert _bytes(result) == _bytes(ranges)
    assert all(left.end < right.start for left, right in itertools.pairwise(result))


@given(RANGES, st.integers(0, 60))
def test_what_is_missing_is_what_nobody_has(ranges, size_bytes):
    assert _bytes(missing(size_bytes, ranges)) == set(range(size_bytes)) - _bytes(ranges)


def _bytes(ranges):
    return {each for one in ranges for each in range(one.start, one.end)}


# dividing


def test_the_first_range_goes_alone_and_the_rest_when_it_is_answered():
    plan = plan_of()
    assert plan.handle(Look({}), 0) == (fetch(0, 0, 250),)
    assert plan.handle(Look({}), 1) == ()
    assert plan.handle(RangeOpened(0), 1) == (fetch(1, 250, 500), fetch(2, 500, 750), fetch(3, 750, 1000))


def test_a_small_blob_is_asked_for_as_a_whole():
    plan = plan_of(100)
    assert plan.handle(Look({}), 0) == (fetch(0, 0, 100, is_whole=True),)
    plan.handle(RangeOpened(0), 0)
    assert plan.handle(RangeEnded(0, 100), 0) == ()
    assert plan.is_complete


def test_an_empty_blob_is_complete():
    assert BlobPlan(0, [], RULES).is_complete


def test_only_what_is_missing_is_fetched():
    plan = BlobPlan(4000, [(0, 10), (3990, 4000)], RULES)
    assert plan.handle(Look({}), 0) == (fetch(0, 0, 10),)
    assert plan.handle(RangeOpened(0), 0) == (fetch(1, 3990, 4000),)


def test_an_ended_range_makes_room_for_the_next():
    plan = opened_plan()
    assert plan.handle(RangeEnded(2, 750), 1) == (fetch(4, 1000, 1250),)


@pytest.mark.parametrize(
    ("missing_bytes", "piece_bytes"), [(0, 8), (256, 8), (512, 16), (2048, 64), (9999, 64)]
)
def test_pieces_grow_with_what_is_missing_within_bounds(missing_bytes, piece_bytes):
    assert RangeRules().piece_bytes(missing_bytes << 20) == piece_bytes << 20


# failing


def test_a_failure_is_tried_again_from_where_it_was_after_a_while():
    plan = opened_plan()
    assert plan.handle(failed(0, 40), 1) == ()
    assert plan.handle(Look({}), 1.24) == ()
    assert plan.handle(Look({}), 1.25) == (fetch(4, 40, 250),)


def test_failures_of_requests_under_way_together_count_once():
    plan = opened_plan()
    for attempt_id in range(4):
        plan.handle(failed(attempt_id, 250 * attempt_id), 1)
    assert plan.failures == 1
    plan.handle(Look({}), 2)
    plan.handle(failed(4, 0), 3)
    assert plan.failures == 2


def test_S05_a_transfer_that_gets_nowhere_ends_after_five_attempts():
    plan = plan_of()
    effects, asked = plan.handle(Look({}), 0), 0
    while effects != (GiveUp(),):
        (each,) = effects
        asked += 1
        effects = plan.handle(failed(each.attempt_id, each.start + 1), 100.0 * asked) or plan.handle(
            Look({}), 100.0 * asked + 50
        )
    assert asked == 5
    assert not plan.is_complete
    assert plan.handle(Look({}), 9999) == ()


def test_S05_giving_up_ends_what_is_under_way():
    plan = plan_of()
    plan.handle(Look({}), 0)
    plan.handle(RangeOpened(0), 0)
    assert plan.handle(failed(2, 500, retry_after_s=61.0), 1) == (
        AbortAttempt(0),
        AbortAttempt(1),
        AbortAttempt(3),
        GiveUp(),
    )


def test_a_long_transfer_survives_many_interruptions():
    plan = plan_of(rules=attrs.evolve(RULES, connections=1, pieces_per_connection=1))
    (attempt,) = plan.handle(Look({}), 0)
    for number in range(39):
        plan.handle(RangeOpened(attempt.attempt_id), number * 10)
        plan.handle(failed(attempt.attempt_id, attempt.start + 100), number * 10)
        (attempt,) = plan.handle(Look({}), number * 10 + 5)
    plan.handle(RangeEnded(attempt.attempt_id, attempt.end), 1000)
    assert plan.is_complete


def test_S06_a_throttling_server_gets_half_as_many_requests():
    plan = opened_plan()
    plan.handle(failed(0, 0, retry_after_s=7.0), 1)
    for attempt_id in (1, 2, 3):
        plan.handle(RangeEnded(attempt_id, 250 * (attempt_id + 1)), 2)
    assert plan.handle(Look({}), 7.9) == ()
    assert plan.handle(Look({}), 8) == (fetch(4, 0, 250), fetch(5, 1000, 1250))


def test_S06_a_server_that_takes_only_so_many_connections_is_asked_for_no_more():
    plan = plan_of()
    plan.handle(Look({}), 0)
    plan.handle(RangeOpened(0), 0)
    plan.handle(RangeOpened(1), 0)
    for attempt_id in (2, 3):  # of four, it takes two
        assert plan.handle(failed(attempt_id, 250 * attempt_id), 0.1) == ()
    assert plan.handle(Look({}), 10) == ()
    assert plan.failures == 1
    assert plan.handle(RangeEnded(0, 250), 11) == (fetch(4, 500, 750),)
    for attempt_id, end in ((1, 500), (4, 750), (5, 1000)):
        plan.handle(RangeOpened(attempt_id), 12)
        assert len(plan.handle(RangeEnded(attempt_id, end), 12)) == (1 if attempt_id != 5 else 2)


def test_an_interruption_of_all_does_not_lower_their_number():
    plan = opened_plan()
    for attempt_id in range(4):
        plan.handle(failed(attempt_id, 250 * attempt_id), 1)
    assert len(plan.handle(Look({}), 2)) == 4


# ranges refused


def test_S20_a_server_without_ranges_sends_the_whole():
    plan = plan_of()
    plan.handle(Look({}), 0)
    assert plan.handle(refused(0), 1) == (
        StartOver(),
        fetch(1, 0, 4000, is_whole=True),
    )
    assert plan.handle(RangeOpened(1), 2) == ()
    plan.handle(RangeEnded(1, 4000), 3)
    assert plan.is_complete


def test_S20_a_refusal_in_the_middle_waits_for_the_others_and_forgets_what_came():
    plan = opened_plan()
    aborted = tuple(AbortAttempt(each) for each in (0, 2, 3))
    assert plan.handle(refused(1), 1) == aborted
    assert plan.handle(RangeAborted(0, 100), 1) == ()
    assert plan.missing() == (ByteRange(0, 4000),)
    assert plan.handle(refused(2), 1) == ()
    assert plan.handle(RangeAborted(3, 800), 1) == (StartOver(), fetch(4, 0, 4000, is_whole=True))


def test_S20_without_ranges_every_attempt_starts_from_the_beginning_and_five_are_the_end():
    plan = plan_of()
    plan.handle(Look({}), 0)
    plan.handle(refused(0), 0)
    for number in range(1, 5):
        assert plan.handle(failed(number, 3999), 100 * number) == ()
        assert plan.handle(Look({}), 100 * number + 50) == (fetch(number + 1, 0, 4000, is_whole=True),)
    assert plan.handle(failed(5, 3999), 600) == (GiveUp(),)


def test_S20_a_range_refused_where_none_was_asked_for_is_a_failure():
    plan = plan_of()
    plan.handle(Look({}), 0)
    plan.handle(refused(0), 0)
    plan.handle(refused(1), 0)
    assert plan.failures == 1
    assert plan.handle(Look({}), 5) == (fetch(2, 0, 4000, is_whole=True),)


# stragglers


def at_speed(plan: BlobPlan, now_s: float, **moved: int) -> tuple[object, ...]:
    starts = (0, 250, 500, 750)
    return plan.handle(Look({each: starts[each] + moved[f"a{each}"] for each in range(4)}), now_s)


def test_a_straggler_is_cut_off_and_its_rest_fetched_again():
    plan = opened_plan()
    assert at_speed(plan, 2, a0=100, a1=100, a2=100, a3=4) == (AbortAttempt(3),)
    assert at_speed(plan, 3, a0=150, a1=150, a2=150, a3=4) == ()
    assert plan.handle(RangeAborted(3, 754), 3) == (fetch(4, 754, 1000),)
    assert plan.failures == 0


def test_one_that_is_slow_but_almost_done_may_go_on():
    plan = opened_plan()
    plan.handle(Look({3: 996}), 1)
    assert plan.handle(Look({0: 100, 1: 350, 2: 600, 3: 998}), 2.5) == ()


def test_a_rest_is_not_issued_for_ever():
    plan = opened_plan()
    attempt_id, start, now_s = 3, 750, 0.0
    for _ in range(RULES.reissues_max):
        now_s += 2
        looked = Look(
            {0: 50 * int(now_s), 1: 250 + 50 * int(now_s), 2: 500 + 50 * int(now_s), attempt_id: start}
        )
        assert plan.handle(looked, now_s) == (AbortAttempt(attempt_id),)
        (again,) = plan.handle(RangeAborted(attempt_id, start), now_s)
        attempt_id = again.attempt_id
        plan.handle(RangeOpened(attempt_id), now_s)
    assert plan.handle(Look({attempt_id: start}), now_s + 2) == ()


def test_what_is_left_at_the_end_is_shared_with_a_free_connection():
    plan = plan_of(1000, rules=attrs.evolve(RULES, pieces_per_connection=1))
    plan.handle(Look({}), 0)
    for attempt_id in range(4):
        plan.handle(RangeOpened(attempt_id), 0)
    for attempt_id in (0, 1, 2):
        plan.handle(RangeEnded(attempt_id, 250 * (attempt_id + 1)), 2)
    assert plan.handle(Look({3: 830}), 2) == (Shorten(3, 915), fetch(4, 915, 1000))
    plan.handle(RangeEnded(3, 920), 5)  # it had gone beyond its new end already
    plan.handle(RangeEnded(4, 1000), 5)
    assert plan.is_complete
    assert repr(plan) == "<BlobPlan complete: 0 under way, 0 pending>"


# any order of events


@attrs.define
class Server:
    """Carries out effects as the shell does, and chooses what happens next."""

    plan: BlobPlan
    size_bytes: int
    chance: random.Random
    now_s: float = 0.0
    ranges_from: int = 0
    """Attempts before this one are refused a range."""
    written: set[int] = attrs.field(factory=set)
    under_way: dict[int, list[int]] = attrs.field(factory=dict)
    opened: set[int] = attrs.field(factory=set)
    aborted: set[int] = attrs.field(factory=set)
    has_given_up: bool = False

    def tell(self, event) -> None:
        for effect in self.plan.handle(event, self.now_s):
            match effect:
                case Fetch():
                    assert self.now_s >= self.plan.not_before_s
                    self.under_way[effect.attempt_id] = [effect.start, effect.end]
                    assert len(self.under_way) <= RULES.connections
                    assert effect.is_whole == (effect.start == 0 and effect.end == self.size_bytes)
                case AbortAttempt(attempt_id):
                    self.aborted.add(attempt_id)
                case Shorten(attempt_id, end):
                    self.under_way[attempt_id][1] = end
                case StartOver():
                    assert not self.under_way
                    self.written.clear()
                case GiveUp():
                    self.has_given_up = True
        if not self.has_given_up:
            self.check()

    def check(self) -> None:
        """Every byte that has not come is known to be missing."""
        known = {each for one in self.plan.missing() for each in range(one.start, one.end)}
        assert set(range(self.size_bytes)) - self.written <= known

    def step(self, *, may_fail: bool) -> None:
        self.now_s += self.chance.choice([0.0, 0.3, 2.0, 70.0])
        attempt_id = self.chance.choice([-1, *self.under_way])
        if attempt_id < 0:
            self.tell(Look({each: span[0] for each, span in self.under_way.items()}))
            return
        span = self.under_way[attempt_id]
        if attempt_id not in self.opened and attempt_id not in self.aborted:
            self._answer(attempt_id, span)
            return
        gained = self.chance.randint(0, max(0, span[1] - span[0]) + 3)
        gained = min(gained, self.size_bytes - span[0])
        self.written.update(range(span[0], span[0] + gained))
        span[0] += gained
        if span[0] >= span[1]:
            self._end(attempt_id, RangeEnded(attempt_id, span[0]))
        elif attempt_id in self.aborted:
            self._end(attempt_id, RangeAborted(attempt_id, span[0]))
        elif may_fail and self.chance.random() < 0.2:
            asked_s = 3.0 if self.chance.random() < 0.3 else None
            self._end(attempt_id, failed(attempt_id, span[0], retry_after_s=asked_s))

    def _answer(self, attempt_id: int, span: list[int]) -> None:
        is_whole = span == [0, self.size_bytes]
        if attempt_id < self.ranges_from and not is_whole:
            self._end(attempt_id, refused(attempt_id))
        else:
            self.opened.add(attempt_id)
            self.tell(RangeOpened(attempt_id))

    def _end(self, attempt_id: int, event) -> None:
        del self.under_way[attempt_id]
        self.tell(event)


@given(st.integers(1, 3000), st.integers(0, 2**32), st.sampled_from([0, 0, 3, 99]))
def test_S20_any_order_of_events_ends_with_every_byte_written_or_given_up(size_bytes, seed, ranges_from):
    server = Server(plan_of(size_bytes), size_bytes, random.Random(seed), ranges_from=ranges_from)
    server.tell(Look({}))
    for _ in range(60):
        server.step(may_fail=True)
    for _ in range(2000):
        if server.plan.is_complete or server.has_given_up:
            break
        server.step(may_fail=False)
    assert server.plan.is_complete or server.has_given_up
    if server.plan.is_complete:
        assert server.written == set(range(size_bytes))


@given(st.integers(1, 3000), st.integers(0, 2**32))
def test_S05_a_server_that_always_fails_is_asked_a_bounded_number_of_times(size_bytes, seed):
    server = Server(plan_of(size_bytes), size_bytes, random.Random(seed))
    server.tell(Look({}))
    steps = 0
    while not server.has_given_up and not server.plan.is_complete:
        server.step(may_fail=True)
        steps += 1
        assert steps < 20_000
