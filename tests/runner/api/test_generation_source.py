"""Streamed answers as the server pulls them: held heads, signs of life, text, every kind of end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
import trio

from runner.api.generation_source import HEAD_HELD_S, IDLE_S, GenerationSource, hold_head
from runner.api.inference import Demand, Inference
from runner.domain.events import Accepted, Failed, Finished, GenerationEvent, TextDelta
from runner.domain.generation import GenerationRequest, TextPrompt
from runner.errors import ContextLengthExceeded, Draining, QueueFull, ReaderTooSlow, RunnerError
from runner.oci.reference import ModelName
from tests.support.fake_handles import FakeParts, FakeWorker, finished, spoken

pytestmark = pytest.mark.anyio


class PlainEncoder:
    """Shows what was asked of it, in a form that reads well."""

    def opening(self, fingerprint: str) -> bytes:
        return b"<open>"

    def encode(self, events: Iterable[GenerationEvent]) -> bytes:
        shown = {TextDelta: lambda e: e.text, Finished: lambda _: "<end>", Failed: lambda e: f"<{e.code}>"}
        return "".join(shown[type(event)](event) for event in events if type(event) in shown).encode()

    def error(self, error: RunnerError) -> bytes:
        return f"<error {error.code}>".encode()

    def idle(self) -> bytes:
        return b"<idle>"


class SilentOpening(PlainEncoder):
    def opening(self, fingerprint: str) -> bytes:
        return b""


@asynccontextmanager
async def source_over(
    parts: FakeParts, encoder: PlainEncoder | None = None
) -> AsyncIterator[GenerationSource]:
    request = GenerationRequest(request_id="r1", prompt=TextPrompt("Why?"))
    demand = Demand(name=ModelName.parse("ai/smollm2:135M-Q4_1"), request=request)
    inference = Inference(parts.store, parts.scheduler)  # type: ignore[arg-type]  # fakes
    async with trio.open_nursery() as nursery:
        opening = inference.begin_soon(demand, nursery)
        await hold_head(opening)
        source = GenerationSource(opening, encoder or PlainEncoder())
        try:
            yield source
        finally:
            source.close()
    assert parts.scheduler.outstanding == 0


async def chunks_of(source: GenerationSource) -> list[bytes]:
    chunks = []
    while chunk := await source.next_chunk():
        chunks.append(chunk)
    return chunks


@pytest.fixture(autouse=True)
def bounded(virtual_clock) -> None:
    """All of these wait for seconds that nobody should spend."""


def worker_of(parts: FakeParts) -> FakeWorker:
    return parts.scheduler.workers[0]


async def test_everything_that_is_ready_leaves_in_one_chunk() -> None:
    parts = FakeParts.make(lambda _: spoken("Be", "cause"))
    async with source_over(parts) as source:
        assert await chunks_of(source) == [b"<open>", b"Because<end>"]
        assert await source.next_chunk() == b""
    assert worker_of(parts).cancelled == []


async def test_a_dialect_without_an_opening_starts_with_its_text() -> None:
    async with source_over(FakeParts.make(lambda _: spoken("Be")), SilentOpening()) as source:
        assert await source.next_chunk() == b"Be<end>"


async def test_events_that_make_no_bytes_do_not_end_the_answer() -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1)])
    async with source_over(parts, SilentOpening()) as source:
        stream = worker_of(parts).streams[0]
        async with trio.open_nursery() as nursery:

            async def speak() -> None:
                for text in ("", "", "a", "", "b"):
                    await trio.sleep(1)
                    stream.deliver([TextDelta(text, 1)])
                await trio.sleep(1)
                stream.deliver([finished()])

            nursery.start_soon(speak)
            assert await chunks_of(source) == [b"a", b"b", b"<end>"]


async def test_an_error_within_the_held_head_is_raised_so_that_it_has_a_status() -> None:
    too_long = Failed(code="context_length_exceeded", message="", prompt_tokens=9, context_size=8)
    for parts, kind in (
        (FakeParts.make(lambda _: [too_long]), ContextLengthExceeded),
        (FakeParts.make(), QueueFull),
    ):
        if kind is QueueFull:
            parts.scheduler.refusal = QueueFull("full")
        with pytest.raises(ExceptionGroup) as caught:
            async with source_over(parts):
                pytest.fail("the head has left")
        assert isinstance(caught.value.exceptions[0], kind)
        assert parts.scheduler.outstanding == 0


@pytest.mark.parametrize(
    ("accepted_after_s", "head_after_s", "n_idle"),
    [(14.0, 14.0, 0), (15.0, 15.0, 0), (16.0, 15.0, 0), (29.0, 15.0, 0), (31.0, 15.0, 1), (46.0, 15.0, 2)],
)
async def test_the_head_is_held_for_15_s_and_then_a_comment_leaves_every_15_s(
    accepted_after_s: float, head_after_s: float, n_idle: int
) -> None:
    assert HEAD_HELD_S == IDLE_S == 15.0
    parts = FakeParts.make(lambda _: spoken("Be"))
    parts.scheduler.gate = trio.Event()
    started_s = trio.current_time()

    async def open_gate() -> None:
        await trio.sleep(accepted_after_s)
        parts.scheduler.gate.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_gate)
        async with source_over(parts) as source:
            assert trio.current_time() - started_s == pytest.approx(head_after_s)
            assert await chunks_of(source) == [*[b"<idle>"] * n_idle, b"<open>", b"Be<end>"]


async def test_an_error_after_the_head_has_left_is_an_event_and_ends_the_answer() -> None:
    parts = FakeParts.make()
    parts.scheduler.gate = trio.Event()
    parts.scheduler.refusal = QueueFull("full")
    async with source_over(parts) as source:
        parts.scheduler.gate.set()
        assert await chunks_of(source) == [b"<error queue_full>"]
        assert await source.next_chunk() == b""


async def test_a_long_prefill_shows_signs_of_life() -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1)])
    async with source_over(parts) as source:
        assert await source.next_chunk() == b"<open>"
        assert await source.next_chunk() == b"<idle>"
        assert await source.next_chunk() == b"<idle>"
        worker_of(parts).streams[0].deliver([TextDelta("Be", 1), finished()])
        assert await source.next_chunk() == b"Be<end>"


async def test_L01_a_crash_in_mid_stream_is_an_error_event_after_the_text_and_no_end() -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1), TextDelta("Be", 1)])
    async with source_over(parts) as source:
        worker_of(parts).die()
        assert await chunks_of(source) == [b"<open>", b"Be", b"<error worker_crashed>"]
    assert len(parts.scheduler.acquired) == 1


async def test_L01_a_crash_while_the_head_is_held_is_tried_once_more() -> None:
    parts = FakeParts.make(lambda _: [], lambda _: spoken("fine"))
    dying = worker_of(parts)

    async def kill() -> None:
        await trio.sleep(1)
        dying.die()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        async with source_over(parts) as source:
            assert await chunks_of(source) == [b"<open>", b"fine<end>"]


async def test_a_generation_that_fails_ends_with_its_error_and_no_end() -> None:
    failure = Failed(code="engine_failed", message="")
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1), TextDelta("Be", 1), failure])
    async with source_over(parts) as source:
        assert await chunks_of(source) == [b"<open>", b"Be<engine_failed>"]


async def test_L09_an_answer_that_the_server_ends_gets_an_error_event_and_nothing_after_it() -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1), TextDelta("Be", 1)])
    async with source_over(parts) as source:
        assert await source.next_chunk() == b"<open>"
        assert source.abort(Draining()) == b"<error draining>"
        assert await source.next_chunk() == b""
    assert worker_of(parts).cancelled == ["r1"]


async def test_N24_a_reader_that_fell_behind_gets_an_error_event() -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1)])
    async with source_over(parts) as source:
        assert await source.next_chunk() == b"<open>"
        worker_of(parts).streams[0].deliver([TextDelta("x" * (1 << 20), 1), TextDelta("x", 1)])
        assert await chunks_of(source) == [f"<error {ReaderTooSlow.code}>".encode()]
    assert worker_of(parts).cancelled == ["r1"]


@pytest.mark.parametrize("chunks_read", [0, 1, 2])
async def test_N23_a_client_that_goes_away_cancels_the_sequence_at_once(chunks_read: int) -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1), TextDelta("Be", 1)])
    async with source_over(parts) as source:
        for _ in range(chunks_read):
            await source.next_chunk()
        source.close()
        assert worker_of(parts).cancelled == ["r1"]
        assert parts.scheduler.outstanding == 0


async def test_a_cancelled_hold_closes_what_was_being_opened() -> None:
    parts = FakeParts.make()
    with trio.move_on_after(1):
        async with source_over(parts):
            pytest.fail("the head has left")
    assert parts.scheduler.outstanding == 0
    assert worker_of(parts).cancelled == ["r1"]
