"""How commands reach the daemon, and how one is started in the background when none runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from runner.cli.output import message
from runner.client import Client, find_target
from runner.errors import StartRefused

F = TypeVar("F", bound=Callable[..., Any])

BACKGROUND_IDLE_EXIT = "10m"
_START_DEADLINE_S = 30.0
_RACE_S = 3.0


def host_option(command: F) -> F:
    """`--host`, for every command that talks to the daemon."""
    return click.option(
        "--host", metavar="ADDRESS", help="Daemon to talk to: host:port, http://host:port or unix:/path."
    )(command)


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def connect(host: str | None) -> Client:
    """A client of the daemon that `--host`, the environment, the socket or the default port names."""
    try:
        return Client(find_target(host, _socket_path()))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--host") from error


def connect_or_start(host: str | None) -> Client:
    """As `connect`; starts a background daemon when none answers and nobody named another one."""
    client = connect(host)
    if client.target.is_explicit or client.is_reachable():
        return client
    return _start_background_daemon()


def _socket_path() -> Path:
    named = os.environ.get("RUNNER_SOCKET")
    if named:
        return Path(named).expanduser().absolute()
    from runner.config import default_socket

    return default_socket()


def _start_background_daemon() -> Client:
    from runner.config import state_directory

    log_file = state_directory() / "daemon.log"
    log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    message(
        f"starting a daemon in the background (log: {log_file}); "
        f"it ends {BACKGROUND_IDLE_EXIT} after its last client"
    )
    message("stop it with: runner ctl shutdown")
    arguments = [
        sys.executable,
        "-m",
        "runner",
        "serve",
        "--log-file",
        str(log_file),
        "--idle-exit",
        BACKGROUND_IDLE_EXIT,
    ]
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd="/",
    )
    return _wait_until_reachable(process, log_file)


def _wait_until_reachable(process: subprocess.Popen[bytes], log_file: Path) -> Client:
    """The daemon's client, also when another start won the race and ours was refused."""
    deadline = time.monotonic() + _START_DEADLINE_S
    while time.monotonic() < deadline:
        client = Client(find_target(None, _socket_path()))
        if client.is_reachable():
            _detach(process)
            return client
        if process.poll() is not None:
            deadline = min(deadline, time.monotonic() + _RACE_S)
        time.sleep(0.05)
    if process.poll() is None:
        raise StartRefused(f"the daemon did not answer within {_START_DEADLINE_S:.0f} s; see {log_file}")
    reason = (process.stderr.read() if process.stderr else b"").decode(errors="replace").strip()
    raise StartRefused(f"the daemon ended at once: {reason or f'see {log_file}'}")


def _detach(process: subprocess.Popen[bytes]) -> None:
    """Leave the daemon running: no warning that it was not waited for."""
    if process.stderr is not None:
        process.stderr.close()
    process.returncode = 0
