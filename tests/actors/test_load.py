"""One load as a task: whom it asks for sizes, and what it lets be watched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import pytest
import trio
import trio.testing

from actors.load import LoadNews, LoadOver, LoadTask, Measured, NotMeasured, Workshop
from actors.sizing import EngineSettings, LoadedWorker, Sized, Watch
from runner.domain.device_bytes import DeviceBytes
from runner.domain.engine import DeviceBuffers, EngineOptions
from runner.domain.model import ModelFiles
from runner.memory.budget import Budgets
from runner.memory.footprint import Footprint
from tests.support.scheduler_bench import CountingStore, FakeKeepers, model_named

pytestmark = pytest.mark.anyio

BUDGET = 10**9
BUDGETS = Budgets(DeviceBytes.on_host(BUDGET), DeviceBytes.on_host(BUDGET))
SIZED = Sized(
    options=EngineOptions(context_size=300, n_cells=512, key_type="q8_0"),
    footprint=Footprint(devices=(DeviceBuffers(device="cpu", weights_bytes=7),), overhead_bytes=5),
)


@attrs.define
class RecordingSizer:
    """Takes a second, and tells what it saw."""

    asked: list[tuple[ModelFiles, EngineSettings, DeviceBytes]] = attrs.field(factory=list)
    watched: list[object] = attrs.field(factory=list)
    error: Exception | None = None

    async def size(self, files: ModelFiles, engine: EngineSettings, budget: DeviceBytes) -> Sized:
        self.asked.append((files, engine, budget))
        await trio.sleep(1)
        if self.error is not None:
            raise self.error
        return SIZED

    @contextmanager
    def watch(self, sized: Sized) -> Iterator[Watch]:
        assert sized is SIZED
        self.watched.append("begin")

        def see(worker: LoadedWorker) -> None:
            self.watched.append(worker.pid)

        try:
            yield see
        finally:
            self.watched.append("end")


@attrs.define
class Bench:
    sizer: RecordingSizer = attrs.field(factory=RecordingSizer)
    store: CountingStore = attrs.field(factory=CountingStore)
    keepers: FakeKeepers = attrs.field(factory=FakeKeepers)
    news: list[LoadNews] = attrs.field(factory=list)

    def task(self, context_size: int = 0) -> LoadTask:
        model = self.store.add(model_named("a"))
        shop = Workshop(
            store=self.store,
            launch=self.keepers,
            measure_budgets=self.measure_budgets,
            sizer=self.sizer,
            engine=EngineSettings(context_size=999),
            tell=self.news.append,
            report=lambda notice: None,
        )
        return LoadTask(1, model.id, context_size, shop)

    async def measure_budgets(self) -> Budgets:
        await trio.lowlevel.checkpoint()
        return BUDGETS

    def assert_nothing_left(self) -> None:
        assert self.keepers.running == {}
        assert repr(self.store.pins) == "<Pins 0 leases on 0 models, 0 blobs held>"


async def test_the_sizer_chooses_what_is_reserved_and_what_the_worker_gets(
    virtual_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    task = bench.task()
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.run)
            await trio.sleep(5)
            assert bench.news == [
                Measured(load_id=1, options=SIZED.options, footprint=SIZED.footprint, budgets=BUDGETS)
            ]
            assert bench.keepers.started == []
            task.start_worker()
            await trio.sleep(5)
            (worker,) = bench.keepers.running.values()
            assert worker.spec.options == SIZED.options
            assert bench.sizer.watched == ["begin", worker.handle.pid]
            task.stop()
    assert bench.sizer.watched[2:] == ["end"]
    ((_, engine, budget),) = bench.sizer.asked
    assert (engine.context_size, budget) == (999, BUDGETS.budget)
    bench.assert_nothing_left()


@pytest.mark.parametrize(
    ("context_size", "wishes"), [(0, [None]), (300, [None]), (301, [None, 301]), (2000, [None, 2000])]
)
async def test_a_context_that_was_asked_for_is_sized_as_if_it_were_configured(
    virtual_clock: trio.testing.MockClock, context_size: int, wishes: list[int | None]
) -> None:
    bench = Bench()
    task = bench.task(context_size)
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.run)
            await trio.sleep(5)
            task.stop()
    assert [files.model.settings.context_size for files, _, _ in bench.sizer.asked] == wishes
    assert len(bench.news) == 1


async def test_a_load_that_is_stopped_while_it_is_measured_leaves_nothing(
    virtual_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    task = bench.task()
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.run)
            await trio.sleep(0.5)
            task.stop()
    assert bench.news == []
    assert bench.sizer.watched == []
    bench.assert_nothing_left()


async def test_a_fault_of_the_sizer_ends_its_load_and_nothing_else(
    virtual_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    bench.sizer.error = RuntimeError("a fault of ours")
    with trio.fail_after(100):
        await bench.task().run()
    (told,) = bench.news
    assert isinstance(told, NotMeasured)
    assert "RuntimeError" in str(told.error)
    assert not any(isinstance(news, LoadOver) for news in bench.news)
    bench.assert_nothing_left()
