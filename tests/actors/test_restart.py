"""Restart or give up: kinds, delays and the limit, as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.restart import GiveUp, Restart, RestartKind, RestartPolicy, decide, wants_restart

POLICY = RestartPolicy(
    max_restarts=3, window_s=10.0, first_delay_s=1.0, longest_delay_s=3.0, jitter_share=0.5
)


@pytest.mark.parametrize(
    ("kind", "after_error", "after_return"),
    [
        (RestartKind.PERMANENT, True, True),
        (RestartKind.TRANSIENT, True, False),
        (RestartKind.TEMPORARY, False, False),
    ],
)
def test_a_kind_says_which_ends_are_answered_with_a_restart(
    kind: RestartKind, after_error: bool, after_return: bool
) -> None:
    assert wants_restart(kind, failed=True) is after_error
    assert wants_restart(kind, failed=False) is after_return


def test_delays_double_up_to_the_longest() -> None:
    history: tuple[float, ...] = ()
    delays = []
    for now_s in (0.0, 1.0, 2.0):
        decision = decide(POLICY, history, now_s=now_s, jitter=0.0)
        assert isinstance(decision, Restart)
        delays.append(decision.delay_s)
        history = decision.history
    assert delays == [1.0, 2.0, 3.0]


def test_jitter_lengthens_a_delay_by_at_most_its_share() -> None:
    assert decide(POLICY, (), now_s=0.0, jitter=0.5) == Restart(1.25, (0.0,))


def test_as_many_restarts_as_the_limit_are_granted_and_not_one_more() -> None:
    assert isinstance(decide(POLICY, (0.0, 1.0), now_s=2.0, jitter=0.0), Restart)
    assert decide(POLICY, (0.0, 1.0, 2.0), now_s=3.0, jitter=0.0) == GiveUp(3, 10.0)


@pytest.mark.parametrize(("now_s", "is_granted"), [(9.9, False), (10.0, True), (10.1, True)])
def test_restarts_leave_the_window_after_its_length(now_s: float, is_granted: bool) -> None:
    decision = decide(POLICY, (0.0, 1.0, 2.0), now_s=now_s, jitter=0.0)
    assert isinstance(decision, Restart) is is_granted


def test_a_child_that_stayed_up_for_a_window_starts_over() -> None:
    assert decide(POLICY, (0.0, 1.0, 2.0), now_s=100.0, jitter=0.0) == Restart(1.0, (100.0,))


@given(
    st.lists(st.floats(0, 100), max_size=40).map(sorted),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 2000),
)
def test_O08_history_and_delays_stay_within_their_bounds(
    times_s: list[float], jitter: float, max_restarts: int
) -> None:
    policy = RestartPolicy(max_restarts=max_restarts, window_s=10.0)
    history: tuple[float, ...] = ()
    for now_s in times_s:
        match decide(policy, history, now_s=now_s, jitter=jitter):
            case Restart(delay_s, history):
                assert policy.first_delay_s <= delay_s <= policy.longest_delay_s * (1 + policy.jitter_share)
                assert len(history) <= max_restarts
            case GiveUp(restarts):
                assert restarts == max_restarts
                return
