"""A conversation over the OpenAI endpoint, and its interactive session."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import click

from runner.cli.output import harmless, message
from runner.client import ApiError, Client
from runner.errors import RunnerError

HISTORY_ENTRIES = 1000

_HELP = """\
/bye, /exit      leave (also Ctrl-D)
/clear           forget the conversation
/help, /?        this text
\"\"\"              starts and ends a text of several lines
Ctrl-C           stops the answer, or clears the line"""


@attrs.define
class Conversation:
    """Turns with one model. Every question sends all turns again; the daemon keeps nothing of them."""

    client: Client
    model: str
    system: str | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict)
    is_verbose: bool = False
    _turns: list[dict[str, str]] = attrs.field(factory=list)

    def clear(self) -> None:
        self._turns.clear()

    def ask(self, text: str) -> str:
        """Print the answer as it comes, and return it. A turn that failed or was interrupted is forgotten."""
        self._turns.append({"role": "user", "content": text})
        try:
            answer = self._stream()
        except BaseException:
            self._turns.pop()
            raise
        self._turns.append({"role": "assistant", "content": answer})
        return answer

    def _stream(self) -> str:
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {
            "model": self.model,
            "messages": [*system, *self._turns],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.options,
        }
        pieces: list[str] = []
        last: dict[str, Any] = {}
        try:
            for data in self.client.stream("/v1/chat/completions", body):
                chunk = json.loads(data)
                _raise_if_error(chunk)
                pieces += _print_deltas(chunk)
                last |= {key: chunk[key] for key in ("usage", "timings") if chunk.get(key)}
        finally:
            if pieces and not pieces[-1].endswith("\n"):
                click.echo()
        if self.is_verbose:
            _print_rates(last)
        return "".join(pieces)


def _raise_if_error(chunk: Mapping[str, Any]) -> None:
    error = chunk.get("error")
    if isinstance(error, dict):
        raise ApiError(502, str(error.get("code")), str(error.get("message")))


def _print_deltas(chunk: Mapping[str, Any]) -> list[str]:
    pieces = []
    for choice in chunk.get("choices", ()):
        text = choice.get("delta", {}).get("content")
        if text:
            pieces.append(text)
            sys.stdout.write(harmless(text))
            sys.stdout.flush()
    return pieces


def _print_rates(last: Mapping[str, Any]) -> None:
    usage, timings = last.get("usage", {}), last.get("timings", {})
    counts = f"{usage.get('prompt_tokens', 0)} prompt + {usage.get('completion_tokens', 0)} answer tokens"
    rates = [
        f"{name} {timings[key]:.1f} tokens/s"
        for name, key in (("prompt", "prompt_per_second"), ("answer", "predicted_per_second"))
        if timings.get(key)
    ]
    message("  ".join([counts, *rates]))


def interactive(conversation: Conversation) -> None:
    """Read, ask, print, until `/bye` or the end of input."""
    history = _open_history()
    message(f"chatting with {conversation.model}; /help lists commands, /bye leaves")
    try:
        while (text := _read_turn()) is not None:
            if not _is_command(text, conversation):
                _ask(conversation, text)
    except _Leave:
        pass
    finally:
        _save_history(history)


class _Leave(Exception):
    """`/bye`."""


def _ask(conversation: Conversation, text: str) -> None:
    try:
        conversation.ask(text)
    except KeyboardInterrupt:
        message("\n(stopped)")
    except RunnerError as error:  # the conversation goes on: the model may be back at the next question
        message(f"error: {error}")


def _is_command(text: str, conversation: Conversation) -> bool:
    match text.strip():
        case "":
            return True
        case "/bye" | "/exit":
            raise _Leave
        case "/clear":
            conversation.clear()
            message("forgot the conversation")
        case "/help" | "/?":
            message(_HELP)
        case command if command.startswith("/"):
            message(f"unknown command {command.split()[0]!r}; /help lists them")
        case _:
            return False
    return True


def _read_turn() -> str | None:
    """One turn, None at the end of input. A line that opens `\"\"\"` goes on to the closing one."""
    try:
        line = input("> ")
        if not line.lstrip().startswith('"""'):
            return line
        lines = [line.lstrip()[3:]]
        while not lines[-1].rstrip().endswith('"""'):
            lines.append(input(". "))
        lines[-1] = lines[-1].rstrip()[:-3]
        return "\n".join(lines)
    except KeyboardInterrupt:
        message("\n(/bye or Ctrl-D leaves)")
        return ""
    except EOFError:
        click.echo()
        return None


def _open_history() -> Path | None:
    """Line editing with the history of earlier sessions; none when RUNNER_NOHISTORY is set."""
    try:
        import readline
    except ImportError:  # a Python built without it still reads lines
        return None
    if os.environ.get("RUNNER_NOHISTORY"):
        return None
    from runner.config import state_directory

    path = state_directory() / "history"
    readline.set_history_length(HISTORY_ENTRIES)
    if path.is_file():
        readline.read_history_file(path)
    return path


def _save_history(path: Path | None) -> None:
    if path is None:
        return
    import readline

    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        readline.write_history_file(path)
    except OSError as error:
        message(f"warning: the history was not saved: {error.strerror}")
