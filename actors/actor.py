"""What every actor is made of: an address, a mailbox, replies.

An `Address` outlives restarts and is what handles hold. While an actor runs it has opened the address and
reads its `Mailbox`; when it ends, for whatever reason, every ask that was not answered fails with
`Unavailable` instead of hanging, also one that the actor had taken out and was still working on.

The loop of an actor waits for its mailbox only. Slow work runs in the actor's nursery and tells the mailbox
its outcome.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import attrs
import trio

from runner.errors import Unavailable

M = TypeVar("M")
T = TypeVar("T")


class Reply(Generic[T]):
    """One answer, given exactly once; a second answer is ignored, since a restart may have answered first."""

    def __init__(self) -> None:
        self._done = trio.Event()
        self._value: T | None = None
        self._error: BaseException | None = None
        self._on_answer: Callable[[Reply[T]], None] | None = None
        self.is_abandoned = False
        """The caller left. Answering is harmless, and nothing should be started on its behalf any more."""

    @property
    def is_answered(self) -> bool:
        return self._done.is_set()

    def set(self, value: T) -> None:
        if not self._done.is_set():
            self._value = value
            self._finish()

    def fail(self, error: BaseException) -> None:
        if not self._done.is_set():
            self._error = error
            self._finish()

    async def wait(self) -> T:
        """The answer, or its error raised."""
        try:
            await self._done.wait()
        except trio.Cancelled:
            self.is_abandoned = True
            raise
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # set() was given a T, which may be None

    def _finish(self) -> None:
        self._done.set()
        if self._on_answer is not None:
            self._on_answer(self)

    def __repr__(self) -> str:
        state = "answered" if self.is_answered else "abandoned" if self.is_abandoned else "open"
        return f"<Reply {state}>"


@attrs.frozen
class MailboxStatistics:
    """A moment's numbers: messages not read yet, asks not answered yet, and how many asks may be open."""

    queued: int
    open_asks: int
    capacity: int


class Mailbox(Generic[M]):
    """The reading end, for the one task that runs the actor: `async for message in mailbox`."""

    def __init__(self, capacity: int) -> None:
        self._send, self._receive = trio.open_memory_channel[M](math.inf)
        self._capacity = capacity
        self._open_asks: set[Reply[Any]] = set()

    def __aiter__(self) -> Mailbox[M]:
        return self

    async def __anext__(self) -> M:
        return await self._receive.receive()

    def tell(self, message: M) -> None:
        """Deliver without an answer. Never refused: senders hold something the actor granted them (a lease,
        a task of its nursery), so their number is bounded by what was granted."""
        self._send.send_nowait(message)

    async def ask(self, make_message: Callable[[Reply[T]], M]) -> T:
        """Deliver a message that carries a reply, and wait for the answer.

        Raises `Unavailable` at once when `capacity` asks are open already, or when the actor ends first.
        """
        if len(self._open_asks) >= self._capacity:
            raise Unavailable("too many requests are waiting for the same part of the daemon")
        reply: Reply[T] = Reply()
        reply._on_answer = self._open_asks.discard
        self._open_asks.add(reply)
        self._send.send_nowait(make_message(reply))
        return await reply.wait()

    def statistics(self) -> MailboxStatistics:
        queued = self._receive.statistics().current_buffer_used
        return MailboxStatistics(queued, len(self._open_asks), self._capacity)

    def _close(self, error: Callable[[], Exception]) -> None:
        self._send.close()
        self._receive.close()
        for reply in tuple(self._open_asks):
            reply.fail(error())


class Address(Generic[M]):
    """Where an actor is reached, the same through all its restarts. Handles wrap one."""

    def __init__(self, name: str, *, capacity: int = 1024) -> None:
        self.name = name
        self._capacity = capacity
        self._mailbox: Mailbox[M] | None = None

    @contextmanager
    def open(self) -> Iterator[Mailbox[M]]:
        """The mailbox of one run of the actor; leaving fails every unanswered ask."""
        if self._mailbox is not None:
            raise RuntimeError(f"actor {self.name} is already running")
        mailbox: Mailbox[M] = Mailbox(self._capacity)
        self._mailbox = mailbox
        try:
            yield mailbox
        finally:
            self._mailbox = None
            mailbox._close(self._gone)

    @property
    def is_open(self) -> bool:
        return self._mailbox is not None

    def tell(self, message: M) -> None:
        """Deliver, or drop when the actor is not running: what it would have released ended with it."""
        if self._mailbox is not None:
            self._mailbox.tell(message)

    async def ask(self, make_message: Callable[[Reply[T]], M]) -> T:
        """See `Mailbox.ask`; raises `Unavailable` when the actor is not running."""
        if self._mailbox is None:
            raise self._gone()
        return await self._mailbox.ask(make_message)

    def statistics(self) -> MailboxStatistics:
        if self._mailbox is None:
            return MailboxStatistics(0, 0, self._capacity)
        return self._mailbox.statistics()

    def _gone(self) -> Exception:
        return Unavailable(f"the {self.name} is restarting or has ended")

    def __repr__(self) -> str:
        return f"<Address {self.name} {'open' if self.is_open else 'closed'}>"
