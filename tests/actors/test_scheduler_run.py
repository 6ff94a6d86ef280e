"""Questions to the scheduler that change nothing, and budgets measured on demand."""

from __future__ import annotations

import pytest
import trio

from actors.load import EngineSettings, LoadFault
from actors.scheduler import SchedulerSettings
from runner.errors import InvalidParameter, ModelNotFound, RequestNotFound, RunnerError
from tests.support.scheduler_bench import FOOTPRINT, MIB, Bench, crowd, new_bench, running

pytestmark = pytest.mark.anyio


@pytest.fixture
def bench(virtual_clock: trio.testing.MockClock) -> Bench:
    return new_bench()


# plan


async def test_a_plan_tells_sizes_and_starts_nothing(bench: Bench) -> None:
    async with running(bench):
        plan = await bench.handle.plan(bench.model("a"))
        assert (plan.model, plan.verdict, plan.state) == ("ai/a", "load", "not loaded")
        assert (plan.context_size, plan.basis) == (2048, "estimated from the header")
        [device] = plan.devices
        assert (device.needed_bytes, device.budget_bytes) == (FOOTPRINT, 3 * FOOTPRINT)
        assert {part.part: part.size_bytes for part in device.parts} == {
            "weights": 44 * MIB,
            "process": 256 * MIB,
        }
        assert bench.keepers.started == [] and bench.states() == {}


async def test_a_plan_names_the_model_that_would_go_and_then_it_goes(bench: Bench) -> None:
    bench.budget_bytes = 2 * FOOTPRINT
    async with running(bench):
        for name in ("old", "young"):
            (await bench.handle.acquire(bench.model(name))).release()
            await trio.sleep(100)
        plan = await bench.handle.plan(bench.model("new"))
        assert (plan.verdict, [victim.model for victim in plan.victims]) == ("evict", ["ai/old"])
        assert plan.victims[0].reload_s == pytest.approx(2.0)
        await bench.handle.acquire(bench.model("new"))
        assert set(bench.states()) == {"young", "new"}


async def test_a_plan_for_a_model_that_cannot_be_sized_is_the_callers_error(bench: Bench) -> None:
    async with running(bench):
        await bench.handle.acquire(bench.model("other"))
        with pytest.raises(InvalidParameter, match="must be at most 2048"):
            await bench.handle.plan(bench.model("a"), context_size=2049)
        bench.store.error = ModelNotFound("a")
        with pytest.raises(ModelNotFound):
            await bench.handle.plan(bench.model("a"))
        bench.store.error = ZeroDivisionError("a fault of ours")
        with pytest.raises(RunnerError, match="internal error: ZeroDivisionError"):
            await bench.handle.plan(bench.model("a"))
        assert bench.states() == {"other": "ready"}
        assert any(isinstance(notice, LoadFault) for notice in bench.notices)


async def test_a_plan_that_nobody_waits_for_any_more_leaves_nothing(bench: Bench) -> None:
    async with running(bench):
        with trio.move_on_after(0):
            await bench.handle.plan(bench.model("a"))
        await trio.sleep(1)
        assert bench.handle.address.statistics().open_asks == 0


# larger contexts


async def test_a_context_beyond_the_trained_one_is_refused_before_it_is_asked(bench: Bench) -> None:
    async with running(bench):
        with pytest.raises(InvalidParameter, match="must be at most 2048"):
            await bench.handle.acquire(bench.model("a"), context_size=2049)
        (await bench.handle.acquire(bench.model("a"), context_size=2048)).release()


async def test_a_larger_demand_reloads_an_idle_model_and_a_smaller_one_does_not(bench: Bench) -> None:
    settings = SchedulerSettings(engine=EngineSettings(context_size=512))
    async with running(bench, settings) as nursery:
        lease = await bench.handle.acquire(bench.model("a"))
        assert lease.loaded.context_size == 512
        (await bench.handle.acquire(bench.model("a"), context_size=100)).release()
        larger: list[int] = []

        async def ask() -> None:
            with await bench.handle.acquire(bench.model("a"), context_size=1024) as second:
                larger.append(second.loaded.context_size)

        nursery.start_soon(ask)
        await trio.sleep(10)
        assert larger == [] and bench.keepers.started == ["ai/a"]
        lease.release()
        await trio.sleep(10)
        assert larger == [1024] and bench.keepers.started == ["ai/a", "ai/a"]
        (await bench.handle.acquire(bench.model("a"))).release()
        assert bench.keepers.started == ["ai/a", "ai/a"]


async def test_a_pinned_model_is_not_unloaded_and_shown(bench: Bench) -> None:
    bench.budget_bytes = FOOTPRINT
    async with running(bench):
        await bench.handle.start(bench.model("a"), pin=True)
        await trio.sleep(10_000)
        assert bench.states() == {"a": "ready"}
        with pytest.raises(RunnerError, match="held by models in use"):
            await bench.handle.acquire(bench.model("b"))
        await bench.handle.unload()
        assert bench.states() == {}


# why


async def test_why_tells_of_models_and_of_requests(bench: Bench) -> None:
    bench.budget_bytes = FOOTPRINT
    async with running(bench) as nursery:
        first = await bench.handle.acquire(bench.model("a"), request_id="r1", label="mine")
        crowd(bench, nursery, "b", 1)
        await trio.sleep(3)
        first.release()
        await trio.sleep(10)
        why = await bench.handle.why_request("r1")
        [request] = why.requests
        assert (request.outcome, request.label, request.ran_s) == ("ended", "mine", 3.0)
        assert {wait.state for wait in request.waits} == {"loading"}
        assert (await bench.handle.why_request("mine")).requests == why.requests
        told = (await bench.handle.why_model(bench.model("a").id, "ai/a")).decisions
        assert [one.action for one in told if one.model == "ai/a"] == ["load", "ready", "evict"]
        assert told[-1].model in ("ai/a", "ai/b")
        with pytest.raises(RequestNotFound, match="no request 'r2' is remembered"):
            await bench.handle.why_request("r2")


# budgets


async def test_a_budget_that_changes_holds_at_once_and_idle_models_go_for_it(bench: Bench) -> None:
    async with running(bench):
        (await bench.handle.acquire(bench.model("a"))).release()
        await bench.handle.acquire(bench.model("busy"))
        bench.budget_bytes = FOOTPRINT
        before_s = trio.current_time()
        await bench.handle.measure_budgets()
        assert trio.current_time() == before_s
        assert bench.states() == {"a": "stopping", "busy": "ready"}
        [budget] = bench.handle.snapshot().budgets
        assert budget.budget_bytes == FOOTPRINT
