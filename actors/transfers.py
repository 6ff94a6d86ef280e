"""What is told of transfers: boards that transfers write, feeds that callers read, and the list of all.

Nothing here waits for network or disk. Feeds never fall behind: they read the newest progress, whatever was
shown between two looks. Imports domain values.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import attrs
import trio

from runner.domain.transfer import (
    TransferDirection,
    TransferPhase,
    TransferProgress,
    TransferResult,
    TransferStatus,
)
from runner.errors import RunnerError, Unavailable

NOTES_MAX = 16


@attrs.define(eq=False)
class TransferBoard:
    """One transfer as it is seen: the newest progress and, in the end, its result or error."""

    reference: str
    direction: TransferDirection
    started_s: float
    progress: TransferProgress = attrs.field(init=False)
    model_id: str = ""
    waiters: int = 0
    _notes: tuple[str, ...] = ()
    _version: int = 1
    _changed: trio.Event = attrs.field(factory=trio.Event)
    _result: TransferResult | None = None
    _error: Exception | None = None

    def __attrs_post_init__(self) -> None:
        self.progress = TransferProgress(direction=self.direction, phase=TransferPhase.RESOLVING)

    @property
    def has_ended(self) -> bool:
        return self._result is not None or self._error is not None

    @property
    def version(self) -> int:
        """A number that grows with each change."""
        return self._version

    def show(self, progress: TransferProgress) -> None:
        """The newest progress; the notes are the board's own."""
        progress = attrs.evolve(progress, notes=self._notes)
        if progress != self.progress and not self.has_ended:
            self.progress = progress
            self._wake()

    def note(self, text: str) -> None:
        """Tell people; the same text again only once, and the oldest give way."""
        if text not in self._notes:
            self._notes = (*self._notes, text)[-NOTES_MAX:]
            self.show(self.progress)

    def finish(self, result: TransferResult) -> None:
        if not self.has_ended:
            self._result = result
            self._wake()

    def fail(self, error: Exception) -> None:
        if not self.has_ended:
            self._error = error
            self._wake()

    def result(self) -> TransferResult:
        """Raises what went wrong; RuntimeError before the end."""
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise RuntimeError("the transfer has not ended")
        return self._result

    async def change_since(self, version: int) -> None:
        """Until there is something newer than that, or the transfer has ended."""
        while self._version == version and not self.has_ended:
            await self._changed.wait()

    def status(self, now_s: float) -> TransferStatus:
        return TransferStatus(
            reference=self.reference,
            model_id=self.model_id,
            waiters=self.waiters,
            started_ago_s=now_s - self.started_s,
            progress=self.progress,
        )

    def _wake(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = trio.Event()


class TransferLedger:
    """Boards of all transfers under way. Written by the puller, read by anyone."""

    def __init__(self) -> None:
        self._boards: dict[int, TransferBoard] = {}

    def add(self, transfer_id: int, board: TransferBoard) -> None:
        self._boards[transfer_id] = board

    def drop(self, transfer_id: int) -> None:
        self._boards.pop(transfer_id, None)

    def clear(self) -> None:
        """A new puller begins with none."""
        self._boards.clear()

    def status(self, now_s: float) -> tuple[TransferStatus, ...]:
        """Those that go on, in the order in which they were asked for."""
        return tuple(board.status(now_s) for board in self._boards.values() if not board.has_ended)


class TransferFeed:
    """One caller's part in a transfer: a context that takes part, and an iteration over the newest progress.

    Leaving the context leaves the transfer, which goes on for others; when nobody is left it is cancelled,
    and what has come stays to be resumed. The iteration ends with the transfer; then `result` tells.
    """

    def __init__(self, join: Callable[[], Awaitable[TransferBoard]], leave: Callable[[], None]) -> None:
        self._join = join
        self._leave = leave
        self._board: TransferBoard | None = None
        self._seen = 0

    async def __aenter__(self) -> Self:
        try:
            self._board = await self._join()
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TransferProgress:
        board = self._joined()
        if board.version == self._seen or board.has_ended:
            await board.change_since(self._seen)
        else:
            await trio.lowlevel.checkpoint()
        if board.has_ended:
            raise StopAsyncIteration
        self._seen = board.version
        return board.progress

    def result(self) -> TransferResult:
        """What came of it, once the iteration has ended; raises what went wrong."""
        return self._joined().result()

    def _joined(self) -> TransferBoard:
        if self._board is None:
            raise RuntimeError("a feed is used within its context")
        return self._board


def interrupted() -> RunnerError:
    """What those hear whose transfer ended with the puller."""
    return Unavailable("the transfer was interrupted; what has come so far is kept")
