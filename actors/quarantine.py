"""Keeps what is known of crashing loads on disk, beside the scheduler and never in its way.

The scheduler hands over the whole list after each change; the latest one is written, one write at a time, in
a thread. Imports the domain and what of the store writes the file. Read on in `actors/scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from runner.domain.quarantine import FailedLoads
from runner.errors import StoreError


class Records(Protocol):
    """`runner.store.quarantine.QuarantineFile`, or a fake. Blocks; raises StoreError."""

    def read(self) -> tuple[FailedLoads, ...]: ...

    def write(self, records: tuple[FailedLoads, ...]) -> None: ...


class QuarantineBook:
    """For one run of the scheduler. `report` hears why something could not be read or written."""

    def __init__(self, records: Records, report: Callable[[str], None]) -> None:
        self._records = records
        self._report = report
        self._latest: tuple[FailedLoads, ...] | None = None
        self._changed = trio.Event()

    async def recall(self) -> tuple[FailedLoads, ...]:
        """What was known before. A file that cannot be read costs its content, not the start."""
        try:
            return await trio.to_thread.run_sync(self._records.read)
        except StoreError as error:
            self._report(f"models in quarantine are forgotten: {error}")
            return ()

    def keep(self, records: tuple[FailedLoads, ...]) -> None:
        """Have it written soon."""
        self._latest = records
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled; what was kept last is written even then."""
        try:
            while True:
                await self._changed.wait()
                await self._write()
        finally:
            await self._write()

    async def _write(self) -> None:
        """Not cancellable: a write takes milliseconds, and what is taken from `keep` must not get lost."""
        records, self._latest, self._changed = self._latest, None, trio.Event()
        if records is None:
            return
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._records.write, records)
        except StoreError as error:
            self._report(f"models in quarantine could not be written down: {error}")
