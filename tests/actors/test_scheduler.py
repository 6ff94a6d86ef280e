"""The scheduler's shell on a virtual clock, with fake keepers: answers, lifetimes, nothing left behind."""

from __future__ import annotations

import math

import pytest
import trio

from actors.load import EngineSettings, LoadFault
from actors.scheduler import SchedulerHandle, SchedulerSettings
from actors.scheduler_messages import Asked, Happened
from runner.domain.status import UnloadReport
from runner.errors import (
    Draining,
    InsufficientMemory,
    InvalidModelFile,
    LoadingFailed,
    ModelNotFound,
    QueueFull,
    RunnerError,
    StoreDamaged,
    Unavailable,
)
from runner.scheduling.decisions import Action, Decision
from runner.scheduling.events import CallerLeft
from tests.support.scheduler_bench import (
    FOOTPRINT,
    Bench,
    Caller,
    CountingStore,
    FakeKeepers,
    assert_nothing_left,
    crowd,
    new_bench,
    running,
    settle,
)

pytestmark = pytest.mark.anyio

CROWD = SchedulerSettings(queue_limit_per_model=100, engine=EngineSettings(max_sequences=100))
NARROW = SchedulerSettings(queue_limit_per_model=2, engine=EngineSettings(max_sequences=1))


@pytest.fixture
def bench(virtual_clock: trio.testing.MockClock) -> Bench:
    return new_bench()


# acquire, release, idle


async def test_a_model_loads_on_its_first_request_and_unloads_when_it_was_idle(bench: Bench) -> None:
    async with running(bench):
        with await bench.handle.acquire(bench.model("a")) as lease:
            assert lease.worker is bench.keepers.running["ai/a"].handle
            assert lease.loaded.max_sequences == 8
            await trio.sleep(1000)
            assert bench.states() == {"a": "ready"}
        await trio.sleep(299)
        assert bench.states() == {"a": "ready"}
        await trio.sleep(1.5)
        assert bench.states() == {"a": "stopping"}
        await trio.sleep(1.5)
        assert bench.states() == {} and bench.keepers.started == ["ai/a"]


async def test_a_loaded_model_is_granted_without_time_passing(bench: Bench) -> None:
    async with running(bench):
        first = await bench.handle.acquire(bench.model("a"))
        before_s = trio.current_time()
        second = await bench.handle.acquire(bench.model("a"))
        assert trio.current_time() == before_s
        assert first.worker is second.worker and bench.leases() == 2


async def test_a_lease_is_released_once_however_often_one_says_so(bench: Bench) -> None:
    async with running(bench):
        first, _second = [await bench.handle.acquire(bench.model("a")) for _ in range(2)]
        first.release()
        first.release()
        await settle()
        assert bench.leases() == 1
        assert "released" in repr(first)


async def test_keep_alive_zero_ends_with_the_last_lease_and_infinite_never(bench: Bench) -> None:
    async with running(bench):
        (await bench.handle.acquire(bench.model("a"), keep_alive_s=0)).release()
        (await bench.handle.acquire(bench.model("b"), keep_alive_s=math.inf)).release()
        await settle()
        await trio.sleep(10_000)
        assert bench.states() == {"b": "ready"}


@pytest.mark.parametrize("keep_alive_s", [-1.0, math.nan])
async def test_a_keep_alive_that_is_no_time_is_refused_before_it_is_asked(
    bench: Bench, keep_alive_s: float
) -> None:
    async with running(bench):
        for ask in (bench.handle.acquire, bench.handle.start):
            with pytest.raises(ValueError, match="no time to keep"):
                await ask(bench.model("a"), keep_alive_s=keep_alive_s)
        assert bench.states() == {}


# single flight


async def test_O05_a_hundred_first_requests_make_one_load(bench: Bench) -> None:
    async with running(bench, CROWD) as nursery:
        callers = crowd(bench, nursery, "a", 100)
        await trio.sleep(5)
        assert bench.keepers.started == ["ai/a"]
        assert all(caller.lease is not None for caller in callers)


async def test_O05_when_that_load_fails_all_get_that_error_each_its_own(bench: Bench) -> None:
    bench.keepers.load_error = InvalidModelFile("tensor 3 lies outside the file")
    async with running(bench, CROWD) as nursery:
        callers = crowd(bench, nursery, "a", 100)
        await trio.sleep(5)
        assert bench.keepers.started == ["ai/a"]
        assert {type(caller.error) for caller in callers} == {InvalidModelFile}
        assert {str(caller.error) for caller in callers} == {"tensor 3 lies outside the file"}
        assert len({id(caller.error) for caller in callers}) == 100, "a shared one would collect tracebacks"


async def test_the_first_client_leaves_and_the_load_goes_on_for_the_others(bench: Bench) -> None:
    async with running(bench) as nursery:
        first, second = crowd(bench, nursery, "a", 2)
        await trio.sleep(0.5)
        first.scope.cancel()
        await trio.sleep(2)
        assert first.lease is None and second.lease is not None
        assert bench.leases() == 1 and bench.keepers.started == ["ai/a"]


async def test_a_load_that_everybody_left_is_cancelled(bench: Bench) -> None:
    async with running(bench) as nursery:
        callers = crowd(bench, nursery, "a", 2)
        await trio.sleep(0.5)
        for caller in callers:
            caller.scope.cancel()
        await settle()
        assert bench.states() == {"a": "stopping"}
        await trio.sleep(1.5)
        assert bench.states() == {}


@pytest.mark.parametrize("load_s", [0.0, 2.0])
@pytest.mark.parametrize("is_loaded", [False, True])
async def test_a_caller_who_is_cancelled_at_any_moment_leaves_no_lease(
    bench: Bench, is_loaded: bool, load_s: float
) -> None:
    bench.keepers.load_s = load_s
    async with running(bench) as nursery:
        for moment in range(30):
            if is_loaded:
                (await bench.handle.acquire(bench.model("a"), keep_alive_s=math.inf)).release()
            [caller] = crowd(bench, nursery, "a", 1)
            for _ in range(moment):
                await trio.lowlevel.checkpoint()
            caller.scope.cancel()
            await settle()
            if caller.lease is not None:
                caller.lease.release()
            await trio.sleep(10)
            assert bench.leases() == 0 and bench.handle.address.statistics().open_asks == 0
            assert bench.states() in ({}, {"a": "ready"})
            await bench.handle.unload()


async def test_a_caller_who_is_cancelled_just_before_the_answer_takes_back_what_it_never_saw() -> None:
    handle, caller = SchedulerHandle(), Caller()
    async with trio.open_nursery() as nursery:
        with handle.address.open() as mailbox:
            nursery.start_soon(caller.acquire, Bench(handle, CountingStore(), FakeKeepers()), "a")
            asked = await anext(mailbox)
            assert isinstance(asked, Asked)
            caller.scope.cancel()
            asked.reply.fail(Draining())  # any answer; its task has not run yet
            assert await anext(mailbox) == Happened(CallerLeft(asked.event.ticket))
    assert caller.lease is None and caller.error is None


# refusals


async def test_O04_the_surplus_is_refused_at_once_with_a_time_to_come_back(bench: Bench) -> None:
    async with running(bench, NARROW) as nursery:
        await bench.handle.acquire(bench.model("a"))
        waiting = crowd(bench, nursery, "a", 2)
        await settle()
        before_s = trio.current_time()
        with pytest.raises(QueueFull, match="2 requests are waiting for ai/a already") as refused:
            await bench.handle.acquire(bench.model("a"))
        assert trio.current_time() == before_s
        assert refused.value.retry_after_s >= 1.0
        waiting[0].scope.cancel()
        await settle()
        [late] = crowd(bench, nursery, "a", 1)
        await settle()
        assert late.error is None, "one who leaves frees the place"


async def test_O01_a_model_above_the_whole_budget_is_refused_at_once_with_the_numbers(bench: Bench) -> None:
    bench.budget_bytes = FOOTPRINT - 1
    async with running(bench):
        before_s = trio.current_time()
        with pytest.raises(InsufficientMemory) as refused:
            await bench.handle.acquire(bench.model("a"))
        assert trio.current_time() == before_s
        error = refused.value
        assert (error.needed_bytes, error.free_bytes, error.reserved_bytes) == (FOOTPRINT, FOOTPRINT - 1, 0)
        assert bench.keepers.started == []


async def test_O01_two_loads_at_once_do_not_both_take_the_last_room(bench: Bench) -> None:
    bench.budget_bytes = 2 * FOOTPRINT - 1
    async with running(bench) as nursery:
        first, second = crowd(bench, nursery, "a", 1) + crowd(bench, nursery, "b", 1)
        await trio.sleep(10)
        assert len(bench.keepers.running) == 1
        winner = first if first.lease is not None else second
        assert winner.lease is not None
        winner.lease.release()
        await trio.sleep(10)
        assert first.lease is not None and second.lease is not None
        assert len(bench.keepers.started) == 2 and len(bench.keepers.running) == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModelNotFound("sha256:abc"), ModelNotFound),
        (StoreDamaged("a part of the model is missing"), StoreDamaged),
        (Unavailable("the store is restarting or has ended"), Unavailable),
        (RunnerError("something else"), LoadingFailed),
        (ZeroDivisionError("a fault of ours"), LoadingFailed),
    ],
)
async def test_what_the_store_refuses_reaches_the_caller_and_nobody_else(
    bench: Bench, error: Exception, told: type[RunnerError]
) -> None:
    async with running(bench):
        await bench.handle.acquire(bench.model("other"))
        bench.store.error = error
        with pytest.raises(told):
            await bench.handle.acquire(bench.model("a"))
        assert bench.states() == {"other": "ready"}
        is_ours = not isinstance(error, RunnerError)
        assert any(isinstance(notice, LoadFault) for notice in bench.notices) is is_ours


async def test_a_fault_of_a_keeper_ends_its_load_and_nothing_else(bench: Bench) -> None:
    async with running(bench):
        await bench.handle.acquire(bench.model("other"))
        bench.keepers.fault = RuntimeError("a fault of ours")
        with pytest.raises(LoadingFailed, match="internal error: RuntimeError"):
            await bench.handle.acquire(bench.model("a"))
        assert bench.states() == {"other": "ready"}
        assert [type(notice.error) for notice in bench.notices if isinstance(notice, LoadFault)] == [
            RuntimeError
        ]


# room


async def test_the_least_recently_used_idle_model_makes_room(bench: Bench) -> None:
    async with running(bench):
        for name in ("a", "b", "c", "a"):
            (await bench.handle.acquire(bench.model(name))).release()
            await trio.sleep(1)
        await bench.handle.acquire(bench.model("d"))
        assert bench.states() == {"a": "ready", "c": "ready", "d": "ready"}


async def test_requests_for_loaded_models_wait_for_no_load_and_no_end_of_another(bench: Bench) -> None:
    bench.budget_bytes = FOOTPRINT * 2
    async with running(bench) as nursery:
        busy = await bench.handle.acquire(bench.model("busy"))
        (await bench.handle.acquire(bench.model("idle"))).release()
        await trio.sleep(10)
        crowd(bench, nursery, "new", 1)
        await trio.sleep(0.5)
        assert bench.states() == {"busy": "ready", "idle": "stopping", "new": "queued"}
        before_s = trio.current_time()
        (await bench.handle.acquire(bench.model("busy"))).release()
        assert trio.current_time() == before_s
        busy.release()


async def test_O03_a_request_that_finds_no_room_in_time_is_refused(bench: Bench) -> None:
    bench.budget_bytes = FOOTPRINT
    async with running(bench, SchedulerSettings(room_wait_s=30.0)):
        await bench.handle.acquire(bench.model("busy"))
        before_s = trio.current_time()
        with pytest.raises(InsufficientMemory) as refused:
            await bench.handle.acquire(bench.model("a"))
        assert trio.current_time() == pytest.approx(before_s + 30.0)
        assert refused.value.reserved_bytes == FOOTPRINT


async def test_a_budget_that_grows_lets_a_waiting_load_start(bench: Bench) -> None:
    bench.budget_bytes = FOOTPRINT
    async with running(bench) as nursery:
        await bench.handle.acquire(bench.model("busy"))
        [caller] = crowd(bench, nursery, "a", 1)
        await trio.sleep(20)
        assert caller.lease is None
        bench.budget_bytes = 2 * FOOTPRINT
        await trio.sleep(8)
        assert caller.lease is not None


# unload, start


async def test_unload_returns_when_processes_are_gone_and_files_are_free(bench: Bench) -> None:
    async with running(bench):
        a, busy = bench.model("a"), bench.model("busy")
        (await bench.handle.acquire(a)).release()
        await bench.handle.acquire(busy)
        report = await bench.handle.unload()
        assert report == UnloadReport(unloaded=("ai/a",), in_use=("ai/busy",))
        assert list(bench.keepers.running) == ["ai/busy"]
        assert not bench.store.pins.is_pinned(a.id) and bench.store.pins.is_pinned(busy.id)
        assert await bench.handle.unload((a.id,)) == UnloadReport(unloaded=(), in_use=())


async def test_L11_a_request_while_its_model_is_being_unloaded_is_served_by_a_new_worker(
    bench: Bench,
) -> None:
    async with running(bench) as nursery:
        model = bench.model("a")
        (await bench.handle.acquire(model)).release()
        nursery.start_soon(bench.handle.unload)
        await settle()
        assert bench.states() == {"a": "stopping"}
        lease = await bench.handle.acquire(model)
        assert lease.worker is bench.keepers.running["ai/a"].handle
        assert bench.keepers.started == ["ai/a", "ai/a"]


async def test_start_loads_without_a_lease_and_tells_how_it_went(bench: Bench) -> None:
    async with running(bench):
        row = await bench.handle.start(bench.model("a"), keep_alive_s=60.0)
        assert (row.model, row.state, row.leases, row.keep_alive_s) == ("ai/a", "ready", 0, 60.0)
        assert row.load_s == pytest.approx(2.0) and row.expires_in_s == 60.0
        await trio.sleep(62)
        assert bench.states() == {}


# drain, end, restart


async def test_a_drain_refuses_new_work_and_returns_when_all_processes_are_gone(bench: Bench) -> None:
    async with running(bench) as nursery:
        lease = await bench.handle.acquire(bench.model("a"))
        [waiting] = crowd(bench, nursery, "b", 1)
        await trio.sleep(0.5)
        await bench.handle.drain()
        assert isinstance(waiting.error, Draining)
        assert bench.keepers.running == {} and bench.handle.snapshot().is_draining
        with pytest.raises(Draining):
            await bench.handle.acquire(bench.model("a"))
        with pytest.raises(Draining):
            await bench.handle.start(bench.model("a"))
        lease.release()


@pytest.mark.parametrize(("used_s", "took_s"), [(5.0, 6.0), (100.0, 31.0)])
async def test_L09_a_drain_lets_leases_end_but_not_for_ever(
    bench: Bench, used_s: float, took_s: float
) -> None:
    async with running(bench) as nursery:
        lease = await bench.handle.acquire(bench.model("a"))

        async def use() -> None:
            await trio.sleep(used_s)
            lease.release()

        nursery.start_soon(use)
        before_s = trio.current_time()
        await bench.handle.drain(grace_s=30.0)
        assert trio.current_time() - before_s == pytest.approx(took_s)


async def test_an_end_of_the_scheduler_answers_all_at_once_and_ends_its_workers(bench: Bench) -> None:
    async with trio.open_nursery() as nursery:
        actor = await nursery.start(_run_in_scope, bench)
        await bench.handle.acquire(bench.model("a"))
        [caller] = crowd(bench, nursery, "b", 1)
        await trio.sleep(0.5)
        before_s = trio.current_time()
        actor.cancel()
        await settle()
        assert isinstance(caller.error, Unavailable) and trio.current_time() == before_s
        assert bench.keepers.running, "they take their time to end"
        await trio.sleep(1.5)
    assert_nothing_left(bench)
    with pytest.raises(Unavailable):
        await bench.handle.acquire(bench.model("a"))


async def test_a_crash_of_the_scheduler_ends_its_workers_and_the_next_run_starts_clean(bench: Bench) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_run_until_crash, bench)
        former = await bench.handle.acquire(bench.model("a"))
        bench.budget_error = OSError("no such file")
        await trio.sleep(10)
    assert_nothing_left(bench)
    bench.budget_error = None
    async with running(bench):
        lease = await bench.handle.acquire(bench.model("a"))
        former.release()
        await settle()
        assert bench.leases() == 1 and lease.worker is not former.worker


async def _run_in_scope(bench: Bench, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.actor(SchedulerSettings()).run)
            task_status.started(scope)


async def _run_until_crash(bench: Bench, *, task_status: trio.TaskStatus[None]) -> None:
    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        await bench.actor(SchedulerSettings()).run(task_status=task_status)


# why


async def test_decisions_can_be_asked_for_and_are_reported_as_they_are_made(bench: Bench) -> None:
    async with running(bench):
        model = bench.model("a")
        await bench.handle.acquire(model)
        made = await bench.handle.decisions(model.id)
        assert [decision.action for decision in made] == [Action.LOAD, Action.READY]
        assert await bench.handle.decisions() == made
    reported = [notice for notice in bench.notices if isinstance(notice, Decision)]
    assert tuple(reported[:2]) == made
