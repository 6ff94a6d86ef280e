"""`df`, `gc`, `prune`, `verify`, `repair`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from runner.domain.disk import BlobFinding, DiskReport, GcReport, ModelDisk
from tests.support.control import ID, SHORT_ID, Cli
from tests.support.terminal import on_terminal
from tests.support.transfer_lines import MIB, layer, progress, success, told

ROOT = Path(__file__).parents[3]
GC, VERIFY, REPAIR = "POST /control/v1/gc", "POST /control/v1/verify", "POST /control/v1/repair"
DIGEST = "sha256:" + "f" * 64


def disk_report() -> DiskReport:
    return DiskReport(
        models=(
            ModelDisk(
                id=ID, name="ai/a", tags=("docker.io/ai/a:latest", "r.example/b:v1"), size_bytes=3 * MIB,
                own_bytes=MIB,
            ),
            ModelDisk(id=ID, name=SHORT_ID, tags=(), size_bytes=2 * MIB, own_bytes=0),
        ),
        total_bytes=5 * MIB,
        shared_bytes=2 * MIB,
        partial_bytes=MIB,
        leftover_bytes=0,
        free_bytes=2**40,
        reserve_bytes=2**30,
        cache_states=3,
        cache_bytes=6 * MIB,
    )  # fmt: skip


def test_df_tells_what_each_model_takes_and_what_is_free(cli: Cli) -> None:
    cli.routes["GET /control/v1/df"] = disk_report()
    assert cli("ctl", "df").stdout.splitlines() == [
        "NAME                  ID            SIZE     OWN",
        f"ai/a, r.example/b:v1  {SHORT_ID}  3.0 MiB  1.0 MiB",
        f"<none>                {SHORT_ID}  2.0 MiB  0 B",
        "",
        "Shared by models      2.0 MiB",
        "Unfinished downloads  1.0 MiB",
        "Used by no model      0 B",
        "All of the store      5.0 MiB",
        "Saved caches          6.0 MiB",
        "Free                  1.0 TiB",
        "Kept free             1.0 GiB",
    ]
    assert json.loads(cli("ctl", "df", "--json").stdout)["shared_bytes"] == 2 * MIB


def test_gc_tells_what_went_and_what_stays(cli: Cli) -> None:
    cli.routes[GC] = GcReport(
        is_dry_run=False,
        removed=(DIGEST,),
        removed_downloads=(ID,),
        freed_bytes=MIB,
        kept_leftovers=(ID,),
        kept_bytes=3 * MIB,
    )
    ended = cli("ctl", "gc")
    assert ended.stdout.splitlines() == [f"removed content {DIGEST}", f"removed download {ID}"]
    first, second = ended.stderr.splitlines()
    assert first == "1.0 MiB freed"
    assert second == "3.0 MiB that no model uses stay, since they are in use, or younger than a week"
    assert cli.sent(GC) == [{"dry_run": False}]


def test_a_dry_run_removes_nothing_and_says_so(cli: Cli) -> None:
    cli.routes[GC] = GcReport(is_dry_run=True, removed_models=(ID,), freed_bytes=MIB)
    ended = cli("ctl", "prune", "--dry-run")
    assert ended.stdout == f"would remove model {ID}\n"
    assert ended.stderr == "1.0 MiB would be freed\n"
    assert cli.sent(GC) == [{"prune": True, "dry_run": True}]


def test_pruning_without_a_terminal_wants_a_yes(cli: Cli) -> None:
    cli.routes[GC] = GcReport(is_dry_run=False)
    ended = cli("ctl", "prune")
    assert ended.status == 2
    assert "--yes" in ended.stderr
    assert cli("ctl", "prune", "--yes", "--json").status == 0
    assert cli.sent(GC) == [{"prune": True, "dry_run": False}]


@pytest.mark.parametrize(("key", "is_done"), [("y", True), ("n", False), ("", False)])
def test_pruning_on_a_terminal_asks(cli: Cli, tmp_path: Path, key: str, is_done: bool) -> None:
    cli.routes[GC] = GcReport(is_dry_run=False)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "RUNNER_HOST": str(cli.server.target),
        "PYTHONPATH": str(ROOT),
    }
    with on_terminal([sys.executable, "-m", "runner", "ctl", "prune"], environment, cwd=tmp_path) as terminal:
        terminal.wait_for("[y/N]: ")
        terminal.type(f"{key}\n")
        terminal.wait_for("freed" if is_done else "nothing was removed")
        assert terminal.wait_for_end() == 0
    assert bool(cli.sent(GC)) is is_done


def verified(*findings: BlobFinding) -> Any:
    report = {"models": 1, "blobs": 3, "size_bytes": MIB, "findings": [attrs.asdict(one) for one in findings]}
    first = {"type": "progress", "digest": DIGEST, "done_bytes": 5, "total_bytes": MIB}
    return lambda _: told(first, {"type": "success", **report})


def test_S24_verify_says_that_all_is_sound(cli: Cli) -> None:
    cli.routes[VERIFY] = verified()
    ended = cli("ctl", "verify")
    assert (ended.status, ended.stdout) == (0, "")
    assert ended.stderr.splitlines()[-1] == "checked 1 model, 1.0 MiB: all is sound"
    assert cli.sent(VERIFY) == [{}]


def test_S24_verify_names_what_is_damaged_and_what_to_do(cli: Cli) -> None:
    cli.routes[VERIFY] = verified(
        BlobFinding(digest=DIGEST, kind="wrong_content", models=("ai/a", "ai/b"), message="m")
    )
    ended = cli("ctl", "verify", "a", "b")
    assert ended.status == 1
    assert ended.stdout == f"{DIGEST} of ai/a, ai/b: it has other bytes\n"
    assert ended.stderr.splitlines()[-1] == (
        "checked 1 model, 1.0 MiB: 1 part damaged; `runner ctl repair ai/a` mends ai/a"
    )
    assert cli.sent(VERIFY) == [{"models": ["a", "b"]}]
    document = json.loads(cli("ctl", "verify", "--json").stdout)
    assert document["findings"][0]["kind"] == "wrong_content"
    assert "type" not in document


def test_S24_repair_is_followed_like_a_pull(cli: Cli) -> None:
    cli.routes[REPAIR] = lambda _: told(progress(phase="verifying"), progress(layer(MIB)), success())
    ended = cli("ctl", "repair", "m")
    assert ended.status == 0
    assert ended.stderr.splitlines()[0] == "verifying m"
    assert ended.stderr.splitlines()[-1].startswith("repaired m (")
    assert cli.sent(REPAIR) == [{"model": "m"}]
    cli.routes[REPAIR] = lambda _: told(success(was_cached=True))
    assert cli("ctl", "repair", "m").stderr == f"m ({SHORT_ID}, 100.0 MiB) is sound\n"
