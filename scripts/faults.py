#!/usr/bin/env python3
"""What clients see when a worker is hit: a real daemon, every fault at load, prefill and decode.

    scripts/faults.py [--model FILE] [--only SIGSTOP ...] [--json]

Faults come from outside, on the real engine; memory that grows beyond the limit comes by the scripted one,
since it has to happen at a moment. Each case has a model of its own (the same file, another context size), so
that no breaker or quarantine of one case decides the next. Beside each, another model is asked without pause.
Prints a table in Markdown. Takes some minutes, most of them waiting for watchdogs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tiny_gguf import TinyModel, write_tiny_gguf  # noqa: E402  # a script beside this one

from tests.support.daemon import RunningDaemon, running_daemon  # noqa: E402  # needs the path above
from tests.support.faults import (  # noqa: E402
    OUTSIDE,
    Bystander,
    Client,
    Seen,
    is_loading,
    is_prefilling,
    ready_spare,
    wait_for,
    worker_of,
)

DEFAULT_MODEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
SPARE, MEMORY = "spare killed", "out of memory"
PHASES = ("load", "prefill", "decode")
LONG_PROMPT = "Count the rivers, the lakes and the seas of the world, one by one. " * 45
GROWTH_MIB = 8000


@attrs.frozen(kw_only=True)
class Row:
    """Seconds from the fault to the end of the answer, and from there to the next one."""

    fault: str
    phase: str
    client: str
    answer_s: float
    others: str
    next_client: str
    next_s: float
    report: str


def main() -> None:
    options = _options()
    rows: list[Row] = []
    for row in _rows(options.model, set(options.only)):
        rows.append(row)
        print(f"{row.fault}, {row.phase}: {row.client}", file=sys.stderr)
    if options.json:
        print(json.dumps([attrs.asdict(row) for row in rows], indent=2))
    else:
        _print_table(rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="FILE")
    parser.add_argument("--only", nargs="+", default=[], metavar="FAULT")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _rows(model: Path, only: set[str]) -> Iterator[Row]:
    wanted = [name for name in OUTSIDE if not only or name in only]
    with_spare = not only or SPARE in only
    if wanted or with_spare:
        with _daemon("llama") as daemon:
            yield from _on_the_real_engine(daemon, model, wanted, with_spare)
    if not only or MEMORY in only:
        with _daemon("scripted") as daemon:
            yield from _out_of_memory(daemon)


@contextmanager
def _daemon(engine: str) -> Iterator[RunningDaemon]:
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as directory,
        running_daemon(Path(directory), RUNNER_ENGINE=engine) as daemon,
    ):
        yield daemon


def _on_the_real_engine(
    daemon: RunningDaemon, model: Path, faults: Iterable[str], with_spare: bool
) -> Iterator[Row]:
    daemon.package("bystander", model)
    daemon.post("/control/v1/start", {"model": "bystander", "keep_alive": -1})
    size = 2048
    for name in faults:
        for phase in PHASES:
            size += 256
            case = f"case-{size}"
            daemon.package(case, model, "--context-size", str(size))
            yield _case(daemon, name, phase, f"ai/{case}", OUTSIDE[name])
            daemon.post("/control/v1/unload", {"models": [case]})
    if with_spare:
        daemon.package("after-spare", model, "--context-size", "1024")
        yield _spare_killed(daemon)


def _case(daemon: RunningDaemon, fault: str, phase: str, model: str, hit: Callable[[int], None]) -> Row:
    with Bystander(daemon, "bystander") as others:
        if phase == "load":
            pid = wait_for(lambda: ready_spare(daemon))
            client = Client(daemon, model, "Say hello.", max_tokens=8)
            wait_for(lambda: is_loading(daemon, model), pause_s=0.0)
        elif phase == "prefill":
            daemon.post("/control/v1/start", {"model": model})
            client = Client(daemon, model, LONG_PROMPT, max_tokens=8)
            wait_for(lambda: is_prefilling(daemon, model))
            pid = wait_for(lambda: worker_of(daemon, model))
        else:
            daemon.post("/control/v1/start", {"model": model})
            client = Client(daemon, model, "Tell a long story.", is_streamed=True, max_tokens=300)
            assert client.began.wait(60)
            pid = wait_for(lambda: worker_of(daemon, model))
        hit_s = time.monotonic()
        hit(pid)
        return _row(daemon, fault, phase, model, client.seen(), hit_s, others)


def _row(
    daemon: RunningDaemon, fault: str, phase: str, model: str, seen: Seen, hit_s: float, others: Bystander
) -> Row:
    again = Client(daemon, model, "And good night.", max_tokens=4).seen()
    return Row(
        fault=fault,
        phase=phase,
        client=str(seen),
        answer_s=seen.ended_s - hit_s,
        others=f"{others.answers} answers, {len(others.failures)} failed, longest {others.longest_s:.1f} s",
        next_client=str(again),
        next_s=again.ended_s - seen.ended_s,
        report=_latest_report(daemon, model),
    )


def _latest_report(daemon: RunningDaemon, model: str) -> str:
    """After another answer of the model, so the worker it is about has gone."""
    reports = daemon.get(f"/control/v1/crashes?model={model}")
    return f"{reports[0]['kind']}: {reports[0]['cause']}" if reports else "none"


def _spare_killed(daemon: RunningDaemon) -> Row:
    pid = wait_for(lambda: ready_spare(daemon))
    with Bystander(daemon, "bystander") as others:
        os.kill(pid, signal.SIGKILL)
        hit_s = time.monotonic()
        seen = Client(daemon, "ai/after-spare", "Say hello.", max_tokens=8).seen()
        return _row(daemon, SPARE, "waiting", "ai/after-spare", seen, hit_s, others)


def _out_of_memory(daemon: RunningDaemon) -> Iterator[Row]:
    directory = daemon.directory
    plain = write_tiny_gguf(directory / "plain.gguf", TinyModel(context_length=8192))
    hungry_name = f"[[load grow {GROWTH_MIB}]][[load slow 1000]]"
    hungry = write_tiny_gguf(directory / "hungry.gguf", TinyModel(context_length=8192, name=hungry_name))
    daemon.package("bystander", plain)
    daemon.package("hungry", hungry)
    daemon.package("case", plain, "--context-size", "4096")
    daemon.post("/control/v1/start", {"model": "bystander", "keep_alive": -1})
    daemon.post("/control/v1/start", {"model": "case"})
    questions = {
        "prefill": f"[[grow {GROWTH_MIB}]]",
        "decode": f"[[slow 5]][[count 50]][[grow {GROWTH_MIB} after 20]]",
    }
    for phase in PHASES:
        model = "ai/hungry" if phase == "load" else "ai/case"
        with Bystander(daemon, "bystander") as others:
            hit_s = time.monotonic()
            text = questions.get(phase, "hello")
            seen = Client(daemon, model, text, is_streamed=phase == "decode").seen()
            yield _row(daemon, MEMORY, phase, model, seen, hit_s, others)


def _print_table(rows: list[Row]) -> None:
    print("| fault | at | the client saw | after | report | other model | next request | after |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        seen = f"{row.client} | {row.answer_s:.1f} s | {row.report}"
        after = f"{row.others} | {row.next_client} | {row.next_s:.1f} s"
        print(f"| {row.fault} | {row.phase} | {seen} | {after} |")


if __name__ == "__main__":
    main()
