"""Who waits for a model, in which order, and how long a refused client should stay away.

A line is bounded, first in first out, and one per model, so that requests for a loaded model never stand
behind the load of another. Imports nothing of ours. Read on in `core.py`.
"""

from __future__ import annotations

import enum

import attrs

RETRY_AFTER_MIN_S = 1.0  # Retry-After is written in whole seconds, and 0 would invite a busy loop
RETRY_AFTER_MAX_S = 60.0


class Want(enum.Enum):
    LEASE = "lease"
    PRELOAD = "preload"
    """Wants the model in memory and takes no place among its leases."""


@attrs.frozen(kw_only=True)
class Waiter:
    """One unanswered caller. `keep_alive_s` None keeps what is set; `since_s` is when it began to wait."""

    ticket: int
    want: Want
    keep_alive_s: float | None
    since_s: float


@attrs.define
class WaitingLine:
    """A bounded queue of waiters with removal from the middle."""

    limit: int
    _waiters: dict[int, Waiter] = attrs.field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._waiters)

    @property
    def is_full(self) -> bool:
        return len(self._waiters) >= self.limit

    def join(self, waiter: Waiter) -> None:
        """Stand at the end. The caller has looked at `is_full` and has not joined before."""
        assert not self.is_full and waiter.ticket not in self._waiters
        self._waiters[waiter.ticket] = waiter

    def leave(self, ticket: int) -> bool:
        """Give up a place; False when this ticket does not wait here."""
        return self._waiters.pop(ticket, None) is not None

    def take_lease(self) -> Waiter | None:
        """The first who wants a lease, removed from the line."""
        first = next((waiter for waiter in self._waiters.values() if waiter.want is Want.LEASE), None)
        if first is not None:
            del self._waiters[first.ticket]
        return first

    def take_preloads(self) -> tuple[Waiter, ...]:
        """All who only want the model in memory, removed from the line."""
        return self._take(tuple(w for w in self._waiters.values() if w.want is Want.PRELOAD))

    def take_all(self) -> tuple[Waiter, ...]:
        return self._take(tuple(self._waiters.values()))

    def take_overdue(self, now_s: float, wait_s: float) -> tuple[Waiter, ...]:
        """All who have waited for `wait_s` or longer, removed from the line."""
        return self._take(tuple(w for w in self._waiters.values() if w.since_s + wait_s <= now_s))

    def oldest_since_s(self) -> float | None:
        """Since when the first in line has waited; None when nobody does."""
        return next((waiter.since_s for waiter in self._waiters.values()), None)

    def _take(self, waiters: tuple[Waiter, ...]) -> tuple[Waiter, ...]:
        for waiter in waiters:
            del self._waiters[waiter.ticket]
        return waiters


@attrs.define
class Rates:
    """How long loads and leases took lately: moving averages in seconds that give refusals their Retry-After.

    They start from guesses and follow what is measured; a quarter of each new value goes in.
    """

    load_s: float = 5.0
    lease_s: float = 5.0

    def load_ended(self, took_s: float) -> None:
        self.load_s += (took_s - self.load_s) / 4

    def lease_ended(self, took_s: float) -> None:
        self.lease_s += (took_s - self.lease_s) / 4

    def retry_after_s(self, leases: int | None) -> float:
        """When a place in a full line may be expected, within bounds.

        `leases` use the model side by side; None: it is not loaded, and the whole line is served when it is.
        """
        expected_s = self.load_s if leases is None else self.lease_s / leases
        return min(max(expected_s, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)
