"""A conversation with one model over the OpenAI endpoint. The interactive session is in `session.py`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import attrs
import click

from runner.cli.output import harmless, message
from runner.cli.waiting import Waiting
from runner.client import Client


@attrs.define
class Conversation:
    """Turns with one model. Every question sends all turns again; the daemon keeps nothing of them.
    What the model thought before its answers is not sent: templates leave it out anyway.

    `model` is what the user wrote, `model_id` what the daemon calls it. `options` go into each request.
    """

    client: Client
    model: str
    model_id: str
    system: str | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict)
    is_verbose: bool = False
    _turns: list[dict[str, str]] = attrs.field(factory=list)

    @property
    def turns(self) -> tuple[dict[str, str], ...]:
        """What was said, questions and answers in turn."""
        return tuple(self._turns)

    def clear(self) -> None:
        self._turns.clear()

    def ask(self, text: str) -> str:
        """Print the answer as it comes, and return it. A turn that failed or was interrupted is forgotten."""
        question = {"role": "user", "content": text}
        answer = self._answer([*self._turns, question])
        self._turns += [question, {"role": "assistant", "content": answer}]
        return answer

    def _answer(self, turns: list[dict[str, str]]) -> str:
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {
            "model": self.model,
            "messages": [*system, *turns],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.options,
        }
        printed = _Printed()
        with (
            Waiting(self.client, self.model_id) as waiting,
            closing(printed),
            closing(self.client.stream("/v1/chat/completions", body)) as chunks,
        ):
            for chunk in chunks:
                printed.take(chunk, waiting)
        if printed.finish_reason == "length" and "max_tokens" not in self.options:
            message("(cut off: the context is full)")
        if self.is_verbose:
            message(rates(printed.last, printed.first_text_s, printed.elapsed_s))
        return printed.text


class _Printed:
    """The answer so far, on stdout; closing it ends the last line.

    What the model thinks comes first, between `Thinking:` and `--`, and is no part of `text`.
    """

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._pieces: list[str] = []
        self._last_printed = ""
        self._is_thinking = False
        self.first_text_s: float | None = None
        self.finish_reason: str | None = None
        self.last: dict[str, Any] = {}

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def take(self, chunk: Mapping[str, Any], waiting: Waiting) -> None:
        for choice in chunk.get("choices", ()):
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            delta = choice.get("delta", {})
            thought, text = delta.get("reasoning_content"), delta.get("content")
            if thought or text:
                waiting.clear()
                if self.first_text_s is None:
                    self.first_text_s = self.elapsed_s
            if thought:
                self._think(thought)
            if text:
                self._say(text)
        self.last |= {key: chunk[key] for key in ("usage", "timings") if chunk.get(key)}

    def _think(self, text: str) -> None:
        if not self._is_thinking:
            self._is_thinking = True
            plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
            click.echo("Thinking:" if plain else click.style("Thinking:", italic=True))
        self._print(text)

    def _say(self, text: str) -> None:
        if self._is_thinking:
            self._is_thinking = False
            self._print("\n\n--\n\n")
        self._pieces.append(text)
        self._print(text)

    def _print(self, text: str) -> None:
        click.echo(harmless(text), nl=False)
        self._last_printed = text

    def close(self) -> None:
        if self._last_printed and not self._last_printed.endswith("\n"):
            click.echo()


def rates(last: Mapping[str, Any], first_text_s: float | None, elapsed_s: float) -> str:
    """`12 prompt + 40 answer tokens · prompt 900.0 tokens/s · …`; what is unknown is left out."""
    usage, timings = last.get("usage", {}), last.get("timings", {})
    cached = usage.get("prompt_tokens_details", {}).get("cached_tokens")
    prompt = f"{usage.get('prompt_tokens', 0)} prompt" + (f" ({cached} cached)" if cached else "")
    parts = [f"{prompt} + {usage.get('completion_tokens', 0)} answer tokens"]
    for name, key in (("prompt", "prompt_per_second"), ("answer", "predicted_per_second")):
        if timings.get(key):
            parts.append(f"{name} {timings[key]:.1f} tokens/s")
    if first_text_s is not None:
        parts.append(f"first after {first_text_s:.2f} s")
    return " · ".join([*parts, f"{elapsed_s:.2f} s in all"])
