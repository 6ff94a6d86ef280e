"""A disk that stops or fails at any chosen operation, and one that forgets what was not synced.

The store makes every change through `Disk`, so that cutting each of its operations in turn covers every
write, sync, rename and unlink there is.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import trio
import trio.testing

from runner.store.disk import Disk, translated

OnOperation = Callable[[int, str], None]


class Killed(BaseException):
    """The process is gone; no code of ours runs any more, so that it is no Exception."""


def do_nothing(number: int, operation: str) -> None:
    pass


def cut_at(number: int) -> OnOperation:
    """Raise Killed at this operation and at all that follow, since nothing follows the end of a process."""

    def on_operation(reached: int, operation: str) -> None:
        if reached >= number:
            raise Killed(operation)

    return on_operation


def sigkill_at(number: int) -> OnOperation:
    """End this very process."""

    def on_operation(reached: int, operation: str) -> None:
        if reached == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_operation


def fail_at(does_fail: Callable[[int, str], bool], code: int = errno.EIO) -> OnOperation:
    """Fail as the system would with `code`, instead of doing the operation."""

    def on_operation(reached: int, operation: str) -> None:
        if does_fail(reached, operation):
            with translated(operation):
                raise OSError(code, os.strerror(code))

    return on_operation


class CountingDisk(Disk):
    """Counts the operations that change something and calls `on_operation(number, name)` before each.

    Closing a descriptor really closes it in any case, as the end of a process does.
    """

    def __init__(self, on_operation: OnOperation = do_nothing) -> None:
        super().__init__()
        self.arm(on_operation)

    def arm(self, on_operation: OnOperation) -> None:
        """Count from 1 again, and call this one from now on."""
        self.operations: list[str] = []
        self._on_operation = on_operation

    def _before(self, operation: str) -> None:
        self.operations.append(operation)
        self._on_operation(len(self.operations), operation)

    def create(self, path: Path) -> int:
        self._before("create")
        return super().create(path)

    def write(self, descriptor: int, content: bytes | bytearray) -> None:
        half = len(content) // 2  # so that a write can be cut in the middle
        for part in (content[:half], content[half:]):
            self._before("write")
            super().write(descriptor, part)

    def write_at(self, descriptor: int, content: bytes | bytearray | memoryview, offset: int) -> None:
        half = len(content) // 2
        self._before("write")
        super().write_at(descriptor, content[:half], offset)
        self._before("write")
        super().write_at(descriptor, content[half:], offset + half)

    def resize(self, descriptor: int, size_bytes: int) -> None:
        self._before("resize")
        super().resize(descriptor, size_bytes)

    def sync_data(self, descriptor: int) -> None:
        self._before("sync")
        super().sync_data(descriptor)

    def allocate(self, descriptor: int, size_bytes: int) -> None:
        self._before("allocate")
        super().allocate(descriptor, size_bytes)

    def seal(self, descriptor: int) -> None:
        self._before("seal")
        super().seal(descriptor)

    def sync(self, descriptor: int) -> None:
        self._before("sync")
        super().sync(descriptor)

    def close(self, descriptor: int) -> None:
        try:
            self._before("close")
        except BaseException:
            os.close(descriptor)
            raise
        super().close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._before("rename")
        super().rename(source, target)

    def sync_directory(self, path: Path) -> None:
        self._before("sync directory")
        super().sync_directory(path)

    def unlink(self, path: Path) -> None:
        self._before("unlink")
        super().unlink(path)

    def age(self, path: Path) -> None:
        self._before("age")
        super().age(path)

    def make_directory(self, path: Path) -> None:
        self._before("make directory")
        super().make_directory(path)


class ForgetfulDisk(CountingDisk):
    """Knows what a power cut would leave; `lose_power` makes it so.

    What survives is the worst case: the content of files that were not synced is gone, and so is every
    creation, rename and removal since its directory was synced last.
    """

    def __init__(self, on_operation: OnOperation = do_nothing) -> None:
        super().__init__(on_operation)
        self._open: dict[int, Path] = {}
        self._unsynced: dict[Path, bytes] = {}  # with the content that was synced last
        self._undo: list[tuple[Path, bytes | None]] = []

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self._open[descriptor] = path
        self._unsynced[path] = b""
        self._undo.append((path, None))
        return descriptor

    def reopen(self, path: Path) -> int | None:
        descriptor = super().reopen(path)
        if descriptor is not None:
            self._open[descriptor] = path
        return descriptor

    def write_at(self, descriptor: int, content: bytes | bytearray | memoryview, offset: int) -> None:
        path = self._open[descriptor]
        self._unsynced.setdefault(path, path.read_bytes())
        super().write_at(descriptor, content, offset)

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        self._unsynced.pop(self._open[descriptor], None)

    def sync_data(self, descriptor: int) -> None:
        super().sync_data(descriptor)
        self._unsynced.pop(self._open[descriptor], None)

    def rename(self, source: Path, target: Path) -> None:
        steps = [(source, _content(source)), (target, _content(target))]
        super().rename(source, target)
        self._undo += steps
        if source in self._unsynced:
            self._unsynced[target] = self._unsynced.pop(source)

    def unlink(self, path: Path) -> None:
        step = (path, _content(path))
        super().unlink(path)
        self._undo.append(step)

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self._undo = [step for step in self._undo if step[0].parent != path]

    def lose_power(self) -> None:
        for path, synced in self._unsynced.items():
            if path.exists():
                path.unlink()
                path.write_bytes(synced)
        for path, before in reversed(self._undo):
            path.unlink(missing_ok=True)
            if before is not None:
                path.write_bytes(before)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


class BlockingDisk(CountingDisk):
    """Stops before the chosen operation until it is let go; `has_stopped` tells when."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.has_stopped = threading.Event()

    def stop_at(self, operation: str) -> None:
        def on_operation(number: int, reached: str) -> None:
            if reached == operation:
                self.has_stopped.set()
                assert self.go_on.wait(10)

        self.arm(on_operation)

    async def wait_until_stopped(self) -> None:
        assert await trio.to_thread.run_sync(self.has_stopped.wait, 5)

    def let_go(self) -> None:
        self.arm(do_nothing)
        self.go_on.set()

    async def let_go_when_idle(self) -> None:
        """Once every task waits for it."""
        await trio.testing.wait_all_tasks_blocked()
        self.let_go()
