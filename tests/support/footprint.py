"""How much memory a function takes, seen from outside: the peak of a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import importlib, resource, sys
module, name, path = sys.argv[1:]
function = getattr(importlib.import_module(module), name)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    function(path)
except Exception as error:
    print(type(error).__name__, file=sys.stderr)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def peak_growth_bytes(module: str, function: str, path: Path) -> int:
    """Growth of the peak resident memory of a process while it calls `module.function(path)`."""
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM, module, function, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return int(result.stdout) * 1024  # Linux counts in KiB
