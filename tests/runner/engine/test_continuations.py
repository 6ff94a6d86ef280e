"""What goes on from where something ended, and what only begins like it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runner.engine.continuations import LEAST_ENDED, Continuations
from runner.engine.prefix import Namespace

HERE, THERE = Namespace(), Namespace(owner="other")
SYSTEM = list(range(200))


def test_a_turn_goes_on_from_the_turn_before() -> None:
    known = Continuations()
    first = [*SYSTEM, *range(1000, 1040)]
    assert not known.is_one(first, HERE)
    known.ended(first, HERE)
    assert known.is_one([*first, *range(50)], HERE)
    assert known.is_one(first, HERE), "the same again"
    assert not known.is_one([*first, *range(50)], THERE)


def test_a_common_beginning_alone_is_none() -> None:
    known = Continuations()
    known.ended([*SYSTEM, *range(1000, 1040)], HERE)
    assert not known.is_one([*SYSTEM, *range(2000, 2100)], HERE)
    assert not known.is_one(SYSTEM, HERE)


def test_what_ended_soon_is_a_beginning_that_many_have() -> None:
    known = Continuations()
    known.ended(SYSTEM[: LEAST_ENDED - 1], HERE)
    assert not known.is_one(SYSTEM, HERE)
    known.ended(SYSTEM[:LEAST_ENDED], HERE)
    assert known.is_one(SYSTEM, HERE)


def test_the_oldest_are_forgotten() -> None:
    known = Continuations()
    for index in range(4097):
        known.ended([index] * LEAST_ENDED, HERE)
    assert repr(known) == "<Continuations: 4096 ends>"
    assert not known.is_one([0] * LEAST_ENDED, HERE)
    assert known.is_one([1] * LEAST_ENDED, HERE)


tokens = st.lists(st.integers(0, 1), max_size=90)


@given(st.lists(tokens, max_size=4), tokens)
def test_it_is_one_when_it_has_all_of_some_end_to_the_last_sixteen(
    ended: list[list[int]], prompt: list[int]
) -> None:
    known = Continuations()
    for one in ended:
        known.ended(one, HERE)
    ends = [one[: len(one) - len(one) % 16] for one in ended if len(one) >= LEAST_ENDED]
    assert known.is_one(prompt, HERE) == any(prompt[: len(end)] == end for end in ends)
