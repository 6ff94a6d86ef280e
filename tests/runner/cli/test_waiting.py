"""What is shown until the answer begins."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from runner.cli.waiting import stage
from runner.domain.status import SchedulerStatus
from tests.support.control import ID, SHORT_ID, Cli, worker_status
from tests.support.scripted_server import Request, refusal, stream
from tests.support.terminal import on_terminal

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "runner", "run", "m", "hi"]


@pytest.mark.parametrize(
    ("worker", "text"),
    [
        (None, "loading ai/m"),
        ({"state": "sizing"}, "loading ai/m"),
        ({"state": "queued"}, "waiting for memory for ai/m"),
        ({"state": "loading", "load_progress": 0.0}, "loading ai/m"),
        ({"state": "loading", "load_progress": 0.425}, "loading ai/m 42%"),
        ({"state": "ready"}, "waiting for ai/m"),
        ({"state": "stopping"}, "loading ai/m"),
    ],
)
def test_each_state_has_its_words(worker: dict[str, Any] | None, text: str) -> None:
    assert stage("ai/m", worker) == text


class SlowModel:
    """A model that is being loaded until `release` is set, and then answers."""

    def __init__(self, cli: Cli, model_id: str = "docker.io/ai/m:latest", model: str = "ai/m") -> None:
        self.release = threading.Event()
        other = worker_status(model="ai/other", state="ready")
        loading = worker_status(model=model, state="loading", load_progress=0.42)
        cli.routes["GET /v1/models/m"] = {"id": model_id}
        cli.routes["GET /control/v1/ps"] = SchedulerStatus(workers=(other, loading))
        cli.routes["POST /v1/chat/completions"] = self

    def __call__(self, request: Request) -> Iterable[bytes]:
        assert self.release.wait(20)
        yield from stream("the answer")


@pytest.mark.parametrize(
    ("model_id", "name"),
    [("docker.io/ai/m:latest", "ai/m"), ("docker.io/ai/m:v1", "ai/m:v1"), (ID, SHORT_ID)],
)
def test_a_model_that_is_being_loaded_is_named_and_the_line_goes_before_the_answer(
    cli: Cli, model_id: str, name: str
) -> None:
    model = SlowModel(cli, model_id, name)
    with on_terminal(COMMAND, os.environ, cwd=ROOT) as terminal:
        terminal.wait_for(f"loading {name} 42% … ")
        model.release.set()
        assert terminal.wait_for_end() == 0
    assert terminal.screen.endswith("\r\x1b[Kthe answer\r\n")


def test_a_narrow_terminal_gets_a_short_line(cli: Cli) -> None:
    model = SlowModel(cli)
    with on_terminal(COMMAND, os.environ, cwd=ROOT, columns=12) as terminal:
        terminal.wait_for("\r\x1b[Kloading ai/")
        model.release.set()
        assert terminal.wait_for_end() == 0
    assert "loading ai/m" not in terminal.screen


def test_ctrl_c_while_it_is_being_loaded_leaves_an_empty_line(cli: Cli) -> None:
    model = SlowModel(cli)
    with on_terminal(COMMAND, os.environ, cwd=ROOT) as terminal:
        terminal.wait_for("loading ai/m")
        terminal.interrupt()
        assert terminal.wait_for_end() == 130
        model.release.set()
    assert terminal.screen.replace("^C", "").endswith("\r\x1b[K\r\n")


def test_a_daemon_without_ps_does_no_harm(cli: Cli) -> None:
    model = SlowModel(cli)
    cli.routes["GET /control/v1/ps"] = lambda _: refusal(500, "internal_error", "oops")
    with on_terminal(COMMAND, os.environ, cwd=ROOT) as terminal:
        terminal.wait_for("loading ai/m … ")
        model.release.set()
        assert terminal.wait_for_end() == 0


def test_K06_the_name_in_the_line_is_harmless(cli: Cli) -> None:
    model = SlowModel(cli, "docker.io/ai/\x1b[2Jm\x9b:v1")
    with on_terminal(COMMAND, os.environ, cwd=ROOT) as terminal:
        terminal.wait_for(r"loading ai/\x1b[2Jm\x9b:v1")
        model.release.set()
        terminal.wait_for_end()
    assert "\x1b[2J" not in terminal.screen


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {}])
def test_nothing_is_shown_where_no_line_can_be_taken_back(cli: Cli, environment: dict[str, str]) -> None:
    """On a dumb terminal, and where stderr is none."""
    is_asked = threading.Event()
    model = SlowModel(cli)
    asked = cli.routes["POST /v1/chat/completions"]

    def respond(request: Request) -> Iterable[bytes]:
        is_asked.set()
        return asked(request)  # type: ignore[no-any-return]  # a route

    cli.routes["POST /v1/chat/completions"] = respond
    if environment:
        with on_terminal(COMMAND, {**os.environ, **environment}, cwd=ROOT) as terminal:
            assert is_asked.wait(20)
            assert not threading.Event().wait(0.5)  # longer than its patience
            model.release.set()
            assert terminal.wait_for_end() == 0
        assert terminal.screen == "the answer\r\n"
    else:
        with subprocess.Popen(COMMAND, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            assert is_asked.wait(20)
            assert not threading.Event().wait(0.5)
            model.release.set()
            _, stderr = process.communicate(timeout=20)
        assert stderr == b""
    assert "GET /control/v1/ps" not in cli.server.paths
