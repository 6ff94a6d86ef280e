"""Hold footprints against what workers really take.

    measure_footprint.py MODEL.gguf[:CONTEXT,…]... [--pool CELLS] [--keys TYPE] [--values TYPE]

For each model and context:

(a) The sizes that a probe tells and those that the engine logs when it really loads must be equal to the
    log's last digit, on each device.
(b) Proportional memory of the worker less that of an idle spare must be at most the estimate and at least 0.8
    of it, after steps with all cells filled, one that gives as many rows their logits as the engine has room
    for, and prompts until the host cache holds no more.
(c) The same with the second context for embeddings, which is reserved apart, after it has taken inputs of
    full length.

The worker, the probe and the estimate are those of the daemon. A table of all comes last. Exits 1 when
anything does not hold.

Models are copied first, so that no other process shares their pages. By hand: a full cache takes minutes.
`measure_footprint.py SmolLM2.gguf:2048,8192 gemma-3.gguf:2048,8192,32768` is what releases are held to.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import trio

from actors.environment import interpreter_options, worker_environment
from actors.probing import run_probe
from actors.worker import KeeperEvent, WorkerHandle, WorkerLoadFailed, WorkerReady, WorkerSpec, run_keeper
from runner.domain.engine import DeviceBuffers, EngineOptions
from runner.domain.events import TextDelta
from runner.domain.generation import EMBEDDED_MAX, EmbeddingPrompt, GenerationRequest, TokenPrompt
from runner.domain.model import Model, ModelFiles
from runner.domain.sampling import SamplingParams
from runner.engine.batcher import FIRST_CHUNK
from runner.gguf.metadata import read_metadata
from runner.hardware.probe import compute_threads
from runner.hardware.resident import anonymous_bytes, proportional_bytes
from runner.memory.footprint import Footprint, estimate, exact, round_up_cells
from runner.oci.digest import Digest
from runner.wire.messages import Probed

MIB = 2**20
LEAST_RATIO = 0.8
LOOK_S = 0.5
STEPS_TOGETHER = 32
"""Steps in which all sequences decode, once the last one has been prefilled."""
KEPT_SHARE = 8
"""So many prompts have a context together that fill the host cache: what is left of it is less than one."""
FULL_AFTER = 5
"""Prompts after which nothing more is kept than before. Some stay in cells first."""
SPARE = "import runner.worker.loop, runner.engine.llama; print('ready', flush=True); input()"


@attrs.frozen(kw_only=True)
class Round:
    options: EngineOptions
    name: str
    by_header: Footprint
    footprint: Footprint
    logged: tuple[DeviceBuffers, ...]
    full: Usage
    embedding: Usage
    fill_s: float

    @property
    def ratio(self) -> float:
        return self.full.used_bytes / self.footprint.total_bytes

    @property
    def with_annex_bytes(self) -> int:
        return self.footprint.total_bytes + sum(one.total_bytes for one in self.footprint.annex)

    @property
    def annex_ratio(self) -> float:
        return self.embedding.used_bytes / self.with_annex_bytes

    @property
    def are_sizes_equal(self) -> bool:
        return as_logged(self.footprint.devices) == as_logged(self.logged)

    @property
    def holds(self) -> bool:
        ratios = (self.ratio, self.annex_ratio)
        return self.are_sizes_equal and all(LEAST_RATIO <= ratio <= 1 for ratio in ratios)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="MODEL.gguf, or MODEL.gguf:2048,8192")
    parser.add_argument("--pool", type=int, help="cells; by default those of one context")
    parser.add_argument("--host-cells", type=int, help="tokens kept beside the pool; by default as many")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--keys", default="f16")
    parser.add_argument("--values", default="f16")
    arguments = parser.parse_args()
    rounds = []
    for model in arguments.models:
        path, _, contexts = model.partition(":")
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(shutil.copy(path, directory))
            for context_size in map(int, (contexts or "2048").split(",")):
                n_cells = arguments.pool or round_up_cells(context_size)
                options = EngineOptions(
                    context_size=context_size,
                    n_cells=n_cells,
                    host_cells=n_cells if arguments.host_cells is None else arguments.host_cells,
                    max_sequences=arguments.sequences,
                    n_threads=compute_threads(),
                    key_type=arguments.keys,
                    value_type=arguments.values,
                )
                rounds.append(trio.run(measure, copy, options))
                report(rounds[-1])
    print_table(rounds)
    return 0 if all(done.holds for done in rounds) else 1


async def measure(path: Path, options: EngineOptions) -> Round:
    files = files_of(path)
    probed = await run_probe(files, options)
    if not isinstance(probed, Probed):
        raise SystemExit(f"the probe failed: {probed.report.cause}\n{probed.report.stderr_tail}")
    ready: list[WorkerReady] = []
    changed = trio.Event()

    def hear(event: KeeperEvent) -> None:
        if isinstance(event, WorkerLoadFailed):
            raise SystemExit(str(event.error))
        if isinstance(event, WorkerReady):
            ready.append(event)
            changed.set()

    async with trio.open_nursery() as nursery:
        spec = WorkerSpec(model=files.model, files=files, options=options)
        nursery.start_soon(run_keeper, spec, hear)
        await changed.wait()
        with spare() as spare_pid:
            handle = ready[0].handle
            full, embedding = Usage(handle, spare_pid), Usage(handle, spare_pid)
            began_s = time.monotonic()
            await use_all_outputs(handle, options, full)
            await fill(handle, options, full)
            await fill_host_cache(handle, options, full)
            fill_s = time.monotonic() - began_s
            await embed(handle, embedding)
        nursery.cancel_scope.cancel()
    return Round(
        name=path.name,
        options=options,
        by_header=estimate(files.weights_bytes, files.kv_bytes_per_cell, options.n_cells, options.host_cells),
        footprint=exact(probed.sizes, options.n_cells, options.host_cells),
        logged=ready[0].loaded.devices,
        full=full,
        embedding=embedding,
        fill_s=fill_s,
    )


def files_of(path: Path) -> ModelFiles:
    with path.open("rb") as file:
        metadata = read_metadata(file)
    model = Model(
        id=Digest.of(path.name.encode()),
        tags=(),
        created_s=0,
        size_bytes=path.stat().st_size,
        format="gguf",
        architecture=metadata.architecture,
        quantization="",
        parameters="",
    )
    return ModelFiles(
        model=model,
        weights=(path,),
        weights_bytes=path.stat().st_size,
        kv_bytes_per_cell=metadata.kv_bytes_per_cell(),
    )


@contextmanager
def spare() -> Iterator[int]:
    """A process that has imported what a worker imports, and waits."""
    with tempfile.TemporaryDirectory() as directory:
        process = subprocess.Popen(
            [sys.executable, *interpreter_options(), "-c", SPARE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=directory,
            env=worker_environment(os.environ, directory=directory),
        )
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
            process.kill()


@attrs.define
class Usage:
    """The most that was seen of the worker, and the spare at that moment."""

    handle: WorkerHandle
    spare_pid: int
    worker_bytes: int = 0
    anonymous_bytes: int = 0
    spare_bytes: int = 0
    cells_used: int = 0
    host_tokens: int = 0
    due_s: float = 0.0

    @property
    def used_bytes(self) -> int:
        return self.worker_bytes - self.spare_bytes

    def look_sometimes(self) -> None:
        """Not at every token: the kernel walks all pages for it."""
        if time.monotonic() >= self.due_s:
            self.look()

    def look(self) -> None:
        self.due_s = time.monotonic() + LOOK_S
        worker_bytes = proportional_bytes(self.handle.pid) or 0
        status = self.handle.status()
        self.cells_used = max(self.cells_used, status.cells_used)
        self.host_tokens = max(self.host_tokens, status.meters.host_tokens if status.meters else 0)
        if worker_bytes > self.worker_bytes:
            self.worker_bytes = worker_bytes
            self.anonymous_bytes = anonymous_bytes(self.handle.pid) or 0
            self.spare_bytes = proportional_bytes(self.spare_pid) or 0


async def use_all_outputs(handle: WorkerHandle, options: EngineOptions, usage: Usage) -> None:
    """A prompt whose every token is scored takes as many rows of logits as there can be."""
    n_tokens = min(4 * options.prefill_chunk, options.context_size - 1)
    request = GenerationRequest(
        request_id="scored",
        prompt=TokenPrompt(tuple(5 + index for index in range(n_tokens))),
        max_tokens=1,
        logprobs=5,
        echo=True,
        cache_prompt=False,
    )
    await _generate(handle, request, usage)


async def embed(handle: WorkerHandle, usage: Usage) -> None:
    """As many full inputs as share the second context."""
    tokens = TokenPrompt(tuple(5 + index for index in range(min(EMBEDDED_MAX, handle.loaded.context_size))))
    short = TokenPrompt(tokens.token_ids[:8])
    prompt = EmbeddingPrompt(inputs=(tokens, *[short] * 16))
    with handle.open_stream(GenerationRequest(request_id="embedded", prompt=prompt)) as stream:
        while await stream.receive():
            usage.look_sometimes()
    usage.look()


async def fill(handle: WorkerHandle, options: EngineOptions, usage: Usage) -> None:
    """Every sequence at once, sampling by chance, together as long as the pool."""
    share = options.n_cells // options.max_sequences
    # Decoding and prefilling steps take turns, so the first sequence answers while all others are prefilled,
    # in chunks of this size, since they have seeds.
    answer_tokens = options.n_cells // FIRST_CHUNK + STEPS_TOGETHER
    async with trio.open_nursery() as nursery:
        for number in range(options.max_sequences):
            token_ids = (5 + (number * 7919 + index * 31) % 20_000 for index in range(share - answer_tokens))
            request = GenerationRequest(
                request_id=str(number),
                prompt=TokenPrompt(tuple(token_ids)),
                sampling=SamplingParams(seed=1),
                max_tokens=answer_tokens,
                ignore_eos=True,
            )
            nursery.start_soon(_generate, handle, request, usage)


async def fill_host_cache(handle: WorkerHandle, options: EngineOptions, usage: Usage) -> None:
    """Prompts that have nothing in common, one after the other."""
    n_tokens = options.context_size // KEPT_SHARE
    number = grown_at = 0
    while options.host_cells and number - grown_at < FULL_AFTER:
        number += 1
        before = usage.host_tokens
        token_ids = (30 + (number * 7919 + index * 37) % 20_000 for index in range(n_tokens))
        request = GenerationRequest(
            request_id=f"kept {number}", prompt=TokenPrompt(tuple(token_ids)), max_tokens=1, ignore_eos=True
        )
        await _generate(handle, request, usage)
        usage.look()
        if usage.host_tokens > before:
            grown_at = number


async def _generate(handle: WorkerHandle, request: GenerationRequest, usage: Usage) -> None:
    with handle.open_stream(request) as stream:
        while events := await stream.receive():
            if any(isinstance(event, TextDelta) for event in events):
                usage.look_sometimes()


def as_logged(devices: tuple[DeviceBuffers, ...]) -> list[tuple[str, list[str]]]:
    """Device and sizes as the engine prints them, in MiB."""
    return [
        (buffers.device, [f"{size / MIB:.2f}" for size in attrs.astuple(buffers)[1:]]) for buffers in devices
    ]


def report(done: Round) -> None:
    options, full = done.options, done.full
    print(
        f"\n{done.name}, context {options.context_size}, {options.n_cells} cells, {full.cells_used} used,"
        f" {full.host_tokens} tokens in host memory of {options.host_cells},"
        f" filled in {done.fill_s:.0f} s"
    )
    print(f"  by the header  {done.by_header}")
    print(f"  by the probe   {done.footprint}")
    for expected, found in zip(as_logged(done.footprint.devices), as_logged(done.logged), strict=False):
        print(f"  probe {expected[0]}: weights, repacked, KV, compute, outputs {' '.join(expected[1])} MiB")
        print(f"  load  {found[0]}: {'equal' if expected == found else ' '.join(found[1])}")
    for device, sizes in as_logged(done.footprint.annex):
        print(f"  for embeddings {device}: KV, compute, outputs {' '.join(sizes[2:])} MiB")
    for what, usage, ratio in (
        ("full", full, done.ratio),
        ("and with embeddings", done.embedding, done.annex_ratio),
    ):
        print(
            f"  {what}: worker {usage.worker_bytes / MIB:.1f} (anonymous {usage.anonymous_bytes / MIB:.1f})"
            f" less spare {usage.spare_bytes / MIB:.1f} = {usage.used_bytes / MIB:.1f} MiB,"
            f" {ratio:.3f} of the estimate",
            flush=True,
        )


def print_table(rounds: list[Round]) -> None:
    titles = ("estimate", "worker", "spare", "ratio", "with emb.", "worker", "ratio", "probe = load")
    print(f"\n{'MiB':34}" + "".join(f"{title:>14}" for title in titles))
    for done in rounds:
        cells = (
            f"{done.footprint.total_bytes / MIB:.1f}",
            f"{done.full.worker_bytes / MIB:.1f}",
            f"{done.full.spare_bytes / MIB:.1f}",
            f"{done.ratio:.3f}",
            f"{done.with_annex_bytes / MIB:.1f}",
            f"{done.embedding.worker_bytes / MIB:.1f}",
            f"{done.annex_ratio:.3f}",
            "yes" if done.are_sizes_equal else "no",
        )
        name = f"{done.name[:25]} {done.options.context_size}"
        print(f"{name:34}" + "".join(f"{cell:>14}" for cell in cells) + ("" if done.holds else "   FAILS"))


if __name__ == "__main__":
    sys.exit(main())
