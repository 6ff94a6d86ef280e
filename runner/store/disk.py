"""The file operations of the store: every change to the disk goes through one object.

Owns what a file of the store may be (S25) and how errors of the operating system read (`DiskFull`,
`StoreError`). Imports only the error tree. Tests replace single operations to cut the power at each of them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import attrs

from runner.errors import DiskFull, StoreDamaged, StoreError

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600
SEALED_MODE = 0o400  # a finished blob: nothing of ours opens it for writing again
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_FLAGS = (
    os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
)  # nonblocking: a FIFO must not hang us
_REOPEN_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@attrs.frozen(kw_only=True)
class FileFacts:
    """A regular file of the store. `modified_s` is Unix time, which two files may share; not so `file_id`.
    `taken_bytes` is the room that it takes on the disk: less than its size when it has holes."""

    size_bytes: int
    modified_s: float
    file_id: int
    taken_bytes: int = attrs.field(default=0, eq=False)


class Disk:
    """Operations on files that belong to `owner_uid` (this process's user when not given).

    Every method raises DiskFull when there is no room, StoreDamaged for a file that is not the store's own
    (link, device, foreign owner) and StoreError for whatever else the system reports.
    """

    def __init__(self, *, owner_uid: int | None = None) -> None:
        self._owner_uid = os.geteuid() if owner_uid is None else owner_uid

    # changes, in the order of a write

    def create(self, path: Path) -> int:
        """A descriptor of a new empty file, which must not exist yet."""
        with translated("creating a file"):
            return os.open(path, _CREATE_FLAGS, FILE_MODE)

    def write(self, descriptor: int, content: bytes | bytearray) -> None:
        """Append all of it."""
        rest = memoryview(content)
        with translated("writing a file"):
            while rest:
                rest = rest[os.write(descriptor, rest) :]

    def write_at(self, descriptor: int, content: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of it at this offset. Any number of threads may do so."""
        rest = memoryview(content)
        with translated("writing a file"):
            while rest:
                written = os.pwrite(descriptor, rest, offset)
                rest, offset = rest[written:], offset + written

    def resize(self, descriptor: int, size_bytes: int) -> None:
        """Make it this long; what was not written is a hole, which takes no room."""
        with translated("resizing a file"):
            os.ftruncate(descriptor, size_bytes)

    def allocate(self, descriptor: int, size_bytes: int) -> None:
        """Take this much room on the disk, without content."""
        with translated("taking room"):
            os.posix_fallocate(descriptor, 0, size_bytes)

    def seal(self, descriptor: int) -> None:
        """Make it read-only, for a file that is complete."""
        with translated("sealing a file"):
            os.fchmod(descriptor, SEALED_MODE)

    def sync(self, descriptor: int) -> None:
        """Content and size reach the disk. After an error the file is lost, its pages may be gone (S19)."""
        with translated("syncing a file"):
            os.fsync(descriptor)

    def sync_data(self, descriptor: int) -> None:
        """Like `sync`, but without the file's times."""
        with translated("syncing a file"):
            os.fdatasync(descriptor)

    def close(self, descriptor: int) -> None:
        """An error here too means that the file is lost; the descriptor is gone in any case."""
        with translated("closing a file"):
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Make `source` visible as `target`, replacing what was there in one step."""
        with translated("renaming a file"):
            source.rename(target)

    def sync_directory(self, path: Path) -> None:
        """What was created, renamed and removed in it reaches the disk."""
        with translated("syncing a directory"):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def unlink(self, path: Path) -> None:
        """Remove a name; nothing happens when it is not there."""
        with translated("removing a file"):
            path.unlink(missing_ok=True)

    def age(self, path: Path) -> None:
        """Make it look as old as can be."""
        with translated("changing the time of a file"):
            os.utime(path, (0, 0), follow_symlinks=False)

    def make_directory(self, path: Path) -> None:
        """Create it unless something is there, which `check_directory` then judges."""
        with translated("creating a directory"):
            path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)

    def reopen(self, path: Path) -> int | None:
        """A descriptor to go on writing a file of ours, also a sealed one; None when it is not there."""
        if self.facts(path) is None:
            return None
        with translated("opening a file"):
            path.chmod(FILE_MODE)
            descriptor = os.open(path, _REOPEN_FLAGS)
        try:
            self._checked(os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def lock(self, descriptor: int) -> bool:
        """Hold this file until the descriptor is closed; False when somebody holds it already."""
        try:
            with translated("locking a file"):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except StoreError as error:
            if isinstance(error.__cause__, BlockingIOError):
                return False
            raise
        return True

    def duplicate(self, descriptor: int) -> int:
        """Another descriptor of the same open file, which keeps its lock."""
        with translated("opening a file"):
            return os.dup(descriptor)

    # looking

    def read_at(self, descriptor: int, buffer: bytearray | memoryview, offset: int) -> int:
        """How many bytes of the file were read into the buffer; 0 at its end."""
        with translated("reading a file"):
            return os.preadv(descriptor, [buffer], offset)

    def facts(self, path: Path) -> FileFacts | None:
        """What lies there; None when nothing does. Raises StoreDamaged unless it is a file of ours."""
        with translated("looking at a file"):
            try:
                status = path.lstat()
            except FileNotFoundError:
                return None
        return self._checked(status)

    def open(self, path: Path) -> BinaryIO | None:
        """The file for reading, unbuffered; None when it is not there."""
        with translated("opening a file"):
            try:
                descriptor = os.open(path, _READ_FLAGS)
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise StoreDamaged("a file of the store is a symbolic link") from None
                raise
        try:
            status = os.fstat(descriptor)
            if status.st_nlink:  # else it was removed just now
                self._checked(status)
        except BaseException:
            os.close(descriptor)
            raise
        if not status.st_nlink:
            os.close(descriptor)
            return None
        return os.fdopen(descriptor, "rb", buffering=0)

    def read(self, path: Path, *, limit_bytes: int) -> bytes | None:
        """The content; None when it is not there. Raises StoreDamaged when it is longer than the limit."""
        file = self.open(path)
        if file is None:
            return None
        with file, translated("reading a file"):
            size_bytes = os.fstat(file.fileno()).st_size
            content = b"".join(_pieces(file, limit_bytes + 1)) if size_bytes <= limit_bytes else None
        if content is None or len(content) > limit_bytes:
            raise StoreDamaged(f"a file of the store is longer than {limit_bytes} bytes")
        return content

    def check_directory(self, path: Path) -> None:
        """Raise StoreDamaged unless it is a directory of ours; narrow its mode when others may enter."""
        with translated("looking at a directory"):
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode):
                raise StoreDamaged(f"{path.name!r} in the store is not a directory")
            if status.st_uid != self._owner_uid:
                raise StoreDamaged(f"{path.name!r} in the store belongs to another user")
            if stat.S_IMODE(status.st_mode) != DIRECTORY_MODE:
                path.chmod(DIRECTORY_MODE)

    def names(self, path: Path) -> list[str]:
        """What lies in a directory, sorted; empty when it is not there."""
        with translated("listing a directory"):
            try:
                return sorted(entry.name for entry in path.iterdir())
            except FileNotFoundError:
                return []

    def free_bytes(self, path: Path) -> int:
        """Room for this user on the file system of `path`."""
        with translated("asking for free space"):
            status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def _checked(self, status: os.stat_result) -> FileFacts:
        if not stat.S_ISREG(status.st_mode):
            raise StoreDamaged("a file of the store is a link, a pipe, a directory or a device")
        if status.st_uid != self._owner_uid:
            raise StoreDamaged("a file of the store belongs to another user")
        if status.st_nlink != 1:
            raise StoreDamaged("a file of the store has a second name outside of it")
        return FileFacts(
            size_bytes=status.st_size,
            modified_s=status.st_mtime,
            file_id=status.st_ino,
            taken_bytes=status.st_blocks * 512,
        )


def _pieces(file: BinaryIO, limit_bytes: int) -> Iterator[bytes]:
    while limit_bytes > 0 and (piece := file.read(limit_bytes)):
        limit_bytes -= len(piece)
        yield piece


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Errors of the operating system become errors of the store; `action` is what failed, in words."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull("there is no space left on the disk of the store") from error
        raise StoreError(f"{action} of the store failed: {error.strerror}") from error
