"""Memory of our children: only what they hold for themselves, and nothing of those that are gone."""

from __future__ import annotations

import subprocess
import sys

import psutil

from runner.hardware.process_memory import children_private_bytes, private_bytes

MIB = 1024**2
HOLD = "held = bytearray({size}); held[::4096] = b'x' * len(held[::4096]); print('held', flush=True); input()"


def child_that_holds(size: int) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD.format(size=size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    return child


def test_the_private_memory_of_children_is_counted_as_long_as_they_live() -> None:
    before = children_private_bytes()
    with child_that_holds(50 * MIB) as child:
        grown = children_private_bytes() - before
        assert 50 * MIB <= grown < 80 * MIB
        process = psutil.Process(child.pid)
        assert private_bytes(process) < process.memory_info().rss, "shared libraries are not its own"
        child.communicate(b"\n")
    assert children_private_bytes() == before
    assert private_bytes(process) == 0
