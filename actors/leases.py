"""Who uses the files of which model, and which uploads wait to be used.

Kept apart from the store's actor because leases outlive its restarts. Ledgers without a task of their own:
pinning and releasing never wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Protocol, Self

from runner.domain.model import ModelFiles
from runner.oci.digest import Digest

KEPT_UPLOADS_MAX = 4096


class Pins:
    """How many leases each model has, and how many operations need which content."""

    def __init__(self) -> None:
        self._counts: dict[Digest, int] = {}
        self._held: Counter[Digest] = Counter()
        self._visitors: dict[Digest, list[Callable[[], None]]] = {}

    def add(self, model_id: Digest) -> None:
        self._counts[model_id] = self._counts.get(model_id, 0) + 1

    def drop(self, model_id: Digest) -> None:
        left = self._counts[model_id] - 1
        if left:
            self._counts[model_id] = left
        else:
            del self._counts[model_id]

    def is_pinned(self, model_id: Digest) -> bool:
        return model_id in self._counts

    @contextmanager
    def visiting(self, model_id: Digest, leave: Callable[[], None]) -> Iterator[None]:
        """While the block runs, the model is looked at, and not pinned: whoever removes it calls `leave`."""
        visitors = self._visitors.setdefault(model_id, [])
        visitors.append(leave)
        try:
            yield
        finally:
            visitors.remove(leave)
            if not visitors and self._visitors.get(model_id) is visitors:
                del self._visitors[model_id]

    def send_away(self, model_id: Digest) -> None:
        """The model goes: tell those who only look at it."""
        for leave in tuple(self._visitors.get(model_id, ())):
            leave()

    @contextmanager
    def holding(self, digests: Iterable[Digest]) -> Iterator[None]:
        """While the block runs nothing removes this content, whether it is there yet or comes meanwhile."""
        held = tuple(digests)
        self._held.update(held)
        try:
            yield
        finally:
            self._held.subtract(held)
            for digest in held:
                if not self._held[digest]:
                    del self._held[digest]

    def held(self) -> frozenset[Digest]:
        """All content that some operation needs now."""
        return frozenset(self._held)

    def __repr__(self) -> str:
        leases = sum(self._counts.values())
        return f"<Pins {leases} leases on {len(self._counts)} models, {len(self._held)} blobs held>"


class StoreLease:
    """Keeps a model's files on disk until it is released; a context manager that releases."""

    def __init__(self, files: ModelFiles, pins: Pins) -> None:
        self.files = files
        self._pins: Pins | None = pins

    def release(self) -> None:
        """Give the files up; doing so again changes nothing."""
        pins, self._pins = self._pins, None
        if pins is not None:
            pins.drop(self.files.model.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<StoreLease {self.files.model.name} {'released' if self._pins is None else 'held'}>"


class StoreLeases(Protocol):
    """What loads need of the store."""

    async def lease(self, model_id: Digest) -> StoreLease: ...


class StoreVisits(StoreLeases, Protocol):
    """What measurements need of the store."""

    def visiting(self, model_id: Digest, leave: Callable[[], None]) -> AbstractContextManager[None]: ...

    async def files(self, model_id: Digest) -> ModelFiles: ...


class KeptUploads:
    """Content that somebody is about to package, and content that nobody will; the oldest give way."""

    def __init__(self) -> None:
        self._waiting: dict[Digest, None] = {}
        self._abandoned: dict[Digest, None] = {}

    def add(self, digest: Digest) -> None:
        """It was uploaded, or is just being packaged."""
        self._abandoned.pop(digest, None)
        _add(self._waiting, digest)

    def discard(self, digest: Digest) -> None:
        """It was packaged."""
        self._waiting.pop(digest, None)

    def abandon(self, digest: Digest) -> None:
        """Its package was refused: unless it is uploaded or packaged again, it is garbage."""
        if self._waiting.pop(digest, digest) is None:
            _add(self._abandoned, digest)

    def digests(self) -> frozenset[Digest]:
        """What waits to be packaged."""
        return frozenset(self._waiting)

    def abandoned(self) -> frozenset[Digest]:
        return frozenset(self._abandoned)


def _add(digests: dict[Digest, None], digest: Digest) -> None:
    digests.pop(digest, None)
    digests[digest] = None
    if len(digests) > KEPT_UPLOADS_MAX:
        del digests[next(iter(digests))]
