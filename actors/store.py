"""The owner of the disk: which models there are, who uses their files, and every change to them.

The shell that a supervisor starts: it opens the directory and hands every message to `actors/store_run.py`.
Messages stand in `actors/store_messages.py`, the handle in `actors/store_handle.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from actors.actor import Address
from actors.leases import Pins
from actors.store_messages import StoreMessage, StoreNotice
from actors.store_run import StoreRun
from runner.store.disk import Disk
from runner.store.downloads import KEEP_FREE_BYTES
from runner.store.opening import open_store

COLLECT_EVERY_S = 3600.0


class StoreActor:
    """Owns a store directory from `run` to its end. A supervisor makes a new one for every start."""

    def __init__(
        self,
        address: Address[StoreMessage],
        pins: Pins,
        root: Path,
        *,
        disk: Disk | None = None,
        now_s: Callable[[], float] = time.time,
        report: Callable[[StoreNotice], None] = lambda notice: None,
        keep_free_bytes: int = KEEP_FREE_BYTES,
        collect_every_s: float = COLLECT_EVERY_S,
    ) -> None:
        """`now_s` is Unix time. `report` hears of repairs and damage. Downloads leave `keep_free_bytes` of
        the disk free; what nothing needs goes every `collect_every_s` seconds."""
        self._address = address
        self._pins = pins
        self._root = root
        self._disk = disk or Disk()
        self._now_s = now_s
        self._report = report
        self._keep_free_bytes = keep_free_bytes
        self._collect_every_s = collect_every_s

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Raises StartRefused when the directory must not be used."""
        opening = partial(
            open_store,
            self._root,
            now_s=self._now_s(),
            disk=self._disk,
            keep_free_bytes=self._keep_free_bytes,
        )
        with await trio.to_thread.run_sync(opening) as store, self._address.open() as mailbox:
            async with trio.open_nursery() as nursery:
                run = StoreRun(store, self._pins, mailbox, nursery, self._report, self._now_s)
                nursery.start_soon(run.collect_now_and_then, self._collect_every_s)
                task_status.started()
                async for message in mailbox:
                    run.handle(message)
