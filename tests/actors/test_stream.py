"""One generation's events: order, waking, bounds, ends."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from actors.stream import UNDELIVERED_LIMIT_BYTES, UNDELIVERED_LIMIT_EVENTS, GenerationStream
from runner.domain.events import (
    Accepted,
    Embedded,
    Failed,
    Finished,
    FinishReason,
    TextDelta,
    Timings,
    Usage,
)
from runner.errors import ReaderTooSlow, WorkerCrashed

pytestmark = pytest.mark.anyio

FINISHED = Finished(
    reason=FinishReason.STOP,
    usage=Usage(prompt_tokens=1, completion_tokens=1),
    timings=Timings(queued_s=0, prefill_s=0, decode_s=0),
)
CRASH = WorkerCrashed(model="ai/tiny", cause="signal SIGSEGV")


class Closed:
    """Which streams told their keeper that they were left."""

    def __init__(self) -> None:
        self.request_ids: list[str] = []

    def stream(self) -> GenerationStream:
        return GenerationStream("r1", self.request_ids.append)


@pytest.fixture
def closed() -> Closed:
    return Closed()


async def test_everything_queued_is_received_at_once_and_in_order(closed: Closed) -> None:
    stream = closed.stream()
    stream.deliver([Accepted(prompt_tokens=3), TextDelta("a", 1)])
    stream.deliver([TextDelta("b", 1)])
    assert await stream.receive() == [Accepted(prompt_tokens=3), TextDelta("a", 1), TextDelta("b", 1)]


async def test_a_waiting_reader_is_woken_once_per_delivery(closed: Closed) -> None:
    stream = closed.stream()
    received: list[object] = []

    async def read() -> None:
        while events := await stream.receive():
            received.append(events)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            stream.deliver([TextDelta("a", 1), TextDelta("b", 1)])
            await trio.testing.wait_all_tasks_blocked()
            stream.deliver([FINISHED])
    assert received == [[TextDelta("a", 1), TextDelta("b", 1)], [FINISHED]]


@pytest.mark.parametrize("end", [FINISHED, Failed(code="template_failed", message="no")])
async def test_after_its_end_a_stream_stays_empty_and_closing_tells_nobody(
    closed: Closed, end: Finished | Failed
) -> None:
    with closed.stream() as stream:
        stream.deliver([end, TextDelta("late", 1)])
        stream.deliver([TextDelta("later", 1)])
        assert await stream.receive() == [end]
        assert await stream.receive() == []
        assert stream.has_ended
        assert "ended" in repr(stream)
    assert closed.request_ids == []


async def test_closing_before_the_end_cancels_the_sequence_once(closed: Closed) -> None:
    stream = closed.stream()
    stream.deliver([TextDelta("a", 1)])
    stream.close()
    stream.close()
    stream.deliver([TextDelta("b", 1)])
    assert closed.request_ids == ["r1"]
    assert await stream.receive() == []
    assert "closed" in repr(stream)


async def test_closing_wakes_a_reader(closed: Closed) -> None:
    stream = closed.stream()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive)
            await trio.testing.wait_all_tasks_blocked()
            stream.close()


async def test_L01_what_was_queued_is_delivered_before_the_crash_is_raised(closed: Closed) -> None:
    stream = closed.stream()
    stream.deliver([TextDelta("a", 1)])
    stream.fail(CRASH)
    assert await stream.receive() == [TextDelta("a", 1)]
    for _ in range(2):
        with pytest.raises(WorkerCrashed, match="SIGSEGV"):
            await stream.receive()
    stream.close()
    assert closed.request_ids == []


async def test_L01_a_waiting_reader_gets_the_crash(closed: Closed) -> None:
    stream = closed.stream()

    async def read() -> None:
        with pytest.raises(WorkerCrashed):
            await stream.receive()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            stream.fail(CRASH)
    assert "failed" in repr(stream)


async def test_a_crash_after_the_end_changes_nothing(closed: Closed) -> None:
    stream = closed.stream()
    stream.deliver([FINISHED])
    stream.fail(CRASH)
    assert await stream.receive() == [FINISHED]
    assert await stream.receive() == []


@pytest.mark.parametrize("letter", ["x", "é", "你"])
async def test_N24_text_up_to_the_limit_waits_for_its_reader(closed: Closed, letter: str) -> None:
    size = len(letter.encode())
    text = letter * (UNDELIVERED_LIMIT_BYTES // size) + "x" * (UNDELIVERED_LIMIT_BYTES % size)
    stream = closed.stream()
    stream.deliver([TextDelta(text[:-1], 1)])
    stream.deliver([TextDelta(text[-1], 1)])
    assert len(await stream.receive()) == 2
    stream.deliver([TextDelta(text, 1)])  # what was received does not count any more
    assert len(await stream.receive()) == 1
    stream.close()


async def test_N24_text_beyond_the_limit_ends_the_sequence_and_the_reader(closed: Closed) -> None:
    stream = closed.stream()
    stream.deliver([TextDelta("x" * UNDELIVERED_LIMIT_BYTES, 1)])
    stream.deliver([TextDelta("x", 1)])
    assert closed.request_ids == ["r1"]
    stream.deliver([TextDelta("x", 1)])
    with pytest.raises(ReaderTooSlow):
        await stream.receive()
    stream.close()
    assert closed.request_ids == ["r1"]


async def test_W07_events_without_text_are_bounded_too(closed: Closed) -> None:
    stream = closed.stream()
    stream.deliver([TextDelta("", 0)] * UNDELIVERED_LIMIT_EVENTS)
    assert closed.request_ids == []
    stream.deliver([TextDelta("", 0)])
    assert closed.request_ids == ["r1"]


async def test_only_one_task_may_read(closed: Closed) -> None:
    stream = closed.stream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await stream.receive()
        nursery.cancel_scope.cancel()
    assert "open" in repr(stream)


async def test_a_cancelled_reader_loses_nothing(closed: Closed) -> None:
    stream = closed.stream()
    stream.deliver([TextDelta("a", 1)])
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.receive()
    assert await stream.receive() == [TextDelta("a", 1)]
    stream.close()


async def test_N24_vectors_that_nobody_reads_count_as_text_does(closed: Closed) -> None:
    stream = closed.stream()
    half = Embedded(0, b"x" * (UNDELIVERED_LIMIT_BYTES // 2))
    stream.deliver([half, half])
    assert await stream.receive() == [half, half]
    stream.deliver([half, half, Embedded(1, b"xxxx")])
    with pytest.raises(ReaderTooSlow):
        await stream.receive()
    assert closed.request_ids == ["r1"]
