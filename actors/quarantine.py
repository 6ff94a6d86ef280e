"""Keeps what is known of crashing loads on disk, beside the scheduler and never in its way.

The scheduler hands over the whole list after each change; the latest one is written, one write at a time.
Imports the domain and what of the store writes the file. Read on in `actors/scheduler.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from runner.domain.quarantine import FailedLoads
from runner.errors import StoreError
from runner.store.quarantine import QuarantineFile


class Records(Protocol):
    """What outlives a scheduler. Both raise StoreError; a write is whole or has not happened."""

    async def read(self) -> tuple[FailedLoads, ...]: ...

    async def write(self, records: tuple[FailedLoads, ...]) -> None: ...


class Forgetful:
    """Records of a scheduler that remembers nothing beyond its end."""

    async def read(self) -> tuple[FailedLoads, ...]:
        await trio.lowlevel.checkpoint()
        return ()

    async def write(self, records: tuple[FailedLoads, ...]) -> None:
        await trio.lowlevel.checkpoint()


@attrs.frozen
class OnDisk:
    """Records in a file, which is read and written in a thread."""

    file: QuarantineFile

    async def read(self) -> tuple[FailedLoads, ...]:
        return await trio.to_thread.run_sync(self.file.read)

    async def write(self, records: tuple[FailedLoads, ...]) -> None:
        await trio.to_thread.run_sync(self.file.write, records)


@attrs.frozen
class QuarantineTrouble:
    """Why something could not be read or written; for the log."""

    message: str


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
            return await self._records.read()
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
                await self._records.write(records)
        except StoreError as error:
            self._report(f"models in quarantine could not be written down: {error}")
