"""Servers and clients of the benchmarks that load, swap and share: our daemon and llama-server on loopback.

Used by `bench_start.py` and `bench_sharing.py`. Every process is a child of the benchmark and ends with it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs
import psutil

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_MODEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
_START_S = 120.0
_END_S = 60.0
_POLL_S = 0.004
_QUESTION = "Say hello in French."


@attrs.frozen
class Target:
    """Where one model answers. `is_chat`: chat completions, else plain ones (base models)."""

    port: int
    model: str
    is_chat: bool = True


def stream(target: Target, max_tokens: int, subject: str = _QUESTION) -> Generator[float, None, None]:
    """The moment of each piece of text, on `time.perf_counter()`. Closing it leaves the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=_START_S)
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": subject}]}
    path = "/v1/chat/completions"
    if not target.is_chat:
        asked, path = {"prompt": subject}, "/v1/completions"
    body = {**asked, "model": target.model, "stream": True, "max_tokens": max_tokens, "ignore_eos": True}
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{path} answered {response.status}: {response.read(500)!r}")
        while line := response.readline():
            if line.startswith(b"data: {") and _has_text(json.loads(line[6:])):
                yield time.perf_counter()


def _has_text(event: dict[str, Any]) -> bool:
    if "error" in event:
        raise RuntimeError(f"a stream failed: {event['error']}")
    return any(
        choice.get("text") or choice.get("delta", {}).get("content") for choice in event.get("choices", ())
    )


def first_token_s(target: Target, started_s: float) -> float:
    """Seconds from `started_s` until the first text of an answer; leaves it then."""
    with contextlib.closing(stream(target, 16)) as answer:
        return next(answer) - started_s


@attrs.define
class Daemon:
    """`runner serve` with a store of its own."""

    process: psutil.Process
    port: int

    def ctl(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "runner", "ctl", *arguments, "--host", f"127.0.0.1:{self.port}"]
        subprocess.run(command, check=True, capture_output=True)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return _request(self.port, "POST", path, body)

    def get(self, path: str) -> Any:
        return _request(self.port, "GET", path)

    def loaded_pids(self) -> set[int]:
        return {worker["pid"] for worker in self.get("/control/v1/ps")["workers"]}

    def unload_all(self) -> None:
        self.post("/control/v1/unload", {"all": True})

    def spare(self) -> psutil.Process | None:
        """The worker that waits for a load, once it has imported everything and reads its channel."""
        loaded = self.loaded_pids()
        for child in self.process.children():
            with contextlib.suppress(psutil.Error):
                if child.pid not in loaded and "--ahead" in child.cmdline() and child.num_threads() >= 3:
                    return child
        return None

    def wait_for_spare(self) -> psutil.Process:
        return wait_for(self.spare, "a spare worker")


def _request(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_START_S)
    with contextlib.closing(connection):
        connection.request(
            method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        content = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{path} answered {response.status}: {content[:500]!r}")
        return json.loads(content or b"null")


@contextlib.contextmanager
def our_daemon(scratch: Path, *flags: str) -> Iterator[Daemon]:
    scratch.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = {**os.environ, "RUNNER_SOCKET": str(scratch / "run" / "runner.sock")}
    command = [sys.executable, "-m", "runner", "serve", "--port", str(port)]
    command += ["--store", str(scratch / "store"), *flags]
    with child(command, scratch / "log", environment) as process:
        wait_for(lambda: True if is_healthy(port) else None, "our daemon")
        yield Daemon(psutil.Process(process.pid), port)


def peer_command(program: Path, model: Path, port: int, arguments: Sequence[str] = ()) -> list[str]:
    """llama-server with its defaults and what was asked for."""
    return [
        str(program),
        "--model",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *arguments,
    ]


@contextlib.contextmanager
def peer_server(program: Path, model: Path, scratch: Path, *, is_chat: bool = True) -> Iterator[Target]:
    port = free_port()
    with child(peer_command(program, model, port), scratch / f"peer-{port}.log"):
        wait_for(lambda: True if is_healthy(port) else None, "the peer")
        yield Target(port, "any", is_chat)


@contextlib.contextmanager
def child(
    command: Sequence[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, as one that somebody starts in another terminal."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def busy_program() -> Iterator[None]:
    """Somebody else's program that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def wait_for(look: Callable[[], T | None], what: str) -> T:
    deadline_s = time.monotonic() + _START_S
    while (found := look()) is None:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what} did not come within {_START_S:.0f} s")
        time.sleep(_POLL_S)
    return found


def is_healthy(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def machine_busy_s() -> float:
    """Processor seconds that this machine has worked so far; differences tell how quiet it was."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice + getattr(times, "steal", 0.0))
