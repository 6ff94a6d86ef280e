"""The interactive session, on a terminal."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGHUP, SIGTERM, Signals

import pytest

from tests.support.control import Cli, worker_status
from tests.support.scripted_server import STREAM_HEAD, Request, delta, event, refusal, stream
from tests.support.terminal import OnTerminal, on_terminal

ROOT = Path(__file__).parents[3]
CHAT = "POST /v1/chat/completions"


class EchoModel:
    """Answers `echo: QUESTION`; a question that begins with `forever` is answered for ever."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()

    def __call__(self, request: Request) -> Iterable[bytes]:
        question = request.json()["messages"][-1]["content"]
        if not question.startswith("forever"):
            yield from stream(f"echo: {question}")
            return
        yield STREAM_HEAD
        while True:
            yield event(delta("word "))
            self.has_begun.set()


@pytest.fixture
def model(cli: Cli) -> EchoModel:
    echo = EchoModel()
    cli.routes["GET /v1/models/m"] = {"id": "docker.io/ai/m:latest"}
    cli.routes["POST /control/v1/start"] = worker_status(model="ai/m")
    cli.routes[CHAT] = echo
    return echo


@contextmanager
def chat(*options: str, **environment: str) -> Iterator[OnTerminal]:
    command = [sys.executable, "-m", "runner", "run", "m", *options]
    with on_terminal(command, {**os.environ, **environment}, cwd=ROOT) as terminal:
        terminal.wait_for("/bye leaves")
        terminal.wait_for("> ")
        yield terminal


def ask(terminal: OnTerminal, text: str, answer: str) -> None:
    terminal.type(text + "\n")
    terminal.wait_for(answer)
    terminal.wait_for("> ")


def turns(cli: Cli) -> list[list[str]]:
    """The texts that each request carried."""
    return [[message["content"] for message in body["messages"]] for body in cli.sent(CHAT)]


def test_a_chat_remembers_its_turns_until_it_is_told_to_forget(cli: Cli, model: EchoModel) -> None:
    with chat("--system", "Be brief.") as terminal:
        ask(terminal, "one", "echo: one")
        ask(terminal, "two", "echo: two")
        ask(terminal, "/clear", "forgot")
        ask(terminal, "three", "echo: three")
        terminal.type("/bye\n")
        assert terminal.wait_for_end() == 0
    assert turns(cli) == [
        ["Be brief.", "one"],
        ["Be brief.", "one", "echo: one", "two"],
        ["Be brief.", "three"],
    ]
    assert "Traceback" not in terminal.screen


@pytest.mark.parametrize(
    ("environment", "heading"),
    [({"TERM": "xterm", "NO_COLOR": ""}, "\x1b[3mThinking:\x1b[0m"), ({"NO_COLOR": "1"}, "Thinking:")],
)
def test_what_the_model_thinks_has_a_heading(
    cli: Cli, model: EchoModel, environment: dict[str, str], heading: str
) -> None:
    _, *rest = stream("Hi")
    thought = event(delta("Well", kind="reasoning_content"))
    cli.routes[CHAT] = lambda _: [STREAM_HEAD, thought, *rest]
    with chat(**environment) as terminal:
        terminal.type("hello\n")
        terminal.wait_for(f"{heading}\r\nWell\r\n\r\n--\r\n\r\nHi\r\n")
        terminal.wait_for("> ")
        terminal.type("/bye\n")


def test_the_model_is_loaded_before_the_first_prompt(cli: Cli, model: EchoModel) -> None:
    with chat() as terminal:
        assert cli.server.paths[:2] == ["GET /v1/models/m", "POST /control/v1/start"]
        terminal.type("/exit\n")
        assert terminal.wait_for_end() == 0
    assert cli.sent("POST /control/v1/start") == [{"model": "m"}]


def test_a_model_that_cannot_be_loaded_ends_before_a_prompt(cli: Cli, model: EchoModel) -> None:
    cli.routes["POST /control/v1/start"] = lambda _: refusal(503, "insufficient_memory", "it needs 9 bytes")
    with on_terminal([sys.executable, "-m", "runner", "run", "m"], os.environ, cwd=ROOT) as terminal:
        assert terminal.wait_for_end() == 1
    assert "error: it needs 9 bytes" in terminal.screen
    assert "> " not in terminal.screen


def test_commands_are_explained_and_unknown_ones_are_not_asked(cli: Cli, model: EchoModel) -> None:
    with chat() as terminal:
        ask(terminal, "/help", "forget the conversation")
        ask(terminal, "/?", "forget the conversation")
        ask(terminal, "/frobnicate now", "unknown command /frobnicate;")
        ask(terminal, "  ", "")
        terminal.type("\x04")  # Ctrl-D
        assert terminal.wait_for_end() == 0
    assert turns(cli) == []


def test_three_quotes_hold_several_lines_together(cli: Cli, model: EchoModel) -> None:
    with chat() as terminal:
        terminal.type('"""one\n')
        terminal.wait_for(". ")
        terminal.type("  two\n")
        terminal.wait_for(". ")
        ask(terminal, 'three"""', "three")
        ask(terminal, '"""alone"""', "echo: alone")
        terminal.type("/bye\n")
        terminal.wait_for_end()
    assert turns(cli)[0] == ["one\n  two\nthree"]
    assert turns(cli)[1][-1] == "alone"


def test_pasted_lines_are_one_text(cli: Cli, model: EchoModel) -> None:
    with chat() as terminal:
        ask(terminal, "\x1b[200~one\ntwo\x1b[201~", "echo: one")
        terminal.type("/bye\n")
        terminal.wait_for_end()
    assert turns(cli) == [["one\ntwo"]]


def test_ctrl_c_in_mid_answer_stops_it_and_forgets_the_turn(cli: Cli, model: EchoModel) -> None:
    with chat() as terminal:
        ask(terminal, "one", "echo: one")
        terminal.type("forever\n")
        terminal.wait_for("word word")
        terminal.interrupt()
        terminal.wait_for("(stopped)")
        terminal.wait_for("> ")
        assert cli.server.client_left.wait(20)
        ask(terminal, "two", "echo: two")
        terminal.type("/bye\n")
        assert terminal.wait_for_end() == 0
    assert turns(cli)[-1] == ["one", "echo: one", "two"]
    assert "Traceback" not in terminal.screen


def test_ctrl_c_at_the_prompt_clears_the_line(cli: Cli, model: EchoModel) -> None:
    with chat() as terminal:
        terminal.type("never sent")
        terminal.wait_for("never sent")
        terminal.interrupt_the_prompt("/bye or Ctrl-D leaves")
        terminal.wait_for("> ")
        ask(terminal, "one", "echo: one")
        terminal.type("/bye\n")
        assert terminal.wait_for_end() == 0
    assert turns(cli) == [["one"]]


def test_ctrl_c_again_and_again_does_not_end_the_session(cli: Cli, model: EchoModel) -> None:
    with chat() as terminal:
        for _ in range(3):
            terminal.type_until("forever\n", "word word")
            for _ in range(3):
                terminal.interrupt()
            terminal.wait_for("(")
            terminal.wait_for("> ")
        terminal.type_until("/help\n", "/clear")
        terminal.wait_for("> ")
        terminal.type("/bye\n")
        assert terminal.wait_for_end() == 0
    assert "Traceback" not in terminal.screen


def test_an_error_does_not_end_the_session(cli: Cli, model: EchoModel) -> None:
    with chat() as terminal:
        cli.routes[CHAT] = lambda _: refusal(429, "queue_full", "64 wait already")
        ask(terminal, "one", "error: 64 wait already")
        cli.routes[CHAT] = model
        ask(terminal, "two", "echo: two")
        terminal.type("/bye\n")
        assert terminal.wait_for_end() == 0
    assert turns(cli)[-1] == ["two"]


def test_what_is_piped_out_holds_answers_only(cli: Cli, model: EchoModel, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runner", "run", "m"]
    with (
        (tmp_path / "out").open("wb") as out,
        on_terminal(command, os.environ, cwd=ROOT, stdout=out.fileno()) as terminal,
    ):
        terminal.wait_for("> ")
        terminal.type("one\n")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
    assert (tmp_path / "out").read_text() == "echo: one\n"


# history


@pytest.fixture
def history(tmp_path: Path) -> Path:
    return tmp_path / ".local" / "state" / "runner" / "history"


def say(text: str, **environment: str) -> None:
    with chat(**environment) as terminal:
        ask(terminal, text, f"echo: {text}")
        terminal.type("/bye\n")
        assert terminal.wait_for_end() == 0


def test_K03_the_history_is_the_users_alone(cli: Cli, model: EchoModel, history: Path) -> None:
    say("one")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    assert history.read_text().splitlines() == ["one", "/bye"]
    history.chmod(0o644)
    say("two")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_the_history_goes_on_in_the_next_session(cli: Cli, model: EchoModel, history: Path) -> None:
    say("one")
    with chat() as terminal:
        terminal.type("\x1b[A\x1b[A")  # up, past /bye
        terminal.wait_for("one")
        ask(terminal, "!", "echo: one!")
        terminal.type("/bye\n")
        terminal.wait_for_end()
    assert history.read_text().splitlines() == ["one", "/bye", "one!", "/bye"]


def test_sessions_side_by_side_keep_each_others_history(cli: Cli, model: EchoModel, history: Path) -> None:
    with chat() as first:
        ask(first, "one", "echo: one")
        say("two")
        first.type("/bye\n")
        first.wait_for_end()
    assert history.read_text().splitlines() == ["two", "/bye", "one", "/bye"]


def test_no_history_is_kept_when_nobody_wants_one(cli: Cli, model: EchoModel, history: Path) -> None:
    say("secret", RUNNER_NOHISTORY="1")
    assert not history.exists()


@pytest.mark.parametrize("number", [SIGTERM, SIGHUP])
def test_a_signal_saves_the_history(cli: Cli, model: EchoModel, history: Path, number: Signals) -> None:
    with chat() as terminal:
        ask(terminal, "one", "echo: one")
        assert terminal.end_by(number) == 128 + number
    assert history.read_text().splitlines() == ["one"]
    assert "Traceback" not in terminal.screen


def test_a_history_that_cannot_be_written_is_a_warning(cli: Cli, model: EchoModel, history: Path) -> None:
    history.mkdir(parents=True)
    with chat() as terminal:
        terminal.type("/bye\n")
        terminal.wait_for("warning: the history was not saved")
        assert terminal.wait_for_end() == 0
