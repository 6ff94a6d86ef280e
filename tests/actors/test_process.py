"""How a worker process is started and ended, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio

from actors.process import (
    ExitStatus,
    StopTimes,
    WorkerProcess,
    remove_stale_directories,
    worker_command,
)
from runner.wire.codec import encode
from runner.wire.messages import Shutdown
from tests.support.kept_worker import DEAF, PATIENT, STUBBORN, kept_worker, scripted_command, wait_gone

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def started(*behaviours: str) -> AsyncIterator[WorkerProcess]:
    """A supervised process, killed at the end if it still runs."""
    with trio.fail_after(20):
        process = WorkerProcess.start(scripted_command(*behaviours))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.supervise)
            try:
                yield process
            finally:
                await process.stop(None, PATIENT)


def asking(process: WorkerProcess) -> Callable[[], Awaitable[None]]:
    async def ask() -> None:
        await process.channel.send_all(encode(Shutdown()))

    return ask


async def hello(process: WorkerProcess) -> None:
    """Wait until the worker has set itself up."""
    await process.channel.receive_some(1000)


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# ---- what a worker is given


async def test_W01_the_environment_holds_no_more_than_the_allowlist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/secret")
    async with kept_worker() as kept:
        environment = (await kept.facts())["environment"]
    assert "secret" not in str(environment)
    assert not {"HF_TOKEN", "SSH_AUTH_SOCK", "PATH", "USER", "PWD"} & set(environment)
    assert environment["HOME"] != os.environ.get("HOME")


async def test_W01_no_descriptor_is_inherited_but_the_channel(tmp_path: Path) -> None:
    ours = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(ours, True)  # as hypercorn makes its listening sockets
    try:
        async with kept_worker() as kept:
            descriptors = (await kept.facts())["descriptors"]
    finally:
        os.close(ours)
    assert descriptors.pop("0") == "/dev/null"
    output = {descriptors.pop("1"), descriptors.pop("2")}
    assert len(output) == 1
    assert output.pop().startswith("pipe:")
    (channel,) = descriptors.values()
    assert channel.startswith("socket:")


async def test_W01_the_working_directory_is_empty_private_and_removed_afterwards() -> None:
    async with kept_worker() as kept:
        facts = await kept.facts()
        assert names_in(Path(facts["cwd"])) == set()
    assert facts["cwd_entries"] == []
    assert facts["cwd_mode"] == 0o700
    assert Path(facts["cwd"]).name not in names_in(Path(facts["cwd"]).parent)


async def test_W01_a_worker_leads_a_process_group_and_session_of_its_own() -> None:
    async with kept_worker() as kept:
        facts = await kept.facts()
    assert facts["pid"] == facts["process_group"] == facts["session"] != os.getpgid(0)


async def test_W01_core_dumps_are_off() -> None:
    async with kept_worker() as kept:
        facts = await kept.facts()
    assert facts["core_limit"] == [1, 1]  # no file is that small, and Linux pipes nothing at 1


async def test_W01_the_working_directory_is_not_on_the_import_path() -> None:
    async with kept_worker() as kept:
        facts = await kept.facts()
    assert "" not in facts["path"]
    assert facts["cwd"] not in facts["path"]


def test_the_command_is_this_interpreter_and_the_worker_module() -> None:
    command = worker_command(9, 17)
    assert command[1] == "-P"
    assert command[-6:] == ("-m", "runner.worker", "--channel-fd", "9", "--parent-pid", "17")


async def test_W10_a_worker_is_started_by_the_thread_that_runs_the_daemon() -> None:
    threads: list[int] = []

    def command(channel_fd: int, parent_pid: int) -> Sequence[str]:
        threads.append(threading.get_ident())
        return scripted_command()(channel_fd, parent_pid)

    with trio.fail_after(20):
        process = WorkerProcess.start(command)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.supervise)
            await process.stop(None, PATIENT)
    assert threads == [threading.get_ident()]


# ---- starts that fail


async def test_a_program_that_does_not_exist_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        WorkerProcess.start(lambda fd, pid: ["/does/not/exist"], directory=tmp_path)
    assert names_in(tmp_path) == set()


async def test_a_process_that_cannot_be_watched_is_ended_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="Too many"):
        WorkerProcess.start(scripted_command(), directory=tmp_path)
    assert names_in(tmp_path) == set()


def test_directories_of_a_daemon_that_was_killed_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    stale = tmp_path / f"runner-worker-{ended.pid}-x"
    for path in (
        stale,
        tmp_path / f"runner-worker-{os.getpid()}-x",
        tmp_path / "runner-worker-x",
        tmp_path / "y",
    ):
        path.mkdir()
    remove_stale_directories(tmp_path)
    assert names_in(tmp_path) == {
        f"runner-worker-{os.getpid()}-x",
        "runner-worker-x",
        "y",
    }


# ---- ends


@pytest.mark.parametrize(
    ("returncode", "status"),
    [
        (0, ExitStatus(0, None)),
        (3, ExitStatus(3, None)),
        (-9, ExitStatus(None, "SIGKILL")),
        (-11, ExitStatus(None, "SIGSEGV")),
        (-40, ExitStatus(None, "SIG40")),
    ],
)
def test_L02_exit_codes_and_signals_are_told_apart(returncode: int, status: ExitStatus) -> None:
    assert ExitStatus.from_returncode(returncode) == status


async def test_L08_a_polite_worker_ends_when_it_is_asked() -> None:
    async with started() as process:
        await hello(process)
        await process.stop(asking(process), PATIENT)
        assert process.status == ExitStatus(0, None)
        assert "ended, 0" in repr(process)


async def test_L08_a_worker_that_does_not_listen_is_terminated() -> None:
    async with started("ignore-shutdown") as process:
        await hello(process)
        await process.stop(asking(process), DEAF)
        assert process.status == ExitStatus(None, "SIGTERM")


async def test_L08_a_worker_deaf_to_sigterm_is_killed() -> None:
    async with started("ignore-shutdown", "ignore-sigterm") as process:
        await hello(process)
        await process.stop(asking(process), STUBBORN)
        assert process.status == ExitStatus(None, "SIGKILL")


async def test_L08_a_stopped_worker_is_killed() -> None:
    async with started() as process:
        await hello(process)
        os.kill(process.pid, signal.SIGSTOP)
        await process.stop(asking(process), STUBBORN)
        assert process.status == ExitStatus(None, "SIGKILL")


async def test_L08_cancellation_does_not_cut_the_ladder_short() -> None:
    async with started("ignore-shutdown", "ignore-sigterm") as process:
        await hello(process)
        with trio.CancelScope() as scope:
            scope.cancel()
            await process.stop(asking(process), STUBBORN)
        assert process.status == ExitStatus(None, "SIGKILL")


async def test_L08_stopping_what_has_ended_already_returns_at_once() -> None:
    async with started() as process:
        os.kill(process.pid, signal.SIGKILL)
        await process.exited.wait()
        await process.stop(asking(process), StopTimes(polite_s=1000, terminate_s=1000))
        assert process.status == ExitStatus(None, "SIGKILL")
        assert process.resident_bytes() == 0


async def test_L08_descendants_end_with_the_worker_and_nothing_waits_for_them() -> None:
    async with started("fork") as process:
        await hello(process)
        (descendant,) = [child.pid for child in psutil.Process(process.pid).children()]
        os.kill(process.pid, signal.SIGKILL)
        await process.exited.wait()
        await wait_gone(descendant)


async def test_resident_memory_is_that_of_the_process() -> None:
    async with started() as process:
        await hello(process)
        assert process.resident_bytes() == pytest.approx(
            psutil.Process(process.pid).memory_info().rss, rel=0.5
        )
        assert "running" in repr(process)


async def test_W11_a_worker_that_fills_its_log_is_never_blocked_and_its_tail_is_bounded() -> None:
    async with started("noise") as process:
        await hello(process)  # it says so only when all of its noise is out
        await process.stop(asking(process), PATIENT)
        assert process.status == ExitStatus(0, None)
        assert len(process.output) <= 64 * 1024
        assert process.output.text().endswith("the last line")
        assert "\x1b" not in process.output.text()
