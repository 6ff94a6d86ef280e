"""Processor cores, shared among the models that are generating. Pure: numbers in, numbers out.

Two engines that both use all cores wait for each other at every barrier of every layer: measured on two
cores, a model that makes 130 tokens/s with one thread beside another one falls to 30 when both use two. So
every core has one thread of ours. The same holds beside programs that are not ours: `cores_left` gives a core
up for each one that others keep busy.

Imports nothing of ours. `actors/cores.py` measures, and tells the workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs

NOTICED_SHARE = 0.4
"""Of a core. Others who use less of one are not given way to: a client that reads streams, a browser. A
program that would keep a core busy gets at least half of it beside one thread of ours."""
FORGOTTEN_SHARE = 0.2
"""A core is taken back when others use less of it; less than `NOTICED_SHARE`, or it would go to and fro."""


@attrs.frozen(kw_only=True)
class CoreClaim:
    """A model that is generating, and the most threads that it can use, at least 1."""

    load_id: int
    threads_max: int


def divide_cores(n_cores: int, claims: Iterable[CoreClaim]) -> dict[int, int]:
    """Threads of each claim, by its load id.

    1. Everybody has one, also when there are more models than cores.
    2. What is left goes round, one core at a time, oldest load first, to those who can use one more.
    So shares differ by one at most, unless somebody has all it can use, and no core is left that somebody
    could use. The order of claims changes nothing.
    """
    waiting = sorted(claims, key=lambda claim: claim.load_id)
    shares = {claim.load_id: 1 for claim in waiting}
    n_left = n_cores - len(shares)
    while waiting := [claim for claim in waiting if shares[claim.load_id] < claim.threads_max]:
        if n_left <= 0:
            break
        for claim in waiting[:n_left]:
            shares[claim.load_id] += 1
        n_left -= len(waiting)
    return shares


def cores_taken(before: int, others_busy_cores: float) -> int:
    """How many cores others keep busy, where it was `before` so far.

    `others_busy_cores` is processor time per second that is neither idle nor ours. Beside our own threads
    others get only a part of a core that they would keep busy, so a part counts as a whole one. With the two
    thresholds apart, a use in between changes nothing.
    """
    up = max(0, math.ceil(others_busy_cores - NOTICED_SHARE))
    down = max(0, math.ceil(others_busy_cores - FORGOTTEN_SHARE))
    return min(max(before, up), down)


def cores_left(n_cores: int, n_processors: int, taken: int) -> int:
    """Cores for us, where `taken` of `n_processors` are busy with others: from half of `n_cores` up to all.

    `n_cores` may be less than there are (a quota, a setting): then others first take what we do not use. They
    never take more than half: that is their fair share, and a daemon that yields all of it to a build would
    crawl.
    """
    return min(n_cores, max(n_processors - taken, math.ceil(n_cores / 2)))
