"""Cores among workers: who is told which number of threads, and when, with handles whose worker is nobody."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from actors.cores import (
    FIRST_LOOK_S,
    LOOK_INTERVAL_S,
    CoreSharing,
    WorkReading,
    count_busy_now,
    read_work,
)
from actors.stream import GenerationStream
from actors.watchdog import WatchdogRules, WorkWatch
from actors.worker import KeeperEvent, WorkerFailing, WorkerReady, WorkerSpec
from actors.worker_handle import Outbox, WorkerHandle
from runner.domain.generation import GenerationRequest, TextPrompt
from runner.errors import WorkerCrashed
from runner.wire.codec import ToWorkerDecoder
from runner.wire.messages import Loaded, SetThreads, ToWorker
from tests.support.kept_worker import worker_spec

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_clock")]

LOADED = Loaded(
    engine_version="x",
    context_size=1,
    trained_context_size=1,
    n_vocab=1,
    n_cells=1,
    max_sequences=1,
    load_s=0,
)
TICK_S = 0.001


@attrs.define
class Machine:
    """`others` cores are kept busy by other programs, and `ours` by our workers."""

    others: float = 0.0
    ours: float = 0.0
    others_s: float = 0.0
    ours_s: float = 0.0
    reads: int = 0
    is_silent: bool = False
    _at_s: float = attrs.field(factory=trio.current_time)

    def run_until_now(self) -> None:
        elapsed_s = trio.current_time() - self._at_s
        self._at_s += elapsed_s
        self.others_s += elapsed_s * self.others
        self.ours_s += elapsed_s * self.ours

    def read(self) -> WorkReading | None:
        self.reads += 1
        if self.is_silent:
            return None
        self.run_until_now()
        return WorkReading(at_s=self._at_s, busy_s=self.others_s + self.ours_s, ours_s=self.ours_s)

    def count_busy(self) -> int | None:
        return math.ceil(self.others)


@attrs.define
class Worker:
    """A keeper's end and a lease's end of one worker."""

    handle: WorkerHandle
    report: Callable[[KeeperEvent], None]
    gone: trio.Event
    _outbox: Outbox
    _streams: list[GenerationStream] = attrs.field(factory=list)
    _n_requests: int = 0

    def use(self) -> None:
        self._n_requests += 1
        request = GenerationRequest(request_id=f"r{self._n_requests}", prompt=TextPrompt("x"))
        self._streams.append(self.handle.open_stream(request))

    def leave(self) -> None:
        self._streams.pop().close()

    async def messages(self) -> list[ToWorker]:
        """What has been sent since the last call."""
        decoder, found = ToWorkerDecoder(), list[ToWorker]()
        with trio.move_on_after(TICK_S):
            while True:
                found += decoder.feed(await self._outbox.take())
        return found

    async def threads(self) -> list[int]:
        return [message.n_threads for message in await self.messages() if isinstance(message, SetThreads)]


@attrs.define
class World:
    sharing: CoreSharing
    machine: Machine
    nursery: trio.Nursery
    workers: list[Worker] = attrs.field(factory=list)
    events: list[KeeperEvent] = attrs.field(factory=list)

    async def start(self, *, threads_max: int = 8) -> Worker:
        spec = worker_spec()
        spec = attrs.evolve(spec, options=attrs.evolve(spec.options, n_threads=threads_max))
        self.nursery.start_soon(self.sharing.launch, spec, self.events.append)
        await trio.testing.wait_all_tasks_blocked()
        return self.workers[-1]

    async def keep(self, spec: WorkerSpec, report: Callable[[KeeperEvent], None]) -> None:
        """A keeper whose worker is ready at once."""
        outbox = Outbox(10_000)
        handle = WorkerHandle(
            model="ai/tiny",
            loaded=LOADED,
            pid=100 + len(self.workers),
            outbox=outbox,
            resident_bytes=lambda: 0,
            watch=WorkWatch(WatchdogRules(), 0),
            n_threads=spec.options.n_threads,
        )
        worker = Worker(handle, report, trio.Event(), outbox)
        self.workers.append(worker)
        report(WorkerReady(handle, LOADED))
        await worker.gone.wait()


@asynccontextmanager
async def world(n_cores: int = 8, n_processors: int | None = None) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        machine = Machine()
        kept: list[World] = []

        async def launch(spec: WorkerSpec, report: Callable[[KeeperEvent], None]) -> None:
            await kept[0].keep(spec, report)

        sharing = CoreSharing(
            launch, n_cores, n_processors=n_processors, read=machine.read, count_busy=machine.count_busy
        )
        kept.append(World(sharing, machine, nursery))
        await nursery.start(sharing.run)
        yield kept[0]
        nursery.cancel_scope.cancel()


# ---- the division


async def test_a_worker_alone_keeps_all_threads_and_is_told_nothing() -> None:
    async with world() as w:
        worker = await w.start()
        worker.use()
        assert await worker.threads() == []


async def test_two_active_workers_get_half_each_and_all_when_the_other_is_done() -> None:
    async with world() as w:
        one, two = await w.start(), await w.start()
        one.use()
        two.use()
        assert await one.threads() == [4]
        assert await two.threads() == [4]
        one.leave()
        assert await two.threads() == [8]
        assert await one.threads() == []


async def test_a_worker_knows_its_share_before_it_reads_its_request() -> None:
    async with world() as w:
        one, two = await w.start(), await w.start()
        one.use()
        two.use()
        assert [type(message).__name__ for message in await two.messages()] == ["SetThreads", "Generate"]


async def test_only_the_newest_of_the_numbers_that_a_worker_has_not_read_is_sent() -> None:
    async with world() as w:
        one, two, three = await w.start(), await w.start(), await w.start()
        for worker in (one, two, three):
            worker.use()
        assert await one.threads() == [3]
        assert await three.threads() == [2]


async def test_more_requests_of_an_active_worker_change_nothing() -> None:
    async with world() as w:
        one, two = await w.start(), await w.start()
        one.use()
        two.use()
        await one.messages()
        one.use()
        two.use()
        one.leave()
        assert await one.threads() == []


async def test_an_idle_worker_takes_no_part() -> None:
    async with world() as w:
        one, two = await w.start(), await w.start()
        two.use()
        assert await two.threads() == []
        assert await one.messages() == []


async def test_a_worker_that_can_use_few_threads_leaves_the_rest_to_others() -> None:
    async with world() as w:
        small, large = await w.start(threads_max=2), await w.start()
        small.use()
        large.use()
        assert await small.threads() == []
        assert await large.threads() == [6]


@pytest.mark.parametrize("how", ["failing", "gone", "failed handle"])
async def test_the_cores_of_a_worker_that_goes_are_the_others(how: str) -> None:
    async with world() as w:
        one, two = await w.start(), await w.start()
        one.use()
        two.use()
        await two.messages()
        match how:
            case "failing":
                one.report(WorkerFailing("x"))
            case "gone":
                one.gone.set()
                await trio.testing.wait_all_tasks_blocked()
            case _:
                one.handle.fail(WorkerCrashed(model="ai/tiny", cause="x"))
        assert await two.threads() == [8]


async def test_events_of_keepers_pass_through() -> None:
    async with world() as w:
        worker = await w.start()
        worker.report(WorkerFailing("x"))
        assert [type(event) for event in w.events] == [WorkerReady, WorkerFailing]


# ---- what others take


async def test_cores_that_others_keep_busy_are_given_up_and_taken_back() -> None:
    async with world() as w:
        worker = await w.start()
        w.machine.others = 2.0
        worker.use()
        await trio.sleep(FIRST_LOOK_S)
        assert await worker.threads() == [6]
        w.machine.others = 0.0
        await trio.sleep(2 * LOOK_INTERVAL_S)
        assert (await worker.threads())[-1] == 8


async def test_what_our_own_workers_use_is_not_taken_for_others() -> None:
    async with world() as w:
        worker = await w.start()
        w.machine.ours = 8.0
        worker.use()
        await trio.sleep(FIRST_LOOK_S + 3 * LOOK_INTERVAL_S)
        assert await worker.threads() == []


async def test_what_is_left_is_divided_among_active_workers() -> None:
    async with world() as w:
        one, two = await w.start(), await w.start()
        w.machine.others = 1.0
        one.use()
        await trio.sleep(FIRST_LOOK_S)
        assert await one.threads() == [7]
        two.use()
        assert await one.threads() == [4]
        assert await two.threads() == [3]


async def test_nobody_looks_while_nobody_is_active() -> None:
    async with world() as w:
        worker = await w.start()
        worker.use()
        await trio.sleep(10)
        worker.leave()
        await trio.sleep(2 * LOOK_INTERVAL_S)
        reads = w.machine.reads
        await trio.sleep(1000)
        assert w.machine.reads == reads


async def test_short_requests_that_follow_each_other_are_looked_at_too() -> None:
    async with world() as w:
        worker = await w.start()
        w.machine.others = 1.0
        for _ in range(30):
            worker.use()
            await trio.sleep(0.05)
            worker.leave()
            await trio.sleep(0.05)
        assert await worker.threads() == [7]


async def test_a_system_that_tells_nothing_leaves_all_cores_to_us() -> None:
    async with world() as w:
        worker = await w.start()
        w.machine.is_silent = True
        worker.use()
        await trio.sleep(10)
        assert await worker.threads() == []
        assert w.sharing.n_cores_left == 8


async def test_others_first_take_processors_that_we_do_not_use() -> None:
    async with world(n_cores=2, n_processors=8) as w:
        worker = await w.start(threads_max=2)
        w.machine.others = 6.0
        worker.use()
        await trio.sleep(2)
        assert await worker.threads() == []


async def test_what_was_seen_long_ago_does_not_slow_the_next_answer() -> None:
    async with world() as w:
        worker = await w.start()
        w.machine.others = 4.0
        worker.use()
        await trio.sleep(2)
        worker.leave()
        await trio.sleep(2)
        assert (await worker.threads())[-1] == 4
        w.machine.run_until_now()
        w.machine.others = 0.0
        await trio.sleep(100)
        worker.use()
        assert await worker.threads() == [8]


async def test_what_has_been_there_all_along_is_known_at_once() -> None:
    async with world() as w:
        worker = await w.start()
        worker.use()
        worker.leave()
        await trio.sleep(2)
        w.machine.others = 3.0
        await trio.sleep(600)
        worker.use()
        assert await worker.threads() == [5]


async def test_who_was_busy_until_just_now_does_not_slow_the_answer() -> None:
    async with world() as w:
        worker = await w.start()
        worker.use()
        worker.leave()
        await trio.sleep(2)
        w.machine.others = 3.0
        await trio.sleep(600)
        w.machine.run_until_now()
        w.machine.others = 0.0
        worker.use()
        assert await worker.threads() == []
        w.machine.others = 3.0
        await trio.sleep(2)
        assert await worker.threads() == [5], "they have come back"


# ---- readings


async def test_who_works_in_our_pauses_only_takes_no_cores() -> None:
    async with world() as w:
        worker = await w.start()
        for _ in range(20):
            worker.use()
            await trio.sleep(0.6)
            worker.leave()
            w.machine.run_until_now()
            w.machine.others = 3.0
            await trio.sleep(0.7)
            w.machine.run_until_now()
            w.machine.others = 0.0
        assert await worker.threads() == []


async def test_this_machine_tells() -> None:
    found = read_work()
    assert found is not None
    assert found.busy_s > 0
    assert found.ours_s > 0
    n_busy = count_busy_now()
    assert n_busy is not None
    assert n_busy >= 0
