"""Measure serving on this machine: our daemon beside llama-server, or beside our own engine in one process.

    scripts/bench.py --peer PATH_TO_LLAMA_SERVER
    scripts/bench.py

A closed loop of 1, 4 and 8 clients streams chat completions of equal length (`ignore_eos`) with prompts that
differ from request to request and are the same for both sides. Both sides run in turns, at least five
interleaved pairs; medians and ratios of one run are printed, since absolute figures mean little on a shared
machine. Everything is on loopback and ends by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import psutil

from actors.environment import worker_environment
from runner.hardware.probe import compute_threads

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_MODEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_NAME = "bench/model:latest"
_DEADLINE_S = 600.0
_PAUSE_S = 0.3
"""Before each round, so that nobody pays for what the other side does after its last answer."""
_TOPICS = (
    "rivers",
    "steam engines",
    "beekeeping",
    "the moon",
    "chess",
    "bread",
    "volcanoes",
    "bridges",
    "sailing",
)


@attrs.frozen(kw_only=True)
class Round:
    """One closed loop: tokens/s over all clients; medians over requests and gaps, in seconds."""

    tokens_per_s: float
    first_token_s: float
    first_token_p95_s: float
    gap_p50_s: float
    gap_p95_s: float
    daemon_cpu_us_per_token: float | None = None


Prompt = str | list[dict[str, str]]
"""What a user says, or a whole conversation."""


@attrs.define
class Stream:
    """One request on one connection: what has arrived, and when."""

    connection: socket.socket
    started_s: float
    arrivals_s: list[float] = attrs.field(factory=list)
    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    is_done: bool = False
    _rest: bytes = b""

    def feed(self, data: bytes, now_s: float) -> None:
        """Count content chunks; the usage chunk tells the tokens. HTTP framing never begins with `data:`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            text = line.strip()
            if text == b"data: [DONE]":
                self.is_done = True
            elif text.startswith(b"data: "):
                self._event(json.loads(text[6:]), now_s)
            elif text.startswith(b"HTTP/1.1 ") and b" 200" not in text:
                raise RuntimeError(f"a request failed: {text.decode()}")

    def _event(self, chunk: dict[str, Any], now_s: float) -> None:
        if "error" in chunk:
            raise RuntimeError(f"a stream failed: {chunk['error']}")
        if any(choice.get("delta", {}).get("content") for choice in chunk.get("choices", ())):
            self.arrivals_s.append(now_s)
            self.text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        if usage := chunk.get("usage"):
            self.tokens, self.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
            self.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


class Side(Protocol):
    """Something that answers a round of prompts."""

    name: str

    def run(self, prompts: Sequence[str], clients: int, tokens: int) -> Round: ...


@attrs.define
class HttpSide:
    """An OpenAI-compatible server. `processes` are counted as the daemon's CPU, workers excluded."""

    name: str
    port: int
    model: str
    daemon: psutil.Process | None = None

    def engine_sizes(self) -> list[str]:
        """Context, cells and threads of the loaded model, as the engine alone is to have them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/control/v1/ps", timeout=10) as answer:
            (worker,) = json.load(answer)["workers"]
        return [str(worker["context_size"]), str(worker["n_cells"]), str(compute_threads())]

    def run(self, prompts: Sequence[Prompt], clients: int, tokens: int) -> Round:
        time.sleep(_PAUSE_S)
        cpu_before_s = _cpu_s(self.daemon)
        started_s = time.perf_counter()
        streams = self.ask(prompts, clients, tokens)
        elapsed_s = time.perf_counter() - started_s
        total = sum(stream.tokens for stream in streams)
        if any(stream.tokens != tokens for stream in streams):
            raise RuntimeError(f"{self.name} answered with other lengths than asked for")
        cpu_s = _cpu_s(self.daemon) - cpu_before_s
        return _round(streams, total / elapsed_s, 1e6 * cpu_s / total if self.daemon else None)

    def ask(self, prompts: Sequence[Prompt], clients: int, tokens: int) -> list[Stream]:
        """The answers in the order of their ends."""
        waiting = list(prompts)
        done: list[Stream] = []
        deadline_s = time.perf_counter() + _DEADLINE_S
        with selectors.DefaultSelector() as selector:
            for _ in range(min(clients, len(waiting))):
                self._begin(selector, waiting.pop(0), tokens)
            while selector.get_map():
                if time.perf_counter() > deadline_s:
                    raise TimeoutError(f"{self.name} did not finish a round in {_DEADLINE_S:.0f} s")
                for key, _ in selector.select(timeout=1.0):
                    stream: Stream = key.data
                    data = stream.connection.recv(65536)
                    stream.feed(data, time.perf_counter())
                    if stream.is_done or not data:
                        selector.unregister(stream.connection)
                        stream.connection.close()
                        done.append(stream)
                        if waiting:
                            self._begin(selector, waiting.pop(0), tokens)
        return done

    def _begin(self, selector: selectors.BaseSelector, prompt: Prompt, tokens: int) -> None:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        body = json.dumps(
            {
                "model": self.model,
                "messages": messages,
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": tokens,
                "ignore_eos": True,
                "temperature": 0.8,
            }
        ).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        ).encode()
        started_s = time.perf_counter()
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(head + body)
        selector.register(connection, selectors.EVENT_READ, Stream(connection, started_s))


def _cpu_s(process: psutil.Process | None) -> float:
    if process is None:
        return 0.0
    times = process.cpu_times()
    return times.user + times.system


def nearest_rank(ordered: Sequence[float], share: float) -> float:
    """The least value that so large a share of all does not exceed."""
    return ordered[math.ceil(share * len(ordered)) - 1]


def _round(streams: Sequence[Stream], tokens_per_s: float, cpu_us: float | None) -> Round:
    gaps = sorted(
        later - earlier for stream in streams for earlier, later in itertools.pairwise(stream.arrivals_s)
    )
    first = sorted(stream.arrivals_s[0] - stream.started_s for stream in streams)
    return Round(
        tokens_per_s=tokens_per_s,
        first_token_s=statistics.median(first),
        first_token_p95_s=nearest_rank(first, 0.95),
        gap_p50_s=statistics.median(gaps),
        gap_p95_s=nearest_rank(gaps, 0.95),
        daemon_cpu_us_per_token=cpu_us,
    )


@contextlib.contextmanager
def our_daemon(model: Path, scratch: Path, sizes: Sequence[str] = ()) -> Iterator[HttpSide]:
    """`runner serve` on a free port with a store of its own, the model packaged with `sizes` and loaded."""
    port = _free_port()
    environment = {**os.environ, "RUNNER_SOCKET": str(scratch / "run" / "runner.sock")}
    serve = [sys.executable, "-m", "runner", "serve", "--port", str(port), "--store", str(scratch / "store")]
    with _server(serve, environment, port, scratch / "runner.log") as process:
        ctl = [sys.executable, "-m", "runner", "ctl"]
        host = ["--host", f"127.0.0.1:{port}"]
        subprocess.run(
            [*ctl, "package", str(model), MODEL_NAME, *sizes, *host], check=True, capture_output=True
        )
        subprocess.run(
            [*ctl, "start", MODEL_NAME, "--keep-alive", "-1", *host], check=True, capture_output=True
        )
        yield HttpSide("runner", port, MODEL_NAME, psutil.Process(process.pid))


@contextlib.contextmanager
def peer_server(program: Path, model: Path, scratch: Path, arguments: Sequence[str]) -> Iterator[HttpSide]:
    """llama-server with its defaults and what was asked for."""
    port = _free_port()
    command = [str(program), "--model", str(model), "--host", "127.0.0.1", "--port", str(port), *arguments]
    with _server(command, dict(os.environ), port, scratch / "peer.log"):
        yield HttpSide("llama-server", port, "any")


@contextlib.contextmanager
def _server(
    command: Sequence[str], environment: dict[str, str], port: int, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        _wait_until_healthy(process, port, log)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended at once:\n{log.read_text(errors='replace')[-2000:]}")
        if _is_healthy(port):
            return
        time.sleep(0.1)
    raise TimeoutError(f"{process.args!r} did not become healthy")


def _is_healthy(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@attrs.define
class EngineSide:
    """Our engine driven in a process of its own, without daemon, HTTP or frames around it."""

    child: subprocess.Popen[str]
    name: str = "engine alone"

    def run(self, prompts: Sequence[str], clients: int, tokens: int) -> Round:
        if self.child.stdin is None or self.child.stdout is None:
            raise RuntimeError("the engine process was started without pipes")
        self.child.stdin.write(
            json.dumps({"prompts": list(prompts), "clients": clients, "tokens": tokens}) + "\n"
        )
        self.child.stdin.flush()
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError("the engine process ended")
        return Round(**json.loads(line))


@contextlib.contextmanager
def engine_alone(model: Path, scratch: Path, sizes: Sequence[str]) -> Iterator[EngineSide]:
    """The environment is a worker's: what matters most in it is how long OpenMP's threads spin."""
    command = [sys.executable, str(Path(__file__).with_name("bench_engine.py")), str(model), *sizes]
    environment = {**worker_environment(os.environ, directory=str(scratch)), "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield EngineSide(child)
    finally:
        if child.stdin is not None:
            child.stdin.close()
        child.wait(timeout=60)
        if child.stdout is not None:
            child.stdout.close()


def prompts_for(round_index: int, count: int) -> list[str]:
    """Short prompts that differ from the first word on, so that nobody's cache decides the comparison."""
    return [
        f"{round_index}.{index}: tell me something about {_TOPICS[(round_index + index) % len(_TOPICS)]} "
        f"that most people have not heard of, in a few sentences."
        for index in range(count)
    ]


def compare(
    ours: Side, other: Side, clients: int, options: argparse.Namespace
) -> tuple[list[Round], list[Round]]:
    """Interleaved pairs; who goes first alternates. One unmeasured pair warms both up."""
    results: tuple[list[Round], list[Round]] = ([], [])
    for pair in range(-1, options.pairs):
        prompts = prompts_for(pair + 1000 * clients, clients * options.requests)
        order = ((ours, results[0]), (other, results[1]))
        for side, kept in order if pair % 2 == 0 else reversed(order):
            measured = side.run(prompts, clients, options.tokens)
            if pair >= 0:
                kept.append(measured)
    return results


def report(clients: int, ours: Sequence[Round], others: Sequence[Round], other_name: str) -> None:
    print(f"\n{clients} concurrent, medians of {len(ours)} interleaved pairs")
    print(f"  {'':<22}{'runner':>12}{other_name:>15}{'ratio':>9}{'lower q.':>10}{'upper q.':>10}")
    for label, field, scale in (
        ("tokens/s", "tokens_per_s", 1.0),
        ("first token, ms", "first_token_s", 1e3),
        ("first token p95, ms", "first_token_p95_s", 1e3),
        ("gap p50, ms", "gap_p50_s", 1e3),
        ("gap p95, ms", "gap_p95_s", 1e3),
    ):
        mine = [getattr(one, field) * scale for one in ours]
        theirs = [getattr(one, field) * scale for one in others]
        ratios = sorted(a / b for a, b in zip(mine, theirs, strict=True))
        lower, _, upper = statistics.quantiles(ratios, n=4)
        print(
            f"  {label:<22}{statistics.median(mine):>12.1f}{statistics.median(theirs):>15.1f}"
            f"{statistics.median(ratios):>9.2f}{lower:>10.2f}{upper:>10.2f}"
        )
    cpu = [one.daemon_cpu_us_per_token for one in ours if one.daemon_cpu_us_per_token is not None]
    if cpu:
        print(f"  daemon CPU per streamed token: {statistics.median(cpu):.0f} us")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer", type=Path, help="llama-server to compare with; without it, our engine alone"
    )
    parser.add_argument("--peer-arg", action="append", default=[], help="a further argument for the peer")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--concurrency", default="1,4,8")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3, help="requests of each client in one round")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    options = parser.parse_args()
    if options.pairs < 2:
        parser.error("--pairs must be at least 2")
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as name, contextlib.ExitStack() as stack:
        scratch = Path(name)
        ours = stack.enter_context(our_daemon(options.model, scratch))
        other: Side
        if options.peer:
            other = stack.enter_context(peer_server(options.peer, options.model, scratch, options.peer_arg))
        else:
            other = stack.enter_context(engine_alone(options.model, scratch, ours.engine_sizes()))
        print(f"{options.model.name}, {os.cpu_count()} cores, answers of {options.tokens} tokens")
        for clients in (int(part) for part in options.concurrency.split(",")):
            mine, theirs = compare(ours, other, clients, options)
            report(clients, mine, theirs, other.name)


if __name__ == "__main__":
    main()
