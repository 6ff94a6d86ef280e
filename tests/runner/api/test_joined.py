"""Several prompts in one request: one lease, answers numbered prompt by prompt, one end for all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from runner.api.inference import Demand, Inference
from runner.api.joined import JoinedStreams, naming_prompt
from runner.domain.events import (
    Accepted,
    ChoiceEnded,
    Failed,
    Finished,
    FinishReason,
    GenerationEvent,
    PromptText,
    TextDelta,
    Timings,
    Usage,
)
from runner.domain.generation import GenerationRequest, TextPrompt
from runner.errors import (
    ContextLengthExceeded,
    EngineFailed,
    FieldFault,
    InvalidParameter,
    QueueFull,
    RequestQuarantined,
    RunnerError,
    WorkerCrashed,
)
from runner.oci.reference import ModelName
from tests.support.fake_handles import FakeParts, FakeWorker, crashing, finished, spoken

pytestmark = pytest.mark.anyio

STOP = FinishReason.STOP


def demand(*texts: str, n: int = 1) -> Demand:
    first, *more = map(TextPrompt, texts)
    return Demand(
        name=ModelName.parse("ai/smollm2:135M-Q4_1"),
        request=GenerationRequest(request_id="r1", prompt=first, n=n),
        more_prompts=tuple(more),
    )


def inference_over(parts: FakeParts) -> Inference:
    return Inference(parts.store, parts.scheduler)  # type: ignore[arg-type]  # fakes


def text_of(request: GenerationRequest) -> str:
    assert isinstance(request.prompt, TextPrompt)
    return request.prompt.text


def echoing(request: GenerationRequest) -> list[GenerationEvent]:
    return spoken(text_of(request).upper(), prompt_tokens=len(text_of(request)))


def refusing(bad: str, failed: Failed) -> Callable[[GenerationRequest], list[GenerationEvent]]:
    return lambda request: [failed] if text_of(request) == bad else echoing(request)


# whole


async def test_each_prompt_is_answered_under_one_lease() -> None:
    parts = FakeParts.make(echoing)
    completed = await inference_over(parts).complete(demand("a", "bb", "ccc"))
    assert [choice.text for choice in completed.choices] == ["A", "BB", "CCC"]
    assert completed.finished.usage == Usage(prompt_tokens=6, completion_tokens=3)
    assert len(parts.scheduler.acquired) == 1
    assert parts.scheduler.outstanding == 0
    ids = [request.request_id for request in parts.scheduler.workers[0].requests]
    assert ids == ["r1", "r1.p1", "r1.p2"]


async def test_answers_are_in_order_of_prompts_and_each_has_its_own_echo() -> None:
    def script(request: GenerationRequest) -> list[GenerationEvent]:
        name = text_of(request)
        return [
            Accepted(prompt_tokens=1),
            PromptText(name),
            TextDelta(f"{name}1", 1, 1),
            ChoiceEnded(1, STOP),
            TextDelta(f"{name}0", 1, 0),
            finished(completion_tokens=2),
        ]

    parts = FakeParts.make(script)
    completed = await inference_over(parts).complete(demand("a", "b", n=2))
    told = [(choice.prompt_text, choice.text) for choice in completed.choices]
    assert told == [("a", "a0"), ("a", "a1"), ("b", "b0"), ("b", "b1")]


@pytest.mark.parametrize(
    ("failed", "told"),
    [
        (Failed(code="invalid_parameter", message="prompt[5]: 9 is none"), "prompt[1][5]: 9 is none"),
        (Failed(code="invalid_parameter", message="prompt: is empty"), "prompt[1]: is empty"),
        (Failed(code="invalid_parameter", message="logit_bias[7]: is none"), "logit_bias[7]: is none"),
        (
            Failed(code="context_length_exceeded", message="", prompt_tokens=9, context_size=8),
            "prompt[1] has 9 tokens",
        ),
        (Failed(code="engine_failed", message="no numbers"), "prompt[1]: no numbers"),
    ],
)
async def test_one_refused_prompt_refuses_all_and_is_named(failed: Failed, told: str) -> None:
    parts = FakeParts.make(refusing("bad", failed))
    for several in (("a", "bad", "c"), ("a", "bad")):
        with pytest.raises(RunnerError) as caught:
            await inference_over(parts).complete(demand(*several))
        assert str(caught.value).startswith(told)
        assert caught.value.code == failed.code
    assert parts.scheduler.outstanding == 0
    assert "prompt[" not in str(naming_prompt(QueueFull("full"), 1))


async def test_a_single_prompt_keeps_its_name() -> None:
    failed = Failed(code="context_length_exceeded", message="", prompt_tokens=9, context_size=8)
    parts = FakeParts.make(refusing("bad", failed))
    with pytest.raises(ContextLengthExceeded, match=r"^the prompt has 9"):
        await inference_over(parts).complete(demand("bad"))


async def test_a_prompt_that_fails_later_ends_all_and_is_named() -> None:
    failed = Failed(code="engine_failed", message="no numbers")
    parts = FakeParts.make(
        lambda request: [Accepted(prompt_tokens=1), *([failed] if text_of(request) == "bad" else [])]
    )
    with pytest.raises(EngineFailed, match=r"^prompt\[1\]: no numbers"):
        await inference_over(parts).complete(demand("a", "bad", "c"))
    assert sorted(parts.scheduler.workers[0].cancelled) == ["r1", "r1.p2"]
    assert parts.scheduler.outstanding == 0


async def test_L01_all_are_tried_once_more_when_their_worker_dies() -> None:
    parts = FakeParts.make()
    healthy = FakeWorker(echoing)
    parts.scheduler.workers = [crashing(Accepted(prompt_tokens=1)), healthy]
    completed = await inference_over(parts).complete(demand("a", "b"))
    assert [choice.text for choice in completed.choices] == ["A", "B"]
    assert [request.request_id for request in healthy.requests] == ["r1.2", "r1.2.p1"]


async def test_L05_requests_with_the_same_first_prompt_are_not_taken_for_each_other() -> None:
    parts = FakeParts.make()
    parts.scheduler.workers = [
        crashing(Accepted(prompt_tokens=1)),
        crashing(Accepted(prompt_tokens=1)),
        FakeWorker(echoing),
    ]
    inference = inference_over(parts)
    with pytest.raises(WorkerCrashed):
        await inference.complete(demand("a", "bad"))
    with pytest.raises(RequestQuarantined):
        await inference.complete(demand("a", "bad"))
    assert len((await inference.complete(demand("a", "good"))).choices) == 2


# as a stream


async def test_a_client_that_leaves_cancels_all() -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1), TextDelta("x", 1)])
    with await inference_over(parts).begin(demand("a", "b", "c")) as generation:
        events = await generation.receive()
        assert [event.choice_index for event in events if isinstance(event, TextDelta)] == [0, 1, 2]
    assert sorted(parts.scheduler.workers[0].cancelled) == ["r1", "r1.p1", "r1.p2"]
    assert parts.scheduler.outstanding == 0


async def test_a_client_that_leaves_before_all_are_accepted_cancels_all() -> None:
    parts = FakeParts.make(lambda request: echoing(request) if text_of(request) == "a" else [])
    with trio.move_on_after(0.01):
        await inference_over(parts).begin(demand("a", "b", "c"))
    assert sorted(parts.scheduler.workers[0].cancelled) == ["r1.p1", "r1.p2"]
    assert parts.scheduler.outstanding == 0


async def opened(n_prompts: int, n: int = 1) -> tuple[FakeWorker, JoinedStreams]:
    worker = FakeWorker(lambda _: [])
    requests = [
        GenerationRequest(request_id=f"r{index}", prompt=TextPrompt("")) for index in range(n_prompts)
    ]
    streams = [worker.open_stream(request) for request in requests]
    return worker, JoinedStreams(streams, [[] for _ in streams], n)


async def test_news_of_any_stream_wake_the_reader_who_gets_all_that_is_there() -> None:
    worker, joined = await opened(3, n=2)
    told: list[list[GenerationEvent]] = []

    async def read() -> None:
        while events := await joined.receive():
            told.append(events)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        worker.streams[2].deliver([TextDelta("c", 1, 1)])
        worker.streams[0].deliver([TextDelta("a", 1, 1)])
        await trio.testing.wait_all_tasks_blocked()
        assert told == [[TextDelta("a", 1, 1), TextDelta("c", 1, 5)]]
        for index in (1, 2, 0):
            worker.streams[index].deliver([ChoiceEnded(0, STOP), finish(1, prefill_s=index)])
            await trio.testing.wait_all_tasks_blocked()
    last = told[-1][-1]
    assert isinstance(last, Finished) and last.choice_index == 1
    assert last.usage == Usage(prompt_tokens=6, completion_tokens=9, cached_tokens=3)
    assert last.timings == Timings(queued_s=1.0, prefill_s=0.0, decode_s=4.0)
    assert told[1] == [ChoiceEnded(2, STOP), ChoiceEnded(3, STOP)]
    assert await joined.receive() == []
    assert "3 of 3" in repr(joined)


def finish(choice_index: int, prefill_s: float) -> Finished:
    return Finished(
        reason=STOP,
        usage=Usage(prompt_tokens=2, completion_tokens=3, cached_tokens=1),
        timings=Timings(queued_s=1.0, prefill_s=prefill_s, decode_s=2.0),
        choice_index=choice_index,
    )


async def test_what_came_before_a_death_is_told_first() -> None:
    worker, joined = await opened(2)
    worker.streams[1].deliver([TextDelta("b", 1)])
    worker.die()
    assert await joined.receive() == [TextDelta("b", 1, 1)]
    with pytest.raises(WorkerCrashed):
        await joined.receive()


@pytest.mark.parametrize(
    "event", [TextDelta("x", 1, 1), ChoiceEnded(1, STOP), finish(1, 0.0)], ids=["text", "end", "last"]
)
async def test_W07_an_answer_beyond_those_asked_for_is_not_taken_for_another_prompts(
    event: GenerationEvent,
) -> None:
    worker, joined = await opened(2)
    worker.streams[0].deliver([event])
    with pytest.raises(EngineFailed):
        await joined.receive()


def test_only_faults_of_the_prompt_are_renamed() -> None:
    error = InvalidParameter(FieldFault("prompt", "a"), FieldFault("prompt_x", "b"), FieldFault("n", "c"))
    named = naming_prompt(error, 3)
    assert isinstance(named, InvalidParameter)
    assert [fault.path for fault in named.faults] == ["prompt[3]", "prompt_x", "n"]
