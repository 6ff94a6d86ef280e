"""A real daemon in a process of its own, in temporary directories, on a free port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import psutil

_START_S = 30.0
_END_S = 45.0


@attrs.define
class RunningDaemon:
    """`environment` is what commands need to find this daemon and no other."""

    process: subprocess.Popen[bytes]
    directory: Path
    environment: dict[str, str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def socket_path(self) -> Path:
        return Path(self.environment["RUNNER_SOCKET"])

    @property
    def log(self) -> str:
        return (self.directory / "daemon.log").read_text(encoding="utf-8", errors="replace")

    def worker_pids(self) -> list[int]:
        """Processes that the daemon started and that live."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [
            child.pid for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        ]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as response:
            return json.loads(response.read())

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            f"{self.url}{path}", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())

    def runner(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A `runner` command that talks to this daemon."""
        done = subprocess.run(
            [sys.executable, "-m", "runner", *arguments],
            env=self.environment,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0 or not check, (
            f"runner {arguments} ended with {done.returncode}: {done.stderr}"
        )
        return done

    def package(self, name: str, file: Path, *options: str) -> dict[str, Any]:
        done = self.runner("ctl", "package", str(file), name, "--json", *options)
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def wait_for_end(self) -> int:
        return self.process.wait(timeout=_END_S)


def environment_for(directory: Path, **settings: str) -> dict[str, str]:
    """An environment in which every path of ours lies below `directory`."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("RUNNER_", "MODEL_RUNNER_"))
    }
    return {
        **inherited,
        "HOME": str(directory),
        "XDG_CONFIG_HOME": str(directory / "config"),
        "XDG_DATA_HOME": str(directory / "data"),
        "XDG_STATE_HOME": str(directory / "state"),
        "XDG_RUNTIME_DIR": "",
        "RUNNER_SOCKET": str(directory / "run" / "r.sock"),
        "RUNNER_STORE": str(directory / "store"),
        "RUNNER_PORT": "0",
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
        **settings,
    }


@contextmanager
def running_daemon(directory: Path, *flags: str, **settings: str) -> Iterator[RunningDaemon]:
    """`runner serve` until the block ends; then SIGTERM, and SIGKILL when that does not help.

    `settings` are environment variables. The engine is the scripted one unless they say otherwise.
    """
    environment = environment_for(directory, **{"RUNNER_ENGINE": "scripted", **settings})
    with (directory / "daemon.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "runner", "serve", *flags],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    daemon = RunningDaemon(process, directory, environment, port=0)
    try:
        _wait_until_ready(daemon)
        yield daemon
    finally:
        _end(daemon)


def _wait_until_ready(daemon: RunningDaemon) -> None:
    """Ready when the socket answers; the port is what the daemon says it listens on."""
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        if daemon.process.poll() is not None:
            raise AssertionError(f"the daemon ended with {daemon.process.returncode}:\n{daemon.log}")
        status = daemon.runner("ctl", "status", "--json", check=False)
        if status.returncode == 0:
            listeners = json.loads(status.stdout)["listeners"]
            daemon.port = next(int(url.rsplit(":", 1)[1]) for url in listeners if url.startswith("http://"))
            daemon.environment["RUNNER_PORT"] = str(daemon.port)
            return
    raise AssertionError(f"the daemon did not become ready:\n{daemon.log}")


def _end(daemon: RunningDaemon) -> None:
    workers = [psutil.Process(pid) for pid in daemon.worker_pids()]
    if daemon.process.poll() is None:
        daemon.process.send_signal(signal.SIGTERM)
        try:
            daemon.process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            daemon.process.kill()
            daemon.process.wait()
            raise AssertionError(f"the daemon did not end after SIGTERM:\n{daemon.log}") from None
    gone, alive = psutil.wait_procs(workers, timeout=5)
    for process in alive:
        process.kill()
    assert not alive, f"workers outlived the daemon: {alive} (ended: {gone})"
