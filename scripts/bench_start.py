"""Measure cold starts and swaps: our daemon, with and without a spare worker, beside llama-server.

    scripts/bench_start.py --peer PATH_TO_LLAMA_SERVER [--model FILE] [--other FILE]

A cold start of llama-server is the time from its start to the first token; ours is the time from the request
for a model that is not loaded to its first token, with the daemon running, as users have it. All sides take
turns; medians and ratios of one run are printed. Then two models of which only one fits are asked for in
turns: the time from each request to its first token.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_servers import (
    DEFAULT_MODEL,
    Daemon,
    Target,
    child,
    first_token_s,
    free_port,
    is_healthy,
    our_daemon,
    peer_command,
    wait_for,
)

ONE, OTHER = "bench/one:latest", "bench/other:latest"
_PAUSE_S = 1.0
"""Before each measurement, so that nobody pays for what ended just before."""


def cold_start_s(daemon: Daemon, target: Target, *, with_spare: bool) -> float:
    daemon.unload_all()
    if with_spare:
        daemon.wait_for_spare()
    time.sleep(_PAUSE_S)
    return first_token_s(target, time.perf_counter())


def peer_start_s(program: Path, model: Path, scratch: Path, *, is_chat: bool) -> float:
    port = free_port()
    time.sleep(_PAUSE_S)
    started_s = time.perf_counter()
    with child(peer_command(program, model, port), scratch / "peer.log") as process:
        wait_for(lambda: True if is_healthy(port) or process.poll() is not None else None, "the peer")
        return first_token_s(Target(port, "any", is_chat), started_s)


def measure_starts(options: argparse.Namespace, scratch: Path) -> None:
    with contextlib.ExitStack() as stack:
        spared = stack.enter_context(our_daemon(scratch / "spared"))
        plain = stack.enter_context(our_daemon(scratch / "plain", "--spare-worker", "no"))
        for daemon in (spared, plain):
            daemon.ctl("package", str(options.model), ONE, *options.sizes)
        times: dict[str, list[float]] = {"runner": [], "runner without spare": [], "llama-server": []}
        for pair in range(-1, options.pairs):  # the first one is not counted
            measured = {
                "runner": cold_start_s(spared, Target(spared.port, ONE, options.is_chat), with_spare=True),
                "runner without spare": cold_start_s(
                    plain, Target(plain.port, ONE, options.is_chat), with_spare=False
                ),
                "llama-server": peer_start_s(options.peer, options.model, scratch, is_chat=options.is_chat),
            }
            if pair >= 0:
                for name, seconds in measured.items():
                    times[name].append(seconds)
        spare = spared.wait_for_spare()
        print(f"spare: {spare.memory_full_info().uss / 2**20:.0f} MiB of its own")
    _report_starts(times)


def _report_starts(times: dict[str, list[float]]) -> None:
    pairs = len(times["llama-server"])
    print(f"\ncold start to the first token, {pairs} interleaved rounds")
    for name, seconds in times.items():
        ratios = [mine / peers for mine, peers in zip(seconds, times["llama-server"], strict=True)]
        each = " ".join(f"{value * 1e3:.0f}" for value in seconds)
        print(
            f"  {name:<22}{statistics.median(seconds) * 1e3:>7.0f} ms"
            f"   ratio {statistics.median(ratios):.2f}   ({each})"
        )


def measure_swaps(options: argparse.Namespace, scratch: Path) -> None:
    """One after the other, each time the one that is not loaded."""
    with our_daemon(scratch / "swaps", "--memory-budget", options.swap_budget) as daemon:
        daemon.ctl("package", str(options.model), ONE, "--context-size", "4096")
        daemon.ctl("package", str(options.other), OTHER, "--context-size", "4000")
        targets = [
            Target(daemon.port, ONE, options.is_chat),
            Target(daemon.port, OTHER, options.is_chat),
        ]
        first_token_s(targets[1], time.perf_counter())
        times: list[list[float]] = [[], []]
        for _ in range(options.pairs):
            for index, target in enumerate(targets):
                time.sleep(_PAUSE_S)
                times[index].append(first_token_s(target, time.perf_counter()))
                if len(daemon.loaded_pids()) > 1:
                    raise RuntimeError("both fit: give a smaller --swap-budget")
    print(f"\nswap A -> B -> A, request to first token, {options.pairs} times")
    for name, seconds in zip(("to A", "to B"), times, strict=True):
        each = " ".join(f"{value * 1e3:.0f}" for value in seconds)
        print(f"  {name:<22}{statistics.median(seconds) * 1e3:>7.0f} ms   ({each})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, required=True, help="llama-server")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--other", type=Path, help="for swaps; by default the model with another name")
    parser.add_argument("--plain", dest="is_chat", action="store_false", help="base models: no chat template")
    parser.add_argument(
        "--context-size", help="of ours; half of the peer's gives both the same number of cells"
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--swap-budget", default="450MB", help="memory in which one of both fits")
    options = parser.parse_args()
    options.other = options.other or options.model
    options.sizes = ["--context-size", options.context_size] if options.context_size else []
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as name:
        scratch = Path(name)
        print(f"{options.model.name}, {options.other.name}")
        measure_starts(options, scratch)
        try:
            measure_swaps(options, scratch)
        except subprocess.CalledProcessError as error:
            sys.exit(f"{error}: {error.stderr.decode(errors='replace')}")


if __name__ == "__main__":
    main()
