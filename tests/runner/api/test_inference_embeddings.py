"""Embeddings on the one path of requests: whole, in order, tried once more, no more than was asked for."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
import trio
import trio.testing

from runner.api.inference import Demand, Inference
from runner.domain.events import Accepted, Embedded, Failed, GenerationEvent
from runner.domain.generation import EMBEDDED_BYTES_MAX, EmbeddingPrompt, GenerationRequest, TextPrompt
from runner.errors import EngineFailed, InvalidParameter, WorkerCrashed
from runner.oci.reference import ModelName
from tests.support.fake_handles import FakeParts, FakeWorker, crashing, finished

pytestmark = pytest.mark.anyio


def embedding(n_inputs: int = 2) -> Demand:
    prompt = EmbeddingPrompt(inputs=(TextPrompt("a"),) * n_inputs)
    request = GenerationRequest(request_id="r1", prompt=prompt)
    return Demand(name=ModelName.parse("ai/smollm2:135M-Q4_1"), request=request)


def inference_over(parts: FakeParts) -> Inference:
    return Inference(parts.store, parts.scheduler)  # type: ignore[arg-type]  # fakes


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.lowlevel.checkpoint()


def embedded(*vectors: tuple[int, bytes]) -> list[GenerationEvent]:
    told = [Embedded(index, vector) for index, vector in vectors]
    return [Accepted(prompt_tokens=3), *told, finished(prompt_tokens=5)]


async def test_embeddings_come_in_the_order_of_their_inputs() -> None:
    parts = FakeParts.make(lambda _: embedded((1, b"bbbb"), (0, b"aaaa")))
    embeddings = await inference_over(parts).embed(embedding())
    assert embeddings.vectors == (b"aaaa", b"bbbb")
    assert embeddings.finished.usage.prompt_tokens == 5
    assert parts.scheduler.outstanding == 0


async def test_O09_embeddings_that_end_their_worker_are_tried_once_more() -> None:
    first = crashing(Accepted(prompt_tokens=3), Embedded(0, b"xxxx"))
    parts = FakeParts.make()
    parts.scheduler.workers = [first, FakeWorker(lambda _: embedded((0, b"aaaa"), (1, b"bbbb")))]
    assert (await inference_over(parts).embed(embedding())).vectors == (b"aaaa", b"bbbb")
    parts.scheduler.workers = [crashing(), crashing()]
    with pytest.raises(WorkerCrashed):
        await inference_over(parts).embed(embedding())
    assert parts.scheduler.outstanding == 0


@pytest.mark.parametrize(
    "events",
    [
        embedded((0, b"aaaa")),
        embedded((0, b"aaaa"), (0, b"bbbb")),
        embedded((0, b"aaaa"), (1, b"bbbbbbbb")),
        embedded((0, b"aaa"), (1, b"bbb")),
        embedded((0, b"aaaa"), (1, b"bbbb"), (2, b"cccc")),
        embedded(),
    ],
)
async def test_W07_what_is_no_vector_for_each_input_is_a_fault_of_the_worker(
    events: list[GenerationEvent],
) -> None:
    parts = FakeParts.make(lambda _: events)
    with pytest.raises(EngineFailed):
        await inference_over(parts).embed(embedding())
    assert parts.scheduler.outstanding == 0


async def test_W07_vectors_are_taken_up_to_a_bound() -> None:
    parts = FakeParts.make(lambda _: [])
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:

            async def embed() -> None:
                with pytest.raises(EngineFailed, match="asked for"):
                    await inference_over(parts).embed(embedding(1))

            nursery.start_soon(embed)
            await until(lambda: bool(parts.scheduler.workers[0].streams))
            [stream] = parts.scheduler.workers[0].streams
            stream.deliver([Accepted(prompt_tokens=1)])
            piece = Embedded(0, bytes(1024 * 1024))
            for _ in range(EMBEDDED_BYTES_MAX // 1024**2 + 1):
                await trio.testing.wait_all_tasks_blocked()
                stream.deliver([piece])
    assert parts.scheduler.workers[0].cancelled == ["r1"]
    assert parts.scheduler.outstanding == 0


async def test_embeddings_that_are_refused_raise_what_the_worker_said() -> None:
    message = "input[3]: has 600 tokens, and the model takes 512, unless truncate asks to cut it"
    parts = FakeParts.make(lambda _: [Failed(code="invalid_parameter", message=message)])
    with pytest.raises(InvalidParameter) as caught:
        await inference_over(parts).embed(embedding())
    [fault] = caught.value.faults
    assert fault.path == "input[3]"
    assert fault.message.startswith("has 600 tokens")


async def test_N12_an_encoder_is_not_loaded_to_refuse_a_generation() -> None:
    parts = FakeParts.make(lambda _: embedded((0, b"aaaa"), (1, b"bbbb")))
    [model] = parts.store.models
    parts.store.models = [attrs.evolve(model, architecture="bert")]
    asked = embedding()
    with pytest.raises(InvalidParameter, match="does not generate text"):
        await inference_over(parts).begin(
            attrs.evolve(asked, request=attrs.evolve(asked.request, prompt=TextPrompt("hi")))
        )
    assert parts.scheduler.acquired == []
    assert (await inference_over(parts).embed(asked)).vectors
