"""The events of one generation, from the keeper that reads them to the one task that forwards them.

Owns the bound on what may wait for a slow reader. The keeper delivers once per engine step and never waits;
the reader wakes once per delivery and takes everything. Imports the domain's values. Read on in
`actors/worker.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import trio

from runner.domain.events import (
    Embedded,
    Examined,
    Failed,
    Finished,
    GenerationEvent,
    PromptText,
    TextDelta,
    TokenLogprob,
)
from runner.errors import ReaderTooSlow, RunnerError

UNDELIVERED_LIMIT_BYTES: Final = 1024 * 1024
"""Text and vectors that may wait for their reader (N24)."""
UNDELIVERED_LIMIT_EVENTS: Final = 65_536
"""Events that may wait, so that a worker cannot send empty deltas without end (W07)."""
_TOKEN_BYTES: Final = 64  # a short text, its bytes as numbers, a logprob and their names


class GenerationStream:
    """One reader's end of one generation. Close it, whatever happened; a `with` block does.

    `on_close` is called once, when the reader closes or falls behind before the generation has ended.
    """

    def __init__(self, request_id: str, on_close: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._on_close = on_close
        self._events: list[GenerationEvent] = []
        self._undelivered_bytes = 0
        self._error: RunnerError | None = None
        self._has_ended = False
        self._is_closed = False
        self._waiting: trio.Event | None = None
        self.on_news: Callable[[], None] = lambda: None
        """Called when there is something to take; for who reads several streams. Must not block."""

    async def receive(self) -> list[GenerationEvent]:
        """Everything that has happened since the last call, at least one event; waits once for it.

        Returns [] after `Finished` or `Failed` was returned, and after `close`. What was delivered before the
        worker died is returned first; then raises `WorkerCrashed` (`Unavailable` when the worker was stopped
        on request). Raises `ReaderTooSlow` at once when more than 1 MiB of text was waiting.
        """
        if self._waiting is not None:
            raise trio.BusyResourceError("another task is reading this stream")
        if self._events:
            await (
                trio.lowlevel.checkpoint_if_cancelled()
            )  # the keeper has run meanwhile, or nothing would wait
        elif self._error is not None or self._has_ended or self._is_closed:
            await trio.lowlevel.checkpoint()
        else:
            self._waiting = trio.Event()
            try:
                await self._waiting.wait()
            finally:
                self._waiting = None
        return self._take()

    def receive_nowait(self) -> list[GenerationEvent]:
        """Everything that has happened, which may be nothing. Raises as `receive` does."""
        return self._take()

    def close(self) -> None:
        """Nothing more is wanted: the sequence is cancelled unless it has ended. Sync, idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._events.clear()
        self._wake()
        if not self._has_ended and self._error is None:
            self._on_close(self.request_id)

    def __enter__(self) -> GenerationStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def has_ended(self) -> bool:
        """`Finished` or `Failed` has arrived; the reader may still have to take it."""
        return self._has_ended

    # ---- the keeper's side

    def deliver(self, events: Iterable[GenerationEvent]) -> None:
        """Queue events and wake the reader; nothing after the end of the generation is taken."""
        for event in events:
            if self._is_closed or self._has_ended or self._error is not None:
                return
            self._events.append(event)
            match event:
                case TextDelta() | PromptText():
                    self._undelivered_bytes += _size_bytes(event.text) + _logprobs_bytes(event.logprobs)
                case Embedded():
                    self._undelivered_bytes += len(event.vector)
                case Finished() | Failed() | Examined():
                    self._has_ended = True
        if self._undelivered_bytes > UNDELIVERED_LIMIT_BYTES or len(self._events) > UNDELIVERED_LIMIT_EVENTS:
            self._give_up()
        self._wake()

    def fail(self, error: RunnerError) -> None:
        """The worker is gone: raise `error` once everything delivered was received."""
        if not self._has_ended and self._error is None:
            self._error = error
            self._wake()

    def _take(self) -> list[GenerationEvent]:
        if self._events:
            events, self._events = self._events, []
            self._undelivered_bytes = 0
            return events
        if self._error is not None and not self._is_closed:
            raise self._error
        return []

    def _give_up(self) -> None:
        self._events.clear()
        self._error = ReaderTooSlow(UNDELIVERED_LIMIT_BYTES)
        if not self._has_ended:
            self._on_close(self.request_id)

    def _wake(self) -> None:
        if self._waiting is not None:
            self._waiting.set()
        self.on_news()

    def __repr__(self) -> str:
        if self._is_closed:
            state = "closed"
        elif self._error is not None:
            state = "failed"
        elif self._has_ended:
            state = "ended"
        else:
            state = "open"
        return f"<GenerationStream {self.request_id} {state}, {len(self._events)} events waiting>"


def _logprobs_bytes(logprobs: tuple[TokenLogprob, ...]) -> int:
    """What they will be on their way out, roughly."""
    return sum(_TOKEN_BYTES * (1 + len(one.top)) for one in logprobs)


def _size_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
