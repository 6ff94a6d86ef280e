"""Who waits for a model, and in which order.

A line is bounded, first in first out, and one per model, so that requests for a loaded model never stand
behind the load of another. Within it a waiter whom the loaded context does not suffice is passed by those
whom it does. Imports nothing of ours. Read on in `callers.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator

import attrs


class Want(enum.Enum):
    LEASE = "lease"
    PRELOAD = "preload"
    """Wants the model in memory and takes no place among its leases."""


@attrs.frozen(kw_only=True)
class Waiter:
    """One unanswered caller.

    `keep_alive_s` and `pin` None keep what is set; `since_s` is when it began to wait; `context_size` is the
    least it needs in tokens, 0 when it did not say.
    """

    ticket: int
    want: Want
    since_s: float
    keep_alive_s: float | None = None
    pin: bool | None = None
    context_size: int = 0


@attrs.define
class WaitingLine:
    """A queue of waiters with removal from the middle. Its owner bounds it."""

    _waiters: dict[int, Waiter] = attrs.field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiters.values())

    def join(self, waiter: Waiter) -> None:
        """Stand at the end. It has not joined before."""
        assert waiter.ticket not in self._waiters
        self._waiters[waiter.ticket] = waiter

    def leave(self, ticket: int) -> bool:
        """Give up a place; False when this ticket does not wait here."""
        return self._waiters.pop(ticket, None) is not None

    def take_lease(self, context_size: int) -> Waiter | None:
        """The first who wants a lease and to whom this context suffices, removed from the line."""
        for waiter in self._waiters.values():
            if waiter.want is Want.LEASE and waiter.context_size <= context_size:
                return self._waiters.pop(waiter.ticket)
        return None

    def take_preloads(self, context_size: int) -> tuple[Waiter, ...]:
        """All who only want the model in memory and to whom this context suffices, removed from the line."""
        return self._take(lambda one: one.want is Want.PRELOAD and one.context_size <= context_size)

    def take_needing(self, more_than: int) -> tuple[Waiter, ...]:
        """All who need a larger context than this, removed from the line."""
        return self._take(lambda one: one.context_size > more_than)

    def take_overdue(self, now_s: float, wait_s: float, *, needing_more_than: int = -1) -> tuple[Waiter, ...]:
        """All who have waited for `wait_s` or longer, removed from the line; of those who need a larger
        context than `needing_more_than`."""
        return self._take(lambda one: one.since_s + wait_s <= now_s and one.context_size > needing_more_than)

    def take_all(self) -> tuple[Waiter, ...]:
        return self._take(lambda one: True)

    def oldest_since_s(self, *, needing_more_than: int = -1) -> float | None:
        """Since when the first has waited who needs more than this context; None when nobody does."""
        return next((one.since_s for one in self if one.context_size > needing_more_than), None)

    def count(self, *, needing_more_than: int = -1) -> int:
        return sum(one.context_size > needing_more_than for one in self)

    @property
    def largest_need(self) -> int:
        """The largest context that somebody here needs, 0 when nobody said."""
        return max((one.context_size for one in self), default=0)

    def _take(self, is_meant: Callable[[Waiter], bool]) -> tuple[Waiter, ...]:
        taken = tuple(waiter for waiter in self._waiters.values() if is_meant(waiter))
        for waiter in taken:
            del self._waiters[waiter.ticket]
        return taken
