"""Who makes room for whom: which waiting loads start, which models stop or give way, and who keeps waiting.

A silent function of values. Read on in `swap.py` (which models may go), `eviction.py` (which of them do) and
`room_making.py`, which carries plans out.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence

import attrs

from runner.domain.device_bytes import DeviceBytes
from runner.scheduling.eviction import Candidate, absence_cost_s, choose_victims
from runner.scheduling.rules import SchedulingRules
from runner.scheduling.swap import Demand, Resident, Stand, Verdict, judge


@attrs.frozen(kw_only=True)
class Eviction:
    """`victim_id` goes so that `for_id` can load. `shortage` is what was missing before, `cost_s` what its
    absence is expected to cost; `costs_s` as in `Verdict`."""

    victim_id: int
    for_id: int
    shortage: DeviceBytes
    cost_s: float
    costs_s: tuple[float, float] | None = None


class WaitReason(enum.Enum):
    """Why a load does not start yet; the values are for people."""

    ENDING = "room is being made"
    YIELDING = "models in use give way when their running requests end"
    BLOCKED = "everything else is in use"
    BEHIND = "another load has waited longer and goes first"


@attrs.frozen(kw_only=True)
class Wait:
    """`stands` tells of every model in memory that could make room, by load id, where it stands."""

    load_id: int
    reason: WaitReason
    shortage: DeviceBytes = attrs.field(factory=DeviceBytes)
    stands: Mapping[int, Stand] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class RoomPlan:
    """What to do now. `stops` are idle, or nothing of theirs runs any more; `yields` grant nothing any more.

    `look_at_s` is when time alone may change the plan; infinite for never.
    """

    starts: tuple[int, ...] = ()
    stops: tuple[Eviction, ...] = ()
    yields: tuple[Eviction, ...] = ()
    waits: tuple[Wait, ...] = ()
    look_at_s: float = math.inf


def plan_room(
    demands: Sequence[Demand],
    residents: Sequence[Resident],
    *,
    free: DeviceBytes,
    leaving: DeviceBytes,
    rules: SchedulingRules,
    now_s: float,
    stop_s: float = 0.0,
) -> RoomPlan:
    """Go through the demands in their order, the one whose requests have waited longest first.

    1. It fits into what is free: it starts.
    2. It will fit when the processes that are ending have gone: it waits, and that room is set aside for it.
    3. It will fit when idle models have gone as well: the cheapest set stops, and the room is set aside.
    4. It will fit when models in use that may give way have gone too: the cheapest set gives way, and the
       room is set aside. Idle ones in it stay until all of it can go, since requests for them may still come.
    5. Everything else is in use: it is blocked, and nothing goes in vain. Later demands may pass it until it
       has waited `overtaking_s`; after that they wait too, so that small models cannot keep a large one out
       for ever.

    `free` may be negative; `leaving` belongs to processes that were told to end.
    """
    planner = _Planner(
        residents=list(residents),
        free=free,
        coming=free + leaving,
        rules=rules,
        now_s=now_s,
        stop_s=stop_s,
    )
    is_closed = False
    for demand in demands:
        if is_closed:
            planner.waits.append(Wait(load_id=demand.load_id, reason=WaitReason.BEHIND))
        elif not planner.place(demand):
            is_closed = now_s - demand.since_s >= rules.overtaking_s
    return RoomPlan(
        starts=tuple(planner.starts),
        stops=tuple(planner.stops),
        yields=tuple(planner.yields),
        waits=tuple(planner.waits),
        look_at_s=planner.look_at_s,
    )


def candidate_of(resident: Resident, rules: SchedulingRules, now_s: float) -> Candidate:
    """With its cost; one that gives way already costs nothing more, so that decisions are not taken back and
    forth."""
    cost_s = absence_cost_s(
        reload_s=resident.reload_s,
        requests=resident.requests,
        idle_s=now_s - resident.idle_since_s,
        idle_scale_s=rules.idle_scale_s,
    )
    return Candidate(
        load_id=resident.load_id, size=resident.size, cost_s=0.0 if resident.is_yielding else cost_s
    )


@attrs.define(kw_only=True)
class _Planner:
    """`coming` is free once all that leave have left, less what is set aside."""

    residents: list[Resident]
    free: DeviceBytes
    coming: DeviceBytes
    rules: SchedulingRules
    now_s: float
    stop_s: float
    ahead_s: float = 0.0
    look_at_s: float = math.inf
    starts: list[int] = attrs.field(factory=list)
    stops: list[Eviction] = attrs.field(factory=list)
    yields: list[Eviction] = attrs.field(factory=list)
    waits: list[Wait] = attrs.field(factory=list)

    def place(self, demand: Demand) -> bool:
        """False when it is blocked; otherwise its room is set aside."""
        shortage = demand.needed.missing_in(self.coming)
        if not shortage and demand.replaces is None:
            self._take_free(demand)  # 1, 2
        else:
            verdicts = {one.load_id: self._judge(one, demand) for one in self.residents}
            victims = self._choose(demand, shortage, verdicts, (Stand.FREE,))
            if not victims:
                victims = self._choose(demand, shortage, verdicts, (Stand.FREE, Stand.YIELDS))
            if not victims:  # 5
                self._wait(demand, WaitReason.BLOCKED, shortage, verdicts)
                self.look_at_s = min([self.look_at_s, *(one.look_at_s for one in verdicts.values())])
                return False
            self._take_from(victims, demand, shortage, verdicts)  # 3, 4
        self.coming -= demand.needed
        return True

    def _judge(self, resident: Resident, demand: Demand) -> Verdict:
        return judge(
            resident,
            demand,
            ahead_s=self.ahead_s,
            stop_s=self.stop_s,
            rules=self.rules,
            now_s=self.now_s,
        )

    def _take_free(self, demand: Demand) -> None:
        if demand.needed.fits_in(self.free):
            self.starts.append(demand.load_id)
            self.free -= demand.needed
        else:
            self._wait(demand, WaitReason.ENDING)

    def _choose(
        self,
        demand: Demand,
        shortage: DeviceBytes,
        verdicts: Mapping[int, Verdict],
        stands: tuple[Stand, ...],
    ) -> tuple[Candidate, ...]:
        candidates = [
            candidate_of(one, self.rules, self.now_s)
            for one in self.residents
            if verdicts[one.load_id].stand in stands
        ]
        must = () if demand.replaces is None else (demand.replaces,)
        return choose_victims(candidates, shortage, must=must)

    def _take_from(
        self,
        victims: Sequence[Candidate],
        demand: Demand,
        shortage: DeviceBytes,
        verdicts: Mapping[int, Verdict],
    ) -> None:
        are_all_free = all(verdicts[one.load_id].stand is Stand.FREE for one in victims)
        yielding = {one.load_id for one in self.residents if one.is_yielding}
        for one in victims:
            self.residents = [other for other in self.residents if other.load_id != one.load_id]
            self.coming += one.size
            eviction = Eviction(
                victim_id=one.load_id,
                for_id=demand.load_id,
                shortage=shortage,
                cost_s=one.cost_s,
                costs_s=verdicts[one.load_id].costs_s,
            )
            if are_all_free:
                self.stops.append(eviction)
            elif verdicts[one.load_id].stand is Stand.YIELDS or one.load_id in yielding:
                self.yields.append(eviction)
        reason = WaitReason.ENDING if are_all_free else WaitReason.YIELDING
        self._wait(demand, reason, shortage, verdicts)

    def _wait(
        self,
        demand: Demand,
        reason: WaitReason,
        shortage: DeviceBytes | None = None,
        verdicts: Mapping[int, Verdict] | None = None,
    ) -> None:
        self.ahead_s += demand.load_s + self.rules.min_residency_s
        self.waits.append(
            Wait(
                load_id=demand.load_id,
                reason=reason,
                shortage=shortage or DeviceBytes(),
                stands={load_id: verdict.stand for load_id, verdict in (verdicts or {}).items()},
            )
        )
