"""Real processes with the real store, killed or refused at every call that changes the disk, in turn."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.killed_store import COMMANDS, FAILING, KILLED, serve
from tests.support.registry_server import RegistryServer

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_S18_S19_S23_a_process_that_is_killed_or_whose_calls_fail_leaves_the_old_or_the_new_state(
    tmp_path, command
):
    """Kills are S18, failing syncs S19, a disk that is full from some point on S23. Each time
    the command succeeds when it is repeated; after an error, in the same process."""
    with RegistryServer() as registry:
        program = [sys.executable, "-m", "tests.support.killed_store", str(tmp_path), command]
        played = subprocess.run(
            [*program, serve(registry)], cwd=ROOT, capture_output=True, text=True, timeout=90
        )
    assert played.returncode == 0, played.stderr
    rows = [json.loads(line) for line in played.stdout.splitlines()]
    killed = {call: states for kind, call, states in rows if kind == "KILL"}
    assert tuple(killed) == KILLED
    assert all(states == sorted(states, reverse=True) for states in killed.values())
    assert {"old", "new"} <= {state for states in killed.values() for state in states}
    failed = {(call, kind): errors for kind, call, errors in rows if kind != "KILL"}
    assert tuple(failed) == tuple((call, code) for call, code, _ in FAILING)
    for (_, code), errors in failed.items():
        assert set(errors) <= {"DiskFull" if code == "ENOSPC" else "StoreError"}
    points = sum(len(states) for states in killed.values())
    assert points >= 4
    print(
        f"\n{command}: {points} kill points", {call: len(states) for call, states in killed.items() if states}
    )
    print(f"{command}: {sum(map(len, failed.values()))} calls failed")
