"""What a function costs, seen from outside: CPU time and peak memory of a process of its own.

In the test's own process, coverage and other instruments would be measured with it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import attrs

# VmHWM belongs to the memory of this very program; getrusage would tell the peak of who started it as well.
_PROGRAM = """
import importlib, sys, time
module, name, path = sys.argv[1:]
function = getattr(importlib.import_module(module), name)
def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
before, began = peak_kib(), time.process_time()
function(path)
print(time.process_time() - began, peak_kib() - before)
"""


@attrs.frozen
class Cost:
    """CPU seconds, so that a busy machine does not count, and growth of the peak resident memory in bytes."""

    cpu_s: float
    peak_growth_bytes: int


def cost_of(module: str, function: str, path: Path) -> Cost:
    """Cost of `module.function(path)`, which must not raise."""
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM, module, function, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    cpu_s, growth_kib = result.stdout.split()
    return Cost(float(cpu_s), int(growth_kib) * 1024)
