"""Blocking work that ends with its task."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import trio

from actors.transfers_threads import GRACE_S, RemoteThreads, run_abortable, run_all
from runner.errors import RegistryDenied, RegistryUnavailable, TransferAborted
from runner.registry.abort import Abort
from tests.support.transfers import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def limiter():
    return trio.CapacityLimiter(1)


async def test_the_result_or_the_error_of_the_thread_is_that_of_the_task(limiter):
    assert await run_abortable(lambda: 7, Abort(), limiter=limiter) == 7
    with pytest.raises(RegistryDenied, match="no"):
        await run_abortable(_refuse, Abort(), limiter=limiter)


def _refuse() -> None:
    raise RegistryDenied("r.example", "no")


async def test_a_switch_that_somebody_else_throws_is_told(limiter):
    abort = Abort()
    abort.abort()
    with pytest.raises(TransferAborted):
        await run_abortable(lambda: 7, abort, limiter=limiter)


async def test_O06_cancelling_wakes_the_thread_and_waits_for_its_end(limiter):
    abort, began, ended = Abort(), threading.Event(), threading.Event()

    def block() -> None:
        began.set()
        try:
            abort.wait(60)
        finally:
            ended.set()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: run_abortable(block, abort, limiter=limiter))
            await until(began.is_set)
            nursery.cancel_scope.cancel()
    assert ended.is_set()


async def test_O06_a_thread_that_no_switch_reaches_is_left_to_itself(limiter, virtual_clock):
    began, gate = threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        gate.wait(60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_abortable(hang, Abort(), limiter=limiter))
        await until(began.is_set)
        began_s = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began_s == GRACE_S
    gate.set()
    await until(lambda: limiter.borrowed_tokens == 0)


async def test_one_who_waits_for_a_thread_leaves_at_once(limiter, virtual_clock):
    gate = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: trio.to_thread.run_sync(gate.wait, limiter=limiter))
        await until(lambda: limiter.borrowed_tokens == 1)
        began_s = trio.current_time()
        with trio.move_on_after(1) as scope:
            await run_abortable(lambda: 7, Abort(), limiter=limiter)
        assert scope.cancelled_caught
        assert trio.current_time() - began_s == 1
        gate.set()


async def test_results_come_in_order_and_no_more_run_at_once_than_may():
    running, most = 0, 0

    async def action(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.lowlevel.checkpoint()
        running -= 1
        return number

    assert await run_all([partial(action, number) for number in range(9)], at_once=3) == tuple(range(9))
    assert most == 3


async def test_the_first_error_cancels_the_others_and_is_no_group():
    async def fail() -> None:
        raise RegistryDenied("r.example", "no")

    with pytest.raises(RegistryDenied):
        await run_all([trio.sleep_forever, fail], at_once=2)


async def test_S06_a_request_is_made_again_five_times_at_most(limiter):
    asked, told = [], []

    def request(abort: Abort) -> None:
        asked.append(abort)
        raise RegistryUnavailable("r.example", "it broke", retry_after_s=0.0)

    threads = RemoteThreads(limiter=limiter, chance=lambda: 0.0)
    with pytest.raises(RegistryUnavailable):
        await threads.ask(request, told.append)
    assert len(asked) == 5
    assert told == ["r.example: it broke; trying again"] * 4
