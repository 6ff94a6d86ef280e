"""Measure models that share cores: with each other, and with a program that is not ours; beside llama-server.

    scripts/bench_sharing.py --peer PATH_TO_LLAMA_SERVER [--model FILE] [--other FILE]

In every round, in turns: each model alone, both at once, and the first beside a program that keeps one core
busy; with our daemon, then with one llama-server per model, all with their defaults. Speeds are pieces of
text per second after the first half second. Medians and ratios of one run are printed. `others` is how many
cores programs used that have no part in it: what is far from 0 has disturbed the measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import psutil
from bench_servers import DEFAULT_MODEL, Target, busy_program, machine_busy_s, our_daemon, peer_server, stream

ONE, OTHER = "bench/one:latest", "bench/other:latest"
SCENES = ("one alone", "other alone", "both: one", "both: other", "both: sum", "one beside a busy program")
_WARM_UP_S = 0.5
_PAUSE_S = 1.0
_TOKENS_MAX = 4000


@attrs.define
class Side:
    """The same two models, served by us or by two llama-servers."""

    name: str
    one: Target
    other: Target
    speeds: dict[str, list[float]] = attrs.field(factory=lambda: {scene: [] for scene in SCENES})
    others: list[float] = attrs.field(factory=list)

    def measure(self, seconds: float) -> None:
        (alone,) = self._speeds_of([self.one], seconds)
        (other_alone,) = self._speeds_of([self.other], seconds)
        one, other = self._speeds_of([self.one, self.other], seconds)
        with busy_program():
            (beside,) = self._speeds_of([self.one], seconds)
        for scene, speed in zip(SCENES, (alone, other_alone, one, other, one + other, beside), strict=True):
            self.speeds[scene].append(speed)

    def _speeds_of(self, targets: Sequence[Target], seconds: float) -> list[float]:
        time.sleep(_PAUSE_S)
        with _others_measured(self.others):
            return _pieces_per_s(targets, seconds)


def _pieces_per_s(targets: Sequence[Target], seconds: float) -> list[float]:
    """Of each target, generating at the same time; counted between the same two moments for all."""
    moments: list[list[float]] = [[] for _ in targets]
    stop = threading.Event()

    def read(target: Target, into: list[float]) -> None:
        with contextlib.closing(stream(target, _TOKENS_MAX)) as pieces:
            for moment in pieces:
                into.append(moment)
                if stop.is_set():
                    return

    readers = [
        threading.Thread(target=read, args=pair, daemon=True) for pair in zip(targets, moments, strict=True)
    ]
    for reader in readers:
        reader.start()
    while not all(moments) and any(reader.is_alive() for reader in readers):
        time.sleep(0.01)
    begin = time.perf_counter() + _WARM_UP_S
    time.sleep(_WARM_UP_S + seconds)
    end = begin + seconds
    stop.set()
    for reader in readers:
        reader.join(120)
    if not all(moments):
        raise RuntimeError("a server gave no answer")
    return [sum(begin <= moment < end for moment in found) / seconds for found in moments]


@contextlib.contextmanager
def _others_measured(into: list[float]) -> Iterator[None]:
    """How many cores were kept busy meanwhile by what is no descendant of this process."""
    before_s, machine_s, ours_s = time.perf_counter(), machine_busy_s(), _family_busy_s()
    yield
    elapsed_s = time.perf_counter() - before_s
    into.append((machine_busy_s() - machine_s - (_family_busy_s() - ours_s)) / elapsed_s)


def _family_busy_s() -> float:
    total_s = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total_s += times.user + times.system
    return total_s


def report(ours: Side, peer: Side) -> None:
    rounds = len(ours.speeds[SCENES[0]])
    print(f"\npieces of text per second, medians of {rounds} interleaved rounds; of solo: of the same round")
    print(f"  {'':<28}{'runner':>9}{'of solo':>9}{peer.name:>15}{'of solo':>9}{'ratio':>8}")
    for scene in SCENES:
        mine, theirs = ours.speeds[scene], peer.speeds[scene]
        ratio = statistics.median(a / max(b, 0.01) for a, b in zip(mine, theirs, strict=True))
        print(
            f"  {scene:<28}{statistics.median(mine):>9.1f}{_of_solo(ours, scene):>9}"
            f"{statistics.median(theirs):>15.1f}{_of_solo(peer, scene):>9}{ratio:>8.2f}"
        )
    for side in (ours, peer):
        print(f"  others beside {side.name}: {statistics.median(side.others):.2f} cores")


def _of_solo(side: Side, scene: str) -> str:
    solo = {"both: one": "one alone", "both: other": "other alone", SCENES[-1]: "one alone"}.get(scene)
    if solo is None:
        return ""
    pairs = zip(side.speeds[scene], side.speeds[solo], strict=True)
    return f"{statistics.median(speed / max(alone, 0.01) for speed, alone in pairs):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, required=True, help="llama-server")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--other", type=Path, help="by default the model again, with another context size")
    parser.add_argument("--plain", dest="is_chat", action="store_false", help="base models: no chat template")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    options = parser.parse_args()
    other = options.other or options.model
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as name, contextlib.ExitStack() as stack:
        scratch = Path(name)
        daemon = stack.enter_context(our_daemon(scratch / "ours"))
        for reference, file, size in ((ONE, options.model, "8192"), (OTHER, other, "4096")):
            daemon.ctl("package", str(file), reference, "--context-size", size)
            daemon.ctl("start", reference, "--keep-alive", "-1")
        ours = Side(
            "runner",
            Target(daemon.port, ONE, options.is_chat),
            Target(daemon.port, OTHER, options.is_chat),
        )
        peer_one, peer_other = (
            stack.enter_context(peer_server(options.peer, file, scratch, is_chat=options.is_chat))
            for file in (options.model, other)
        )
        peer = Side("llama-server", peer_one, peer_other)
        print(f"{options.model.name} and {other.name}, {psutil.cpu_count()} processors")
        for index in range(options.rounds):
            for side in (ours, peer) if index % 2 == 0 else (peer, ours):
                side.measure(options.seconds)
    report(ours, peer)


if __name__ == "__main__":
    main()
