#!/usr/bin/env python3
"""Load and unload a model again and again, and see whether the daemon keeps anything of it.

    scripts/soak.py [--cycles 200] [--warm-up 20] [--model FILE] [--engine llama]

Descriptors, threads, processes and working directories must return to their numbers, and the daemon's
resident memory may grow by 0.1 MB a cycle at most; the exit status says so. A cycle is a request that loads
the model, its answer, and an unload.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.daemon import running_daemon  # noqa: E402  # needs the path above
from tests.support.soaking import Holdings, cycle, holdings  # noqa: E402

DEFAULT_MODEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
GROWTH_MAX_BYTES = 100_000
LOOK_EVERY = 20
MODEL = "ai/soak"


def main() -> int:
    options = _options()
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as directory,
        running_daemon(Path(directory), RUNNER_ENGINE=options.engine) as daemon,
    ):
        daemon.package(MODEL, options.model, "--context-size", "512")
        body = {"text": "Say hello.", "max_tokens": 2}
        for _ in range(options.warm_up):
            cycle(daemon, MODEL, body)
        before = holdings(daemon, settled=True)
        print(f"after {options.warm_up} to warm up: {before}", flush=True)
        started_s = time.monotonic()
        for index in range(1, options.cycles + 1):
            cycle(daemon, MODEL, body)
            if index % LOOK_EVERY == 0:
                print(f"after {index} more: {holdings(daemon)}", flush=True)
        elapsed_s = time.monotonic() - started_s
        after = holdings(daemon, settled=True)
    print(f"at rest: {after}")
    return _verdict(before, after, options.cycles, elapsed_s)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=20)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="FILE")
    parser.add_argument("--engine", choices=("llama", "scripted"), default="llama")
    return parser.parse_args()


def _verdict(before: Holdings, after: Holdings, cycles: int, elapsed_s: float) -> int:
    growth_bytes = (after.resident_bytes - before.resident_bytes) / cycles
    print(f"{cycles} cycles in {elapsed_s:.0f} s; memory grew by {growth_bytes / 1e6:.4f} MB a cycle")
    if before.counts != after.counts:
        print("something was left behind", file=sys.stderr)
        return 1
    return int(growth_bytes > GROWTH_MAX_BYTES)


if __name__ == "__main__":
    raise SystemExit(main())
