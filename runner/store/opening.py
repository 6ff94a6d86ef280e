"""Opening a store directory: whose it is, who holds it, what is missing, what has been left over.

Owns the lock, the version and the first files. Imports the directory and its parts. Raises StartRefused with
a sentence that says what to do; blocks, so it belongs in a thread.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs
import orjson

from runner.errors import StartRefused, StoreError
from runner.store.catalog import Catalog
from runner.store.collecting import collect
from runner.store.directory import LoadedCatalog, StoreDirectory
from runner.store.disk import DIRECTORY_MODE, FILE_MODE, Disk
from runner.store.downloads import KEEP_FREE_BYTES
from runner.store.gc import GarbageRules
from runner.store.index import StoreIndex
from runner.store.layout import StoreLayout

STORE_VERSION = 1
IMAGE_LAYOUT_VERSION = "1.0.0"
_SMALL_FILE_BYTES_MAX = 4096


@attrs.define
class OpenStore:
    """A locked store; a context manager that gives the lock back. `notices` are sentences for the log."""

    directory: StoreDirectory
    catalog: Catalog
    notices: tuple[str, ...]
    _lock_descriptor: int | None

    def close(self) -> None:
        descriptor, self._lock_descriptor = self._lock_descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_store(
    root: Path, *, now_s: float, disk: Disk | None = None, keep_free_bytes: int = KEEP_FREE_BYTES
) -> OpenStore:
    """Open, and create or repair, the store in `root`. `now_s` is Unix time; downloads leave
    `keep_free_bytes` of the disk free.

    Raises StartRefused when another process holds it, when a newer version wrote it, when it is something
    else, or when the disk fails.
    """
    disk = disk or Disk()
    try:
        layout = StoreLayout(_own_root(root, disk))
        _refuse_foreign_content(layout, disk)
        lock_descriptor = _lock(layout, disk)
        try:
            directory = StoreDirectory(layout, disk, keep_free_bytes=keep_free_bytes)
            return _open_locked(directory, lock_descriptor, now_s)
        except BaseException:
            os.close(lock_descriptor)
            raise
    except StoreError as error:
        raise StartRefused(f"the store cannot be opened: {error}") from error


def _open_locked(directory: StoreDirectory, lock_descriptor: int, now_s: float) -> OpenStore:
    _check_versions(directory)
    _complete(directory)
    loaded = directory.load()
    directory.downloads.remove_debris()
    if not loaded.was_rebuilt:  # then a model may be missing by mistake
        directory.settings.drop_all_but(loaded.catalog.index.manifests().keys())
    removed = _remove_leftovers(directory, loaded, now_s)
    directory.hold_reserve()
    notices = loaded.notices + ((f"removed {removed} leftover files",) if removed else ())
    return OpenStore(
        directory=directory, catalog=loaded.catalog, notices=notices, lock_descriptor=lock_descriptor
    )


# whose it is


def _own_root(root: Path, disk: Disk) -> Path:
    """The real directory, created when it is missing. A link to it is the user's choice and followed."""
    real = root.resolve()
    try:
        real.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        if not real.exists():
            disk.make_directory(real)
    except OSError as error:
        raise StartRefused(
            f"the store directory cannot be created ({error.strerror}); choose another one with --store"
        ) from error
    return real


def _refuse_foreign_content(layout: StoreLayout, disk: Disk) -> None:
    """Never move into a directory that holds something else."""
    names = disk.names(layout.root)
    if layout.version.name not in names and not layout.names_of_a_beginning().issuperset(names):
        raise StartRefused(
            "the store directory holds files that are not a store of this program; "
            "choose an empty directory with --store"
        )
    disk.check_directory(layout.root)


# who holds it


def _lock(layout: StoreLayout, disk: Disk) -> int:
    """A descriptor that holds the lock until it is closed, at the latest by the end of the process (L10)."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(layout.lock, flags, FILE_MODE)
    except OSError as error:
        raise StartRefused(f"the lock of the store cannot be opened: {error.strerror}") from error
    try:
        disk.facts(layout.lock)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _note_holder(descriptor)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        who = f" (process {holder})" if holder.isdecimal() else ""
        raise StartRefused(
            f"another runner{who} uses this store; stop it with `runner ctl shutdown`, "
            f"or choose another directory with --store"
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _note_holder(descriptor: int) -> None:
    """For the message to whoever comes second; on a full disk there is none."""
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except OSError:
        pass


# which version wrote it


def _check_versions(directory: StoreDirectory) -> None:
    layout = directory.layout
    version = _member(directory, layout.version, "store_version")
    if version is not None and not (isinstance(version, int) and 1 <= version <= STORE_VERSION):
        raise StartRefused(
            f"the store was written by a newer version of this program (store version {version}, "
            f"this one knows {STORE_VERSION}); upgrade, or choose another directory with --store"
        )
    image_layout = _member(directory, layout.image_layout, "imageLayoutVersion")
    if image_layout not in (None, IMAGE_LAYOUT_VERSION):
        raise StartRefused(
            f"the store is an OCI image layout of version {image_layout!r:.20}; "
            f"this program knows {IMAGE_LAYOUT_VERSION}"
        )


def _member(directory: StoreDirectory, path: Path, name: str) -> object:
    """One member of a small JSON file; None when there is no file."""
    content = directory.disk.read(path, limit_bytes=_SMALL_FILE_BYTES_MAX)
    if content is None:
        return None
    try:
        return orjson.loads(content)[name]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        raise StartRefused(
            f"{path.name} in the store is damaged; restore it, or choose another directory with --store"
        ) from None


# what is missing


def _complete(directory: StoreDirectory) -> None:
    """Create what a store consists of, in an order that a next start recognises when it is cut."""
    layout, disk = directory.layout, directory.disk
    for path in layout.directories():
        if path.name not in disk.names(path.parent):
            disk.make_directory(path)
            disk.sync_directory(path.parent)
        disk.check_directory(path)
    if disk.facts(layout.version) is None:
        directory.replace(layout.version, orjson.dumps({"store_version": STORE_VERSION}))
    if disk.facts(layout.index) is None and not directory.blobs.digests():
        directory.commit(StoreIndex())
    if disk.facts(layout.image_layout) is None:
        directory.replace(layout.image_layout, orjson.dumps({"imageLayoutVersion": IMAGE_LAYOUT_VERSION}))


# what has been left over


def _remove_leftovers(directory: StoreDirectory, loaded: LoadedCatalog, now_s: float) -> int:
    """How many files went. No content goes when it is not certain what it belongs to."""
    if loaded.was_rebuilt:
        return 0
    directory.blobs.known.drop_all_but(frozenset(directory.blobs.digests()))
    report = collect(directory, loaded.catalog, GarbageRules(now_s=now_s))
    return len(report.removed) + len(report.removed_downloads)
