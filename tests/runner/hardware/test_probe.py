"""The prober against the machine that runs the tests."""

from __future__ import annotations

import os

import psutil

from runner.hardware import probe


def test_this_machine_tells_plausible_numbers() -> None:
    report = probe.probe()
    host = report.memory[0]
    assert host.device == "cpu"
    assert 0 < host.free_bytes <= host.total_bytes <= psutil.virtual_memory().total
    assert 1 <= report.cores.usable <= report.cores.logical == len(os.sched_getaffinity(0))
    assert 1 <= report.cores.physical <= report.cores.logical


def test_the_short_forms_agree_with_the_report() -> None:
    report = probe.probe()
    assert probe.compute_threads() == report.cores.compute_threads
    assert 0 < probe.free_memory_bytes() <= report.memory[0].total_bytes
