"""The record of crashes: bounded, the latest first (L02, O08)."""

from __future__ import annotations

from typing import Any

from runner.domain.status import CrashReport
from runner.telemetry.crashes import REPORTS_MAX, REQUESTS_MAX, TAIL_MAX, CrashRecord


def report(**changes: Any) -> CrashReport:
    fields: dict[str, Any] = {
        "at_s": 1.0,
        "model": "ai/a",
        "model_id": "sha256:a",
        "engine_version": "scripted 1",
        "pid": 17,
        "kind": "segmentation_fault",
        "cause": "signal SIGSEGV",
        "exit_code": None,
        "signal": "SIGSEGV",
        "phase": "serving",
        "lived_s": 3.0,
        "request_ids": ("r1",),
        "output_tail": "last words",
    }
    return CrashReport(**fields | changes)


def test_L02_reports_are_kept_the_latest_first() -> None:
    record = CrashRecord()
    record.add(report(at_s=1.0))
    record.add(report(at_s=2.0, model_id="sha256:b"))
    record.add(report(at_s=3.0))
    assert [one.at_s for one in record.latest()] == [3.0, 2.0, 1.0]
    assert [one.at_s for one in record.latest("sha256:a")] == [3.0, 1.0]
    assert record.latest("sha256:c") == ()
    assert record.latest()[-1] == report(at_s=1.0)


def test_O08_reports_are_bounded_in_number_and_in_size() -> None:
    record = CrashRecord()
    lines = "\n".join(f"line {number}" for number in range(5000))
    ids = tuple(f"r{number}" for number in range(1000))
    for number in range(REPORTS_MAX + 1):
        record.add(report(at_s=float(number), output_tail=lines, request_ids=ids))
    assert len(record.latest()) == REPORTS_MAX
    assert record.latest()[-1].at_s == 1.0
    kept = record.latest()[0]
    assert len(kept.request_ids) == REQUESTS_MAX
    assert len(kept.output_tail) <= TAIL_MAX
    assert kept.output_tail.startswith("line ") and kept.output_tail.endswith("line 4999")


def test_a_tail_without_lines_is_cut_anyhow() -> None:
    record = CrashRecord()
    record.add(report(output_tail="x" * (TAIL_MAX + 1)))
    assert record.latest()[0].output_tail == "x" * TAIL_MAX
    record.add(report(output_tail="y" * TAIL_MAX))
    assert record.latest()[0].output_tail == "y" * TAIL_MAX
