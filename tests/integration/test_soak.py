"""Cycles of loading and unloading leave nothing behind (L12); `scripts/soak.py` does more of them."""

from __future__ import annotations

from tests.support.daemon import RunningDaemon
from tests.support.soaking import cycle, holdings

WARM_UP, CYCLES = 5, 15


def test_L12_loads_and_unloads_leave_no_descriptor_thread_process_or_directory(
    own_daemon: RunningDaemon,
) -> None:
    for _ in range(WARM_UP):
        cycle(own_daemon, "ai/one", {"text": "hello"})
    before = holdings(own_daemon, settled=True)
    for _ in range(CYCLES):
        cycle(own_daemon, "ai/one", {"text": "hello"})
    after = holdings(own_daemon, settled=True)
    assert after.counts == before.counts
    assert after.resident_bytes - before.resident_bytes < 10_000_000
