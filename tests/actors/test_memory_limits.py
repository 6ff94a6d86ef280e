"""Limits that the daemon puts on a process of its own, with a real one."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.memory_limits import limit_private_memory, prefer_as_victim

MIB = 1024**2
EATER = """
import mmap, sys
print("ready", flush=True)
for line in sys.stdin:
    kind, size = line.split()
    try:
        if kind == "private":
            kept = bytearray(int(size))
        else:
            with open(sys.argv[1], "rb") as file:
                kept = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                sum(kept[::4096])
        print("had it", flush=True)
    except MemoryError:
        print("refused", flush=True)
"""


class Eater:
    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self._popen = popen
        self.pid = popen.pid
        assert self._read() == "ready"

    def ask(self, kind: str, size_bytes: int) -> str:
        assert self._popen.stdin is not None
        print(kind, size_bytes, file=self._popen.stdin, flush=True)
        return self._read()

    def private_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[5])
        return pages * resource.getpagesize()

    def _read(self) -> str:
        assert self._popen.stdout is not None
        return self._popen.stdout.readline().strip()


@contextmanager
def eater(file: Path = Path()) -> Iterator[Eater]:
    popen = subprocess.Popen(
        [sys.executable, "-c", EATER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with popen:
        yield Eater(popen)


@pytest.mark.parametrize(("above", "answer"), [(-2 * MIB, "had it"), (2 * MIB, "refused")])
def test_W08_private_memory_beyond_the_limit_is_refused_to_the_one_that_asks(above: int, answer: str) -> None:
    with eater() as one, eater() as other:
        limit_private_memory(one.pid, one.private_bytes() + 100 * MIB)
        assert one.ask("private", 100 * MIB + above) == answer
        assert one.ask("private", MIB) == "had it"  # and it lives
        assert other.ask("private", 102 * MIB) == "had it"


def test_W08_the_read_only_mapping_of_a_file_does_not_count(tmp_path: Path) -> None:
    model = tmp_path / "model"
    with model.open("wb") as file:
        file.truncate(200 * MIB)
    with eater(model) as one:
        limit_private_memory(one.pid, one.private_bytes() + 50 * MIB)
        assert one.ask("mapped", 0) == "had it"
        assert one.ask("private", 60 * MIB) == "refused"


def test_W08_the_limit_only_goes_down() -> None:
    with eater() as one:
        limit_private_memory(one.pid, one.private_bytes() + 50 * MIB)
        limit_private_memory(one.pid, 10**12)
        assert one.ask("private", 60 * MIB) == "refused"


def test_W09_the_kernel_is_told_to_take_the_worker_before_the_daemon() -> None:
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    with eater() as one:
        prefer_as_victim(one.pid)
        theirs = int(Path(f"/proc/{one.pid}/oom_score_adj").read_text())
        badness = [int(Path(f"/proc/{pid}/oom_score").read_text()) for pid in (one.pid, "self")]
    assert theirs == min(ours + 500, 1000)
    assert badness[0] > badness[1]


def test_W09_an_inherited_value_counts_up_to_the_highest(tmp_path: Path) -> None:
    for pid, value in (("self", "700"), ("17", "700")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "oom_score_adj").write_text(value)
    prefer_as_victim(17, tmp_path)
    assert (tmp_path / "17" / "oom_score_adj").read_text() == "1000"


def test_a_process_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    popen = subprocess.Popen([sys.executable, "-c", ""])
    popen.wait()
    limit_private_memory(popen.pid, 1)
    prefer_as_victim(popen.pid)
    prefer_as_victim(17, tmp_path)
