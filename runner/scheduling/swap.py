"""When a model in memory gives way to one that is wanted. Silent functions of values.

The rules are explained in `docs/concepts/scheduling.md`. Imports amounts and its rules. Read on in
`eviction.py` (which models go, of those that may) and `room.py` (for whom).
"""

from __future__ import annotations

import enum
import math

import attrs

from runner.domain.device_bytes import DeviceBytes
from runner.scheduling.rules import SchedulingRules


@attrs.frozen(kw_only=True)
class Resident:
    """A model in memory.

    `ready_since_s` is when its load ended, `idle_since_s` when its last request did. `leases` run of at most
    `slots`, `waiting` stand in line. `use_s` is how long one request takes, `drain_s` how long the running
    ones will, cautiously; `reload_s` what loading it again costs. `returns_s` is how soon after its last
    request the next one usually comes, None while nobody knows. `is_yielding`: it grants nothing any more.
    """

    load_id: int
    size: DeviceBytes
    ready_since_s: float
    idle_since_s: float
    leases: int = 0
    waiting: int = 0
    slots: int = 1
    use_s: float = 1.0
    drain_s: float = 1.0
    reload_s: float = 1.0
    returns_s: float | None = None
    is_pinned: bool = False
    is_yielding: bool = False

    @property
    def requests(self) -> int:
        return self.leases + self.waiting


@attrs.frozen(kw_only=True)
class Demand:
    """A load that waits for room, for `waiting` requests, the first of which came at `since_s`.

    `load_s` is how long it will take. `replaces`: the load of the same model that has to go, whatever else.
    `needs`: the one that must not, since this is of no use without it.
    """

    load_id: int
    needed: DeviceBytes
    since_s: float
    waiting: int = 1
    load_s: float = 1.0
    replaces: int | None = None
    needs: int | None = None


class Stand(enum.Enum):
    """Whether a model may go; the values are for people."""

    FREE = "it is idle"
    YIELDS = "it gives way when its running requests end"
    DRAINS = "its own requests are served first, which costs less than a swap"
    RESIDES = "it was loaded a moment ago"
    LINGERS = "its next request is due any moment"
    PINNED = "it is pinned"
    NEEDED = "it is what the room is for"


@attrs.frozen
class Verdict:
    """`look_at_s` is when time alone changes it; infinite for never. `costs_s` compares draining with a swap,
    in seconds of waiting that each would cost, where that was weighed."""

    stand: Stand
    look_at_s: float = math.inf
    costs_s: tuple[float, float] | None = None

    @property
    def may_go(self) -> bool:
        return self.stand in (Stand.FREE, Stand.YIELDS)


def judge(
    resident: Resident,
    demand: Demand,
    *,
    ahead_s: float,
    stop_s: float,
    rules: SchedulingRules,
    now_s: float,
) -> Verdict:
    """May this model go for that demand?

    1. Pinned: never, but by command; it may be loaded again for its own larger context. Nor what the demand
       needs.
    2. Giving way already: at once when nothing runs any more. Once begun it is not weighed again.
    3. Idle: at once; but it lingers while its next request is due any moment, as a swap too many costs more.
    4. In use, and loaded a moment ago: not before it has resided for its time.
    5. In use, and those who wait could not be served within `swap_wait_s` otherwise: it gives way.
    6. In use: it gives way when serving its own requests first would cost those who wait more seconds than a
       swap would cost its own; otherwise they are served first, until 5.

    `ahead_s` passes before it is the demand's turn, since others wait as well; `stop_s` is how long the end
    of a worker takes.
    """
    if demand.needs == resident.load_id:
        return Verdict(Stand.NEEDED)  # 1
    if resident.is_pinned and demand.replaces != resident.load_id:
        return Verdict(Stand.PINNED)  # 1
    if resident.is_yielding:
        return Verdict(Stand.YIELDS if resident.leases else Stand.FREE)  # 2
    resides_until_s = resident.ready_since_s + rules.min_residency_s
    turn_s = demand.since_s + rules.swap_wait_s - expected_swap_s(resident, demand, ahead_s, stop_s)
    if not resident.leases:
        look_at_s = min(lingers_until_s(resident, resides_until_s, rules), turn_s)
        return Verdict(Stand.LINGERS, look_at_s) if now_s < look_at_s else Verdict(Stand.FREE)  # 3
    if now_s < resides_until_s:
        return Verdict(Stand.RESIDES, resides_until_s)  # 4
    if now_s >= turn_s:
        return Verdict(Stand.YIELDS)  # 5
    costs_s = drain_cost_s(resident, demand), swap_cost_s(resident, demand)
    if costs_s[0] > costs_s[1]:
        return Verdict(Stand.YIELDS, costs_s=costs_s)  # 6
    return Verdict(Stand.DRAINS, turn_s, costs_s)


def expected_swap_s(resident: Resident, demand: Demand, ahead_s: float, stop_s: float) -> float:
    """From the decision until the first who waits is served."""
    return ahead_s + (resident.drain_s if resident.leases else 0.0) + stop_s + demand.load_s


def drain_cost_s(resident: Resident, demand: Demand) -> float:
    """Seconds of waiting, summed over those who wait, if the resident's requests are served first."""
    rounds = math.ceil(resident.requests / resident.slots)
    return demand.waiting * rounds * resident.use_s


def swap_cost_s(resident: Resident, demand: Demand) -> float:
    """Seconds of waiting, summed over the resident's requests, if it goes and comes back.

    Its running requests stand for those that will come while it is away: it is as popular as it is busy.
    """
    return resident.requests * (demand.load_s + resident.reload_s)


def lingers_until_s(resident: Resident, resides_until_s: float, rules: SchedulingRules) -> float:
    """Until when an idle model is kept for its next request.

    At most for `linger_s`, and for half of what its return would cost, so that a wrong guess is cheap. Where
    the next request usually comes within that, for as long as it usually takes; where it does not, not at
    all. Where nobody knows yet, all of it, but not beyond the residency.
    """
    most_s = min(rules.linger_s, resident.reload_s / 2)
    if resident.returns_s is None:
        return min(resident.idle_since_s + most_s, resides_until_s)
    return resident.idle_since_s + (resident.returns_s if resident.returns_s <= most_s else 0.0)
