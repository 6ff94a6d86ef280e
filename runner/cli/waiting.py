"""What a person sees until the answer begins: that the model is being loaded, and how far it is."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

import click

from runner.cli.connect import familiar, short_id
from runner.cli.output import harmless_line
from runner.client import Client
from runner.errors import RunnerError

_PATIENCE_S = 0.3  # nobody needs to be told about less
_EVERY_S = 0.25
_POLL_TIMEOUT_S = 1.0


class Waiting:
    """One line on stderr, rewritten while nothing comes and gone before the first word; only on a terminal.

    `model_id` is the model's as `/v1/models` tells it: its first name in full, or its digest.
    """

    def __init__(self, client: Client, model_id: str) -> None:
        self._client = client
        self._name = short_id(model_id) if model_id.startswith("sha256:") else familiar(model_id)
        self._started_s = time.monotonic()
        self._is_shown = False
        self._lock = threading.Lock()  # so that nothing is written once `clear` has returned
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="waiting", daemon=True)

    def __enter__(self) -> Self:
        if _is_terminal():
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.clear()
        if self._thread.is_alive():
            self._thread.join(_POLL_TIMEOUT_S)

    def clear(self) -> None:
        """The wait is over. Costs nothing when called again."""
        if self._is_over.is_set():
            return
        with self._lock:
            self._is_over.set()
            if self._is_shown:
                _rewrite("")

    def _watch(self) -> None:
        delay_s = _PATIENCE_S
        while not self._is_over.wait(delay_s):
            delay_s = _EVERY_S
            text = f"{self._stage()} … {time.monotonic() - self._started_s:.0f} s"
            with self._lock:
                if not self._is_over.is_set():
                    self._is_shown = True
                    _rewrite(text)

    def _stage(self) -> str:
        try:
            workers = self._client.get("/control/v1/ps", timeout_s=_POLL_TIMEOUT_S)["workers"]
        except (RunnerError, KeyError, TypeError):
            workers = []
        return stage(self._name, next((worker for worker in workers if worker["model"] == self._name), None))


def stage(name: str, worker: dict[str, Any] | None) -> str:
    """What the model is at; `worker` is its row of `ps`, None when it has none yet."""
    match worker["state"] if worker is not None else None:
        case "loading" if worker is not None and worker["load_progress"]:
            return f"loading {name} {worker['load_progress']:.0%}"
        case "queued":
            return f"waiting for memory for {name}"
        case "ready":
            return f"waiting for {name}"
    return f"loading {name}"


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _rewrite(text: str) -> None:
    """One line, however narrow the terminal is: a wrapped one could not be taken back."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        columns = 80
    click.echo(f"\r\x1b[K{harmless_line(text)[: columns - 1]}", nl=False, err=True)
