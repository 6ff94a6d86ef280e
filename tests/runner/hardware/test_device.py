"""Threads worth starting."""

from __future__ import annotations

import pytest

from runner.hardware.device import CpuCores


@pytest.mark.parametrize(("physical", "usable", "threads"), [(4, 8, 4), (4, 2, 2), (1, 1, 1), (0, 0, 1)])
def test_one_thread_per_core_within_what_is_allowed(physical: int, usable: int, threads: int) -> None:
    assert CpuCores(logical=8, physical=physical, usable=usable).compute_threads == threads
