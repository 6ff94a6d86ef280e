"""Commands and real daemons: starting one in the background, leaving in mid-answer, chats."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.tiny_gguf import TinyModel, write_tiny_gguf
from tests.support.daemon import RunningDaemon, environment_for
from tests.support.terminal import OnTerminal, on_terminal

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "runner"]
FOREVER = "[[slow 20]][[forever]]"


def wait_until(condition: Callable[[], bool], *, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)


def running_sequences(daemon: RunningDaemon) -> int:
    workers = daemon.get("/control/v1/ps")["workers"]
    return sum(worker["running_sequences"] + worker["leases"] for worker in workers)


# leaving in mid-answer


def spawn(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_N23_a_command_that_is_ended_ends_its_generation(
    daemon: RunningDaemon, number: signal.Signals
) -> None:
    with spawn(daemon.environment, "run", "one", FOREVER) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        assert running_sequences(daemon) > 0
        process.send_signal(number)
        wait_until(lambda: running_sequences(daemon) == 0, within_s=2.0)
        _, stderr = process.communicate(timeout=20)
    assert stderr.strip() == ""
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)


def test_N23_a_reader_that_leaves_ends_the_generation(daemon: RunningDaemon) -> None:
    with spawn(daemon.environment, "run", "one", FOREVER) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.stdout.close()
        wait_until(lambda: running_sequences(daemon) == 0, within_s=2.0)
        assert process.stderr is not None
        assert process.stderr.read() == ""


# the whole way of a model


def test_a_model_is_packaged_renamed_asked_and_removed(own_daemon: RunningDaemon, tiny_model: Path) -> None:
    runner = own_daemon.runner
    runner("ctl", "package", str(tiny_model), "me/tiny:v1", "--context-size", "1024")
    runner("ctl", "tag", "me/tiny:v1", "me/tiny:v2")
    assert {"me/tiny:v1", "me/tiny:v2"} <= set(runner("ctl", "ls").stdout.split())
    shown = json.loads(runner("ctl", "inspect", "me/tiny:v2", "--json").stdout)
    assert shown["model"]["context_size"] == 1024
    assert runner("run", "me/tiny:v2", "hello", "there").stdout == "hello there\n"
    assert runner("run", "me/tiny:v2", stdin="piped").stdout == "piped\n"
    assert "me/tiny:v1" in runner("ctl", "ps").stdout  # one model, shown by its first name
    runner("ctl", "untag", "me/tiny:v2")
    refused = runner("ctl", "rm", "me/tiny:v1", check=False)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[1].startswith("hint: `runner ctl unload`")
    runner("ctl", "unload", "--all")
    assert "deleted sha256:" in runner("ctl", "rm", "me/tiny:v1").stdout
    assert runner("ctl", "inspect", "me/tiny:v1", check=False).returncode == 4


def test_an_unknown_model_exits_with_4(daemon: RunningDaemon) -> None:
    ended = daemon.runner("run", "nowhere", "hi", "--no-pull", check=False)
    assert ended.returncode == 4
    assert ended.stderr.splitlines()[1].startswith("hint: `runner ctl ls`")


@pytest.mark.parametrize("name", ["a//b", "../x", "a b", "%2e%2e", "x?y", "-\x1b", "A" * 300])
def test_N19_a_name_outside_the_grammar_is_refused_by_every_command(daemon: RunningDaemon, name: str) -> None:
    for arguments in (["run", "--", name, "hi"], ["ctl", "inspect", "--", name], ["ctl", "rm", "--", name]):
        ended = daemon.runner(*arguments, check=False)
        assert ended.returncode == 1
        assert "is not a model name" in ended.stderr
        assert "\x1b" not in ended.stderr


def test_faulty_parameters_are_all_told(daemon: RunningDaemon) -> None:
    ended = daemon.runner("run", "one", "hi", "--temperature", "9", "--top-p", "7", check=False)
    assert ended.returncode == 1
    assert "temperature" in ended.stderr
    assert "top_p" in ended.stderr


def test_the_first_line_of_a_list_can_be_taken(daemon: RunningDaemon) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m runner ctl ls | head -1"],
        env=daemon.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("NAME")
    assert done.stderr == ""


# chats


def chat(environment: dict[str, str], *arguments: str) -> Any:
    return on_terminal([*COMMAND, "run", "one", *arguments], environment, cwd=ROOT)


def ask(terminal: OnTerminal, text: str, answer: str) -> None:
    terminal.type(text + "\n")
    terminal.wait_for(answer)
    terminal.wait_for("> ")


def test_a_chat_stops_an_answer_and_goes_on(daemon: RunningDaemon) -> None:
    with chat(daemon.environment, "--verbose") as terminal:
        terminal.wait_for("> ")
        ask(terminal, "[[say seven]]", "answer tokens")
        terminal.type(f"{FOREVER}\n")
        terminal.wait_for("abc")
        terminal.interrupt()
        terminal.wait_for("(stopped)")
        wait_until(lambda: running_sequences(daemon) == 0, within_s=2.0)
        terminal.wait_for("> ")
        ask(terminal, "[[say eight]]", "eight\r\n")
        terminal.type("/bye\n")
        assert terminal.wait_for_end() == 0


def test_a_model_that_is_being_loaded_is_named_until_it_answers(
    own_daemon: RunningDaemon, tmp_path: Path
) -> None:
    slow = write_tiny_gguf(tmp_path / "slow.gguf", TinyModel(name="[[load slow 1500]]"))
    own_daemon.package("slow", slow)
    command = [*COMMAND, "run", "slow", "[[say hello]]"]
    with on_terminal(command, own_daemon.environment, cwd=ROOT) as terminal:
        terminal.wait_for("loading ai/slow")
        assert terminal.wait_for_end() == 0
    assert terminal.screen.endswith("\r\x1b[Khello\r\n")


# the daemon in the background


class Background:
    """Commands without a daemon, in directories of their own; what they start is stopped at the end."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def __call__(
        self, *arguments: str, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            **{"env": self.environment, "stdin": subprocess.DEVNULL, **options},
            capture_output=True,
            text=True,
            timeout=60,
            check=check,
        )

    def pid(self) -> int:
        return int(json.loads(self("ctl", "status", "--json").stdout)["pid"])

    def has_daemon(self) -> bool:
        """Whether somebody owns the store; asking the daemon itself would keep it from becoming idle."""
        with Path(self.environment["RUNNER_STORE"], "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Background]:
    runner = Background(environment_for(tmp_path, RUNNER_ENGINE="scripted"))
    yield runner
    runner("ctl", "shutdown", check=False)


def test_commands_that_start_at_the_same_moment_share_one_daemon(
    background: Background, tiny_model: Path
) -> None:
    background("ctl", "package", str(tiny_model), "one")
    background("ctl", "shutdown")
    processes = [spawn(background.environment, "run", "one", f"[[say {n}]]") for n in range(4)]
    ended = [process.communicate(timeout=60) for process in processes]
    assert [stdout for stdout, _ in ended] == [f"{n}\n" for n in range(4)]
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert sum("starting a daemon" in stderr for _, stderr in ended) == 1


def test_the_start_is_announced_with_log_and_end(
    background: Background, tiny_model: Path, tmp_path: Path
) -> None:
    lines = background("ctl", "package", str(tiny_model), "one").stderr.splitlines()
    log = tmp_path / "state" / "runner" / "daemon.log"
    assert lines[:2] == [
        f"starting a daemon in the background; it ends 10m after its last client (log: {log})",
        "stop it with: runner ctl shutdown",
    ]
    assert log.stat().st_mode & 0o777 == 0o600
    status = json.loads(background("ctl", "status", "--json").stdout)
    assert status["log_file"] == str(log)
    assert 0 < status["idle_exit_in_s"] <= 600


def test_it_leaves_the_terminal_and_the_directory_alone(background: Background, tiny_model: Path) -> None:
    background("ctl", "package", str(tiny_model), "one")
    daemon = psutil.Process(background.pid())
    assert os.getsid(daemon.pid) == daemon.pid
    assert daemon.cwd() == "/"
    ours = {str(Path(f"/proc/self/fd/{number}").resolve()) for number in (1, 2)}
    theirs = [str(Path(f"/proc/{daemon.pid}/fd/{number}").resolve()) for number in (0, 1, 2)]
    assert theirs[0] == "/dev/null"
    assert not ours & set(theirs[1:]) - {"/dev/null"}


def test_settings_of_the_user_hold_for_it(background: Background, tiny_model: Path, tmp_path: Path) -> None:
    """A relative path starts where the command was called; the socket is found where the file says."""
    del background.environment["RUNNER_SOCKET"]
    background.environment |= {"RUNNER_STORE": "models", "RUNNER_IDLE_EXIT": "1h"}
    (tmp_path / "config" / "runner").mkdir(parents=True)
    (tmp_path / "config" / "runner" / "config.toml").write_text(
        f'socket = "{tmp_path}/else.sock"\nqueue_limit = 3\n'
    )
    told = background("ctl", "package", str(tiny_model), "one", cwd=tmp_path).stderr
    assert "it ends 1h after its last client" in told
    status = json.loads(background("ctl", "status", "--json").stdout)
    assert f"unix:{tmp_path}/else.sock" in status["listeners"]
    assert status["store"] == str(tmp_path / "models")
    assert 600 < status["idle_exit_in_s"] <= 3600


def test_a_daemon_that_may_not_start_says_why(background: Background) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        background.environment["RUNNER_PORT"] = str(other.getsockname()[1])
        background.environment["RUNNER_HOST"] = ""
        ended = background("run", "one", "hi", check=False)
    assert ended.returncode in (1, 3)
    assert "Traceback" not in ended.stderr
    assert "in use" in ended.stderr or "no answer" in ended.stderr


def test_unusable_settings_are_told_before_a_daemon_is_started(background: Background) -> None:
    background.environment["RUNNER_THREADS"] = "many"
    ended = background("run", "one", "hi", check=False)
    assert ended.returncode == 1
    assert (
        ended.stderr
        == "error: the settings are not usable:\n  RUNNER_THREADS: 'many' is not a whole number\n"
    )


def test_a_socket_that_nobody_serves_any_more_is_replaced(background: Background, tiny_model: Path) -> None:
    background("ctl", "package", str(tiny_model), "one")
    process = psutil.Process(background.pid())
    process.kill()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, within_s=10)
    assert Path(background.environment["RUNNER_SOCKET"]).is_socket()
    assert background("ctl", "ps", check=False).returncode == 3
    assert background("run", "one", "back").stdout == "back\n"


def test_a_chat_outlives_a_daemon_that_became_idle(background: Background, tiny_model: Path) -> None:
    background.environment["RUNNER_IDLE_EXIT"] = "1s"
    background("ctl", "package", str(tiny_model), "one")
    with chat(background.environment) as terminal:
        terminal.wait_for("> ")
        wait_until(lambda: not background.has_daemon(), within_s=20)
        ask(terminal, "[[say again]]", "again\r\n")
        assert "starting a daemon" in terminal.screen
        terminal.type("/bye\n")
        assert terminal.wait_for_end() == 0
