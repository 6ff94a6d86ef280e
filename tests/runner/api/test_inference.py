"""The one path of every generation: what was taken is given back once, and a crash costs one more try."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from runner.api.collecting import error_of
from runner.api.inference import Demand, Inference, Opening, fingerprint_of
from runner.domain.events import (
    Accepted,
    ChoiceEnded,
    Examined,
    Failed,
    FinishReason,
    GenerationEvent,
    PromptText,
    TextDelta,
    TokenLogprob,
)
from runner.domain.generation import Examination, GenerationRequest, TextPrompt
from runner.domain.sampling import SamplingParams, Stage
from runner.domain.settings import ModelSettings
from runner.errors import (
    ContextLengthExceeded,
    Draining,
    EngineFailed,
    InvalidParameter,
    ModelNotFound,
    QueueFull,
    RequestQuarantined,
    TemplateFailed,
    Unavailable,
    WorkerCrashed,
)
from runner.oci.reference import ModelName
from tests.support.fake_handles import FakeParts, FakeWorker, crashing, fake_model, finished, spoken

pytestmark = pytest.mark.anyio


def demand(name: str = "ai/smollm2:135M-Q4_1", keep_alive_s: float | None = None) -> Demand:
    request = GenerationRequest(request_id="r1", prompt=TextPrompt("Why?"))
    return Demand(name=ModelName.parse(name), request=request, keep_alive_s=keep_alive_s)


def inference_over(parts: FakeParts) -> Inference:
    return Inference(parts.store, parts.scheduler)  # type: ignore[arg-type]  # fakes


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.lowlevel.checkpoint()


async def test_an_answer_is_collected_and_the_lease_given_back() -> None:
    parts = FakeParts.make(lambda _: spoken("Be", "cause", "."))
    completed = await inference_over(parts).complete(demand(keep_alive_s=math.inf))
    assert completed.text == "Because."
    assert completed.finished.usage.completion_tokens == 3
    assert completed.fingerprint == fingerprint_of(fake_model(), "scripted-1")
    assert parts.scheduler.acquired == [("ai/smollm2:135M-Q4_1", math.inf)]
    assert parts.scheduler.outstanding == 0
    assert parts.scheduler.workers[0].cancelled == []


async def test_an_unknown_model_takes_nothing() -> None:
    parts = FakeParts.make()
    with pytest.raises(ModelNotFound):
        await inference_over(parts).complete(demand("ai/other"))
    assert parts.scheduler.acquired == []


@pytest.mark.parametrize("dead_runs", [1, 2])
@pytest.mark.parametrize("said", [(), (Accepted(prompt_tokens=1), TextDelta("Be", 1))])
async def test_L01_O09_a_worker_that_dies_before_the_first_byte_costs_one_more_run_and_no_third(
    dead_runs: int, said: tuple[GenerationEvent, ...]
) -> None:
    parts = FakeParts.make()
    healthy = FakeWorker(lambda _: spoken("fine"))
    dead = [crashing(*said) for _ in range(dead_runs)]
    parts.scheduler.workers = [*dead, healthy]
    if dead_runs == 1:
        completed = await inference_over(parts).complete(demand())
        assert completed.text == "fine"
        assert [request.request_id for request in healthy.requests] == ["r1.2"]
    else:
        with pytest.raises(WorkerCrashed):
            await inference_over(parts).complete(demand())
        assert healthy.requests == []
    assert len(parts.scheduler.acquired) == 2
    assert parts.scheduler.outstanding == 0


async def test_L01_a_stream_is_retried_until_it_was_accepted_and_not_after() -> None:
    parts = FakeParts.make()
    talking = FakeWorker(lambda _: [Accepted(prompt_tokens=1)])
    parts.scheduler.workers = [crashing(), talking]
    with await inference_over(parts).begin(demand()) as generation:
        talking.die()
        with pytest.raises(WorkerCrashed):
            await generation.receive()
    assert len(parts.scheduler.acquired) == 2
    assert parts.scheduler.outstanding == 0


async def test_a_worker_that_ended_between_lease_and_request_is_replaced_once() -> None:
    parts = FakeParts.make()
    gone, healthy = FakeWorker(lambda _: []), FakeWorker(lambda _: spoken("fine"))
    gone.refusal = Unavailable("it has ended")
    parts.scheduler.workers = [gone, healthy]
    assert (await inference_over(parts).complete(demand())).text == "fine"
    parts.scheduler.workers = [gone, gone, healthy]
    with pytest.raises(Unavailable):
        await inference_over(parts).complete(demand())
    assert parts.scheduler.outstanding == 0


async def test_L05_a_request_that_ended_two_workers_is_refused_without_a_third_and_others_are_served() -> (
    None
):
    parts = FakeParts.make()
    parts.scheduler.workers = [crashing(), crashing(), FakeWorker(lambda _: spoken("Yes"))]
    inference = inference_over(parts)
    with pytest.raises(WorkerCrashed):
        await inference.complete(demand())
    with pytest.raises(RequestQuarantined):
        await inference.complete(attrs.evolve(demand(), keep_alive_s=5.0))
    assert len(parts.scheduler.acquired) == 2
    other = attrs.evolve(demand(), request=GenerationRequest(request_id="r2", prompt=TextPrompt("Who?")))
    assert (await inference.complete(other)).text == "Yes"
    assert parts.scheduler.outstanding == 0


async def test_L05_a_death_in_mid_stream_counts_and_an_answer_to_the_end_clears() -> None:
    said = Accepted(prompt_tokens=1), TextDelta("Be", 1)
    parts = FakeParts.make()
    well = FakeWorker(lambda _: spoken("Yes"))
    parts.scheduler.workers = [crashing(*said), well, crashing(*said), crashing(*said), well]
    inference = inference_over(parts)

    async def stream() -> None:
        with await inference.begin(demand()) as generation:
            while await generation.receive():
                pass

    for _ in range(2):
        with pytest.raises(WorkerCrashed):
            await stream()
        with contextlib.suppress(WorkerCrashed):
            await stream()
    with pytest.raises(RequestQuarantined):
        await stream()
    assert len(parts.scheduler.acquired) == 4
    assert parts.scheduler.outstanding == 0


async def test_a_refusal_by_the_scheduler_is_not_retried() -> None:
    parts = FakeParts.make()
    parts.scheduler.refusal = QueueFull("64 requests wait")
    with pytest.raises(QueueFull):
        await inference_over(parts).complete(demand())
    assert len(parts.scheduler.acquired) == 1


@pytest.mark.parametrize(
    ("failed", "kind", "text"),
    [
        (
            Failed(code="context_length_exceeded", message="", prompt_tokens=9000, context_size=8192),
            ContextLengthExceeded,
            "9000 tokens and the context holds 8192",
        ),
        (Failed(code="template_failed", message="roles must alternate"), TemplateFailed, "roles must alt"),
        (Failed(code="invalid_parameter", message="token 9 is unknown"), InvalidParameter, "prompt: token 9"),
        (
            Failed(code="invalid_parameter", message="prompt[3]: is no token; prompt[5]: is no token"),
            InvalidParameter,
            "prompt[3]: is no token; prompt[5]: is no token",
        ),
        (Failed(code="queue_full", message="busy"), QueueFull, "busy"),
        (Failed(code="draining", message=""), Draining, "shutting down"),
        (Failed(code="engine_failed", message="no logits"), EngineFailed, "no logits"),
        (Failed(code="surprise", message="/home/user/secret"), EngineFailed, "worker's log"),
    ],
)
async def test_what_a_worker_reports_becomes_the_error_of_that_code(
    failed: Failed, kind: type[Exception], text: str
) -> None:
    error = error_of(failed)
    assert type(error) is kind
    assert text in str(error)
    assert "secret" not in str(error)
    parts = FakeParts.make(lambda _: [failed])
    with pytest.raises(kind):
        await inference_over(parts).complete(demand())
    assert parts.scheduler.outstanding == 0


async def test_a_failure_in_the_middle_of_an_answer_is_its_error() -> None:
    failure = Failed(code="engine_failed", message="no logits")
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1), TextDelta("Be", 1), failure])
    with pytest.raises(EngineFailed):
        await inference_over(parts).complete(demand())
    assert parts.scheduler.outstanding == 0
    assert len(parts.scheduler.acquired) == 1


async def test_N23_a_cancelled_request_cancels_its_sequence_and_frees_the_lease() -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1), TextDelta("Be", 1)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inference_over(parts).complete, demand())
        await until(lambda: bool(parts.scheduler.workers[0].streams))
        nursery.cancel_scope.cancel()
    assert parts.scheduler.outstanding == 0
    assert parts.scheduler.workers[0].cancelled == ["r1"]


async def test_a_request_cancelled_while_it_waits_for_acceptance_gives_everything_back() -> None:
    parts = FakeParts.make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inference_over(parts).begin, demand())
        await until(lambda: bool(parts.scheduler.workers[0].streams))
        nursery.cancel_scope.cancel()
    assert parts.scheduler.outstanding == 0
    assert parts.scheduler.workers[0].cancelled == ["r1"]


async def test_closing_a_generation_twice_gives_the_lease_back_once() -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1)])
    generation = await inference_over(parts).begin(demand())
    assert parts.scheduler.outstanding == 1
    generation.close()
    generation.close()
    assert parts.scheduler.outstanding == 0
    assert parts.scheduler.workers[0].cancelled == ["r1"]


@asynccontextmanager
async def opened(parts: FakeParts) -> AsyncIterator[Opening]:
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            yield inference_over(parts).begin_soon(demand(), nursery)


async def test_an_opening_survives_those_who_stop_waiting_for_it(virtual_clock) -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1)])
    parts.scheduler.gate = trio.Event()
    async with opened(parts) as opening:
        with trio.move_on_after(1):
            await opening.wait()
        assert parts.scheduler.cancelled_acquires == 0
        parts.scheduler.gate.set()
        await opening.wait()
        opening.close()
    assert parts.scheduler.outstanding == 0


async def test_closing_an_opening_stops_it_wherever_it_waits() -> None:
    parts = FakeParts.make()
    parts.scheduler.gate = trio.Event()
    async with opened(parts) as opening:
        await until(lambda: bool(parts.scheduler.acquired))
        opening.close()
    assert parts.scheduler.cancelled_acquires == 1
    parts.scheduler.gate = None
    async with opened(parts) as opening:
        await until(lambda: bool(parts.scheduler.workers[0].streams))
        opening.close()
    assert parts.scheduler.outstanding == 0


async def test_an_opening_closed_in_the_very_moment_of_acceptance_leaves_nothing() -> None:
    parts = FakeParts.make()
    async with opened(parts) as opening:
        await until(lambda: bool(parts.scheduler.workers[0].streams))
        parts.scheduler.workers[0].streams[0].deliver([Accepted(prompt_tokens=1), finished()])
        opening.close()
    assert parts.scheduler.outstanding == 0


async def test_an_opening_tells_its_error_and_not_its_nursery() -> None:
    parts = FakeParts.make()
    parts.scheduler.refusal = QueueFull("full")
    async with opened(parts) as opening:
        with pytest.raises(QueueFull):
            await opening.wait()
        with pytest.raises(QueueFull):  # and again
            await opening.wait()


async def test_an_opening_that_ends_with_the_daemon_reports_draining() -> None:
    parts = FakeParts.make()
    async with trio.open_nursery() as nursery:
        opening = inference_over(parts).begin_soon(demand(), nursery)
        await until(lambda: bool(parts.scheduler.workers[0].streams))
        nursery.cancel_scope.cancel()
    with pytest.raises(Draining):
        await opening.wait()
    assert parts.scheduler.outstanding == 0


# what was configured for the model


def configured(parts: FakeParts, **settings: object) -> None:
    parts.store.models[0] = attrs.evolve(parts.store.models[0], settings=ModelSettings(**settings))  # type: ignore[arg-type]  # any of its fields


async def test_what_the_client_did_not_say_is_as_configured_and_what_it_said_counts() -> None:
    parts = FakeParts.make(lambda _: spoken("Because."))
    configured(parts, temperature=0.1, top_k=7, seed=3)
    said = ModelSettings(temperature=1.5, top_p=0.5)
    await inference_over(parts).complete(attrs.evolve(demand(), said=said))
    [request] = parts.scheduler.workers[0].requests
    assert request.sampling == SamplingParams(temperature=1.5, top_p=0.5, top_k=7, seed=3)


async def test_without_anything_configured_or_said_sampling_is_the_usual() -> None:
    parts = FakeParts.make(lambda _: spoken("Because."))
    await inference_over(parts).complete(demand())
    [request] = parts.scheduler.workers[0].requests
    assert request.sampling == SamplingParams()


async def test_what_cannot_be_configured_is_as_the_request_said() -> None:
    parts = FakeParts.make(lambda _: spoken("Because."))
    configured(parts, temperature=0.1)
    asked = demand()
    sampling = SamplingParams(logit_bias=((5, 1.0),), samplers=(Stage.TOP_K,))
    await inference_over(parts).complete(
        attrs.evolve(asked, request=attrs.evolve(asked.request, sampling=sampling))
    )
    [request] = parts.scheduler.workers[0].requests
    assert request.sampling == attrs.evolve(sampling, temperature=0.1)


async def test_a_second_run_is_sampled_as_the_first() -> None:
    crashed, alive = crashing(), FakeWorker(lambda _: spoken("Because."))
    parts = FakeParts.make()
    parts.scheduler.workers = [crashed, alive]
    configured(parts, temperature=0.0)
    await inference_over(parts).complete(demand())
    assert crashed.requests[0].sampling == alive.requests[0].sampling == SamplingParams(temperature=0.0)


@pytest.mark.parametrize(("asked_s", "kept_s"), [(None, 9.0), (0.0, 0.0), (math.inf, math.inf)])
async def test_a_model_is_kept_as_configured_unless_the_request_says_otherwise(
    asked_s: float | None, kept_s: float
) -> None:
    parts = FakeParts.make(lambda _: spoken("Because."))
    configured(parts, keep_alive_s=9.0)
    await inference_over(parts).complete(demand(keep_alive_s=asked_s))
    assert [kept for _, kept in parts.scheduler.acquired] == [kept_s]


@pytest.mark.parametrize("pin", [None, True, False])
async def test_a_model_is_pinned_as_configured(pin: bool | None) -> None:
    parts = FakeParts.make(lambda _: spoken("Because."))
    configured(parts, pin=pin)
    await inference_over(parts).complete(demand())
    assert parts.scheduler.pins == [pin]


# several answers, echo, examinations

HI = TokenLogprob(5, b"Hi", -0.5)


def several(n: int, *more_prompts: str) -> Demand:
    """`n` answers to each prompt."""
    usual = demand()
    return attrs.evolve(
        usual,
        request=attrs.evolve(usual.request, n=n),
        more_prompts=tuple(map(TextPrompt, more_prompts)),
    )


@pytest.mark.parametrize("indices", [[0], [0, 2], [0, 0], [1, 0, 2], [5, 1]])
async def test_W07_answers_that_are_missing_or_too_many_are_an_error(indices: list[int]) -> None:
    *others, last = indices
    ended = [ChoiceEnded(index, FinishReason.STOP) for index in others]
    script = [Accepted(prompt_tokens=7), *ended, attrs.evolve(finished(), choice_index=last)]
    parts = FakeParts.make(lambda _: script)
    with pytest.raises(EngineFailed):
        await inference_over(parts).complete(several(2))
    assert parts.scheduler.outstanding == 0


async def test_answers_are_collected_each_by_itself_with_the_echo_before_them() -> None:
    script: list[GenerationEvent] = [
        Accepted(prompt_tokens=7),
        PromptText("Wh", (HI,)),
        PromptText("y", (HI, HI)),
        TextDelta("a", 1, 0, (HI,)),
        TextDelta("b", 1, 2),
        ChoiceEnded(1, FinishReason.STOP),
        TextDelta("c", 1, 0, (HI,)),
        ChoiceEnded(0, FinishReason.LENGTH),
        attrs.evolve(finished(completion_tokens=4), choice_index=2),
    ]
    parts = FakeParts.make(lambda _: script)
    completed = await inference_over(parts).complete(several(3))
    assert [(choice.text, choice.reason) for choice in completed.choices] == [
        ("ac", FinishReason.LENGTH),
        ("", FinishReason.STOP),
        ("b", FinishReason.STOP),
    ]
    assert completed.choices[0].logprobs == (HI, HI)
    for choice in completed.choices:
        assert (choice.prompt_text, choice.prompt_logprobs) == ("Why", (HI, HI, HI))
    assert completed.text == "ac"


def examination() -> Demand:
    asked = demand()
    return attrs.evolve(asked, request=attrs.evolve(asked.request, examination=Examination.COUNT))


async def test_an_examination_is_told_and_gives_everything_back() -> None:
    parts = FakeParts.make(lambda _: [Examined(7)])
    assert await inference_over(parts).examine(examination()) == Examined(7)
    assert parts.scheduler.outstanding == 0


async def test_O09_an_examination_that_ends_its_worker_is_tried_once_more() -> None:
    crashed, alive = crashing(), FakeWorker(lambda _: [Examined(7)])
    parts = FakeParts.make()
    parts.scheduler.workers = [crashed, alive]
    assert await inference_over(parts).examine(examination()) == Examined(7)
    parts.scheduler.workers = [crashing(), crashing()]
    with pytest.raises(WorkerCrashed):
        await inference_over(parts).examine(examination())
    assert parts.scheduler.outstanding == 0


async def test_an_examination_that_is_refused_raises_what_the_worker_said() -> None:
    failed = Failed(code="invalid_parameter", message="prompt: must hold at least one token")
    parts = FakeParts.make(lambda _: [failed])
    with pytest.raises(InvalidParameter):
        await inference_over(parts).examine(examination())
    assert parts.scheduler.outstanding == 0
