"""The commands of the store as a crash test plays them, each with what the store shows before and after.

Run as a program it plays one command with the process killed at each operation in turn:

    python -m tests.support.store_commands DIRECTORY COMMAND  -> lines of [operation number, "old" or "new"]
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import attrs

from runner.errors import ModelNotFound
from runner.store.opening import OpenStore
from tests.support import models
from tests.support.cut_disk import CountingDisk, sigkill_at

OLD, NEW, LICENSE = models.tiny_gguf("Old"), models.tiny_gguf("New"), models.LICENSE


@attrs.frozen
class Command:
    """`prepare` makes the state before, `run` is it. `ends_in_404`: repeated, it finds nothing left."""

    prepare: Callable[[OpenStore], object]
    run: Callable[[OpenStore], object]
    ends_in_404: bool = False


def _one_model(store: OpenStore) -> None:
    models.publish(store, "old:1", OLD, LICENSE)


def _two_names(store: OpenStore) -> None:
    _one_model(store)
    models.tag(store, "old:1", "old:2")


def _two_models(store: OpenStore) -> None:
    _one_model(store)
    models.publish(store, "new:1", NEW, LICENSE)


def _one_configured(store: OpenStore) -> None:
    _two_names(store)
    models.configure(store, "old:1", context_size=512, chat_template="{{ messages }}", keep_alive_s=9.0)


def _remove_by_id(store: OpenStore) -> None:
    model_id = next((model.id for model in store.catalog.models()), None)
    models.remove(store, str(model_id) if model_id else "old:1", force=True)


COMMANDS = {
    "package the first": Command(
        lambda store: None, lambda store: models.publish(store, "new:1", NEW, LICENSE)
    ),
    "package another": Command(_one_model, lambda store: models.publish(store, "new:1", NEW, LICENSE)),
    "package over a name": Command(_one_model, lambda store: models.publish(store, "old:1", NEW, LICENSE)),
    "tag": Command(_one_model, lambda store: models.tag(store, "old:1", "old:2")),
    "move a tag": Command(_two_models, lambda store: models.tag(store, "old:1", "new:1")),
    "tag a configured model": Command(_one_configured, lambda store: models.tag(store, "old:1", "old:3")),
    "configure": Command(_one_model, lambda store: models.configure(store, "old:1", context_size=512)),
    "configure one thing more": Command(
        _one_configured, lambda store: models.configure(store, "old:2", "keep_alive", temperature=0.5)
    ),
    "configure nothing any more": Command(
        _one_configured,
        lambda store: models.configure(store, "old:1", "context_size", "chat_template", "keep_alive"),
    ),
    "remove a configured model": Command(_one_configured, _remove_by_id, True),
    "untag one of two": Command(_two_names, lambda store: models.untag(store, "old:2"), True),
    "untag the last": Command(_one_model, lambda store: models.untag(store, "old:1"), True),
    "remove the last name": Command(_one_model, lambda store: models.remove(store, "old:1"), True),
    "remove beside another": Command(_two_models, lambda store: models.remove(store, "new:1"), True),
    "remove by id": Command(_two_names, _remove_by_id, True),
}


def prepare(directory: Path, command: Command) -> tuple[dict[str, str], dict[str, str]]:
    """A store in `directory`/before; what it shows, and what it shows after the command."""
    with models.opened(directory / "before") as store:
        command.prepare(store)
        before = models.shown(store)
    root = fresh(directory)
    with models.opened(root) as store:
        command.run(store)
        return before, models.shown(store)


def fresh(directory: Path) -> Path:
    """The store as it was before, in `directory`/now."""
    root = directory / "now"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(directory / "before", root)
    return root


def check_and_repeat(root: Path, command: Command, before: dict[str, str], after: dict[str, str]) -> str:
    """`old` or `new`: what a store shows when it is opened after a cut. Then the command must succeed."""
    with models.opened(root) as store:
        found = models.shown(store)
        assert found in (before, after), f"neither the old nor the new state: {found}"
        assert not any((root / "partial").iterdir()), "temporary files were left"
        assert not any("rebuilt" in notice for notice in store.notices), store.notices
        try:
            command.run(store)
        except ModelNotFound:
            assert command.ends_in_404
            assert found == after
        assert models.shown(store) == after
    with models.opened(root) as store:
        assert models.shown(store) == after
    return "new" if found == after else "old"


def _killed_at(root: Path, command: Command, number: int) -> bool:
    """Whether a process that runs the command was killed before its end."""
    process_id = os.fork()
    if process_id == 0:
        try:
            disk = CountingDisk()
            with models.opened(root, disk=disk) as store:
                disk.arm(sigkill_at(number))
                command.run(store)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(process_id, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the command failed before it was killed"
    return os.WIFSIGNALED(status)


def main(directory: Path, name: str) -> None:
    command = COMMANDS[name]
    before, after = prepare(directory, command)
    number = 1
    while _killed_at(root := fresh(directory), command, number):
        print(json.dumps([number, check_and_repeat(root, command, before, after)]))
        number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
