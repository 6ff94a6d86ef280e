#!/usr/bin/env python3
"""How fast a large model is pulled, beside `skopeo copy` and `curl`, and what it costs.

    scripts/bench_transfer.py [--size 1024] [--slow-size 256] [--rate 20] [--rounds 3]

A model of SIZE MiB is packaged and pushed to Debian's docker-registry on loopback, then pulled by turns by
curl (which verifies nothing), skopeo and ours, each into an empty place. Ours runs as in the daemon, with
store and puller in one trio run; printed are wall time, CPU time, growth of memory at its peak, and how late
the event loop was at the 99th percentile. Then a model of SLOW-SIZE MiB is pulled through a proxy that lets
RATE MB/s through each connection, by one connection and by ours. The exit status says whether ours was no
slower than skopeo, grew by at most 64 MiB, kept the loop's lateness within 100 ms, and was 4 times as fast as
a single stream.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import psutil
import trio

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from actors.puller import Network  # noqa: E402  # needs the path above
from runner.domain.transfer import PullRequest, PushRequest  # noqa: E402
from runner.oci.digest import Digest  # noqa: E402
from runner.oci.reference import ModelName, Reference  # noqa: E402
from runner.registry.huggingface import Hub  # noqa: E402
from runner.store.package import PackageLayer, PackageSpec  # noqa: E402
from tests.support.docker_registry import docker_registry  # noqa: E402
from tests.support.models import running_store, tiny_gguf  # noqa: E402
from tests.support.registry_client import open_door, registry_client  # noqa: E402

MEMORY_GROWTH_MAX_BYTES = 64 << 20
LATENESS_MAX_S = 0.1
LATENESS_EVERY_S = 0.005
FASTER_THAN_ONE_STREAM = 4.0


@attrs.frozen(kw_only=True)
class Cost:
    """One run. Memory and lateness are known of ours only."""

    wall_s: float
    cpu_s: float
    grown_bytes: int | None = None
    lateness_s: float | None = None


def main() -> int:
    options = _options()
    if options.child is not None:
        print(json.dumps(attrs.asdict(trio.run(_child, options.child, options.place))))
        return 0
    with tempfile.TemporaryDirectory(prefix="transfer-", dir=options.directory) as name:
        directory = Path(name)
        with docker_registry(directory / "registry") as registry:
            for model, size_mib in (("large", options.size), ("slow", options.slow_size)):
                pushed = _push(directory / "source", f"{registry.host}/ai/{model}:1", size_mib)
                _print(f"push {size_mib} MiB", [pushed])
                shutil.rmtree(directory / "source")
            is_good = _compare(directory, registry.host, options)
            return int(not (_compare_streams(directory, registry.host, options) and is_good))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=1024, metavar="MIB")
    parser.add_argument("--slow-size", type=int, default=256, metavar="MIB")
    parser.add_argument("--rate", type=float, default=20.0, metavar="MB/S")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where the files of the runs go")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# the runs


def _compare(directory: Path, host: str, options: argparse.Namespace) -> bool:
    """By turns, so that whatever else the machine does meets all of them."""
    found: dict[str, list[Cost]] = {"curl": [], "skopeo copy": [], "ours": []}
    digest = _weights(host, "large")
    for _ in range(options.rounds):
        found["curl"].append(_curl(directory, host, "large", digest))
        found["skopeo copy"].append(_skopeo(directory, host))
        found["ours"].append(_pull(directory, f"{host}/ai/large:1"))
    for name, costs in found.items():
        _print(name, costs)
    grown_bytes = max(cost.grown_bytes or 0 for cost in found["ours"])
    lateness_s = max(cost.lateness_s or 0.0 for cost in found["ours"])
    is_fast = _median_s(found["ours"]) <= _median_s(found["skopeo copy"])
    return is_fast and grown_bytes <= MEMORY_GROWTH_MAX_BYTES and lateness_s <= LATENESS_MAX_S


def _compare_streams(directory: Path, host: str, options: argparse.Namespace) -> bool:
    with _slow_proxy(host, options.rate * 1e6) as proxy:
        digest = _weights(host, "slow")
        single = _curl(directory, proxy, "slow", digest)
        ours = _pull(directory, f"{proxy}/ai/slow:1")
    _print(f"curl at {options.rate:.0f} MB/s a connection", [single])
    _print(f"ours at {options.rate:.0f} MB/s a connection", [ours])
    print(f"{single.wall_s / ours.wall_s:.1f} times as fast as one stream")
    return single.wall_s >= FASTER_THAN_ONE_STREAM * ours.wall_s


def _push(place: Path, reference: str, size_mib: int) -> Cost:
    return _run_child(f"push {reference} {size_mib}", place)


def _pull(directory: Path, reference: str) -> Cost:
    place = directory / "ours"
    try:
        return _run_child(f"pull {reference}", place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _run_child(what: str, place: Path) -> Cost:
    os.sync()  # nobody is to wait for what another has written
    command = [sys.executable, __file__, "--child", what, "--place", str(place)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def _curl(directory: Path, host: str, model: str, digest: str) -> Cost:
    target = directory / "curl"
    url = f"http://{host}/v2/ai/{model}/blobs/{digest}"
    return _timed(["curl", "-sf", "-o", str(target), url], target)


def _skopeo(directory: Path, host: str) -> Cost:
    target = directory / "skopeo"
    source = f"docker://{host}/ai/large:1"
    return _timed(["skopeo", "copy", "-q", "--src-tls-verify=false", source, f"dir:{target}"], target)


def _timed(command: list[str], target: Path) -> Cost:
    os.sync()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began_s = time.monotonic()
    subprocess.run(command, check=True)
    wall_s = time.monotonic() - began_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    return Cost(wall_s=wall_s, cpu_s=_cpu_s(after) - _cpu_s(before))


def _cpu_s(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def _weights(host: str, model: str) -> str:
    with registry_client() as client:
        remote = client.resolve(Reference.parse(f"{host}/ai/{model}:1"))
    return str(remote.manifest.layers[0].digest)


# ours, in a process of its own


async def _child(what: str, place: Path) -> Cost:
    verb, reference, *rest = what.split()
    with registry_client() as client, open_door() as door:
        network = Network(client=client, hub=Hub(door))
        async with running_store(place, network=network) as running:
            if verb == "push":
                await _package(running, int(rest[0]) << 20)
                request = PushRequest(name=ModelName.parse("model:1"), target=Reference.parse(reference))
                return await _measured(running.puller.push(request))
            return await _measured(running.puller.pull(PullRequest(reference=Reference.parse(reference))))


async def _package(running: Any, size_bytes: int) -> None:
    uploaded = await running.store.receive_blob(_content(size_bytes))
    layer = PackageLayer(kind="gguf", digest=Digest.parse(uploaded.digest), filename="model.gguf")
    await running.puller.package(PackageSpec(target=Reference.parse("model:1"), layers=(layer,)))


async def _content(size_bytes: int) -> AsyncIterator[bytes]:
    """A sound model with noise behind it."""
    yield tiny_gguf()
    for _ in range(size_bytes >> 20):
        yield os.urandom(1 << 20)


async def _measured(feed: Any) -> Cost:
    lateness_s: list[float] = []
    process = psutil.Process()
    rss_before = process.memory_info().rss
    usage_before, began_s = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_lateness, lateness_s)
        async with feed:
            await _drain(feed)
            feed.result()
        nursery.cancel_scope.cancel()
    wall_s, usage = time.monotonic() - began_s, resource.getrusage(resource.RUSAGE_SELF)
    return Cost(
        wall_s=wall_s,
        cpu_s=_cpu_s(usage) - _cpu_s(usage_before),
        grown_bytes=max(0, usage.ru_maxrss * 1024 - rss_before),
        lateness_s=statistics.quantiles(lateness_s, n=100)[98],
    )


async def _drain(feed: AsyncIterable[object]) -> None:
    async for _ in feed:
        pass


async def _watch_lateness(lateness_s: list[float]) -> None:
    while True:
        due_s = trio.current_time() + LATENESS_EVERY_S
        await trio.sleep_until(due_s)
        lateness_s.append(trio.current_time() - due_s)


# a proxy that limits each connection


@contextlib.contextmanager
def _slow_proxy(host: str, bytes_per_s: float) -> Iterator[str]:
    """Its address. Each connection has two threads, and the kernel moves the bytes."""
    listener = socket.create_server(("127.0.0.1", 0))
    address, _, port = host.rpartition(":")

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection((address, int(port)))
            for source, target, rate in ((client, server, None), (server, client, bytes_per_s)):
                threading.Thread(target=_forward, args=(source, target, rate), daemon=True).start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()


def _forward(source: socket.socket, target: socket.socket, bytes_per_s: float | None) -> None:
    """Until either side ends; at most so many bytes a second."""
    reading, writing = os.pipe()
    due_s = time.monotonic()
    with contextlib.suppress(OSError):
        while size_bytes := os.splice(source.fileno(), writing, 1 << 18):
            if bytes_per_s is not None:
                due_s = max(due_s, time.monotonic() - 0.05) + size_bytes / bytes_per_s
                time.sleep(max(0.0, due_s - time.monotonic()))
            while size_bytes > 0:
                size_bytes -= os.splice(reading, target.fileno(), size_bytes)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    os.close(reading)
    os.close(writing)


# printing


def _median_s(costs: list[Cost]) -> float:
    return statistics.median(cost.wall_s for cost in costs)


def _print(name: str, costs: list[Cost]) -> None:
    cpu_s = statistics.median(cost.cpu_s for cost in costs)
    text = f"{name:<28} wall {_median_s(costs):6.2f} s   CPU {cpu_s:6.2f} s"
    grown = [cost.grown_bytes for cost in costs if cost.grown_bytes is not None]
    lateness_s = [cost.lateness_s for cost in costs if cost.lateness_s is not None]
    if grown and lateness_s:
        text += f"   memory +{max(grown) / 2**20:.0f} MiB   loop late p99 {max(lateness_s) * 1000:.1f} ms"
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
