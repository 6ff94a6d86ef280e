#!/usr/bin/env python3
"""Show models that compete for memory, in a real daemon on the real engine: three that take turns in room for
two, a flood for two of which one fits, and a hundred first requests for one that is not loaded.

    scripts/bench_competition.py --other FILE [--model FILE] [--only turns flood first]

`--model` and `--other` are GGUF files of different models; the third model is the first with another context
size. Budgets are set from the footprints that `ctl plan` tells. Memory is measured as the proportional set
size of the workers. The flood runs twice: with the daemon's rules, and with a swap wait of next to nothing,
which is first come, first served.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import psutil
from bench_servers import DEFAULT_MODEL, Daemon, our_daemon, wait_for

ONE, OTHER, THIRD = "bench/one:latest", "bench/other:latest", "bench/third:latest"
CONTEXTS = {ONE: 2048, OTHER: 2048, THIRD: 4096}
SCENES = ("turns", "flood", "first")
_MIB = 2**20
_SAMPLE_S = 0.1
_TURNS, _CLIENTS = 200, 6
_FLOOD_S, _FLOOD_EVERY_S = 60.0, 0.5
_FIRST = 100
_ANSWER_S = 300.0


@attrs.frozen
class Answer:
    """`status` of a reply that took `waited_s` in all."""

    model: str
    status: int
    waited_s: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--other", type=Path, required=True, help="a second, different model")
    parser.add_argument("--only", nargs="+", choices=SCENES, default=SCENES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if "turns" in arguments.only:
            with competing_daemon(Path(scratch, "turns"), arguments) as daemon:
                show_turns(daemon)
        if "flood" in arguments.only:
            for name, flags in (
                ("swap rules", ()),
                ("first come", ("--swap-wait", "0.1s", "--min-residency", "0s")),
            ):
                with competing_daemon(Path(scratch, name.replace(" ", "-")), arguments, *flags) as daemon:
                    show_flood(daemon, name)
        if "first" in arguments.only:
            with competing_daemon(Path(scratch, "first"), arguments) as daemon:
                show_first_requests(daemon)


@contextlib.contextmanager
def competing_daemon(scratch: Path, arguments: argparse.Namespace, *flags: str) -> Iterator[Daemon]:
    """A daemon that has the three models and has loaded none."""
    with our_daemon(scratch, *flags) as daemon:
        for name, file in ((ONE, arguments.model), (OTHER, arguments.other), (THIRD, arguments.model)):
            daemon.ctl("package", str(file), name, "--context-size", str(CONTEXTS[name]))
        yield daemon


def show_turns(daemon: Daemon) -> None:
    needs = {name: needed_bytes(daemon, name) for name in CONTEXTS}
    two, three = sum(sorted(needs.values())[1:]), sum(needs.values())
    budget_bytes = (two + three) // 2
    set_budget(daemon, budget_bytes)
    order = list(CONTEXTS) * (_TURNS // len(CONTEXTS) + 1)
    random.Random(1).shuffle(order)
    with watched_memory(daemon) as samples:
        answers = ask_all(daemon, order[:_TURNS], _CLIENTS)
    statuses = Counter(answer.status for answer in answers)
    waits = [answer.waited_s for answer in answers]
    print(f"three models, room for two, {_TURNS} interleaved requests from {_CLIENTS} clients")
    budget_mib = budget_bytes / _MIB
    told = ", ".join(f"{name} {size_bytes / _MIB:.0f}" for name, size_bytes in needs.items())
    print(f"  MiB needed: {told}; budget {budget_mib:.0f}")
    print(f"  statuses {dict(statuses)}")
    print(f"  wait median {statistics.median(waits):.2f} s, longest {max(waits):.2f} s")
    most_mib = max(samples) / _MIB
    print(f"  workers hold at most {most_mib:.0f} of {budget_mib:.0f} MiB ({len(samples)} samples)")
    evictions = decisions(daemon, "evict")
    print(f"  {len(evictions)} evictions, each with a reason:")
    for (model, why, others), times in Counter(
        (one["model"], one["why"], ", ".join(one["others"])) for one in evictions
    ).items():
        print(f"    {times:3} x {model}: {why} [{others}]")


def show_flood(daemon: Daemon, name: str) -> None:
    """One request every half second for a minute, in turns for two models of which one fits."""
    needs = [needed_bytes(daemon, model) for model in (ONE, OTHER)]
    set_budget(daemon, max(needs) + min(needs) // 2)
    started_s = time.monotonic()
    count = int(_FLOOD_S / _FLOOD_EVERY_S)

    def send(number: int) -> Answer:
        due_s = started_s + number * _FLOOD_EVERY_S
        time.sleep(max(0.0, due_s - time.monotonic()))
        return ask(daemon, (ONE, OTHER)[number % 2])

    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(send, range(count)))
    elapsed_s = time.monotonic() - started_s
    waits = sorted(answer.waited_s for answer in answers)
    loads = len(decisions(daemon, "load", (ONE, OTHER)))
    print(f"A-B-A-B flood, {count} requests in {_FLOOD_S:.0f} s, one fits: {name}")
    print(
        f"  statuses {dict(Counter(answer.status for answer in answers))}; all done after {elapsed_s:.1f} s"
    )
    print(f"  {loads} loads, {60 * loads / elapsed_s:.1f} a minute")
    p95_s = waits[int(0.95 * len(waits))]
    print(f"  wait median {statistics.median(waits):.2f} s, p95 {p95_s:.2f} s, longest {waits[-1]:.2f} s")


def show_first_requests(daemon: Daemon) -> None:
    barrier = threading.Barrier(_FIRST)

    def first(_number: int) -> Answer:
        barrier.wait(timeout=60)
        return ask(daemon, ONE)

    with ThreadPoolExecutor(_FIRST) as pool:
        answers = list(pool.map(first, range(_FIRST)))
    print(f"{_FIRST} first requests at once for a model that is not loaded")
    loads = len(decisions(daemon, "load", (ONE,)))
    print(f"  statuses {dict(Counter(answer.status for answer in answers))}; {loads} load")
    daemon.unload_all()
    leave_early(daemon)
    others = ask_all(daemon, [ONE] * 4, 4)
    print(f"  the first one leaves: the others {dict(Counter(answer.status for answer in others))}")
    daemon.unload_all()
    before = len(decisions(daemon, "ready", (ONE,)))
    for connection in [begin(daemon) for _ in range(5)]:
        connection.close()
    wait_for(lambda: None if daemon.loaded_pids() else True, "the end of a load that nobody waits for")
    after = len(decisions(daemon, "ready", (ONE,)))
    print(f"  all leave: {after - before} loads finished, {len(daemon.loaded_pids())} workers stay")


def leave_early(daemon: Daemon) -> None:
    begin(daemon).close()


def begin(daemon: Daemon) -> http.client.HTTPConnection:
    """A request that has been sent and whose answer nobody has read."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=_ANSWER_S)
    connection.request("POST", "/v1/completions", _body(ONE), {"Content-Type": "application/json"})
    return connection


def ask_all(daemon: Daemon, models: list[str], clients: int) -> list[Answer]:
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda model: ask(daemon, model), models))


def ask(daemon: Daemon, model: str) -> Answer:
    started_s = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=_ANSWER_S)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", _body(model), {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return Answer(model, response.status, time.monotonic() - started_s)


def _body(model: str) -> str:
    return json.dumps({"model": model, "prompt": "The river", "max_tokens": 8})


@contextlib.contextmanager
def watched_memory(daemon: Daemon) -> Iterator[list[int]]:
    """Samples of what all workers hold together, in bytes, while the block runs."""
    samples: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_SAMPLE_S):
            samples.append(sum(_proportional_bytes(child) for child in daemon.process.children()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def _proportional_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.memory_full_info().pss)
    return 0


def needed_bytes(daemon: Daemon, model: str) -> int:
    plan = daemon.get(f"/control/v1/plan?model={model}")
    return sum(int(device["needed_bytes"]) for device in plan["devices"])


def set_budget(daemon: Daemon, size_bytes: int) -> None:
    daemon.post("/control/v1/budget", {"memory_budget": size_bytes})


def decisions(
    daemon: Daemon, action: str, models: tuple[str, ...] = (ONE, OTHER, THIRD)
) -> list[dict[str, Any]]:
    return [
        one
        for model in models
        for one in daemon.get(f"/control/v1/why?model={model}")["decisions"]
        for _ in range(one["times"])
        if one["action"] == action and model.startswith(one["model"])
    ]


if __name__ == "__main__":
    main()
