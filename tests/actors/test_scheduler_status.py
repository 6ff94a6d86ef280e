"""What the scheduler shows of itself: states, progress, memory and times of this moment."""

from __future__ import annotations

import pytest
import trio

from actors.scheduler_status import Board
from tests.support.scheduler_bench import FOOTPRINT, Bench, crowd, new_bench, running

pytestmark = pytest.mark.anyio


@pytest.fixture
def bench(virtual_clock: trio.testing.MockClock) -> Bench:
    return new_bench()


async def test_a_snapshot_tells_states_progress_memory_and_times(bench: Bench) -> None:
    async with running(bench) as nursery:
        [caller] = crowd(bench, nursery, "a", 1)
        await trio.sleep(1.5)
        loading = bench.row("a")
        assert (loading.state, loading.load_progress, loading.waiting, loading.pid) == (
            "loading",
            0.5,
            1,
            None,
        )
        assert loading.reserved_bytes == FOOTPRINT
        assert (loading.context_size, loading.n_cells, loading.host_cells) == (2048, 2048, 0)
        await trio.sleep(1)
        ready = bench.row("a")
        assert (ready.state, ready.leases, ready.pid, ready.resident_bytes) == ("ready", 1, 4711, 123)
        assert ready.expires_in_s is None and ready.loaded_for_s == pytest.approx(0.5)
        assert caller.lease is not None
        caller.lease.release()
        await trio.sleep(100)
        assert bench.row("a").expires_in_s == pytest.approx(200)
        [budget] = bench.handle.snapshot().budgets
        assert (budget.budget_bytes, budget.reserved_bytes) == (3 * FOOTPRINT, FOOTPRINT)
    assert bench.handle.snapshot().budgets == ()


async def test_a_model_that_waits_out_a_delay_is_shown_without_a_load(bench: Bench) -> None:
    async with running(bench) as nursery:
        await bench.handle.acquire(bench.model("a"))
        bench.keepers.running["ai/a"].kill()
        await trio.sleep(1.1)
        crowd(bench, nursery, "a", 1)
        await trio.sleep(0.1)
        row = bench.row("a")
        assert (row.state, row.waiting, row.engine, row.context_size) == ("cooling", 1, "", 0)
        assert (row.reserved_bytes, row.pid, row.load_s) == (0, None, None)


def test_a_board_without_a_row_says_so() -> None:
    with pytest.raises(KeyError):
        Board().row(1)
