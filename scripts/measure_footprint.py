"""Hold footprints against what workers really take.

    measure_footprint.py MODEL.gguf [--context N]... [--pool CELLS] [--keys TYPE] [--values TYPE]

For each context: (a) the sizes that a probe tells and those that the engine logs when it really loads, which
must be equal to the log's last digit; (b) proportional memory of the worker less that of an idle spare, when
all cells were filled and steps give every sequence its logits, which must be at most the estimate and at
least 0.8 of it. The worker, the probe and the estimate are those of the daemon. Exits 1 when anything does
not hold.

The model is copied first, so that no other process shares its pages. By hand: a full cache takes minutes.
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
from runner.domain.generation import GenerationRequest, TokenPrompt
from runner.domain.model import Model, ModelFiles
from runner.domain.sampling import SamplingParams
from runner.gguf.metadata import read_metadata
from runner.hardware.probe import compute_threads
from runner.hardware.resident import anonymous_bytes, proportional_bytes
from runner.memory.fit import full_pool
from runner.memory.footprint import Footprint, estimate, exact
from runner.oci.digest import Digest
from runner.wire.messages import Probed

MIB = 2**20
LOOK_S = 0.5
STEPS_TOGETHER = 32
"""Steps in which all sequences decode, once the last one has been prefilled."""
SPARE = "import runner.worker.loop, runner.engine.llama; print('ready', flush=True); input()"


@attrs.frozen(kw_only=True)
class Round:
    options: EngineOptions
    by_header: Footprint
    footprint: Footprint
    logged: tuple[DeviceBuffers, ...]
    worker_bytes: int
    worker_anonymous_bytes: int
    spare_bytes: int
    cells_used: int
    fill_s: float

    @property
    def used_bytes(self) -> int:
        return self.worker_bytes - self.spare_bytes

    @property
    def ratio(self) -> float:
        return self.used_bytes / self.footprint.total_bytes

    @property
    def are_sizes_equal(self) -> bool:
        return as_logged(self.footprint.devices) == as_logged(self.logged)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--context", type=int, action="append")
    parser.add_argument("--pool", type=int, help="cells; by default those of two contexts")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--keys", default="f16")
    parser.add_argument("--values", default="f16")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(shutil.copy(arguments.model, directory))
        is_fine = True
        for context_size in arguments.context or [2048]:
            options = EngineOptions(
                context_size=context_size,
                n_cells=arguments.pool or full_pool(context_size),
                max_sequences=arguments.sequences,
                n_threads=compute_threads(),
                key_type=arguments.keys,
                value_type=arguments.values,
            )
            done = trio.run(measure, copy, options)
            report(done)
            is_fine = is_fine and done.are_sizes_equal and 0.8 <= done.ratio <= 1
    return 0 if is_fine else 1


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
            began_s = time.monotonic()
            usage = Usage(ready[0].handle, spare_pid)
            await fill(ready[0].handle, options, usage)
            fill_s = time.monotonic() - began_s
        nursery.cancel_scope.cancel()
    return Round(
        options=options,
        by_header=estimate(files.weights_bytes, files.kv_bytes_per_cell, options.n_cells),
        footprint=exact(probed.sizes),
        logged=ready[0].loaded.devices,
        worker_bytes=usage.worker_bytes,
        worker_anonymous_bytes=usage.anonymous_bytes,
        spare_bytes=usage.spare_bytes,
        cells_used=usage.cells_used,
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
    due_s: float = 0.0

    def look(self) -> None:
        """Not at every token: the kernel walks all pages for it."""
        if time.monotonic() < self.due_s:
            return
        self.due_s = time.monotonic() + LOOK_S
        worker_bytes = proportional_bytes(self.handle.pid) or 0
        self.cells_used = max(self.cells_used, self.handle.status().cells_used)
        if worker_bytes > self.worker_bytes:
            self.worker_bytes = worker_bytes
            self.anonymous_bytes = anonymous_bytes(self.handle.pid) or 0
            self.spare_bytes = proportional_bytes(self.spare_pid) or 0


async def fill(handle: WorkerHandle, options: EngineOptions, usage: Usage) -> None:
    """Every sequence at once, sampling by chance, together as long as the pool."""
    share = options.n_cells // options.max_sequences
    # Decoding and prefilling steps take turns, so the first sequence answers while all others are prefilled.
    answer_tokens = options.n_cells // options.prefill_chunk + STEPS_TOGETHER
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


async def _generate(handle: WorkerHandle, request: GenerationRequest, usage: Usage) -> None:
    with handle.open_stream(request) as stream:
        while events := await stream.receive():
            if any(isinstance(event, TextDelta) for event in events):
                usage.look()


def as_logged(devices: tuple[DeviceBuffers, ...]) -> list[tuple[str, list[str]]]:
    """Device and sizes as the engine prints them, in MiB."""
    return [
        (buffers.device, [f"{size / MIB:.2f}" for size in attrs.astuple(buffers)[1:]]) for buffers in devices
    ]


def report(done: Round) -> None:
    options = done.options
    print(
        f"\ncontext {options.context_size}, {options.n_cells} cells, {done.cells_used} used,"
        f" filled in {done.fill_s:.0f} s"
    )
    print(f"  by the header  {done.by_header}")
    print(f"  by the probe   {done.footprint}")
    for expected, found in zip(as_logged(done.footprint.devices), as_logged(done.logged), strict=False):
        print(f"  probe {expected[0]}: weights, repacked, KV, compute, outputs {' '.join(expected[1])} MiB")
        print(f"  load  {found[0]}: {'equal' if expected == found else ' '.join(found[1])}")
    print(
        f"  worker {done.worker_bytes / MIB:.1f} (anonymous {done.worker_anonymous_bytes / MIB:.1f})"
        f" less spare {done.spare_bytes / MIB:.1f} = {done.used_bytes / MIB:.1f} MiB,"
        f" {done.ratio:.3f} of the estimate",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
