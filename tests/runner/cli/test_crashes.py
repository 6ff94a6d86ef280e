"""`crashes` and `unquarantine`."""

from __future__ import annotations

import json
import time
from typing import Any

from runner.domain.status import CrashReport, UnquarantineReport
from tests.support.control import ID, Cli


def report(**changes: Any) -> CrashReport:
    fields: dict[str, Any] = {
        "at_s": time.time() - 130,
        "model": "ai/a",
        "model_id": ID,
        "engine_version": "llama.cpp 1",
        "pid": 17,
        "kind": "segmentation_fault",
        "cause": "signal SIGSEGV",
        "exit_code": None,
        "signal": "SIGSEGV",
        "phase": "serving",
        "lived_s": 65.0,
        "request_ids": ("r1", "r2"),
        "output_tail": "first\n\x1b[31mlast",
    }
    return CrashReport(**fields | changes)


def test_L02_crashes_are_a_table(cli: Cli) -> None:
    cli.routes["GET /control/v1/crashes"] = [report(), report(request_ids=(), phase="loading")]
    ended = cli("ctl", "crashes")
    assert ended.stdout.splitlines() == [
        "WHEN           MODEL  WHILE    AFTER  REQUESTS  CAUSE",
        "2 minutes ago  ai/a   serving  1m5s   2         signal SIGSEGV",
        "2 minutes ago  ai/a   loading  1m5s   0         signal SIGSEGV",
    ]


def test_L02_every_detail_is_there_on_demand_and_harmless(cli: Cli) -> None:
    cli.routes["GET /control/v1/crashes"] = [report(), report(pid=None, engine_version=None, request_ids=())]
    text = cli("ctl", "crashes", "-v").stdout
    for expected in ("segmentation_fault", ID, "r1 r2", "llama.cpp 1", "17", "  | first", "unknown", "none"):
        assert expected in text
    assert "\x1b" not in text


def test_crashes_of_one_model_are_asked_for_by_name(cli: Cli) -> None:
    cli.routes["GET /control/v1/crashes?model=ai%2Fa%3Ax"] = [report()]
    document = json.loads(cli("ctl", "crashes", "ai/a:x", "--json").stdout)
    assert document[0]["signal"] == "SIGSEGV"


def test_L06_unquarantine_says_what_it_did(cli: Cli) -> None:
    route = "POST /control/v1/unquarantine"
    cli.routes[route] = UnquarantineReport(model="ai/a", was_quarantined=True, crashes=2)
    ended = cli("ctl", "unquarantine", "a")
    assert (ended.status, ended.stderr) == (0, "ai/a may be loaded again\n")
    cli.routes[route] = UnquarantineReport(model="ai/a", was_quarantined=False, crashes=0)
    assert cli("ctl", "unquarantine", "a").stderr == "ai/a was not in quarantine\n"
    assert json.loads(cli("ctl", "unquarantine", "a", "--json").stdout)["crashes"] == 0
