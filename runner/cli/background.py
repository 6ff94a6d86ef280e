"""A daemon in the background, for commands that need one when none runs."""

from __future__ import annotations

import fcntl
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from runner.cli.connect import connect
from runner.cli.output import message
from runner.client import Client, DaemonUnreachable
from runner.config import Origin, Resolved, resolve
from runner.errors import StartRefused
from runner.places import state_directory
from runner.units import format_duration

IDLE_EXIT_S = 600.0
_START_DEADLINE_S = 30.0
_RACE_S = 2.0
_POLL_S = 0.05


def start_background_daemon() -> Client:
    """A client of a daemon that answers: one started here, or by whoever was faster.

    The lock makes commands that start at the same moment wait for one daemon instead of starting each their
    own. Raises `StartRefused` with what the daemon said when it does not come up.
    """
    resolved = resolve({}, os.environ)
    directory = state_directory()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(directory / "start.lock"):
        client = connect(None)
        if client.is_reachable():
            return client
        log_file = resolved.settings.log_file or directory / "daemon.log"
        idle_exit_s = resolved.settings.idle_exit_s
        if resolved.origins["idle_exit"] is Origin.DEFAULT:
            idle_exit_s = IDLE_EXIT_S
        _announce(log_file, idle_exit_s)
        with tempfile.TemporaryFile() as errors:
            process = _spawn(resolved, log_file, idle_exit_s, errors)
            return _wait_until_reachable(process, log_file, errors)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time; the system lets go when that process ends, however it does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _announce(log_file: Path, idle_exit_s: float) -> None:
    end = "runs until it is stopped"
    if idle_exit_s < math.inf:
        end = f"ends {format_duration(idle_exit_s)} after its last client"
    message(f"starting a daemon in the background; it {end} (log: {log_file})")
    message("stop it with: runner ctl shutdown")


def _spawn(
    resolved: Resolved, log_file: Path, idle_exit_s: float, errors: IO[bytes]
) -> subprocess.Popen[bytes]:
    """In a session of its own, so that Ctrl-C and the end of this terminal are not for it.

    It works in `/`, to hold no directory busy; paths that may be relative are passed in full.
    """
    flags = {
        "socket": str(resolved.settings.socket),
        "store": str(resolved.settings.store),
        "log-file": str(log_file),
        "idle-exit": "never" if idle_exit_s == math.inf else f"{idle_exit_s:g}",
    }
    options = [part for name, value in flags.items() for part in (f"--{name}", value)]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "runner", "serve", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
        cwd="/",
    )


def _wait_until_reachable(process: subprocess.Popen[bytes], log_file: Path, errors: IO[bytes]) -> Client:
    """The daemon's client, also when ours was refused because somebody's `runner serve` was faster."""
    deadline_s = time.monotonic() + _START_DEADLINE_S
    while time.monotonic() < deadline_s:
        client = connect(None)
        if _answers(client):
            process.returncode = 0  # it is meant to outlive us: no warning that nobody waited for it
            return client
        if process.poll() is not None:
            deadline_s = min(deadline_s, time.monotonic() + _RACE_S)
        time.sleep(_POLL_S)
    if process.poll() is None:
        process.returncode = 0
        raise StartRefused(
            f"the daemon did not answer within {_START_DEADLINE_S:.0f} s; its log is {log_file}"
        )
    raise StartRefused(_why_ended(errors) or f"the daemon ended at once; its log is {log_file}")


def _answers(client: Client) -> bool:
    try:
        return client.is_reachable()
    except DaemonUnreachable:  # it listens already, and does not answer yet
        return False


def _why_ended(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read(64 * 1024).decode(errors="replace").strip().removeprefix("error: ")
