"""A control API in a thread, answering in the shapes of `runner.domain.status`, and commands against it."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from runner.cli.main import main
from runner.domain.status import ModelSummary, WorkerStatus
from tests.support.scripted_server import Request, ScriptedServer, answer, refusal, scripted_server

ID = "sha256:" + "0123456789abcdef" * 4
SHORT_ID = "0123456789ab"
Route = Callable[[Request], Iterable[bytes]]


def model_summary(**changes: Any) -> ModelSummary:
    values = {
        "id": ID,
        "name": "ai/smollm2:135M-Q4_1",
        "tags": ("docker.io/ai/smollm2:135M-Q4_1",),
        "created_s": 0,
        "size_bytes": 98_362_432,
        "format": "gguf",
        "architecture": "llama",
        "quantization": "MOSTLY_Q4_1",
        "parameters": "134.52M",
        "context_size": None,
        "trained_context_size": 8192,
    }
    return ModelSummary(**{**values, **changes})


def worker_status(**changes: Any) -> WorkerStatus:
    values = {
        "model": "ai/smollm2:135M-Q4_1",
        "model_id": ID,
        "state": "ready",
        "pid": 4711,
        "engine": "llama",
        "context_size": 8192,
        "reserved_bytes": 3 * 2**28,
        "resident_bytes": 2**28,
        "leases": 0,
        "waiting": 0,
        "running_sequences": 0,
        "waiting_sequences": 0,
        "cells_used": 0,
        "n_cells": 8192,
        "host_cells": 8192,
        "keep_alive_s": 300.0,
        "expires_in_s": 270.0,
        "loaded_for_s": 30.0,
        "load_s": 0.41,
        "load_progress": 1.0,
    }
    return WorkerStatus(**{**values, **changes})


@attrs.frozen
class Ended:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str


class Cli:
    """`runner` in this process, by its real entry point, against a server whose routes the test writes.

    A route is a function of the request, or a document for a plain answer; keys are `METHOD path`. What has
    no route is answered as the daemon answers unknown paths.
    """

    def __init__(self, server: ScriptedServer, routes: dict[str, Any]) -> None:
        self.server = server
        self.routes = routes

    def __call__(self, *arguments: str, stdin: str | bytes = "") -> Ended:
        with CliRunner().isolation(stdin) as (stdout, stderr, _):
            status = run_main(arguments)
        return Ended(status, stdout.getvalue().decode(), stderr.getvalue().decode())

    def sent(self, route: str) -> list[Any]:
        """Bodies of the requests for it."""
        return [
            request.json() if request.body else None
            for request in self.server.requests
            if f"{request.method} {request.path}" == route
        ]


def run_main(arguments: Iterable[str]) -> int:
    """The exit status of `runner` with these arguments."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    argv, sys.argv = sys.argv, ["runner", *arguments]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def control_api(routes: Mapping[str, Any]) -> Iterator[ScriptedServer]:
    """`routes` may change while it runs."""

    def respond(request: Request) -> Iterable[bytes]:
        route = routes.get(f"{request.method} {request.path}")
        if route is None:
            return refusal(404, "not_found", "there is nothing at this path")
        return route(request) if callable(route) else answer(route)

    with scripted_server(respond) as server:
        yield server


@contextmanager
def command_line(monkeypatch: pytest.MonkeyPatch, home: str) -> Iterator[Cli]:
    """A `Cli` whose files are below `home`."""
    for name in list(os.environ):
        if name.startswith(("RUNNER_", "MODEL_RUNNER_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", home)
    routes: dict[str, Any] = {}
    with control_api(routes) as server:
        monkeypatch.setenv("RUNNER_HOST", str(server.target))
        yield Cli(server, routes)


class Terminal(io.StringIO):
    """Text that goes to a terminal."""

    def isatty(self) -> bool:
        return True
