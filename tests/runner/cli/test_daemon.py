"""`status`, `version`, `shutdown`."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterable
from typing import Any

import attrs
import psutil
import pytest

from runner.domain.status import ActorStatus, BudgetStatus, DaemonStatus, VersionInfo
from tests.support.control import Cli
from tests.support.scripted_server import Request, answer, refusal

STATUS = DaemonStatus(
    version="0.1.0",
    engine="llama llama-cpp-python 0.3.36",
    pid=2**22 + 1,  # beyond what the system gives
    uptime_s=3661.0,
    listeners=("http://127.0.0.1:12434", "unix:/run/r.sock"),
    store="/store",
    log_file="/log",
    is_draining=False,
    open_connections=1,
    idle_exit_in_s=600.0,
    budgets=(BudgetStatus(device="cpu", budget_bytes=2**33, reserved_bytes=2**30),),
    actors=(ActorStatus(name="store", state="running", restarts=2, queued=3, open_asks=4),),
)


def test_status_is_a_page_for_people(cli: Cli) -> None:
    cli.routes["GET /control/v1/status"] = STATUS
    ended = cli("ctl", "status")
    assert ended.status == 0
    assert ended.stdout.splitlines() == [
        f"Daemon      running, pid {STATUS.pid}, up 1h1m",
        "Version     0.1.0, engine llama llama-cpp-python 0.3.36",
        "Listening   http://127.0.0.1:12434, unix:/run/r.sock",
        "Store       /store",
        "Log         /log",
        "Ends in     10m without clients",
        "Memory cpu  1.0 GiB of 8.0 GiB reserved",
        "",
        "ACTOR  STATE    RESTARTS  QUEUED",
        "store  running  2         3",
    ]


def test_status_leaves_out_what_there_is_not(cli: Cli) -> None:
    cli.routes["GET /control/v1/status"] = attrs.evolve(
        STATUS, log_file=None, idle_exit_in_s=None, is_draining=True
    )
    shown = cli("ctl", "status").stdout
    assert "Log" not in shown
    assert "Ends in" not in shown
    assert "draining" in shown


def test_status_for_programs_is_the_answer_of_the_api(cli: Cli) -> None:
    cli.routes["GET /control/v1/status"] = STATUS
    assert json.loads(cli("ctl", "status", "--json").stdout)["pid"] == STATUS.pid


def test_versions_of_both_sides(cli: Cli) -> None:
    cli.routes["GET /control/v1/version"] = VersionInfo(
        version="9.9", api="v1", python="3.13.0", engine="llama", engine_version="llama-cpp-python 0.3.36"
    )
    lines = cli("ctl", "version").stdout.splitlines()
    assert lines[0].startswith("Client:  ")
    assert lines[1] == "Daemon:  9.9 (Python 3.13.0, llama llama-cpp-python 0.3.36)"
    document = json.loads(cli("ctl", "version", "--json").stdout)
    assert document["daemon"]["version"] == "9.9"


def test_the_version_without_a_daemon_is_no_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_HOST", "unix:/nowhere/r.sock")
    ended = cli("ctl", "version")
    assert ended.status == 0
    assert ended.stdout.splitlines()[1] == "Daemon:  not running"
    assert json.loads(cli("ctl", "version", "--json").stdout)["daemon"] is None


class Ending:
    """A daemon that is there for the first `n_health` questions after its end began."""

    def __init__(self, cli: Cli, status: DaemonStatus, n_health: int = 0) -> None:
        self._cli = cli
        self._left = n_health
        cli.routes["GET /control/v1/status"] = status
        cli.routes["POST /control/v1/shutdown"] = self.end
        cli.routes["GET /health"] = self.health

    def end(self, request: Request) -> Iterable[bytes]:
        self._stop_if_due()
        return answer({}, 202)

    def health(self, request: Request) -> Iterable[bytes]:
        self._left -= 1
        self._stop_if_due()
        return answer({"status": "ok"})

    def _stop_if_due(self) -> None:
        if self._left <= 0:
            self._cli.server.stop_listening()


def test_shutdown_returns_when_nobody_listens_any_more(cli: Cli) -> None:
    Ending(cli, STATUS, n_health=2)
    ended = cli("ctl", "shutdown")
    assert (ended.status, ended.stderr) == (0, "the daemon has ended\n")
    assert cli.server.paths.count("GET /health") == 2


def test_shutdown_waits_for_the_process_where_it_is_in_sight(cli: Cli) -> None:
    with subprocess.Popen(["sleep", "0.3"]) as process:
        Ending(cli, attrs.evolve(STATUS, pid=process.pid, uptime_s=0.0))
        assert cli("ctl", "shutdown").status == 0
        assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE


def test_a_process_of_the_same_number_elsewhere_is_not_waited_for(cli: Cli) -> None:
    Ending(cli, attrs.evolve(STATUS, pid=os.getpid(), uptime_s=time.time()))
    assert cli("ctl", "shutdown").status == 0


def test_shutdown_tells_when_it_takes_too_long(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.cli.daemon._SHUTDOWN_DEADLINE_S", 0.1)
    Ending(cli, STATUS, n_health=10**9)
    ended = cli("ctl", "shutdown")
    assert (ended.status, ended.stderr) == (1, "error: the daemon is still finishing requests\n")


def test_shutdown_without_a_daemon_exits_with_3(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_HOST", "unix:/nowhere/r.sock")
    assert cli("ctl", "shutdown").status == 3


@pytest.mark.parametrize(
    "route", [lambda _: refusal(503, "draining", "the daemon is shutting down", **{"Retry-After": "5"})]
)
def test_a_daemon_that_is_draining_tells_when_to_come_back(cli: Cli, route: Any) -> None:
    cli.routes["GET /control/v1/models"] = route
    assert cli("ctl", "ls").stderr.splitlines() == [
        "error: the daemon is shutting down",
        "hint: try again in 5 s",
    ]
