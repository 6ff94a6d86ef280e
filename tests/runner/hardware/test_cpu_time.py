"""Processor time, from files laid out in a directory and from this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from runner.hardware.cpu_time import busy_s, process_busy_s

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
    assert process_busy_s(os.getpid(), tmp_path) is None


def test_a_process_may_be_called_anything(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) b (c d) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0\n")
    assert process_busy_s(7, tmp_path) == pytest.approx(200 / TICKS_PER_S)


def test_our_own_work_is_seen_in_both() -> None:
    processors = frozenset(os.sched_getaffinity(0))
    before = busy_s(processors), process_busy_s(os.getpid())
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    after = busy_s(processors), process_busy_s(os.getpid())
    for earlier, later in zip(before, after, strict=True):
        assert earlier is not None
        assert later is not None
        assert later - earlier >= 0.05


def test_a_process_that_is_gone_has_no_time() -> None:
    assert process_busy_s(2**22 + 1) is None
