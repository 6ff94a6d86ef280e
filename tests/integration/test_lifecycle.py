"""Starts and ends of the daemon: signals, kills, a second one, the background one."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import RunningDaemon, environment_for, running_daemon
from tests.support.sse import post_stream


def _stream_body(text: str) -> dict[str, object]:
    return {"model": "one", "messages": [{"role": "user", "content": text}], "stream": True}


def test_N01_the_socket_is_private_and_tcp_is_loopback_only(own_daemon: RunningDaemon) -> None:
    path = own_daemon.socket_path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(own_daemon.process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


def test_N01_a_public_address_without_a_key_is_refused_at_start(tmp_path: Path) -> None:
    environment = environment_for(tmp_path, RUNNER_ENGINE="scripted")
    ended = subprocess.run(
        [sys.executable, "-m", "runner", "serve", "--host", "0.0.0.0"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "API key" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_L09_sigterm_lets_requests_finish_and_exits_0(own_daemon: RunningDaemon) -> None:
    with post_stream(
        own_daemon.port, "/v1/chat/completions", _stream_body("[[slow 20]][[count 20]]")
    ) as stream:
        deltas = stream.text_deltas()
        text = next(deltas)
        own_daemon.process.send_signal(signal.SIGTERM)
        text += "".join(deltas)
    assert text.endswith("20")
    assert own_daemon.wait_for_end() == 0
    assert not own_daemon.socket_path.exists()


def test_L09_what_does_not_finish_in_time_ends_with_an_error_event(tmp_path: Path, tiny_model: Path) -> None:
    with running_daemon(tmp_path, "--drain", "0.5s") as daemon:
        daemon.package("one", tiny_model)
        with post_stream(
            daemon.port, "/v1/chat/completions", _stream_body("[[slow 20]][[forever]]")
        ) as stream:
            events = stream.events()
            next(events)
            daemon.process.send_signal(signal.SIGTERM)
            rest = list(events)
        assert rest[-1]["error"]["code"] == "draining"
        assert "[DONE]" not in rest
        assert daemon.wait_for_end() == 0


def test_L09_a_second_signal_ends_at_once(own_daemon: RunningDaemon) -> None:
    with post_stream(
        own_daemon.port, "/v1/chat/completions", _stream_body("[[slow 20]][[forever]]")
    ) as stream:
        next(stream.text_deltas())
        own_daemon.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while own_daemon.socket_path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)  # the listeners close first; only then is the second signal a second one
        started = time.monotonic()
        own_daemon.process.send_signal(signal.SIGTERM)
        assert own_daemon.wait_for_end() == 128 + signal.SIGTERM
        assert time.monotonic() - started < 10  # the drain alone would take 30 s
    left = list((own_daemon.socket_path.parent / "workers").iterdir())
    assert left == [], "workers end in order even then, and give back their directories"


def test_L10_W10_after_kill_9_no_worker_is_left_and_the_next_start_works(
    tmp_path: Path, tiny_model: Path
) -> None:
    with running_daemon(tmp_path) as first:
        first.package("one", tiny_model)
        with post_stream(
            first.port, "/v1/chat/completions", _stream_body("[[slow 20]][[forever]]")
        ) as stream:
            next(stream.text_deltas())
            workers = [psutil.Process(pid) for pid in first.worker_pids()]
            assert workers
            first.process.kill()
            first.process.wait()
            _, alive = psutil.wait_procs(workers, timeout=2)
            assert not alive
    with running_daemon(tmp_path) as second:
        answer = second.post("/v1/chat/completions", {**_stream_body("back"), "stream": False})
        assert answer["choices"][0]["message"]["content"] == "back"


def test_L10_a_second_daemon_on_the_same_store_is_refused(own_daemon: RunningDaemon, tmp_path: Path) -> None:
    environment = {
        **own_daemon.environment,
        "RUNNER_SOCKET": str(tmp_path / "run2" / "r.sock"),
        "RUNNER_PORT": "0",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "runner", "serve"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "store" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert own_daemon.get("/health")


def test_L10_a_live_socket_is_not_taken_over(own_daemon: RunningDaemon, tmp_path: Path) -> None:
    environment = {**own_daemon.environment, "RUNNER_STORE": str(tmp_path / "store2"), "RUNNER_PORT": "0"}
    ended = subprocess.run(
        [sys.executable, "-m", "runner", "serve"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "socket" in ended.stderr
    status = own_daemon.runner("ctl", "status", "--json")
    assert json.loads(status.stdout)["pid"] == own_daemon.process.pid


def test_shutdown_by_command_waits_for_the_end(own_daemon: RunningDaemon) -> None:
    own_daemon.runner("ctl", "shutdown")
    assert own_daemon.wait_for_end() == 0


def test_L15_ready_says_no_while_draining_and_health_answers(own_daemon: RunningDaemon) -> None:
    assert own_daemon.get("/ready")
    assert own_daemon.get("/health")


def test_an_idle_daemon_ends_after_its_last_client(tmp_path: Path, tiny_model: Path) -> None:
    with running_daemon(tmp_path, "--idle-exit", "1s") as daemon:
        daemon.package("one", tiny_model)
        daemon.post("/v1/chat/completions", {**_stream_body("x"), "stream": False})
        assert daemon.wait_for_end() == 0


@pytest.fixture
def background(tmp_path: Path) -> dict[str, str]:
    """An environment in which commands start a daemon of their own on a free port, found by its socket."""
    return environment_for(tmp_path, RUNNER_ENGINE="scripted")


def test_run_starts_a_background_daemon_that_shutdown_ends(
    background: dict[str, str], tiny_model: Path
) -> None:
    def runner(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "runner", *arguments],
            env=background,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )

    packaged = runner("ctl", "package", str(tiny_model), "one")
    assert "runner ctl shutdown" in packaged.stderr
    pid = json.loads(runner("ctl", "status", "--json").stdout)["pid"]
    try:
        answer = runner("run", "one", "hello", "there")
        assert answer.stdout == "hello there\n"
        assert "starting" not in answer.stderr
        assert os.getpgid(pid) != os.getpgid(0)
    finally:
        runner("ctl", "shutdown")
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
