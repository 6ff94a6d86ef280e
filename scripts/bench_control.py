#!/usr/bin/env python3
"""How fast the daemon answers small questions while everything is saturated and a load runs (O06, L15).

    scripts/bench_control.py [--seconds 60] [--model FILE]

Eight clients stream from one model without pause, eight more queue behind them, and another model is loaded
and unloaded all the while. Meanwhile one client asks for `/health`, `ls` and `ps` in turn, each on a
connection of its own, and one starts answers and leaves them: a cancel counts from the hang-up to the free
place, `ps` requests that look for it included. Prints the median, the 99th percentile and the longest time of
each; the exit status says whether the 99th percentiles stay within 100 ms. The clients are in this process
and take their share of the cores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.daemon import RunningDaemon, running_daemon  # noqa: E402  # needs the path above
from tests.support.faults import Client  # noqa: E402
from tests.support.sse import post_stream  # noqa: E402

DEFAULT_MODEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
LIMIT_S = 0.1
BUSY, CANCELLED, OTHER = "ai/busy", "ai/cancelled", "ai/other"
STREAMS = 16
QUESTIONS = {"health": "/health", "ls": "/control/v1/models", "ps": "/control/v1/ps"}


def main() -> int:
    options = _options()
    with (
        tempfile.TemporaryDirectory(prefix="control-") as directory,
        running_daemon(Path(directory), RUNNER_ENGINE="llama") as daemon,
    ):
        for size, name in ((1024, BUSY), (768, CANCELLED), (512, OTHER)):
            daemon.package(name, options.model, "--context-size", str(size))
        for name in (BUSY, CANCELLED):
            daemon.post("/control/v1/start", {"model": name, "keep_alive": -1})
        times_s, loads = _measure(daemon, options.seconds)
    _print(times_s, loads)
    return int(any(_p99(found) > LIMIT_S for found in times_s.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="FILE")
    return parser.parse_args()


def _measure(daemon: RunningDaemon, seconds: float) -> tuple[dict[str, list[float]], int]:
    times_s: dict[str, list[float]] = {name: [] for name in (*QUESTIONS, "cancel")}
    loads: list[float] = []
    is_over = threading.Event()
    tasks: list[Callable[[], None]] = [lambda: _stream(daemon)] * STREAMS
    tasks.append(lambda: loads.append(_load_and_unload(daemon)))
    tasks.append(lambda: _ask(daemon, times_s))
    tasks.append(lambda: times_s["cancel"].append(_cancel(daemon)))
    threads = [threading.Thread(target=_repeat, args=(task, is_over)) for task in tasks]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    is_over.set()
    for thread in threads:
        thread.join()
    return times_s, len(loads)


def _repeat(task: Callable[[], None], is_over: threading.Event) -> None:
    while not is_over.is_set():
        task()


def _stream(daemon: RunningDaemon) -> None:
    seen = Client(daemon, BUSY, "Tell a long story.", is_streamed=True, max_tokens=200).seen()
    if not seen.is_whole:
        raise RuntimeError(f"a stream failed: {seen}")


def _load_and_unload(daemon: RunningDaemon) -> float:
    started_s = time.perf_counter()
    daemon.post("/control/v1/start", {"model": OTHER})
    daemon.post("/control/v1/unload", {"models": [OTHER]})
    return time.perf_counter() - started_s


def _ask(daemon: RunningDaemon, times_s: dict[str, list[float]]) -> None:
    for name, path in QUESTIONS.items():
        started_s = time.perf_counter()
        _get(daemon, path)
        times_s[name].append(time.perf_counter() - started_s)
        time.sleep(0.02)


def _cancel(daemon: RunningDaemon) -> float:
    """From the hang-up until the place is free, looked at every few milliseconds."""
    message = {"role": "user", "content": "Tell a long story."}
    body = {"model": CANCELLED, "messages": [message], "stream": True, "ignore_eos": True, "max_tokens": 500}
    with post_stream(daemon.port, "/v1/chat/completions", body) as stream:
        next(stream.text_deltas())
    started_s = time.perf_counter()
    while _leases(daemon, CANCELLED):
        time.sleep(0.002)
    return time.perf_counter() - started_s


def _leases(daemon: RunningDaemon, model: str) -> int:
    workers = json.loads(_get(daemon, "/control/v1/ps"))["workers"]
    return sum(worker["leases"] for worker in workers if worker["model"] == model)


def _get(daemon: RunningDaemon, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"{path} was answered with {response.status}")
    return body


def _p99(times_s: list[float]) -> float:
    return statistics.quantiles(times_s, n=100)[98]


def _print(times_s: dict[str, list[float]], loads: int) -> None:
    print(f"{STREAMS} streams at one model, {loads} loads and unloads of another")
    print("| question | asked | p50 | p99 | longest |")
    print("|---|---|---|---|---|")
    for name, found in times_s.items():
        median_ms = 1000 * statistics.median(found)
        print(
            f"| {name} | {len(found)} | {median_ms:.1f} ms | {1000 * _p99(found):.1f} ms "
            f"| {1000 * max(found):.1f} ms |"
        )


if __name__ == "__main__":
    raise SystemExit(main())
