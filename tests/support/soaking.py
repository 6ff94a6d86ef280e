"""What a daemon holds of the system, looked at between cycles of loading and unloading (L12, O08)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import psutil

from tests.support.daemon import RunningDaemon
from tests.support.faults import Client, ready_spare, wait_for

_THREADS_LIVE_S: Final = 12.0
"""trio ends a thread of its cache after 10 s without work."""


@attrs.frozen(kw_only=True)
class Holdings:
    """Counts, and resident memory of the daemon alone in bytes."""

    descriptors: int
    threads: int
    processes: int
    directories: int
    resident_bytes: int

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return self.descriptors, self.threads, self.processes, self.directories

    def __str__(self) -> str:
        return (
            f"{self.descriptors} descriptors, {self.threads} threads, {self.processes} processes, "
            f"{self.directories} working directories, {self.resident_bytes / 1e6:.1f} MB"
        )


def holdings(daemon: RunningDaemon, *, settled: bool = False) -> Holdings:
    """With no model loaded and the next spare waiting. `settled`: when idle threads have ended as well."""
    wait_for(lambda: not daemon.get("/control/v1/ps")["workers"])
    wait_for(lambda: ready_spare(daemon))
    if settled:
        time.sleep(_THREADS_LIVE_S)
    process = psutil.Process(daemon.process.pid)
    return Holdings(
        descriptors=process.num_fds(),
        threads=process.num_threads(),
        processes=len(process.children(recursive=True)),
        directories=len(list(_working_directories(daemon))),
        resident_bytes=process.memory_info().rss,
    )


def cycle(daemon: RunningDaemon, model: str, body: dict[str, Any]) -> None:
    """Load by a request, answer it, unload."""
    seen = Client(daemon, model, **body).seen()
    assert seen.is_whole, str(seen)
    report = daemon.post("/control/v1/unload", {"models": [model]})
    assert report["unloaded"] == [model], report


def _working_directories(daemon: RunningDaemon) -> Iterator[Path]:
    return (daemon.socket_path.parent / "workers").glob("*")
