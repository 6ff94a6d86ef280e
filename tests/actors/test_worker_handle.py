"""What a lease holds of a worker: requests out, steps fanned out, ends."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from actors.watchdog import WatchdogRules, WorkWatch
from actors.worker_handle import Outbox, WorkerHandle
from runner.domain.events import Accepted, Finished, FinishReason, TextDelta, Timings, Usage
from runner.domain.generation import GenerationRequest, TextPrompt
from runner.errors import ReaderTooSlow, Unavailable, WorkerCrashed
from runner.wire.codec import ToWorkerDecoder, encode
from runner.wire.messages import Cancel, CloseAnnex, Generate, Loaded, SetThreads, Step, StepEvent, ToWorker

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_clock")]

LOADED = Loaded(
    engine_version="b1",
    context_size=100,
    trained_context_size=100,
    n_vocab=10,
    n_cells=200,
    max_sequences=4,
    load_s=0.1,
)
FINISHED = Finished(
    reason=FinishReason.STOP,
    usage=Usage(prompt_tokens=1, completion_tokens=1),
    timings=Timings(queued_s=0, prefill_s=0, decode_s=0),
)


def make_handle(outbox: Outbox) -> WorkerHandle:
    return WorkerHandle(
        model="ai/tiny",
        loaded=LOADED,
        pid=17,
        outbox=outbox,
        resident_bytes=lambda: 4096,
        watch=WorkWatch(WatchdogRules(step_s=10, step_bytes_per_s=1e9), 0),
        n_threads=4,
    )


def request(request_id: str, text: str = "hi") -> GenerationRequest:
    return GenerationRequest(request_id=request_id, prompt=TextPrompt(text))


def step(*events: tuple[str, StepEvent], index: int = 1, tokens: int = 1) -> Step:
    return Step(
        step_index=index,
        prefill_tokens=2,
        decode_tokens=tokens,
        running=1,
        waiting=3,
        cells_used=5,
        events=events,
    )


async def sent(outbox: Outbox) -> list[ToWorker]:
    decoder = ToWorkerDecoder()
    messages: list[ToWorker] = []
    with trio.move_on_after(1):
        while True:
            messages += decoder.feed(await outbox.take())
    return messages


async def test_opening_sends_the_request_and_closing_sends_a_cancel() -> None:
    outbox = Outbox(1000)
    handle = make_handle(outbox)
    with handle.open_stream(request("r1")):
        assert handle.status().open_streams == 1
    assert handle.status().open_streams == 0
    assert await sent(outbox) == [Generate(request("r1")), Cancel("r1")]


async def test_a_step_is_fanned_out_to_its_streams_in_order() -> None:
    handle = make_handle(Outbox(1000))
    one, two = handle.open_stream(request("r1")), handle.open_stream(request("r2"))
    events: list[tuple[str, StepEvent]] = [
        ("r1", Accepted(prompt_tokens=1)),
        ("r2", Accepted(prompt_tokens=2)),
        ("r1", TextDelta("a", 1)),
        ("nobody", TextDelta("b", 1)),
    ]
    handle.deliver(step(*events))
    assert await one.receive() == [Accepted(prompt_tokens=1), TextDelta("a", 1)]
    assert await two.receive() == [Accepted(prompt_tokens=2)]


async def test_a_generation_that_ended_is_forgotten_and_its_id_is_free() -> None:
    outbox = Outbox(1000)
    handle = make_handle(outbox)
    with handle.open_stream(request("r1")) as stream:
        handle.deliver(step(("r1", FINISHED)))
        assert handle.status().open_streams == 0
        assert await stream.receive() == [FINISHED]
    handle.open_stream(request("r1")).close()
    assert [type(message) for message in await sent(outbox)] == [Generate, Generate, Cancel]


async def test_an_id_that_is_open_is_refused() -> None:
    handle = make_handle(Outbox(1000))
    handle.open_stream(request("r1"))
    with pytest.raises(ValueError, match="open already"):
        handle.open_stream(request("r1"))


async def test_N24_the_sequence_of_a_reader_that_is_too_slow_is_cancelled() -> None:
    outbox = Outbox(1000)
    handle = make_handle(outbox)
    slow, quick = handle.open_stream(request("slow")), handle.open_stream(request("quick"))
    for _ in range(3):
        handle.deliver(step(("slow", TextDelta("x" * 500_000, 1)), ("quick", TextDelta("a", 1))))
    assert len(await quick.receive()) == 3
    with pytest.raises(ReaderTooSlow):
        await slow.receive()
    assert (await sent(outbox))[-1] == Cancel("slow")
    assert handle.open_request_ids == ("quick",)


async def test_counters_are_those_of_the_last_step_and_sums_of_all() -> None:
    handle = make_handle(Outbox(1000))
    handle.deliver(step(index=1, tokens=4))
    handle.deliver(step(index=2, tokens=6))
    counters = handle.status()
    assert (counters.step_index, counters.prefill_tokens, counters.decode_tokens) == (2, 4, 10)
    assert (counters.running_sequences, counters.waiting_sequences, counters.cells_used) == (1, 3, 5)
    assert (counters.pid, counters.resident_bytes) == (17, 4096)


async def test_L01_the_end_of_the_worker_reaches_every_stream_and_refuses_new_ones() -> None:
    outbox = Outbox(1000)
    handle = make_handle(outbox)
    streams = [handle.open_stream(request(f"r{n}")) for n in range(3)]
    assert "3 streams open" in repr(handle)
    handle.fail(WorkerCrashed(model="ai/tiny", cause="exit code 3"))
    for stream in streams:
        with pytest.raises(WorkerCrashed, match="exit code 3"):
            await stream.receive()
        stream.close()
    with pytest.raises(Unavailable):
        handle.open_stream(request("r9"))
    assert handle.status().resident_bytes == 0
    assert "ended" in repr(handle)
    assert not any(isinstance(message, Cancel) for message in await sent(outbox))


async def test_L07_the_watch_knows_who_waits_from_opening_to_end() -> None:
    handle = make_handle(Outbox(1000))
    await trio.sleep(100)
    assert handle.watch.is_idle
    with handle.open_stream(request("r1")):
        handle.open_stream(request("r2"))
        handle.deliver(step(("r1", Accepted(prompt_tokens=2)), ("r2", Accepted(prompt_tokens=2))))
        handle.deliver(step(("r2", FINISHED)))
        await trio.sleep(5)
        assert handle.watch.due_s == pytest.approx(trio.current_time() + 5, abs=0.1)
    assert handle.watch.is_idle


async def test_whoever_waits_for_use_learns_of_it_and_at_once_when_it_is_in_use() -> None:
    handle = make_handle(Outbox(1000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handle.until_used)
        await trio.sleep(100)
        assert len(nursery.child_tasks) == 1
        handle.open_stream(request("r1"))
    await handle.until_used()


async def test_a_worker_that_does_not_read_is_not_sent_more_than_the_limit() -> None:
    size = len(encode(Generate(request("r1", "x" * 50))))
    outbox = Outbox(2 * size)
    handle = make_handle(outbox)
    first = handle.open_stream(request("r1", "x" * 50))
    handle.open_stream(request("r2", "x" * 50))
    with pytest.raises(Unavailable, match="not reading"):
        handle.open_stream(request("r3", "x" * 50))
    first.close()
    assert "3 waiting" in repr(outbox)  # a cancel always finds room
    assert len(await sent(outbox)) == 3
    handle.open_stream(request("r3", "x" * 50))


# ---- activity and threads


async def test_the_first_stream_and_the_end_of_the_last_are_told() -> None:
    handle = make_handle(Outbox(1000))
    told: list[bool] = []
    handle.on_activity = told.append
    one, two = handle.open_stream(request("r1")), handle.open_stream(request("r2"))
    assert told == [True]
    handle.deliver(step(("r1", TextDelta("a", 1)), ("r1", FINISHED)))
    one.close()
    assert told == [True]
    two.close()
    assert told == [True, False]
    handle.open_stream(request("r3"))
    handle.fail(WorkerCrashed(model="ai/tiny", cause="signal SIGSEGV"))
    assert told == [True, False, True, False]


async def test_a_request_that_is_refused_is_no_activity() -> None:
    outbox = Outbox(10)
    handle = make_handle(outbox)
    told: list[bool] = []
    handle.on_activity = told.append
    with pytest.raises(Unavailable):
        handle.open_stream(request("r1", "x" * 100))
    assert told == []


async def test_threads_go_before_requests_that_wait_and_the_newest_number_wins() -> None:
    outbox = Outbox(1000)
    handle = make_handle(outbox)
    handle.open_stream(request("r1"))
    handle.set_threads(2)
    handle.set_threads(3)
    assert await sent(outbox) == [SetThreads(3), Generate(request("r1"))]


async def test_a_number_of_threads_that_the_worker_has_already_is_not_sent() -> None:
    outbox = Outbox(1000)
    handle = make_handle(outbox)
    handle.set_threads(4)  # what it was loaded with
    assert await sent(outbox) == []
    handle.set_threads(2)
    assert await sent(outbox) == [SetThreads(2)]
    handle.set_threads(2)
    handle.fail(Unavailable("gone"))
    handle.set_threads(1)
    assert await sent(outbox) == []


async def test_closing_what_embeddings_take_waits_for_the_worker_to_say_so() -> None:
    outbox = Outbox(1000)
    handle = make_handle(outbox)
    assert not handle.annex_closed(), "nobody has asked for it"
    answers: list[bool] = []

    async def close() -> None:
        answers.append(await handle.close_annex())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        assert await sent(outbox) == [CloseAnnex()]
        assert answers == []
        assert handle.annex_closed()
        assert not handle.annex_closed(), "once is enough"
    assert answers == [True]


@pytest.mark.parametrize("fails_first", [False, True])
async def test_a_worker_that_goes_gives_nothing_back_before_its_end(fails_first: bool) -> None:
    handle = make_handle(Outbox(1000))
    answers: list[bool] = []

    async def close() -> None:
        answers.append(await handle.close_annex())

    if fails_first:
        handle.fail(Unavailable("gone"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        await trio.testing.wait_all_tasks_blocked()
        handle.fail(Unavailable("gone"))
    await handle.until_failed()
    assert answers == [False]
