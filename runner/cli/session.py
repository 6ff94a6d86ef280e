"""The interactive session: lines in, commands or questions out, a history between sessions."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Self

import attrs
import click

from runner.cli.chat import Conversation
from runner.cli.connect import connect_or_start
from runner.cli.output import harmless_line, message
from runner.cli.waiting import Waiting
from runner.client import DaemonUnreachable
from runner.errors import RunnerError
from runner.places import state_directory

HISTORY_ENTRIES = 1000
_QUOTES = '"""'
_HELP = """\
/bye, /exit      leave (also Ctrl-D)
/clear           forget the conversation
/help, /?        this text
\"\"\"              starts and ends a text of several lines
Ctrl-C           stops the answer, or clears the line"""


class _Leave(Exception):
    """`/bye`, or the end of input."""


def interactive(conversation: Conversation) -> None:
    """Load the model, then read, ask and print until `/bye` or the end of input.

    Raises what loading raises; later errors are told, and the conversation goes on.
    """
    _load(conversation)
    history = History.open()
    message(f"chatting with {conversation.model}; /help lists commands, /bye leaves")
    try:
        with _Interrupts() as interrupts:
            while True:
                try:
                    interrupts.next_turn()
                    _one_turn(conversation)
                except KeyboardInterrupt:
                    message("\n(/bye or Ctrl-D leaves)")
    except _Leave:
        pass
    finally:
        history.save()


class _Interrupts:
    """Ctrl-C raises KeyboardInterrupt once a turn; more of them while the first is told do nothing."""

    def __init__(self) -> None:
        self._is_armed = False

    def next_turn(self) -> None:
        self._is_armed = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._is_armed:
            self._is_armed = False
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)


def _load(conversation: Conversation) -> None:
    """Before the first prompt, so that people read why a model cannot be loaded before they write to it."""
    with Waiting(conversation.client, conversation.model_id):
        conversation.client.post("/control/v1/start", {"model": conversation.model})


def _one_turn(conversation: Conversation) -> None:
    text = _read_turn()
    match text.strip():
        case "":
            pass
        case "/bye" | "/exit":
            raise _Leave
        case "/clear":
            conversation.clear()
            message("forgot the conversation")
        case "/help" | "/?":
            message(_HELP)
        case command if command.startswith("/"):
            message(f"unknown command {harmless_line(command.split()[0])}; /help lists them")
        case _:
            _ask(conversation, text)


def _ask(conversation: Conversation, text: str) -> None:
    try:
        try:
            conversation.ask(text)
        except DaemonUnreachable as error:
            if error.target.is_explicit or not error.is_absent:
                raise
            # It ended while nobody asked anything.
            conversation.client = connect_or_start(None)
            conversation.ask(text)
    except KeyboardInterrupt:
        message("\n(stopped)")
    except RunnerError as error:  # the conversation goes on: the model may be back at the next question
        message(f"error: {error}")


def _read_turn() -> str:
    """One turn. A line that begins with three quotes goes on to the closing ones."""
    try:
        text = _read_line("> ")
        if not text.lstrip().startswith(_QUOTES):
            return text
        text = text.lstrip().removeprefix(_QUOTES)
        while not text.rstrip().endswith(_QUOTES):
            text += "\n" + _read_line(". ")
        return text.rstrip().removesuffix(_QUOTES)
    except EOFError:
        click.echo(err=True)
        raise _Leave from None
    except UnicodeDecodeError:
        message("that was not UTF-8 text")
        return ""


def _read_line(prompt: str) -> str:
    """With line editing where both ends are a terminal; elsewhere the prompt is kept out of the output."""
    if sys.stdout is not None and sys.stdout.isatty():
        return input(prompt)
    click.echo(prompt, nl=False, err=True)
    return input()


@attrs.define
class History:
    """Lines of earlier sessions, for the arrow keys. `path` None: none is kept (`RUNNER_NOHISTORY`)."""

    path: Path | None
    _n_before: int = 0

    @classmethod
    def open(cls) -> History:
        try:
            import readline
        except ImportError:  # a Python built without it still reads lines
            return cls(None)
        # What is pasted stays one text, also when it has several lines.
        readline.parse_and_bind("set enable-bracketed-paste on")
        if os.environ.get("RUNNER_NOHISTORY"):
            return cls(None)
        path = state_directory() / "history"
        readline.clear_history()
        readline.set_history_length(HISTORY_ENTRIES)
        with suppress(OSError):  # there is none yet, or it cannot be read: saving will tell
            readline.read_history_file(path)
        return cls(path, readline.get_current_history_length())

    def save(self) -> None:
        """Append the lines of this session, so that sessions side by side keep each other's."""
        if self.path is None:
            return
        import readline

        n_new = readline.get_current_history_length() - self._n_before
        if n_new <= 0:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.touch(mode=0o600)
            self.path.chmod(0o600)  # what people ask is theirs alone, whatever an older file allowed
            if hasattr(readline, "append_history_file"):
                readline.append_history_file(n_new, self.path)
            else:  # built with libedit
                readline.write_history_file(self.path)
        except OSError as error:
            message(f"warning: the history was not saved: {error.strerror}")
