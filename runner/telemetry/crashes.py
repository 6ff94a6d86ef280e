"""The latest deaths of workers, for those who ask later: `runner ctl crashes`. Bounded in entries and bytes.

Values in, values out; no clock. Imports the domain. Filled by `runner/daemon.py`.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import attrs

from runner.domain.status import CrashReport

REPORTS_MAX: Final = 64
TAIL_MAX: Final = 4096
"""Characters of each worker's last words; its log has more."""
REQUESTS_MAX: Final = 32


class CrashRecord:
    """Reports in order of death; the oldest give way."""

    def __init__(self, limit: int = REPORTS_MAX) -> None:
        self._reports: deque[CrashReport] = deque(maxlen=limit)

    def add(self, report: CrashReport) -> None:
        """Kept with the end of its tail, in whole lines, and with its first requests."""
        tail = report.output_tail
        if len(tail) > TAIL_MAX:
            tail = tail[-TAIL_MAX:].partition("\n")[2] or tail[-TAIL_MAX:]
        self._reports.append(
            attrs.evolve(report, output_tail=tail, request_ids=report.request_ids[:REQUESTS_MAX])
        )

    def latest(self, model_id: str | None = None) -> tuple[CrashReport, ...]:
        """Of one model, or of all; the latest first."""
        return tuple(one for one in reversed(self._reports) if model_id in (None, one.model_id))

    def __repr__(self) -> str:
        return f"<CrashRecord of {len(self._reports)}>"
