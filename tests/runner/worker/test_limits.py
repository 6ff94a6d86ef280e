"""Limits on the process while a template runs. Each test that reaches one does so in a process of its own."""

from __future__ import annotations

import ast
import resource
import signal
import subprocess
import sys

from runner.worker.limits import private_bytes

PATIENCE_S = 20.0


def _run(body: str) -> subprocess.CompletedProcess[str]:
    script = "from runner.worker.limits import RenderingLimits, private_bytes\n" + body
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_G07_a_native_call_that_keeps_the_interpreter_is_ended_by_the_kernel() -> None:
    ended = _run(
        "limits = RenderingLimits(1, kill_after_s=0.2)\nwith limits.while_rendering():\n    pow(3, 10**9)\n"
    )
    assert ended.returncode == -signal.SIGALRM


def test_G07_memory_beyond_the_headroom_is_refused_and_below_it_is_not() -> None:
    ended = _run(
        "limits = RenderingLimits(0, headroom_bytes=64 * 2**20)\n"
        "def hoard(megabytes):\n"
        "    held = []\n"
        "    try:\n"
        "        with limits.while_rendering():\n"
        "            for _ in range(megabytes): held.append(b'x' * 2**20)\n"
        "    except MemoryError:\n"
        "        return 'refused', len(held)\n"
        "    return 'done', len(held)\n"
        "print((hoard(48), hoard(200), hoard(48)))\n"
    )
    below, beyond, after = ast.literal_eval(ended.stdout)
    assert below == after == ("done", 48), ended.stderr
    assert beyond[0] == "refused"
    assert 48 <= beyond[1] <= 64


def test_the_limits_count_what_is_used_beyond_the_present_use_only() -> None:
    ended = _run(
        "engine = bytearray(256 * 2**20)\n"
        "with RenderingLimits(0, headroom_bytes=64 * 2**20).while_rendering():\n"
        "    template = b'x' * (32 * 2**20)\n"
        "print('fine')\n"
    )
    assert ended.stdout == "fine\n", ended.stderr


def test_the_limits_are_lifted_after_the_rendering() -> None:
    ended = _run(
        "import resource, signal\n"
        "before = resource.getrlimit(resource.RLIMIT_DATA)\n"
        "try:\n"
        "    with RenderingLimits(1).while_rendering():\n"
        "        print(resource.getrlimit(resource.RLIMIT_DATA) != before)\n"
        "        print(signal.getitimer(signal.ITIMER_REAL)[0] > 2)\n"
        "        raise ValueError\n"
        "except ValueError:\n"
        "    pass\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA) == before, signal.getitimer(signal.ITIMER_REAL)[0])\n"
    )
    assert ended.stdout == "True\nTrue\nTrue 0.0\n", ended.stderr


def test_private_memory_does_not_count_a_read_only_mapping_of_a_file() -> None:
    """As the weights are mapped."""
    ended = _run(
        "import mmap, tempfile\n"
        "with tempfile.TemporaryFile() as file:\n"
        "    file.truncate(256 * 2**20)\n"
        "    before = private_bytes()\n"
        "    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)\n"
        "    print(private_bytes() - before < 2**20)\n"
    )
    assert ended.stdout == "True\n", ended.stderr


def test_private_memory_is_known_here() -> None:
    present = private_bytes()
    assert present is not None
    assert present > resource.getpagesize()
