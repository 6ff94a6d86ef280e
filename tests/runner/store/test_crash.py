"""The process ends, or the power fails, at every operation: the old or the new state is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import models
from tests.support.cut_disk import CountingDisk, ForgetfulDisk, Killed, cut_at
from tests.support.store_commands import COMMANDS, check_and_repeat, fresh, prepare

ROOT = Path(__file__).parents[3]


def cut(root: Path, command, disk, number: int) -> bool:
    """Whether the command was cut; the lock is free afterwards, as after the end of a process."""
    with models.opened(root, disk=disk) as store:
        disk.arm(cut_at(number))
        try:
            command.run(store)
        except Killed:
            return True
        finally:
            disk.arm(lambda number, operation: None)
    return False


def play(directory: Path, command, make_disk, aftermath) -> list[str]:
    """What was left after each cut, in order; the last one comes right after the command succeeded."""
    before, after = prepare(directory, command)
    states: list[str] = []
    while True:
        disk = make_disk()
        root = fresh(directory)
        was_cut = cut(root, command, disk, len(states) + 1)
        aftermath(disk)
        states.append(check_and_repeat(root, command, before, after))
        if not was_cut:
            return states


@pytest.mark.parametrize("name", COMMANDS)
def test_S18_a_kill_at_any_operation_leaves_the_old_or_the_new_state(tmp_path, name):
    states = play(tmp_path, COMMANDS[name], CountingDisk, lambda disk: None)
    assert states == sorted(states, reverse=True), "old states come first, then new ones"
    assert (states[0], states[-1]) == ("old", "new")
    print(f"\n{name}: {len(states) - 1} kill points")


@pytest.mark.parametrize("name", COMMANDS)
def test_S18_a_power_cut_at_any_operation_leaves_the_old_or_the_new_state(tmp_path, name):
    states = play(tmp_path, COMMANDS[name], ForgetfulDisk, ForgetfulDisk.lose_power)
    assert states == sorted(states, reverse=True)
    assert (states[0], states[-1]) == ("old", "new")
    print(f"\n{name}: {len(states) - 1} power cuts")


@pytest.mark.parametrize(
    "name", ["package over a name", "untag the last", "remove beside another", "configure one thing more"]
)
def test_S18_a_real_process_that_is_killed_leaves_the_old_or_the_new_state(tmp_path, name):
    played = subprocess.run(
        [sys.executable, "-m", "tests.support.store_commands", str(tmp_path), name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert played.returncode == 0, played.stderr
    results = [json.loads(line) for line in played.stdout.splitlines()]
    assert [number for number, _ in results] == list(range(1, len(results) + 1))
    assert results[0][1] == "old"
    assert results[-1][1] == "new"
    print(f"\n{name}: killed {len(results)} processes")


def test_S18_a_kill_while_a_store_is_created_leaves_one_that_can_be_opened(tmp_path):
    number = 0
    while True:
        number += 1
        root = tmp_path / str(number)
        try:
            with models.opened(root, disk=CountingDisk(cut_at(number))):
                break
        except Killed:
            pass
        with models.opened(root) as store:
            assert models.shown(store) == {}
            models.publish(store, "new:1", models.tiny_gguf())
    print(f"\ncreate: {number - 1} kill points")
    assert number > 20
