"""A daemon that is only one keeper: prints its worker's pid once that is ready, and waits to be killed.

python -m tests.support.worker_parent BEHAVIOURS|real DIRECTORY
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import attrs
import trio

from actors.process import worker_command
from actors.worker import KeeperEvent, KeeperSettings, WorkerReady, run_keeper
from tests.support.kept_worker import scripted_command, worker_spec


def report(event: KeeperEvent) -> None:
    if isinstance(event, WorkerReady):
        print(event.handle.pid, flush=True)


def main() -> None:
    behaviours, directory = sys.argv[1:]
    spec = worker_spec()
    files = attrs.evolve(spec.files, weights=(Path(directory, "weights"),))
    keep = partial(
        run_keeper,
        attrs.evolve(spec, files=files, engine="scripted"),
        report,
        settings=KeeperSettings(directory=Path(directory)),
        command=worker_command if behaviours == "real" else scripted_command(*behaviours.split(",")),
    )
    trio.run(keep)


if __name__ == "__main__":
    main()
