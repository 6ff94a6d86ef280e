"""How cores are divided, and how many of them others leave to us."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.scheduling.cores import CoreClaim, cores_left, cores_taken, divide_cores

claims_strategy = st.lists(
    st.builds(CoreClaim, load_id=st.integers(1, 50), threads_max=st.integers(1, 12)),
    max_size=12,
    unique_by=lambda claim: claim.load_id,
)


def claim(load_id: int, threads_max: int = 64) -> CoreClaim:
    return CoreClaim(load_id=load_id, threads_max=threads_max)


# ---- the division


@pytest.mark.parametrize(
    ("n_cores", "claims", "shares"),
    [
        (2, [], {}),
        (2, [claim(1)], {1: 2}),
        (2, [claim(1), claim(2)], {1: 1, 2: 1}),
        (2, [claim(1), claim(2), claim(3)], {1: 1, 2: 1, 3: 1}),
        (8, [claim(5), claim(3), claim(4)], {3: 3, 4: 3, 5: 2}),
        (8, [claim(1, 2), claim(2)], {1: 2, 2: 6}),
        (8, [claim(1, 2), claim(2, 3)], {1: 2, 2: 3}),
        (1, [claim(1)], {1: 1}),
        (0, [claim(1)], {1: 1}),
    ],
)
def test_cores_go_round_from_the_oldest_load_on(
    n_cores: int, claims: list[CoreClaim], shares: dict[int, int]
) -> None:
    assert divide_cores(n_cores, claims) == shares


@given(st.integers(0, 40), claims_strategy)
def test_everybody_has_a_thread_and_nobody_more_than_it_can_use(
    n_cores: int, claims: list[CoreClaim]
) -> None:
    shares = divide_cores(n_cores, claims)
    assert shares.keys() == {claim.load_id for claim in claims}
    assert all(1 <= shares[claim.load_id] <= claim.threads_max for claim in claims)


@given(st.integers(0, 40), claims_strategy)
def test_there_is_one_thread_to_a_core_and_no_core_is_left_that_somebody_could_use(
    n_cores: int, claims: list[CoreClaim]
) -> None:
    total = sum(divide_cores(n_cores, claims).values())
    wanted = sum(claim.threads_max for claim in claims)
    assert total == max(len(claims), min(n_cores, wanted))


@given(st.integers(0, 40), claims_strategy)
def test_shares_differ_by_one_at_most_among_those_who_could_use_more(
    n_cores: int, claims: list[CoreClaim]
) -> None:
    shares = divide_cores(n_cores, claims)
    unsatisfied = [shares[claim.load_id] for claim in claims if shares[claim.load_id] < claim.threads_max]
    if unsatisfied:
        assert max(shares.values()) <= min(unsatisfied) + 1


@given(st.integers(0, 40), claims_strategy)
def test_the_order_of_claims_changes_nothing(n_cores: int, claims: list[CoreClaim]) -> None:
    assert divide_cores(n_cores, claims) == divide_cores(n_cores, list(reversed(claims)))


@given(st.integers(1, 40), claims_strategy.filter(bool))
def test_one_more_claim_takes_from_others_and_gives_to_none(n_cores: int, claims: list[CoreClaim]) -> None:
    more = divide_cores(n_cores, claims)
    fewer = divide_cores(n_cores, claims[1:])
    assert all(more[load_id] <= share for load_id, share in fewer.items())


# ---- what others take


@pytest.mark.parametrize(
    ("before", "others", "taken"),
    [
        (0, 0.0, 0),
        (0, 0.4, 0),
        (0, 0.41, 1),
        (0, 1.0, 1),
        (0, 1.4, 1),
        (0, 1.41, 2),
        (1, 0.41, 1),
        (1, 0.21, 1),
        (1, 0.2, 0),
        (1, 0.0, 0),
        (2, 1.21, 2),
        (2, 1.2, 1),
        (2, -0.1, 0),
    ],
)
def test_a_part_of_a_core_counts_as_one_and_is_forgotten_a_little_later(
    before: int, others: float, taken: int
) -> None:
    assert cores_taken(before, others) == taken


@given(st.integers(0, 64), st.floats(-1, 64))
def test_the_same_measurement_again_changes_nothing(before: int, others: float) -> None:
    taken = cores_taken(before, others)
    assert cores_taken(taken, others) == taken
    assert 0 <= taken <= max(0, math.ceil(others))


@given(st.integers(0, 64), st.floats(0, 64), st.floats(0, 64))
def test_who_uses_more_is_given_no_less(before: int, less: float, more: float) -> None:
    less, more = sorted((less, more))
    assert cores_taken(before, less) <= cores_taken(before, more)


@pytest.mark.parametrize(
    ("n_cores", "n_processors", "taken", "left"),
    [
        (2, 2, 0, 2),
        (2, 2, 1, 1),
        (2, 2, 2, 1),
        (1, 1, 1, 1),
        (8, 8, 3, 5),
        (8, 8, 7, 4),
        (3, 3, 3, 2),
        (4, 16, 12, 4),
        (4, 16, 13, 3),
        (4, 16, 16, 2),
    ],
)
def test_others_first_take_what_we_do_not_use_and_never_more_than_half(
    n_cores: int, n_processors: int, taken: int, left: int
) -> None:
    assert cores_left(n_cores, n_processors, taken) == left


@given(st.integers(1, 64), st.integers(0, 64), st.integers(0, 128))
def test_what_is_left_is_between_half_and_all(n_cores: int, more: int, taken: int) -> None:
    left = cores_left(n_cores, n_cores + more, taken)
    assert n_cores / 2 <= left <= n_cores
