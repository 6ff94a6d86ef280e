"""Restart or give up, as a function of what has happened.

Pure: times and a random number come in, a decision goes out. Imports nothing of ours. Used by
`actors/supervisor.py`.
"""

from __future__ import annotations

import enum

import attrs


class RestartKind(enum.Enum):
    """When a child that ended is started again."""

    PERMANENT = "permanent"
    """Always."""
    TRANSIENT = "transient"
    """After an error only."""
    TEMPORARY = "temporary"
    """Never."""


@attrs.frozen(kw_only=True)
class RestartPolicy:
    """How often, and how long to wait before each time.

    At most `max_restarts` within `window_s` seconds; the next end within the window gives up. The delay
    starts at `first_delay_s` and doubles with every restart still in the window, up to `longest_delay_s`;
    jitter adds up to `jitter_share` of it. A child that stays up for a whole window starts over.
    """

    max_restarts: int = 5
    window_s: float = 60.0
    first_delay_s: float = 0.1
    longest_delay_s: float = 5.0
    jitter_share: float = 0.5


@attrs.frozen
class Restart:
    """Wait `delay_s`, start again, and remember `history` for the next decision."""

    delay_s: float
    history: tuple[float, ...]


@attrs.frozen
class GiveUp:
    """`restarts` within `window_s` were not enough."""

    restarts: int
    window_s: float


def wants_restart(kind: RestartKind, *, failed: bool) -> bool:
    """Whether a child of this kind that ended (`failed`: with an error) is to be started again."""
    return kind is RestartKind.PERMANENT or (kind is RestartKind.TRANSIENT and failed)


def decide(
    policy: RestartPolicy, history: tuple[float, ...], *, now_s: float, jitter: float
) -> Restart | GiveUp:
    """What to do about a child that ended at `now_s` and wants a restart.

    `history` is that of the last `Restart`, () at first: the times of earlier restarts, oldest first, never
    more than `max_restarts`. `jitter` is a random number of [0, 1).
    """
    recent = tuple(time_s for time_s in history if now_s - time_s < policy.window_s)
    if len(recent) >= policy.max_restarts:
        return GiveUp(len(recent), policy.window_s)
    doublings = min(len(recent), 64)  # keeps the power a float whatever max_restarts is
    delay_s = min(policy.first_delay_s * 2.0**doublings, policy.longest_delay_s)
    return Restart(delay_s * (1 + policy.jitter_share * jitter), (*recent, now_s))
