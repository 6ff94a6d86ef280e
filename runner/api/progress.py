"""Long work as a streamed answer: from what is told of a pull, push or check to the lines of one dialect.

The work lasts as long as its request: a client that leaves stops waiting for it, and whoever carries it out
decides whether others still do. While an error can have a status of its own, the head of the answer is held.
The server that pulls the bytes is `runner/api/streaming.py`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Generic, Protocol, TypeVar

import trio

from runner.api.errors import leading_error
from runner.api.streaming import EventStream, request_nursery
from runner.domain.transfer import TransferPhase, TransferProgress, TransferResult
from runner.errors import RunnerError

log = logging.getLogger(__name__)

HEAD_HELD_S: Final = 15.0  # as of a generation: longer than that, and a proxy may take us for dead
IDLE_S: Final = 15.0  # without a word before the newest one is repeated

Moment = TypeVar("Moment")
Result = TypeVar("Result")
Moment_contra = TypeVar("Moment_contra", contravariant=True)
Result_contra = TypeVar("Result_contra", contravariant=True)

Follow = Callable[[Callable[[Moment], None]], Awaitable[Result]]
"""Carries the work out and gives its result; is given a function to tell how far it is."""


class LineEncoder(Protocol[Moment_contra, Result_contra]):
    """One piece of work in the shape of one dialect. Every method gives whole lines, or nothing."""

    def progress(self, progress: Moment_contra, now_s: float) -> bytes:
        """`now_s` is of any clock that never goes back. May be nothing."""
        ...

    def repeated(self, progress: Moment_contra) -> bytes:
        """Where the work still is; never nothing."""
        ...

    def result(self, result: Result_contra) -> bytes: ...

    def error(self, error: Exception) -> bytes: ...


class Following(Generic[Moment, Result]):
    """Work that a request waits for: the newest that was told of it, and in the end its result or error."""

    def __init__(self, follow: Follow[Moment, Result], is_telling: Callable[[Moment], bool]) -> None:
        """`is_telling` says whether what is told is worth an answer that has begun."""
        self._follow = follow
        self._is_telling = is_telling
        self._scope = trio.CancelScope()
        self._changed = trio.Event()
        self._newest: Moment | None = None
        self._result: Result | None = None
        self._error: Exception | None = None
        self._has_ended = False

    async def run(self) -> None:
        """Until its end, or until `close`. Keeps errors for those who ask."""
        try:
            with self._scope:
                self._result = await self._follow(self._tell)
        except Exception as error:
            decisive = leading_error(error)
            assert isinstance(decisive, Exception)
            if not isinstance(decisive, RunnerError):
                log.exception("a transfer or check failed by a fault of ours")
            self._error = decisive
        self._has_ended = True
        self._changed.set()

    def close(self) -> None:
        """Nobody waits for it here any more."""
        self._scope.cancel()

    async def is_decided(self) -> None:
        """Until there is something to tell, or it has ended; raises its error."""
        while not self._has_ended and (self._newest is None or not self._is_telling(self._newest)):
            await self._change()
        if self._error is not None:
            raise self._error

    async def next(self) -> Moment | None:
        """Something newer than was told last; None at the end."""
        while self._newest is None and not self._has_ended:
            await self._change()
        newest, self._newest = self._newest, None
        return newest

    def outcome(self) -> Result:
        """The result, after the end. Raises the error."""
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    async def _change(self) -> None:
        await self._changed.wait()
        self._changed = trio.Event()

    def _tell(self, progress: Moment) -> None:
        self._newest = progress
        self._changed.set()


class ProgressSource(Generic[Moment, Result]):
    """The `ByteSource` of work that is followed."""

    def __init__(self, work: Following[Moment, Result], encoder: LineEncoder[Moment, Result]) -> None:
        self._work = work
        self._encoder = encoder
        self._latest: Moment | None = None
        self._has_ended = False

    async def next_chunk(self) -> bytes:
        while not self._has_ended:
            with trio.move_on_after(IDLE_S) as patience:
                line = await self._next()
                if line:
                    return line
            if patience.cancelled_caught and self._latest is not None:
                return self._encoder.repeated(self._latest)
        return b""

    def abort(self, error: RunnerError) -> bytes:
        self._has_ended = True
        return self._encoder.error(error)

    def close(self) -> None:
        self._work.close()

    async def _next(self) -> bytes:
        progress = await self._work.next()
        if progress is not None:
            self._latest = progress
            return self._encoder.progress(progress, trio.current_time())
        self._has_ended = True
        try:
            return self._encoder.result(self._work.outcome())
        except Exception as error:
            return self._encoder.error(error)


async def answer_with(
    follow: Follow[Moment, Result],
    encoder: LineEncoder[Moment, Result],
    content_type: str,
    is_telling: Callable[[Moment], bool],
) -> EventStream:
    """The answer to the current request. Raises what goes wrong before there is anything to tell."""
    work = Following(follow, is_telling)
    request_nursery().start_soon(work.run)
    try:
        with trio.move_on_after(HEAD_HELD_S):
            await work.is_decided()
    except BaseException:
        work.close()
        raise
    return EventStream(ProgressSource(work, encoder), content_type)


class Feed(Protocol):
    """What is told of a transfer, the newest at a time; see `actors/transfers.py`."""

    def __aiter__(self) -> AsyncIterator[TransferProgress]: ...

    def result(self) -> TransferResult:
        """What came of it, once the iteration has ended; raises what went wrong."""
        ...


def following(
    begin: Callable[[], AbstractAsyncContextManager[Feed]],
) -> Follow[TransferProgress, TransferResult]:
    """A transfer as work that can be followed."""

    async def follow(tell: Callable[[TransferProgress], None]) -> TransferResult:
        async with begin() as feed:
            async for progress in feed:
                tell(progress)
            return feed.result()

    return follow


def is_transferring(progress: TransferProgress) -> bool:
    """There is something to transfer, or was."""
    return progress.phase not in (TransferPhase.QUEUED, TransferPhase.RESOLVING)


def is_transferring_or_waits(progress: TransferProgress) -> bool:
    """As `is_transferring`, or others have to end first."""
    return is_transferring(progress) or (
        progress.phase is TransferPhase.QUEUED and progress.queue_position is not None
    )
