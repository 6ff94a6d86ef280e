"""The spare worker with real processes: taken, killed, replaced, ended."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from actors.process import Command, WorkerProcess, spare_command, worker_command
from actors.spare import SpareEnded, SpareWorker
from actors.worker import WorkerReady, run_keeper
from runner.scheduling.backoff import BackoffRules
from tests.support.kept_worker import PATIENT, KeptWorker, scripted_command, worker_spec

pytestmark = pytest.mark.anyio

ORDINARY = scripted_command("normal")
AT_ONCE = BackoffRules(first_s=0.01, longest_s=0.01)
NEVER = BackoffRules(first_s=1000, longest_s=1000)


@attrs.define
class News:
    """Starts of spares and their ends, as they happen."""

    n_started: int = 0
    ended: list[SpareEnded] = attrs.field(factory=list)
    _more: trio.Event = attrs.field(factory=trio.Event)

    def started(self) -> None:
        self.n_started += 1
        self._tell()

    def hear(self, ended: SpareEnded) -> None:
        self.ended.append(ended)
        self._tell()

    def _tell(self) -> None:
        self._more.set()
        self._more = trio.Event()

    async def until(self, *, n_started: int = 0, n_ended: int = 0) -> None:
        while self.n_started < n_started or len(self.ended) < n_ended:
            await self._more.wait()


@attrs.define
class World:
    spare: SpareWorker
    nursery: trio.Nursery
    scope: trio.CancelScope
    directory: Path
    news: News

    async def started(self, number: int) -> WorkerProcess:
        """The spare that was started as the first, the second, …, while it waits."""
        await self.news.until(n_started=number)
        await trio.testing.wait_all_tasks_blocked()
        assert self.spare.waiting is not None
        return self.spare.waiting

    async def ready(self, number: int = 1) -> WorkerProcess:
        """The same, once it has said hello."""
        process = await self.started(number)
        await trio.lowlevel.wait_readable(process.channel.socket)
        assert process.has_spoken()
        return process

    def take(self) -> WorkerProcess:
        """As a keeper does, which also supervises."""
        process = self.spare.take_or_start()
        self.nursery.start_soon(process.supervise)
        return process

    def directories(self) -> list[Path]:
        return list(self.directory.iterdir())


@asynccontextmanager
async def world(
    directory: Path,
    *,
    waits: Command | None = None,
    backoff: BackoffRules = NEVER,
    settle_s: float = 0.0,
) -> AsyncIterator[World]:
    """`waits` starts the spare, an ordinary scripted worker what is started for a load."""
    news = News()

    def start(channel_fd: int, parent_pid: int) -> Sequence[str]:
        news.started()
        return (waits or ORDINARY)(channel_fd, parent_pid)

    spare = SpareWorker(
        spare_command=start,
        command=ORDINARY,
        directory=directory,
        backoff=backoff,
        settle_s=settle_s,
        report=news.hear,
        jitter=lambda: 0.0,
    )
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            w = World(spare, nursery, trio.CancelScope(), directory, news)

            async def keep() -> None:
                with w.scope:
                    await spare.run()

            nursery.start_soon(keep)
            yield w
            w.scope.cancel()


def wait_for_end(pid: int) -> None:
    """Blocks, so that no task runs meanwhile."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


# ---- taken


async def test_a_load_gets_the_spare_and_no_other_is_started_until_the_load_is_over(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        first = await w.ready(1)
        taken = w.take()
        assert taken is first
        await trio.testing.wait_all_tasks_blocked()
        assert w.spare.waiting is None
        assert len(w.directories()) == 1
        w.spare.load_over()
        assert await w.ready(2) is not first
        await taken.stop()
    assert w.news.ended == []


async def test_no_spare_is_started_while_any_load_is_under_way(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.ready(1)
        processes = [w.take(), w.take()]
        w.spare.load_over()
        await trio.testing.wait_all_tasks_blocked()
        assert w.spare.waiting is None
        w.spare.load_over()
        await w.ready(2)
        for process in processes:
            await process.stop()


@pytest.mark.usefixtures("virtual_clock")
async def test_the_next_spare_is_started_when_no_load_was_under_way_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried_s: list[float] = []

    def start(command: Command, *, directory: Path | None) -> object:
        if command is ORDINARY:
            return object()
        tried_s.append(trio.current_time())
        raise FileNotFoundError

    monkeypatch.setattr(WorkerProcess, "start", start)
    spare = SpareWorker(spare_command=worker_command, command=ORDINARY, backoff=NEVER, settle_s=10)
    begun_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spare.run)
        await trio.sleep(9)
        spare.take_or_start()
        spare.load_over()
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert tried_s == [begun_s + 20]  # what had been waited for before the load does not count


async def test_a_spare_that_is_still_importing_is_left_alone_and_waits_for_the_next_load(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, waits=scripted_command("late-hello")) as w:
        importing = await w.started(1)
        process = w.take()
        assert process is not importing
        w.spare.load_over()
        await importing.channel.send_all(b"x")
        assert await w.ready(1) is importing
        await process.stop()


async def test_without_a_running_spare_every_load_starts_its_own(tmp_path: Path) -> None:
    spare = SpareWorker(spare_command=worker_command, command=scripted_command(), directory=tmp_path)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            process = spare.take_or_start()
            nursery.start_soon(process.supervise)
            spare.load_over()
            await process.stop()


async def test_a_start_that_fails_counts_as_no_load(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    spare = SpareWorker(spare_command=worker_command, command=worker_command, directory=missing)
    with pytest.raises(FileNotFoundError):
        spare.take_or_start()
    assert repr(spare) == "<SpareWorker none, 0 loads under way>"


# ---- died


async def test_L01_a_load_after_the_death_of_the_spare_gets_a_new_process(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        dead = await w.ready()
        os.kill(dead.pid, signal.SIGKILL)
        wait_for_end(dead.pid)  # and nobody has noticed yet
        process = w.take()
        assert process is not dead
        assert await process.channel.receive_some(100)  # its hello
        await w.news.until(n_ended=1)
        await process.stop()
    (ended,) = w.news.ended
    assert ended.pid == dead.pid
    assert ended.status is not None
    assert ended.status.signal == "SIGKILL"


async def test_L03_a_spare_that_died_is_replaced_after_a_delay(tmp_path: Path) -> None:
    async with world(tmp_path, backoff=AT_ONCE) as w:
        os.kill((await w.ready(1)).pid, signal.SIGKILL)
        await w.ready(2)
        assert len(w.directories()) == 1
    assert [ended.delay_s for ended in w.news.ended] == [pytest.approx(0.01)]


async def test_L03_one_that_always_dies_is_tried_more_and_more_rarely(tmp_path: Path) -> None:
    backoff = BackoffRules(first_s=0.01, longest_s=0.04)

    def dies(channel_fd: int, parent_pid: int) -> Sequence[str]:
        return ("/bin/sh", "-c", "echo too bad >&2; exit 7")

    async with world(tmp_path, waits=dies, backoff=backoff) as w:
        await w.news.until(n_ended=4)
    assert [ended.delay_s for ended in w.news.ended] == pytest.approx([0.01, 0.02, 0.04, 0.04])
    assert w.news.ended[0].stderr_tail == "too bad"
    assert w.news.ended[0].status is not None
    assert w.news.ended[0].status.exit_code == 7


async def test_one_that_cannot_be_started_is_reported_and_tried_again(tmp_path: Path) -> None:
    def missing(channel_fd: int, parent_pid: int) -> Sequence[str]:
        return (str(tmp_path / "missing"),)

    async with world(tmp_path, waits=missing, backoff=AT_ONCE) as w:
        await w.news.until(n_ended=2)
    assert w.news.ended[0].error == "No such file or directory"
    assert w.news.ended[0].pid is None


# ---- ended


@pytest.mark.parametrize("behaviours", [["normal"], ["ignore-shutdown", "ignore-sigterm"], ["slow-hello"]])
async def test_L09_the_spare_ends_with_what_keeps_it(tmp_path: Path, behaviours: list[str]) -> None:
    async with world(tmp_path, waits=scripted_command(*behaviours)) as w:
        pid = (await w.started(1)).pid
        w.scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # reaped, too
    assert w.directories() == []
    assert w.news.ended == []


# ---- with a keeper, and our own worker


async def test_a_keeper_serves_with_the_spare_as_with_a_process_of_its_own(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        kept = KeptWorker(trio.CancelScope())

        async def keep() -> None:
            with kept.scope:
                await run_keeper(worker_spec(), kept.report, workers=w.spare)

        pid = (await w.ready(1)).pid
        w.nursery.start_soon(keep)
        ready = await kept.first(WorkerReady)
        assert ready.handle.pid == pid
        assert await kept.generate("say hello") == "hello"
        await w.ready(2)  # the load is over
        kept.scope.cancel()
        assert (await kept.death()).was_requested


async def test_a_load_that_fails_is_over_as_well(tmp_path: Path) -> None:
    async with world(tmp_path, waits=scripted_command("load-fails:loading_failed:no")) as w:
        pid = (await w.ready(1)).pid
        kept = KeptWorker(trio.CancelScope())
        await run_keeper(worker_spec(), kept.report, workers=w.spare)
        assert (await kept.death()).pid == pid
        await w.ready(2)


async def test_W01_a_spare_is_given_no_more_than_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    async with world(tmp_path, waits=spare_command("scripted")) as w:
        pid = (await w.ready(1)).pid
        process = w.take()
        proc = Path(f"/proc/{pid}")
        environment = dict(
            entry.split("=", 1) for entry in (proc / "environ").read_text().split("\0") if entry
        )
        descriptors = {
            int(path.name): str(path.readlink())
            for path in (proc / "fd").iterdir()
            if not path.readlink().name.startswith("anon_inode")
        }
        assert "HF_TOKEN" not in environment
        assert environment["HOME"] == str((proc / "cwd").readlink())
        assert list((proc / "cwd").iterdir()) == []
        assert os.getpgid(pid) == os.getsid(pid) == pid
        assert descriptors.pop(0) == "/dev/null"
        assert {name.partition(":")[0] for name in descriptors.values()} == {"pipe", "socket"}
        assert sum(name.startswith("socket:") for name in descriptors.values()) == 1
        await process.stop(None, PATIENT)
