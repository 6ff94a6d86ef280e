"""Plans of sampling, seeds, and the greedy choice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.sampling import SEED_MAX, SamplingParams
from runner.engine.sampler import GreedySampler, SamplerPlan, UnusableLogits, fold_seed, plan_sampler


def test_temperature_zero_is_greedy() -> None:
    assert plan_sampler(SamplingParams(temperature=0), fresh_seed=1).is_greedy


def test_top_k_of_one_is_greedy() -> None:
    assert plan_sampler(SamplingParams(top_k=1), fresh_seed=1).is_greedy


def test_a_plan_carries_every_parameter() -> None:
    params = SamplingParams(temperature=0.5, top_p=0.9, top_k=20, min_p=0.1, seed=7)
    assert plan_sampler(params, fresh_seed=1, forbidden=(3,)) == SamplerPlan(
        is_greedy=False, temperature=0.5, top_k=20, top_p=0.9, min_p=0.1, seed=7, forbidden=(3,)
    )


def test_a_request_without_seed_takes_the_fresh_one() -> None:
    assert plan_sampler(SamplingParams(), fresh_seed=99).seed == 99


@given(st.integers(-SEED_MAX, SEED_MAX))
def test_every_seed_folds_to_32_bits_and_never_to_the_random_one(seed: int) -> None:
    assert 0 <= fold_seed(seed) < 0xFFFF_FFFF


@given(st.integers(0, 0xFFFF_FFFE))
def test_small_seeds_keep_their_value(seed: int) -> None:
    assert fold_seed(seed) == seed


def test_high_bits_and_the_sign_of_a_seed_count() -> None:
    assert len({fold_seed(seed) for seed in (5, 5 + 2**32, 5 + 2**40, -5, -5 - 2**40)}) == 5


def greedy(values: list[float], forbidden: tuple[int, ...] = ()) -> int:
    row = np.array(values, np.float32)
    return GreedySampler(lambda _: row, forbidden).sample(0)


def test_greedy_takes_the_highest_and_the_first_of_equals() -> None:
    assert greedy([1, 3, 3, 2]) == 1


def test_forbidden_tokens_are_never_chosen() -> None:
    assert greedy([1, 9, 3, 8], forbidden=(1, 3)) == 2


def test_a_row_with_nan_is_unusable() -> None:
    with pytest.raises(UnusableLogits):
        greedy([1, float("nan"), 3])
