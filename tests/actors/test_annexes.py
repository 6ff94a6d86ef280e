"""Memory for embeddings beside a loaded model: reserved before it is used, given back when nobody does."""

from __future__ import annotations

import pytest
import trio

from actors.annexes import ANNEX_KEEP_S
from actors.scheduler_messages import ModelLease
from runner.errors import InsufficientMemory, RunnerError, Unavailable
from runner.memory.footprint import ANNEX_OVERHEAD_BYTES as ANNEX
from runner.scheduling.rules import SchedulingRules
from runner.wire.codec import ToWorkerDecoder
from runner.wire.messages import CloseAnnex, ToWorker
from tests.support.scheduler_bench import FOOTPRINT, Bench, new_bench, running, settle

pytestmark = pytest.mark.anyio


@pytest.fixture
def bench(virtual_clock: trio.testing.MockClock) -> Bench:
    return new_bench()


async def embedding_lease(bench: Bench, name: str = "a", keep_alive_s: float | None = None) -> ModelLease:
    return await bench.handle.acquire(bench.model(name), keep_alive_s=keep_alive_s, has_annex=True)


def reserved(bench: Bench) -> int:
    return bench.handle.snapshot().budgets[0].reserved_bytes


async def told(bench: Bench, name: str = "a") -> list[ToWorker]:
    """What the worker was sent so far."""
    outbox = bench.keepers.running[f"ai/{name}"].handle._outbox
    decoder, messages = ToWorkerDecoder(), []
    with trio.move_on_after(0.001):
        while True:
            messages += decoder.feed(await outbox.take())
    return messages


def confirm(bench: Bench, name: str = "a") -> None:
    assert bench.keepers.running[f"ai/{name}"].handle.annex_closed()


async def test_a_model_that_only_generates_reserves_nothing_for_embeddings(bench: Bench) -> None:
    async with running(bench):
        with await bench.handle.acquire(bench.model("a")):
            await trio.sleep(100)
            assert reserved(bench) == FOOTPRINT
            assert not bench.keepers.running["ai/a"].handle.has_annex


async def test_the_first_request_for_embeddings_reserves_their_memory_on_top(bench: Bench) -> None:
    async with running(bench):
        with await embedding_lease(bench) as lease:
            assert lease.worker is bench.keepers.running["ai/a"].handle
            assert lease.worker.has_annex
            assert reserved(bench) == FOOTPRINT + ANNEX
            assert bench.states() == {"a": "ready"}
            assert bench.row("a").reserved_bytes == FOOTPRINT + ANNEX
            assert bench.leases() == 1
        await settle()
        assert bench.leases() == 0


async def test_all_requests_share_it(bench: Bench) -> None:
    async with running(bench):
        leases = [await embedding_lease(bench) for _ in range(8)]
        assert reserved(bench) == FOOTPRINT + ANNEX
        for lease in leases:
            lease.release()


async def test_it_is_closed_when_nobody_used_it_for_a_minute_and_counts_until_then(bench: Bench) -> None:
    async with running(bench):
        (await embedding_lease(bench)).release()
        await trio.sleep(ANNEX_KEEP_S - 1)
        (await embedding_lease(bench)).release()
        await trio.sleep(ANNEX_KEEP_S - 1)
        assert await told(bench) == []
        await trio.sleep(2)
        assert await told(bench) == [CloseAnnex()]
        assert reserved(bench) == FOOTPRINT + ANNEX
        confirm(bench)
        await settle()
        assert reserved(bench) == FOOTPRINT
        assert not bench.keepers.running["ai/a"].handle.has_annex
        assert bench.states() == {"a": "ready"}


async def test_who_comes_while_it_is_being_closed_gets_the_next_one(bench: Bench) -> None:
    async with running(bench) as nursery:
        (await embedding_lease(bench)).release()
        await trio.sleep(ANNEX_KEEP_S + 1)
        leases: list[ModelLease] = []

        async def ask() -> None:
            leases.append(await embedding_lease(bench))

        nursery.start_soon(ask)
        await settle()
        assert leases == []
        confirm(bench)
        await settle()
        assert len(leases) == 1 and reserved(bench) == FOOTPRINT + ANNEX
        leases[0].release()


async def test_O01_an_idle_one_makes_room_for_a_load_before_its_model_does(bench: Bench) -> None:
    bench.budget_bytes = 2 * FOOTPRINT + ANNEX // 2
    async with running(bench) as nursery:
        (await embedding_lease(bench)).release()
        nursery.start_soon(bench.handle.start, bench.model("b"))
        await trio.sleep(2)
        assert await told(bench) == [CloseAnnex()]
        confirm(bench)
        await trio.sleep(3)
        assert bench.states() == {"a": "ready", "b": "ready"}
        assert reserved(bench) == 2 * FOOTPRINT


async def test_an_idle_model_makes_room_for_it(bench: Bench) -> None:
    bench.budget_bytes = 2 * FOOTPRINT + ANNEX // 2
    async with running(bench):
        await bench.handle.start(bench.model("b"))
        with await embedding_lease(bench):
            assert bench.states() == {"a": "ready"}
            assert reserved(bench) == FOOTPRINT + ANNEX


@pytest.mark.parametrize(("room", "is_granted"), [(ANNEX - 1, False), (ANNEX, True)])
async def test_O01_where_its_own_model_leaves_too_little_it_is_refused_at_once(
    bench: Bench, room: int, is_granted: bool
) -> None:
    bench.budget_bytes = FOOTPRINT + room
    async with running(bench):
        await bench.handle.start(bench.model("a"))
        before_s = trio.current_time()
        if is_granted:
            (await embedding_lease(bench)).release()
        else:
            with pytest.raises(InsufficientMemory, match="a \\(embeddings\\)"):
                await embedding_lease(bench)
        assert trio.current_time() - before_s < 0.1
        await settle()
        assert bench.leases() == 0 and bench.states() == {"a": "ready"}


async def test_where_others_are_in_use_it_waits_for_them_a_little_and_its_model_keeps_serving(
    bench: Bench,
) -> None:
    bench.budget_bytes = 2 * FOOTPRINT + ANNEX // 2
    async with running(bench):
        with await bench.handle.acquire(bench.model("b")):
            before_s = trio.current_time()
            with pytest.raises(InsufficientMemory):
                await embedding_lease(bench)
            waited_s = trio.current_time() - before_s
            assert waited_s == pytest.approx(bench.keepers.load_s + SchedulingRules().annex_wait_s, abs=0.1)
            assert bench.states()["a"] == "ready"
            (await bench.handle.acquire(bench.model("a"))).release()


async def test_it_ends_with_its_model_which_is_no_crash(bench: Bench) -> None:
    async with running(bench):
        (await embedding_lease(bench)).release()
        await settle()
        report = await bench.handle.unload()
        assert report.unloaded == ("ai/a",)
        await settle()
        assert bench.states() == {} and reserved(bench) == 0
        (await embedding_lease(bench)).release()


async def test_its_bytes_count_until_the_process_of_its_model_is_gone(bench: Bench) -> None:
    async with running(bench) as nursery:
        (await embedding_lease(bench)).release()
        await settle()
        nursery.start_soon(bench.handle.unload)
        await trio.sleep(bench.keepers.stop_s / 2)
        assert reserved(bench) == FOOTPRINT + ANNEX
        await trio.sleep(bench.keepers.stop_s)
        assert reserved(bench) == 0


async def test_after_a_crash_of_its_model_a_new_one_is_made_for_the_next_worker(bench: Bench) -> None:
    async with running(bench):
        lease = await embedding_lease(bench)
        first = bench.keepers.running["ai/a"]
        first.kill()
        await trio.sleep(5)
        lease.release()
        with await embedding_lease(bench) as lease:
            assert lease.worker is bench.keepers.running["ai/a"].handle is not first.handle
            assert reserved(bench) == FOOTPRINT + ANNEX


async def test_who_waits_for_it_when_its_model_dies_is_told(bench: Bench) -> None:
    bench.budget_bytes = 2 * FOOTPRINT + ANNEX // 2
    errors: list[RunnerError] = []

    async def ask() -> None:
        try:
            await embedding_lease(bench)
        except RunnerError as error:
            errors.append(error)

    async with running(bench) as nursery:
        with await bench.handle.acquire(bench.model("b")):
            nursery.start_soon(ask)
            await trio.sleep(4)
            bench.keepers.running["ai/a"].kill()
            await trio.sleep(2)
            assert [type(error) for error in errors] == [Unavailable]
        await settle()
        assert bench.leases() == 0


async def test_a_caller_who_leaves_while_it_waits_gives_both_back(bench: Bench) -> None:
    bench.budget_bytes = 2 * FOOTPRINT + ANNEX // 2
    async with running(bench):
        with await bench.handle.acquire(bench.model("b")):
            await bench.handle.start(bench.model("a"))
            with trio.move_on_after(1):
                await embedding_lease(bench)
            await settle()
            assert bench.row("a").leases == 0
            assert reserved(bench) == 2 * FOOTPRINT


async def test_a_draining_daemon_does_not_wait_for_it(bench: Bench) -> None:
    async with running(bench):
        (await embedding_lease(bench)).release()
        await settle()
        await bench.handle.drain()
        assert bench.states() == {} and reserved(bench) == 0
