"""When a failed attempt is worth another, and after what pause (S06). Pure, except for `persevere`.

Callers on an event loop ask `pause_before` and wait themselves; `persevere` is for plain threads.
Imports errors. What counts as one attempt: a whole operation of `runner/registry/client.py`.
"""

from __future__ import annotations

import email.utils
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TypeVar

from runner.errors import RegistryUnavailable

ATTEMPTS_MAX: Final = 5
RETRY_AFTER_MAX_S: Final = 60.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 16.0

T = TypeVar("T")


def pause_before(attempt: int, error: Exception, *, chance: float) -> float | None:
    """Seconds to wait before the attempt of this number (2 for the first repetition); None to give up.

    `chance` is uniform in [0, 1) and spreads what many clients do at once.

    1. Only RegistryUnavailable is worth another attempt: nothing else gets better by repeating it.
    2. After ATTEMPTS_MAX attempts there is none.
    3. A Retry-After is waited for, in full; one beyond RETRY_AFTER_MAX_S is not, and ends it at once.
    4. Otherwise the pause doubles, from half a second, and lasts between half of that and all of it.
    """
    if not isinstance(error, RegistryUnavailable) or attempt > ATTEMPTS_MAX:
        return None
    if error.retry_after_s is not None:
        return None if error.retry_after_s > RETRY_AFTER_MAX_S else max(0.0, error.retry_after_s) + chance
    longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (attempt - 2))
    return longest_s * (0.5 + 0.5 * chance)


def persevere(operation: Callable[[], T], *, wait: Callable[[float], None], chance: Callable[[], float]) -> T:
    """The result of the operation, tried as often as `pause_before` says; its last error otherwise.

    `wait` pauses (`Abort.wait`), `chance` is `random.random`.
    """
    attempt = 1
    while True:
        try:
            return operation()
        except RegistryUnavailable as error:
            attempt += 1
            pause_s = pause_before(attempt, error, chance=chance())
            if pause_s is None:
                raise
        wait(pause_s)


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """Seconds of a Retry-After header, which is a number of them or a date; None when it is neither."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit() and len(value) <= 10:
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - now).total_seconds())
