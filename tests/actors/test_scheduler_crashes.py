"""Workers that die under the scheduler: who notices, and what the next request gets."""

from __future__ import annotations

import pytest
import trio

from actors.scheduler import SchedulerSettings
from actors.worker import DeathReport
from runner.domain.status import UnquarantineReport
from runner.errors import BreakerOpen, LoadingFailed, ModelQuarantined
from tests.support.scheduler_bench import Bench, crowd, new_bench, running, settle

pytestmark = pytest.mark.anyio


@pytest.fixture
def bench(virtual_clock: trio.testing.MockClock) -> Bench:
    return new_bench()


async def test_L03_after_a_crash_the_next_request_gets_a_new_worker_after_a_delay(bench: Bench) -> None:
    async with running(bench):
        lease = await bench.handle.acquire(bench.model("a"))
        other = await bench.handle.acquire(bench.model("b"))
        bench.keepers.running["ai/a"].kill()
        await trio.sleep(1)
        await settle()
        assert bench.states() == {"b": "ready"}
        before_s = trio.current_time()
        fresh = await bench.handle.acquire(bench.model("a"))
        assert trio.current_time() - before_s == pytest.approx(0.25 + 2.0)
        assert fresh.worker is not lease.worker
        lease.release()  # void: takes nothing from the new worker
        await settle()
        assert bench.row("a").leases == 1
        assert other.worker is bench.keepers.running["ai/b"].handle


async def test_L02_a_death_is_reported_with_its_cause(bench: Bench) -> None:
    async with running(bench):
        await bench.handle.acquire(bench.model("a"))
        bench.keepers.running["ai/a"].kill("signal SIGSEGV")
        await trio.sleep(2)
    deaths = [notice for notice in bench.notices if isinstance(notice, DeathReport)]
    assert [(death.model, death.cause, death.was_requested) for death in deaths] == [
        ("ai/a", "signal SIGSEGV", False)
    ]


async def test_a_worker_that_dies_while_it_loads_fails_all_who_wait(bench: Bench) -> None:
    async with running(bench) as nursery:
        callers = crowd(bench, nursery, "a", 3)
        await trio.sleep(0.5)
        bench.keepers.running["ai/a"].kill("exit code 3")
        await trio.sleep(2)
        assert {type(caller.error) for caller in callers} == {LoadingFailed}
        assert "exit code 3" in str(callers[0].error)


async def test_L01_who_asks_while_a_worker_is_dying_gets_the_next_one(bench: Bench) -> None:
    bench.keepers.stop_s = 4.0
    async with running(bench):
        lease = await bench.handle.acquire(bench.model("a"))
        bench.keepers.running["ai/a"].kill()
        await settle()
        assert bench.states() == {"a": "stopping"}
        fresh = await bench.handle.acquire(bench.model("a"))
        assert fresh.worker is not lease.worker


async def test_L03_a_load_that_ends_in_a_crash_delays_the_next_and_one_that_fails_in_order_does_not(
    bench: Bench,
) -> None:
    async with running(bench) as nursery:
        bench.keepers.load_error = LoadingFailed("no such tensor")
        for _ in range(2):
            with pytest.raises(LoadingFailed, match="no such tensor"):
                await bench.handle.acquire(bench.model("a"))
            await trio.sleep(1.5)
        bench.keepers.load_error = None
        crowd(bench, nursery, "a", 1)
        await trio.sleep(0.5)
        bench.keepers.running["ai/a"].kill()
        await trio.sleep(1.1)
        crowd(bench, nursery, "a", 1)
        await settle()
        assert bench.states() == {"a": "cooling"}


async def crash_in_use(bench: Bench, name: str) -> None:
    lease = await bench.handle.acquire(bench.model(name))
    bench.keepers.running[f"ai/{name}"].kill("signal SIGSEGV")
    lease.release()
    await trio.sleep(1.5)


async def crash_in_load(bench: Bench, nursery: trio.Nursery, name: str) -> None:
    [caller] = crowd(bench, nursery, name, 1)
    await trio.sleep(0.5)
    bench.keepers.running[f"ai/{name}"].kill("signal SIGSEGV")
    await trio.sleep(1.5)
    assert isinstance(caller.error, LoadingFailed)


async def test_L04_after_three_crashes_callers_are_told_to_come_again(bench: Bench) -> None:
    async with running(bench):
        for _ in range(3):
            await crash_in_use(bench, "a")
        with pytest.raises(BreakerOpen) as refused:
            await bench.handle.acquire(bench.model("a"))
        assert refused.value.retry_after_s == pytest.approx(29.5)
        assert bench.keepers.started == ["ai/a"] * 3
        (await bench.handle.acquire(bench.model("b"))).release()
        await trio.sleep(30)
        (await bench.handle.acquire(bench.model("a"))).release()
        await settle()
        (await bench.handle.acquire(bench.model("a"))).release()


async def test_L06_a_model_that_crashed_two_loads_is_not_loaded_again_not_even_after_a_restart(
    bench: Bench,
) -> None:
    settings = SchedulerSettings(engine_version="llama 1")
    async with running(bench, settings) as nursery:
        await crash_in_load(bench, nursery, "a")
        assert bench.handle.quarantined() == ()
    async with running(bench, settings) as nursery:
        await crash_in_load(bench, nursery, "a")
        with pytest.raises(ModelQuarantined, match="unquarantine"):
            await bench.handle.acquire(bench.model("a"))
        assert [one.model for one in bench.handle.quarantined()] == ["ai/a"]
    async with running(bench, settings):
        with pytest.raises(ModelQuarantined):
            await bench.handle.start(bench.model("a"))
        (await bench.handle.acquire(bench.model("b"))).release()
    assert bench.handle.quarantined() == ()
    async with running(bench, SchedulerSettings(engine_version="llama 2")):
        (await bench.handle.acquire(bench.model("a"))).release()


async def test_L06_a_command_frees_a_model_for_good(bench: Bench) -> None:
    async with running(bench) as nursery:
        for _ in range(2):
            await crash_in_load(bench, nursery, "a")
        freed = await bench.handle.unquarantine(bench.model("a"))
        assert freed == UnquarantineReport(model="ai/a", was_quarantined=True, crashes=2)
        assert not (await bench.handle.unquarantine(bench.model("a"))).was_quarantined
    assert bench.quarantine.records == ()
    async with running(bench):
        (await bench.handle.acquire(bench.model("a"))).release()


async def test_L06_a_load_that_fails_in_order_is_no_reason_for_quarantine(bench: Bench) -> None:
    bench.keepers.load_error = LoadingFailed("no such tensor")
    async with running(bench):
        for _ in range(5):
            with pytest.raises(LoadingFailed):
                await bench.handle.acquire(bench.model("a"))
    assert bench.quarantine.written == 0
