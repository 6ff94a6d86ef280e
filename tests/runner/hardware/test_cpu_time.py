"""Processor time, from files laid out in a directory and from this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.hardware.cpu_time import busy_s, family_busy_s, n_runnable

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
STAT = """\
cpu  600 600 600 600 600 600 600 600 0 0
cpu0 100 9000 20 9000 9000 3 4 5 50 0
cpu1 200 9000 10 9000 9000 0 0 0 0 0
cpu11 500 0 0 0 0 0 0 0 0 0
intr 12345 0 0 9
ctxt 99
"""


@pytest.mark.parametrize(
    ("processors", "ticks"), [({0}, 132), ({1}, 210), ({0, 1}, 342), ({11}, 500), ({2}, 0), (set(), 0)]
)
def test_work_of_the_named_processors_is_added_up_without_idle_and_low_priority(
    tmp_path: Path, processors: set[int], ticks: int
) -> None:
    (tmp_path / "stat").write_text(STAT)
    assert busy_s(frozenset(processors), tmp_path) == pytest.approx(ticks / TICKS_PER_S)


@pytest.mark.parametrize("content", ["cpu0 x", "cpu0 1 2 3", "cpux 1 2 3 4 5 6 7 8"])
def test_what_cannot_be_read_is_unknown(tmp_path: Path, content: str) -> None:
    (tmp_path / "stat").write_text(content)
    assert busy_s(frozenset({0}), tmp_path) is None


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert busy_s(frozenset({0}), tmp_path) is None
    assert family_busy_s(tmp_path) is None
    assert n_runnable(tmp_path) is None


def test_what_is_runnable_is_read_from_the_load(tmp_path: Path) -> None:
    (tmp_path / "loadavg").write_text("0.20 0.18 0.12 3/80 11206\n")
    assert n_runnable(tmp_path) == 3


@pytest.mark.parametrize("content", ["", "0.20 0.18 0.12", "0.20 0.18 0.12 x/80 1"])
def test_a_load_that_cannot_be_read_is_unknown(tmp_path: Path, content: str) -> None:
    (tmp_path / "loadavg").write_text(content)
    assert n_runnable(tmp_path) is None


def test_whoever_asks_is_runnable() -> None:
    found = n_runnable()
    assert found is not None
    assert found >= 1


def lay_out(proc: Path, name: str, *, own: str, children: str = "") -> None:
    (proc / name).mkdir(parents=True)
    (proc / name / "stat").write_text(f"7 (a) b (c d) S 1 2 3 4 5 6 7 8 9 10 {own} 0 0\n")
    if children:
        (proc / name / "task" / "7").mkdir(parents=True)
        (proc / name / "task" / "7" / "children").write_text(children)


def test_ours_is_what_we_and_our_children_have_used_also_those_that_ended(tmp_path: Path) -> None:
    lay_out(tmp_path, "self", own="150 50 1000 20", children="8 9 10 ")
    lay_out(tmp_path, "8", own="3 1 100000 100000")  # of its own children nothing is known to us
    lay_out(tmp_path, "9", own="5 1 0 0")
    assert family_busy_s(tmp_path) == pytest.approx(1230 / TICKS_PER_S), "10 has ended meanwhile"


def test_a_kernel_that_lists_no_children_tells_nothing(tmp_path: Path) -> None:
    lay_out(tmp_path, "self", own="150 50 1000 20")
    assert family_busy_s(tmp_path) is None


def test_our_own_work_and_that_of_a_child_is_seen_in_both() -> None:
    processors = frozenset(os.sched_getaffinity(0))
    before = busy_s(processors), family_busy_s()
    work = "import time\nwhile time.process_time() < 0.1: pass"
    subprocess.run([sys.executable, "-c", work], check=True)
    after = busy_s(processors), family_busy_s()
    for earlier, later in zip(before, after, strict=True):
        assert earlier is not None
        assert later is not None
        assert later - earlier >= 0.05
