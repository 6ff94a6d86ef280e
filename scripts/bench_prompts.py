"""What reading prompts costs, beside llama-server: shared ones, conversations, long ones, reloads.

    scripts/bench_prompts.py shared --peer LLAMA_SERVER [--system TOKENS] [--limit LLAMA_BATCHED_BENCH]
    scripts/bench_prompts.py conversation --peer LLAMA_SERVER [--cells-for USERS]
    scripts/bench_prompts.py gap --peer LLAMA_SERVER
    scripts/bench_prompts.py reload

`shared`: requests with one system prompt that nobody has seen before, so many at a time. `conversation`:
users in turns, each of whom sends the whole conversation every time. `gap`: the gaps of a running stream
while a long prompt is read. `reload`: first tokens after an unload and after a restart of the daemon, beside
that of a prompt never seen. Both sides run in turns in one run; medians and ratios are printed.
Everything is on loopback and ends by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import bench_servers
from bench import (
    DEFAULT_MODEL,
    HttpSide,
    Prompt,
    Round,
    Stream,
    nearest_rank,
    our_daemon,
    peer_server,
    report,
)

from runner.hardware.probe import compute_threads

_WORDS = ("river", "stone", "engine", "garden", "letter", "mountain", "copper", "window", "sailor", "winter")
_QUESTIONS = (
    "How far is it to the moon, and who measured it first?",
    "Who wrote the play about the doctor and the devil?",
    "What is a prime number, and why do people care?",
    "Why is the sky dark at night although there are so many stars?",
)


def filler(seed: int, n_words: int) -> str:
    """Text of about as many tokens as words, of which no two seeds have a beginning in common."""
    state, words = seed * 2654435761 % 2**32, []
    for _ in range(n_words):
        state = (1664525 * state + 1013904223) % 2**32
        words.append(_WORDS[(state >> 16) % len(_WORDS)])
    return f"{seed}. " + " ".join(words)


def first_token_s(stream: Stream) -> float:
    return stream.arrivals_s[0] - stream.started_s


def medians(mine: Sequence[float], theirs: Sequence[float]) -> str:
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return (
        f"{statistics.median(mine):8.3f} {statistics.median(theirs):8.3f}   ratio "
        f"{statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"
    )


# one system prompt


def shared(options: argparse.Namespace, ours: HttpSide, peer: HttpSide) -> None:
    rounds: dict[str, list[Round]] = {ours.name: [], peer.name: []}
    for pair in range(-1, options.pairs):
        system = {"role": "system", "content": filler(1 + pair + options.pairs, options.system)}
        prompts: list[Prompt] = [
            [system, {"role": "user", "content": f"{index}: {_QUESTIONS[index % len(_QUESTIONS)]}"}]
            for index in range(options.requests)
        ]
        for side in (ours, peer) if pair % 2 else (peer, ours):
            measured = side.run(prompts, options.clients, options.tokens)
            if pair >= 0:
                rounds[side.name].append(measured)
    (probe,) = ours.ask([[system, {"role": "user", "content": "?"}]], 1, 1)
    n_prompt = probe.prompt_tokens
    print(f"\n{options.requests} requests, system prompt of {n_prompt} tokens that nobody has seen", end="")
    report(options.clients, rounds[ours.name], rounds[peer.name], peer.name)
    if options.limit:
        n_distinct = n_prompt + options.requests * 20
        limit_s = batched_limit_s(options, n_prompt, n_distinct)
        taken_s = [options.requests * options.tokens / one.tokens_per_s for one in rounds[ours.name]]
        print(
            f"  against the limit of the batched benchmark: {statistics.median(taken_s):.2f} s "
            f"/ {limit_s:.2f} s = {statistics.median(taken_s) / limit_s:.2f}"
        )


def batched_limit_s(options: argparse.Namespace, n_prompt: int, n_distinct: int) -> float:
    """Seconds for the distinct tokens of prompts at its rate of reading, and for all answers at its other."""
    n_threads = str(compute_threads())
    command = [str(options.limit), "-m", str(options.model), "-c", "8192", "-npp", str(n_prompt)]
    command += ["-ntg", str(options.tokens), "-npl", str(options.clients), "-t", n_threads, "--output-format"]
    command += ["jsonl", "-pps", "-kvu"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    speed = found[-1]
    print(
        f"  batched benchmark: prefill {speed['speed_pp']:.0f}, at {options.clients} {speed['speed_tg']:.0f}"
    )
    return float(n_distinct / speed["speed_pp"] + options.requests * options.tokens / speed["speed_tg"])


# conversations


@attrs.define
class Conversation:
    """What one side answered: the time of all turns, and the share of the turn before that it had kept."""

    elapsed_s: float = 0.0
    first_s: list[float] = attrs.field(factory=list)
    shares: list[float] = attrs.field(factory=list)


def converse(side: HttpSide, options: argparse.Namespace, seed: int) -> Conversation:
    """Users in turns, one after the other: each waits until the one before has its answer."""
    outcome = Conversation()
    histories: list[list[dict[str, str]]] = [[] for _ in range(options.users)]
    before = [0] * options.users
    begin_s = time.perf_counter()
    for turn, user in itertools.product(range(options.turns), range(options.users)):
        said = f"{filler(seed * 100 + user * 10 + turn, 40)}. {_QUESTIONS[turn % len(_QUESTIONS)]}"
        histories[user].append({"role": "user", "content": said})
        (stream,) = side.ask([histories[user]], 1, options.tokens)
        histories[user].append({"role": "assistant", "content": stream.text})
        outcome.first_s.append(first_token_s(stream))
        if before[user]:
            outcome.shares.append(stream.cached_tokens / before[user])
        before[user] = stream.prompt_tokens + stream.tokens - 1
    outcome.elapsed_s = time.perf_counter() - begin_s
    return outcome


def conversation(options: argparse.Namespace, ours: HttpSide, peer: HttpSide) -> None:
    found: dict[str, list[Conversation]] = {ours.name: [], peer.name: []}
    for pair in range(options.pairs):
        for side in (ours, peer) if pair % 2 else (peer, ours):
            found[side.name].append(converse(side, options, pair + 1))
    mine, theirs = found[ours.name], found[peer.name]
    print(f"\n{options.users} users, {options.turns} turns, cells for {options.cells_for}; runner, peer")
    print(
        "  all turns, s       ", medians([one.elapsed_s for one in mine], [one.elapsed_s for one in theirs])
    )
    print(
        "  first token, s     ",
        medians(
            [statistics.median(one.first_s) for one in mine],
            [statistics.median(one.first_s) for one in theirs],
        ),
    )
    for name, outcomes in found.items():
        shares = [share for one in outcomes for share in one.shares]
        print(
            f"  kept of the turn before, {name}: "
            f"median {statistics.median(shares):.1%}, least {min(shares):.1%}"
        )


# gaps while a prompt is read


def gaps_while_reading(side: HttpSide, options: argparse.Namespace, seed: int) -> tuple[float, float]:
    """Seconds: the 95th percentile of a stream's gaps while another one's prompt is read, and how long that
    took."""
    running: list[Stream] = []
    asker = threading.Thread(
        target=lambda: running.extend(side.ask(["Tell a long story."], 1, options.stream))
    )
    asker.start()
    time.sleep(1.0)
    began_s = time.perf_counter()
    (reading,) = side.ask([filler(seed, options.system)], 1, 2)
    read_s = first_token_s(reading)
    asker.join()
    (stream,) = running
    if stream.arrivals_s[-1] < began_s + read_s:
        raise RuntimeError("the stream ended before the prompt was read: ask for a longer --stream")
    gaps = sorted(
        later - earlier
        for earlier, later in itertools.pairwise(stream.arrivals_s)
        if later >= began_s and earlier <= began_s + read_s
    )
    return nearest_rank(gaps, 0.95), read_s


def gap(options: argparse.Namespace, ours: HttpSide, peer: HttpSide) -> None:
    found: dict[str, list[tuple[float, float]]] = {ours.name: [], peer.name: []}
    for pair in range(options.pairs):
        for side in (ours, peer) if pair % 2 else (peer, ours):
            found[side.name].append(gaps_while_reading(side, options, 1000 + pair))
    print(f"\na stream while a prompt of about {options.system} tokens is read; runner, peer")
    for name, place in (("gap p95, s", 0), ("reading, s", 1)):
        columns = [[one[place] for one in found[side.name]] for side in (ours, peer)]
        print(f"  {name:<18}", medians(*columns))


# after an unload, after a restart


@contextlib.contextmanager
def _daemon(scratch: Path) -> Iterator[bench_servers.Daemon]:
    with bench_servers.our_daemon(scratch) as daemon:
        daemon.wait_for_spare()
        yield daemon


def reload(options: argparse.Namespace, scratch: Path) -> None:
    times: dict[str, list[float]] = {"never seen": [], "after an unload": [], "after a restart": []}
    model = "bench/model:latest"
    for pair in range(options.pairs):
        prompt = filler(5000 + pair, options.system)
        with _daemon(scratch) as daemon:
            daemon.ctl("package", str(options.model), model)
            for name, end in (("never seen", "What is this?"), ("after an unload", "Why is it so?")):
                side = HttpSide("runner", daemon.port, model)
                (stream,) = side.ask([f"{prompt} {end}"], 1, 2)
                times[name].append(first_token_s(stream))
                daemon.unload_all()
                daemon.wait_for_spare()
                time.sleep(1.0)
        with _daemon(scratch) as daemon:
            (stream,) = HttpSide("runner", daemon.port, model).ask([f"{prompt} And when?"], 1, 2)
            times["after a restart"].append(first_token_s(stream))
    print(
        f"\nfirst token of a prompt of {stream.prompt_tokens} tokens, load included; "
        f"{stream.cached_tokens} were kept"
    )
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, times["never seen"], strict=True))
        each = " ".join(f"{one:.3f}" for one in seconds)
        print(f"  {name:<18}{statistics.median(seconds):8.3f} s   ratio {ratio:.3f}   ({each})")


# the program


def sizes_for(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Ours and the peer's: cells for so many users. Ours has a pool of one context."""
    if options.what != "conversation":
        return [], []
    n_conversation = options.turns * (options.tokens + 80)
    cells = str(options.cells_for * n_conversation)
    return ["--context-size", cells], ["--ctx-size", cells]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("shared", "conversation", "gap", "reload"))
    parser.add_argument("--peer", type=Path, help="llama-server")
    parser.add_argument("--peer-arg", action="append", default=[], help="a further argument for the peer")
    parser.add_argument("--limit", type=Path, help="llama-batched-bench")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--system", type=int, help="words of the system prompt or of the long one")
    parser.add_argument("--stream", type=int, default=400, help="tokens of the stream beside a long prompt")
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--cells-for", type=int, choices=(2, 4), default=4)
    options = parser.parse_args()
    options.system = options.system or (300 if options.what == "shared" else 2000)
    measure: dict[str, Callable[[argparse.Namespace, HttpSide, HttpSide], None]]
    measure = {"shared": shared, "conversation": conversation, "gap": gap}
    print(f"{options.model.name}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as name, contextlib.ExitStack() as stack:
        scratch = Path(name)
        if options.what == "reload":
            reload(options, scratch)
            return
        if options.peer is None:
            parser.error("--peer is needed")
        sizes, peer_sizes = sizes_for(options)
        ours = stack.enter_context(our_daemon(options.model, scratch, sizes))
        peer = stack.enter_context(
            peer_server(options.peer, options.model, scratch, [*peer_sizes, *options.peer_arg])
        )
        with urllib.request.urlopen(f"http://127.0.0.1:{ours.port}/control/v1/ps", timeout=10) as answer:
            (worker,) = json.load(answer)["workers"]
        print(
            f"runner: context {worker['context_size']}, cells {worker['n_cells']}; "
            f"peer: {' '.join((*peer_sizes, *options.peer_arg))}"
        )
        measure[options.what](options, ours, peer)


if __name__ == "__main__":
    main()
