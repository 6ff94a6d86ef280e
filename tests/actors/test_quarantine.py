"""The book of quarantined models: written in order, and once more at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from actors.quarantine import Forgetful, OnDisk, QuarantineBook
from runner.domain.quarantine import FailedLoads
from runner.errors import StoreDamaged, StoreError
from runner.store.quarantine import QuarantineFile

pytestmark = pytest.mark.anyio


def record(number: int) -> FailedLoads:
    return FailedLoads(model_id=f"sha256:{number}", model="ai/bad", engine="e", crashes=2, cause="c")


class MemoryFile:
    def __init__(self) -> None:
        self.content: tuple[FailedLoads, ...] = ()
        self.writes = 0
        self.error: StoreError | None = None

    async def read(self) -> tuple[FailedLoads, ...]:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return self.content

    async def write(self, records: tuple[FailedLoads, ...]) -> None:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.content = records
        self.writes += 1


async def test_L06_the_latest_state_is_written_and_recalled() -> None:
    file, complaints = MemoryFile(), list[str]()
    book = QuarantineBook(file, complaints.append)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(book.run)
            book.keep((record(1),))
            book.keep((record(1), record(2)))
            while not file.writes:
                await trio.testing.wait_all_tasks_blocked()
            assert file.content == (record(1), record(2))
            book.keep(())
            nursery.cancel_scope.cancel()
    assert file.content == () and complaints == []
    assert await QuarantineBook(file, complaints.append).recall() == ()


async def test_L06_an_end_right_after_a_change_loses_nothing() -> None:
    file = MemoryFile()
    book = QuarantineBook(file, print)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(book.run)
        book.keep((record(1),))
        nursery.cancel_scope.cancel()
    assert file.content == (record(1),)


async def test_what_cannot_be_read_or_written_is_told_and_ends_nothing() -> None:
    file, complaints = MemoryFile(), list[str]()
    file.error = StoreDamaged("quarantine.json is not JSON")
    book = QuarantineBook(file, complaints.append)
    assert await book.recall() == ()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(book.run)
        book.keep((record(1),))
        with trio.fail_after(10):
            while len(complaints) < 2:
                await trio.testing.wait_all_tasks_blocked()
        file.error = None
        book.keep((record(2),))
        nursery.cancel_scope.cancel()
    assert file.content == (record(2),)
    assert "is not JSON" in complaints[0]


async def test_L06_on_disk_it_is_there_for_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    await OnDisk(QuarantineFile(tmp_path)).write((record(1),))
    assert await OnDisk(QuarantineFile(tmp_path)).read() == (record(1),)


async def test_whoever_remembers_nothing_may_be_asked_and_told() -> None:
    await Forgetful().write((record(1),))
    assert await Forgetful().read() == ()
