"""Starts worker processes and ends them: the only file that does.

A worker is exec'd, never forked from the running daemon, with nothing of the daemon's but its channel
(W01). Its exit is seen through a pidfd; its process group is killed before it is reaped, while its
number cannot have been given to anybody else; its output is read into a bounded tail all the while (W11).

Linux only so far. Of ours it imports `actors/output.py`, `environment.py` and `memory_limits.py`. Read on in
`actors/spare.py`, where one waits; in `actors/worker.py`, which keeps one; and in
`runner/worker/__main__.py`, which arms the signal of the parent's death.
"""

from __future__ import annotations

import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Protocol

import attrs
import psutil
import trio

from actors.environment import interpreter_options, worker_environment
from actors.memory_limits import limit_private_memory, prefer_as_victim
from actors.output import OutputTail

Command = Callable[[int, int], Sequence[str]]
"""Channel descriptor and the daemon's pid to the arguments of the process."""

_READ_BYTES: Final = 65_536
# Output after the exit: by then only a descendant that left the group can hold the pipe.
_DRAIN_S: Final = 1.0
_CLEAN_S: Final = 5.0
_DIRECTORY_PREFIX: Final = "runner-worker-"

# RLIMIT_CORE 0 does not stop a dump that the kernel pipes to a program (core_pattern "|…"). 1 stops both:
# it is less than the smallest file that is written, and Linux's do_coredump() refuses to pipe at exactly 1.
_CORE_LIMIT_BYTES: Final = 1


@attrs.frozen(kw_only=True)
class StopTimes:
    """Seconds that each rung of the ladder waits: asked, SIGTERM, SIGKILL (then the process is given up)."""

    polite_s: float = 2.0
    terminate_s: float = 2.0
    kill_s: float = 10.0


@attrs.frozen
class ExitStatus:
    """Exactly one is set. `signal` is a name such as `SIGSEGV`."""

    exit_code: int | None
    signal: str | None

    @classmethod
    def from_returncode(cls, returncode: int) -> ExitStatus:
        """From `subprocess`'s number, which is negative for signals."""
        if returncode >= 0:
            return cls(returncode, None)
        try:
            return cls(None, signal.Signals(-returncode).name)
        except ValueError:  # real-time signals between the first and the last have no name
            return cls(None, f"SIG{-returncode}")


def worker_command(channel_fd: int, parent_pid: int) -> tuple[str, ...]:
    """The real worker: this interpreter, its own import path, and what the worker must know to live."""
    return _command("runner.worker", channel_fd, parent_pid)


def spare_command(engine: str) -> Command:
    """A worker that imports what `engine` needs before it says hello."""

    def command(channel_fd: int, parent_pid: int) -> tuple[str, ...]:
        return (*worker_command(channel_fd, parent_pid), "--ahead", engine)

    return command


def probe_command(channel_fd: int, parent_pid: int) -> tuple[str, ...]:
    """The process that tells what a load would take: started, limited and ended like a worker."""
    return _command("runner.worker.probe", channel_fd, parent_pid)


def _command(module: str, channel_fd: int, parent_pid: int) -> tuple[str, ...]:
    arguments = ("--channel-fd", str(channel_fd), "--parent-pid", str(parent_pid))
    return (sys.executable, *interpreter_options(), "-m", module, *arguments)


class WorkerProcess:
    """One started process. Run `supervise` in a task from the first moment on, and `stop` in the end.

    Owns the output pipe, the pidfd and the working directory until `supervise` returns; and the channel until
    `stop` does, since what a worker sent before it died can still be read.
    """

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        *,
        pidfd: int,
        channel: socket.socket,
        output_fd: int,
        directory: str,
    ) -> None:
        self.pid = popen.pid
        self.channel = trio.SocketStream(trio.socket.from_stdlib_socket(channel))
        self.output = OutputTail()
        self.exited = trio.Event()
        """Reaped and its group killed, or given up; `status` tells how it ended."""
        self.status: ExitStatus | None = None
        """None while it runs, and when even SIGKILL did not end it."""
        self._popen = popen
        self._pidfd = pidfd
        self._output = trio.lowlevel.FdStream(output_fd)
        self._directory = directory
        self._supervision = trio.CancelScope(shield=True)

    @classmethod
    def start(cls, command: Command = worker_command, *, directory: Path | None = None) -> WorkerProcess:
        """Start it, in an empty directory below `directory` (default: the system's temporary one).

        Call it from a thread that lives as long as the daemon does: the signal of the parent's death
        follows the *thread* that started the child, and `trio.lowlevel.open_process` uses one that ends
        after 10 s idle. Blocks for a millisecond. Raises OSError when anything is lacking; nothing is left
        behind then.
        """
        with ExitStack() as always, ExitStack() as on_failure:
            own, theirs = socket.socketpair()
            always.callback(theirs.close)
            on_failure.callback(own.close)
            read_fd, write_fd = os.pipe()
            always.callback(os.close, write_fd)
            on_failure.callback(os.close, read_fd)
            cwd = tempfile.mkdtemp(prefix=f"{_DIRECTORY_PREFIX}{os.getpid()}-", dir=directory)
            on_failure.callback(shutil.rmtree, cwd, ignore_errors=True)
            popen = subprocess.Popen(  # no preexec_fn: unsafe beside threads, and it prevents vfork
                command(theirs.fileno(), os.getpid()),
                stdin=subprocess.DEVNULL,
                stdout=write_fd,
                stderr=write_fd,
                cwd=cwd,
                env=worker_environment(os.environ, directory=cwd),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
            on_failure.callback(popen.wait)
            on_failure.callback(popen.kill)
            pidfd = os.pidfd_open(popen.pid)
            on_failure.pop_all()  # from here on all of it is the object's
        _forbid_core_dumps(popen.pid)
        prefer_as_victim(popen.pid)
        return cls(popen, pidfd=pidfd, channel=own, output_fd=read_fd, directory=cwd)

    async def supervise(self) -> None:
        """Read the output and wait for the exit; returns when the process is gone, cancelled or not."""
        with self._supervision:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_output)
                await trio.lowlevel.wait_readable(self._pidfd)
                self._reap()
                nursery.cancel_scope.deadline = trio.current_time() + _DRAIN_S
        self.exited.set()
        await self._give_up_resources()

    async def stop(
        self, ask: Callable[[], Awaitable[None]] | None = None, times: StopTimes = StopTimes()
    ) -> None:
        """Climb the ladder (L08) until the process is gone; `supervise` must have been started.

        1. `ask` it to end, when given: 2 s.  2. Close the channel, SIGTERM: 2 s.
        3. SIGKILL to the whole group: 10 s, then give it up (a process stuck in the kernel).
        Not cancellable, and bounded by the sum of the times.
        """
        with trio.CancelScope(shield=True):
            if ask is not None and not self.exited.is_set():
                with trio.move_on_after(times.polite_s):
                    await ask()
                    await self.exited.wait()
            self.channel.socket.close()
            if ask is not None and not self.exited.is_set():
                self._signal(signal.SIGTERM)
                with trio.move_on_after(times.terminate_s):
                    await self.exited.wait()
            if not self.exited.is_set():
                self._kill_group()
                with trio.move_on_after(times.kill_s):
                    await self.exited.wait()
            self._supervision.cancel()

    async def until_exit(self) -> None:
        """Returns when it has ended, and has not been reaped; where `supervise` is not run for it yet."""
        pidfd = os.pidfd_open(self.pid)
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)

    def has_spoken(self) -> bool:
        """It runs, and nobody has read what it said: true of a spare worker that is ready."""
        poll = select.poll()
        poll.register(self.channel.socket, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        return poll.poll(0) == [(self.channel.socket.fileno(), select.POLLIN)]

    def limit_private_memory(self, limit_bytes: int) -> None:
        """More than this much private memory is refused to it from now on (W08)."""
        if self.status is None:
            limit_private_memory(self.pid, limit_bytes)

    def resident_bytes(self) -> int:
        """Memory of the process in bytes, 0 when it is gone."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss) if self.status is None else 0
        except psutil.Error:
            return 0

    async def _read_output(self) -> None:
        """Until every writer is gone; waits for nothing but the pipe, so that no writer waits for us."""
        while data := await self._output.receive_some(_READ_BYTES):
            self.output.feed(data)

    def _reap(self) -> None:
        """The exit was seen and the number is still ours: first the group, then the process."""
        self._kill_group()
        self.status = ExitStatus.from_returncode(self._popen.wait())

    def _kill_group(self) -> None:
        if self.status is not None:
            return  # reaped: the number may be somebody else's by now
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # nobody is left in it; or, on other systems than Linux, only zombies

    def _signal(self, number: signal.Signals) -> None:
        """By descriptor: it can never meet a process that got the same number."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass

    async def _give_up_resources(self) -> None:
        os.close(self._pidfd)
        with trio.CancelScope(shield=True), trio.move_on_after(_CLEAN_S):
            await self._output.aclose()
            await trio.to_thread.run_sync(_remove_directory, self._directory, abandon_on_cancel=True)

    def __repr__(self) -> str:
        if self.status is None:
            return f"<WorkerProcess {self.pid} running>"
        return f"<WorkerProcess {self.pid} ended, {self.status.signal or self.status.exit_code}>"


class WorkerSource(Protocol):
    """Where keepers get their worker processes."""

    def take_or_start(self) -> WorkerProcess:
        """One that nobody uses yet. Raises OSError as `WorkerProcess.start` does."""

    def load_over(self) -> None:
        """A load for which one was taken has ended, well or not; called once for each."""


@attrs.frozen
class NewWorkers:
    """Starts one for each load."""

    command: Command
    directory: Path | None

    def take_or_start(self) -> WorkerProcess:
        return WorkerProcess.start(self.command, directory=self.directory)

    def load_over(self) -> None:
        pass


def remove_stale_directories(directory: Path) -> None:
    """Remove working directories below `directory` whose daemon was killed before it could."""
    for path in directory.glob(f"{_DIRECTORY_PREFIX}*"):
        daemon_pid = path.name.removeprefix(_DIRECTORY_PREFIX).partition("-")[0]
        if daemon_pid.isdecimal() and not psutil.pid_exists(int(daemon_pid)):
            shutil.rmtree(path, ignore_errors=True)


def _remove_directory(path: str) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _forbid_core_dumps(pid: int) -> None:
    """From here, since the worker may crash before its first line of Python."""
    try:
        resource.prlimit(pid, resource.RLIMIT_CORE, (_CORE_LIMIT_BYTES, _CORE_LIMIT_BYTES))
    except (OSError, ValueError):
        pass  # it is gone already, or a lower limit was inherited
