"""The tree, exit statuses, hints, what is imported, signals and broken pipes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import pytest

from runner.cli.failures import failure_of, report
from runner.cli.main import LazyGroup, runner
from runner.client import ApiError, DaemonUnreachable, Target
from runner.domain.status import SchedulerStatus
from runner.errors import StartRefused
from tests.support.control import Cli, model_summary, worker_status
from tests.support.scripted_server import STREAM_HEAD, Request, answer, delta, event

ROOT = Path(__file__).parents[3]


def commands(group: click.Group, path: str = "runner") -> Iterator[tuple[str, click.Command, str]]:
    """Every command with its path and its line in the help of its group."""
    assert isinstance(group, LazyGroup)
    context = click.Context(group)
    for name, (_, line) in group._commands_at.items():
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command, line
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


EVERY_COMMAND = list(commands(runner))


@pytest.mark.parametrize(("path", "command", "line"), EVERY_COMMAND)
def test_every_command_and_option_has_help(path: str, command: click.Command, line: str) -> None:
    assert command.name == path.split()[-1]
    assert line.endswith(".")
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.opts}"


def test_every_command_that_asks_the_daemon_takes_host() -> None:
    local = {
        "runner ctl",
        "runner serve",  # which has a --host of its own
        "runner ctl completion",
        "runner ctl login",
        "runner ctl logout",
    }
    for path, command, _ in EVERY_COMMAND:
        has_host = any("--host" in parameter.opts for parameter in command.params)
        assert has_host or path in local, path


def test_help_lists_commands_without_importing_them(cli: Cli) -> None:
    ended = cli("--help")
    assert ended.status == 0
    for text in ("run ", "serve ", "ctl ", "130 interrupted", "RUNNER_HOST"):
        assert text in ended.stdout
    assert cli("-h").stdout == ended.stdout


def test_without_arguments_help_goes_to_stderr_with_status_2(cli: Cli) -> None:
    for arguments in ([], ["ctl"]):
        ended = cli(*arguments)
        assert ended.status == 2
        assert ended.stdout == ""
        assert "Commands:" in ended.stderr


def test_the_version_is_told(cli: Cli) -> None:
    assert re.fullmatch(r"runner \d+\.\d+\.\d+\n", cli("--version").stdout)


@pytest.mark.parametrize(
    ("arguments", "told", "command"),
    [
        (["ctl", "lst"], "no such command 'lst'; did you mean 'ls'?", "runner ctl"),
        (["zzz"], "no such command 'zzz'", "runner"),
        (["ctl", "inspect"], "missing argument 'MODEL'", "runner ctl inspect"),
        (["ctl", "rm", "a", "--forc"], "no such option '--forc'", "runner ctl rm"),
        (["ctl", "ps", "--host", "https://x"], "--host: 'https://x' is not an address", "runner ctl ps"),
        (["run", "", "hi"], "the name of the model is empty", "runner run"),
        (["run", "m"], "no prompt", "runner run"),
    ],
)
def test_wrong_usage_exits_with_2_and_names_the_help(
    cli: Cli, arguments: list[str], told: str, command: str
) -> None:
    cli.routes["GET /v1/models/m"] = {"id": "m"}
    ended = cli(*arguments)
    assert ended.status == 2
    error, hint = ended.stderr.splitlines()
    assert told.lower() in error.lower()
    assert error.startswith("error: ")
    assert hint == f"hint: `{command} --help` tells the usage"


def test_a_wrong_address_in_the_environment_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_HOST", "https://x")
    ended = cli("ctl", "ps")
    assert ended.status == 2
    assert "RUNNER_HOST or MODEL_RUNNER_HOST: 'https://x'" in ended.stderr


def test_no_daemon_exits_with_3_and_a_hint(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RUNNER_HOST")
    monkeypatch.setenv("RUNNER_SOCKET", str(tmp_path / "r.sock"))
    monkeypatch.setenv("RUNNER_PORT", "0")
    ended = cli("ctl", "ps")
    assert ended.status == 3
    assert ended.stderr.splitlines() == [
        f"error: no daemon answers at unix:{tmp_path}/r.sock (No such file or directory)",
        "hint: `runner serve` starts one; `runner run`, `runner ctl pull` and others start one by themselves",
    ]


def test_a_named_daemon_that_is_not_there_exits_with_3_and_none_is_started(cli: Cli) -> None:
    ended = cli("run", "m", "hi", "--host", "unix:/nowhere/r.sock")
    assert ended.status == 3
    assert ended.stderr.splitlines()[1].startswith("hint: without --host")


def test_host_beats_the_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.routes["GET /control/v1/ps"] = SchedulerStatus()
    monkeypatch.setenv("RUNNER_HOST", "unix:/nowhere/r.sock")
    assert cli("ctl", "ps", "--host", str(cli.server.target)).status == 0


TARGET = Target(None)


@pytest.mark.parametrize(
    ("error", "status", "hint"),
    [
        (DaemonUnreachable(TARGET, "x", is_absent=True), 3, "runner serve"),
        (DaemonUnreachable(TARGET, "says nothing"), 3, "stop what is there"),
        (ApiError(404, "model_not_found", "x"), 4, "runner ctl ls"),
        (ApiError(404, "not_found", "x"), 1, None),
        (ApiError(429, "queue_full", "x", 2.0), 1, "try again in 2 s"),
        (ApiError(502, "incomplete", "x"), 1, "runner ctl status"),
        (ApiError(507, "disk_full", "x"), 1, "runner ctl rm"),
        (ApiError(200, "unknown", "x"), 1, "another program"),
        (StartRefused("x"), 1, None),
        (click.ClickException("Bad."), 1, None),
        (FileNotFoundError(2, "No such file or directory", "/f"), 1, None),
        (RecursionError("deep"), 1, "RUNNER_TRACEBACK"),
    ],
)
def test_each_error_has_a_status_and_at_most_one_hint(
    error: Exception, status: int, hint: str | None
) -> None:
    failure = failure_of(error)
    assert failure.exit_status == status
    assert (hint in failure.hint) if hint and failure.hint else failure.hint is hint
    assert "\n" not in failure.message


def test_a_file_is_named_in_its_error() -> None:
    error = PermissionError(13, "Permission denied", "/f")
    assert failure_of(error).message == "/f: Permission denied"
    assert failure_of(OSError(28, "No space left on device")).message == "No space left on device"


def test_reporting_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def write(self, text: str) -> None:
            raise ValueError("closed")

    monkeypatch.setattr("sys.stderr", Closed())
    assert report(ApiError(404, "model_not_found", "x")) == 4


def test_a_fault_of_ours_is_one_line_unless_the_traceback_is_asked_for(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.routes["GET /control/v1/ps"] = {"other": "shape"}
    ended = cli("ctl", "ps")
    assert ended.status == 1
    assert ended.stderr.startswith("error: a fault of this program: KeyError")
    assert "Traceback" not in ended.stderr
    monkeypatch.setenv("RUNNER_TRACEBACK", "1")
    with pytest.raises(KeyError):
        cli("ctl", "ps")


# imports


@pytest.mark.parametrize(
    "module",
    [
        "runner.cli.main",
        "runner.cli.ctl",
        "runner.cli.workers",
        "runner.cli.models",
        "runner.cli.daemon",
        "runner.cli.run",
        "runner.cli.completion",
        "runner.cli.transfer",
        "runner.cli.disk",
        "runner.cli.login",
    ],
)
def test_commands_import_little(module: str) -> None:
    heavy = {
        "asyncio", "attr", "attrs", "cattrs", "httpx", "orjson", "platformdirs", "psutil", "quart",
        "requests", "rich", "runner.config", "runner.daemon", "runner.domain", "runner.oci", "structlog",
        "subprocess", "textual", "tomllib", "trio",
    }  # fmt: skip
    code = f"import sys, {module}; print(*{heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_ps_imports_little_until_its_end(cli: Cli, tmp_path: Path) -> None:
    """The whole command, which is to cost 150 ms of CPU at most."""
    cli.routes["GET /control/v1/ps"] = SchedulerStatus(workers=(worker_status(),))
    code = (
        "import atexit, sys\n"
        "heavy = {'attr', 'attrs', 'rich', 'runner.config', 'subprocess', 'tomllib', 'trio', 'quart'}\n"
        "atexit.register(lambda: print(*heavy & set(sys.modules), file=sys.stderr))\n"
        "sys.argv = ['runner', 'ctl', 'ps']\n"
        "from runner.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "4711" in done.stdout
    assert done.stderr.split() == []


# processes: signals and pipes


def spawn(*arguments: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]  # options of Popen
        [sys.executable, "-m", "runner", *arguments],
        stdin=subprocess.DEVNULL,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT, **options},
    )


class Endless:
    """A model that answers for ever; `has_begun` is set with the first words."""

    def __init__(self, cli: Cli) -> None:
        self.has_begun = threading.Event()
        cli.routes["GET /v1/models/m"] = {"id": "docker.io/ai/m:latest"}
        cli.routes["POST /v1/chat/completions"] = self

    def __call__(self, request: Request) -> Iterable[bytes]:
        yield STREAM_HEAD
        while True:
            yield event(delta("word "))
            self.has_begun.set()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_in_mid_answer_ends_the_generation_without_a_traceback(
    cli: Cli, number: signal.Signals, status: int
) -> None:
    model = Endless(cli)
    with spawn("run", "m", "hi", stdout=subprocess.DEVNULL) as process:
        assert model.has_begun.wait(20)
        process.send_signal(number)
        assert cli.server.client_left.wait(20)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == status
    assert "Traceback" not in stderr
    assert stderr.strip() == ""


def test_a_signal_that_is_ignored_stays_ignored(cli: Cli) -> None:
    release = threading.Event()

    def models(request: Request) -> Iterable[bytes]:
        is_asked.set()
        assert release.wait(20)
        yield from answer([])

    is_asked = threading.Event()
    cli.routes["GET /control/v1/models"] = models
    ignore = [
        "env",
        "--ignore-signal=INT",
        "--ignore-signal=HUP",
        sys.executable,
        "-m",
        "runner",
        "ctl",
        "ls",
    ]
    with subprocess.Popen(ignore, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert is_asked.wait(20)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGHUP)
        release.set()
        stdout, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert stdout.startswith("NAME")


def test_ctrl_c_while_waiting_for_an_answer_exits_with_130(cli: Cli) -> None:
    is_asked, release = threading.Event(), threading.Event()

    def models(request: Request) -> Iterable[bytes]:
        is_asked.set()
        release.wait(20)
        yield b""

    cli.routes["GET /control/v1/models"] = models
    with spawn("ctl", "ls") as process:
        assert is_asked.wait(20)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=20)
        release.set()
    assert (process.returncode, stdout, stderr.strip()) == (130, "", "")


def test_ctrl_c_while_modules_load_is_silent(tmp_path: Path) -> None:
    """A module that takes its time, in the place of one of ours."""
    slow = tmp_path / "click"
    slow.mkdir()
    (slow / "__init__.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True: pass\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with spawn("ctl", "ps", env=environment) as process:
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert (stdout, stderr) == ("", "")


def test_a_reader_that_leaves_is_no_error_to_tell(cli: Cli) -> None:
    cli.routes["GET /control/v1/models"] = [model_summary() for _ in range(5000)]
    with spawn("ctl", "ls") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("NAME")
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_reader_that_leaves_in_mid_answer_ends_the_generation(cli: Cli) -> None:
    Endless(cli)
    with spawn("run", "m", "hi") as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == "word"
        process.stdout.close()
        assert cli.server.client_left.wait(20)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_output_that_cannot_be_written_is_told_once(cli: Cli) -> None:
    cli.routes["GET /control/v1/models"] = [model_summary()]
    with Path("/dev/full").open("w") as full, spawn("ctl", "ls", stdout=full) as process:
        _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (1, "error: No space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_no_harm(cli: Cli, closed: str) -> None:
    cli.routes["GET /v1/models/m"] = {"id": "docker.io/ai/m:latest"}
    cli.routes["POST /v1/chat/completions"] = lambda _: [STREAM_HEAD, event(delta("x")), event("[DONE]")]
    done = subprocess.run(
        ["bash", "-c", f"exec {sys.executable} -m runner run m hi {closed}"],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""


def test_text_that_the_encoding_lacks_is_escaped(cli: Cli) -> None:
    cli.routes["GET /v1/models/m"] = {"id": "docker.io/ai/m:latest"}
    cli.routes["POST /v1/chat/completions"] = lambda _: [STREAM_HEAD, event(delta("ü→😀")), event("[DONE]")]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    with spawn("run", "m", "hi", env=environment, text=False) as process:
        stdout, _ = process.communicate(timeout=20)
    assert stdout == b"\xfc\\u2192\\U0001f600\n"
