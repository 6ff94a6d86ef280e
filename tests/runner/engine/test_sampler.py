"""Plans of sampling, seeds, and the greedy choice."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.sampling import SEED_MAX, WHOLE_CONTEXT, SamplingParams, Stage
from runner.engine.sampler import (
    Best,
    Drawn,
    Dry,
    GreedySampler,
    LogitBias,
    MinP,
    Mirostat,
    Penalties,
    SamplerPlan,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
    UnusableLogits,
    Xtc,
    fold_seed,
    plan_sampler,
)

OFF = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=7)
"""Nothing but the draw."""
PROMPT = tuple(range(100))


def plan(params: SamplingParams, forbidden: tuple[int, ...] = ()) -> SamplerPlan:
    return plan_sampler(params, fresh_seed=99, context_size=256, prompt=PROMPT, forbidden=forbidden)


def changed(**values: Any) -> SamplerPlan:
    return plan(attrs.evolve(OFF, **values))


def test_values_that_change_nothing_leave_nothing_but_the_draw() -> None:
    assert plan(OFF) == SamplerPlan(draw=Drawn(7))


def test_the_usual_stages_stand_in_the_order_of_llama_server() -> None:
    assert plan(SamplingParams(seed=7), forbidden=(3,)) == SamplerPlan(
        stages=(TopK(40), TopP(0.95), MinP(0.05), Temperature(value=0.8)), draw=Drawn(7), forbidden=(3,)
    )


@pytest.mark.parametrize(
    ("values", "stage"),
    [
        ({"typical_p": 0.9}, TypicalP(0.9)),
        ({"top_n_sigma": 1.5}, TopNSigma(1.5)),
        ({"temperature": 0.5}, Temperature(value=0.5)),
        ({"dynatemp_range": 0.5}, Temperature(value=1.0, spread=0.5)),
        ({"xtc_probability": 0.5}, Xtc(probability=0.5, threshold=0.1, seed=7)),
        ({"logit_bias": ((3, -100.0),)}, LogitBias(((3, -100.0),))),
    ],
)
def test_a_value_that_changes_something_makes_its_stage(values: dict[str, Any], stage: object) -> None:
    assert changed(**values) == SamplerPlan(stages=(stage,), draw=Drawn(7))  # type: ignore[arg-type]  # one of them


@pytest.mark.parametrize("name", ["repeat_penalty", "frequency_penalty", "presence_penalty"])
def test_each_penalty_looks_at_the_end_of_the_prompt_too(name: str) -> None:
    usual = {"repeat_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
    stage = Penalties(
        window=64,
        **{key.removesuffix("_penalty"): value for key, value in {**usual, name: 0.5}.items()},
    )
    assert changed(**{name: 0.5}) == SamplerPlan(stages=(stage,), draw=Drawn(7), history=PROMPT[-64:])


def test_a_window_of_minus_one_is_the_whole_context_and_none_switches_off() -> None:
    [stage] = changed(repeat_penalty=1.5, repeat_last_n=WHOLE_CONTEXT).stages
    assert isinstance(stage, Penalties)
    assert stage.window == 256
    assert changed(repeat_penalty=1.5, repeat_last_n=1000) == changed(repeat_penalty=1.5, repeat_last_n=-1)
    assert changed(repeat_penalty=1.5, repeat_last_n=0) == plan(OFF)
    assert changed(dry_multiplier=1.0, dry_penalty_last_n=0) == plan(OFF)


def test_the_history_is_as_long_as_the_longest_window() -> None:
    found = changed(repeat_penalty=1.5, repeat_last_n=5, dry_multiplier=0.8, dry_penalty_last_n=9)
    assert [type(stage) for stage in found.stages] == [Penalties, Dry]
    assert found.history == PROMPT[-9:]


@pytest.mark.parametrize(
    "values", [{"dry_base": 1.0, "dry_multiplier": 1.0}, {"xtc_probability": 1.0, "xtc_threshold": 0.51}]
)
def test_what_the_other_value_switches_off_is_left_out(values: dict[str, Any]) -> None:
    assert changed(**values) == plan(OFF)


def test_stages_stand_in_the_order_that_was_asked_for_and_others_do_not_happen() -> None:
    params = SamplingParams(seed=7, top_k=5, samplers=(Stage.TEMPERATURE, Stage.TOP_K))
    assert plan(params).stages == (Temperature(value=0.8), TopK(5))
    assert plan(attrs.evolve(params, samplers=())) == SamplerPlan(draw=Drawn(7))


def test_temperature_zero_and_a_top_k_of_one_are_greedy() -> None:
    for params in (SamplingParams(temperature=0), SamplingParams(top_k=1)):
        assert plan(params).is_greedy


def test_what_is_greedy_keeps_what_changes_which_token_is_best() -> None:
    found = changed(temperature=0.0, repeat_penalty=1.5, xtc_probability=1.0, logit_bias=((1, 5.0),))
    assert [type(stage) for stage in found.stages] == [LogitBias, Penalties]
    assert found.draw == Best()
    assert not found.is_greedy


def test_without_the_stage_its_value_makes_nothing_greedy() -> None:
    assert changed(temperature=0.0, samplers=()) == plan(OFF)
    assert changed(top_k=1, samplers=(Stage.TEMPERATURE,)) == plan(OFF)


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_replaces_the_filters_and_keeps_penalties_and_temperature(version: int) -> None:
    params = SamplingParams(seed=7, mirostat=version, mirostat_tau=4.0, mirostat_eta=0.2, repeat_penalty=1.5)
    found = plan(params)
    assert [type(stage) for stage in found.stages] == [Penalties, Temperature]
    assert found.draw == Mirostat(version=version, seed=7, tau=4.0, eta=0.2)


def test_a_request_without_seed_takes_the_fresh_one() -> None:
    assert plan(SamplingParams()).draw == Drawn(99)


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
