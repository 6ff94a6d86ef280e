"""Who makes room: which waiting loads may start, and which idle models go for them. Silent functions.

Imports nothing of ours. Read on in `core.py`, which carries the plans out.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs


@attrs.frozen(kw_only=True)
class Demand:
    """A load that waits for room, and for how long it has."""

    load_id: int
    needed_bytes: int
    waited_s: float


@attrs.frozen(kw_only=True)
class Candidate:
    """An idle model in memory, used last at `idle_since_s`."""

    load_id: int
    size_bytes: int
    idle_since_s: float


@attrs.frozen(kw_only=True)
class Eviction:
    """`victim_id` goes so that `for_id` can load; `shortage_bytes` is what was missing before."""

    victim_id: int
    for_id: int
    shortage_bytes: int


@attrs.frozen(kw_only=True)
class RoomPlan:
    """What to do now. `blocked` waits for models in use; loads in no field wait for processes to end."""

    starts: tuple[int, ...] = ()
    evictions: tuple[Eviction, ...] = ()
    blocked: tuple[int, ...] = ()


def choose_victims(candidates: Sequence[Candidate], shortage_bytes: int) -> tuple[Candidate, ...]:
    """The least recently used candidates whose sizes cover the shortage; empty when all together do not.

    Never more than needed: a victim without which the others still suffice is spared, the most recently used
    first, so that one large model goes instead of a small one and the large one.
    """
    chosen: list[Candidate] = []
    covered_bytes = 0
    for candidate in sorted(candidates, key=lambda candidate: (candidate.idle_since_s, candidate.load_id)):
        if covered_bytes >= shortage_bytes:
            break
        chosen.append(candidate)
        covered_bytes += candidate.size_bytes
    if covered_bytes < shortage_bytes:
        return ()
    for candidate in reversed(tuple(chosen)):
        if covered_bytes - candidate.size_bytes >= shortage_bytes:
            chosen.remove(candidate)
            covered_bytes -= candidate.size_bytes
    return tuple(chosen)


def plan_room(
    demands: Sequence[Demand],
    candidates: Sequence[Candidate],
    *,
    free_bytes: int,
    leaving_bytes: int,
    overtaking_s: float,
) -> RoomPlan:
    """Go through the demands in their order, the oldest first.

    1. It fits into what is free: it starts.
    2. It will fit when the processes that are ending have gone: it waits, and that room is set aside for it.
    3. It will fit when idle models have gone as well: they are evicted, and the room is set aside.
    4. Everything else is in use: it is blocked, and nothing is evicted in vain. Later demands may pass it
       until it has waited `overtaking_s`; after that they wait too, so that small models cannot keep a large
       one out for ever.

    `free_bytes` may be negative; `leaving_bytes` belong to processes that were told to end.
    """
    starts: list[int] = []
    evictions: list[Eviction] = []
    blocked: list[int] = []
    idle = list(candidates)
    coming_bytes = free_bytes + leaving_bytes  # free once all that leave have left, less what is set aside
    for demand in demands:
        shortage_bytes = demand.needed_bytes - coming_bytes
        if shortage_bytes > 0:
            victims = choose_victims(idle, shortage_bytes)
            if not victims:  # 4
                blocked.append(demand.load_id)
                if demand.waited_s >= overtaking_s:
                    break
                continue
            for victim in victims:  # 3
                idle.remove(victim)
                coming_bytes += victim.size_bytes
                evictions.append(
                    Eviction(victim_id=victim.load_id, for_id=demand.load_id, shortage_bytes=shortage_bytes)
                )
        elif demand.needed_bytes <= free_bytes:  # 1
            starts.append(demand.load_id)
            free_bytes -= demand.needed_bytes
        coming_bytes -= demand.needed_bytes  # 1, 2 and 3
    return RoomPlan(starts=tuple(starts), evictions=tuple(evictions), blocked=tuple(blocked))
