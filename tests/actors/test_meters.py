"""Steps of a worker, added up."""

from __future__ import annotations

from actors.meters import StepSums
from runner.domain.engine import EngineCounts
from runner.domain.status import EngineMeters
from runner.wire.messages import Step

COUNTS = EngineCounts(
    preemptions=1,
    reuse_hits=2,
    reused_tokens=300,
    saved_tokens=100,
    restored_tokens=200,
    misses=(4, 5, 0, 0, 6),
)


def step(
    index: int, *, prefill: int = 0, decode: int = 0, n_steps: int = 1, counts: EngineCounts = COUNTS
) -> Step:
    return Step(
        step_index=index,
        prefill_tokens=prefill,
        decode_tokens=decode,
        running=1,
        waiting=0,
        cells_used=100,
        cells_retained=50,
        host_tokens=70,
        step_s=0.5 * n_steps,
        computing_s=0.25 * n_steps,
        counts=counts,
    )


def test_a_worker_that_has_not_computed_anything_has_no_meters() -> None:
    sums = StepSums()
    refused = step(0, n_steps=0)
    sums.add(refused)
    assert sums.meters(refused, 400) is None
    assert sums.steps_s == 0


def test_rows_and_times_are_the_last_steps_and_the_sums_of_all() -> None:
    sums = StepSums()
    sums.add(step(1, prefill=64))
    sums.add(step(2, decode=8))
    after = step(2, n_steps=0)  # a frame without a step: somebody was refused, or has left
    sums.add(after)
    assert sums.meters(after, 400) == EngineMeters(
        batch_prefill_tokens=0,
        batch_decode_tokens=8,
        step_s=0.5,
        computing_s=0.25,
        cells_used=100,
        cells_retained=50,
        cells_free=250,
        host_tokens=70,
        steps=2,
        prefill_tokens=64,
        decode_tokens=8,
        steps_s=1.0,
        all_computing_s=0.5,
        preemptions=1,
        reuse_hits=2,
        reused_tokens=300,
        saved_tokens=100,
        restored_tokens=200,
        reuse_misses={"new": 4, "given_up": 5, "window": 0, "unsupported": 0, "disabled": 6},
    )


def test_of_a_frame_for_several_steps_the_mean_one_is_told() -> None:
    sums = StepSums()
    sums.add(step(1, prefill=64))
    frame = step(4, decode=6, n_steps=3)
    sums.add(frame)
    meters = sums.meters(frame, 400)
    assert meters is not None
    assert (meters.steps, meters.steps_s, meters.all_computing_s) == (4, 2.0, 1.0)
    assert (meters.step_s, meters.computing_s) == (0.5, 0.25)
    assert (meters.batch_prefill_tokens, meters.batch_decode_tokens) == (0, 2)
