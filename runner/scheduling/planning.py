"""What a request for a model would meet now: the whole decision, without acting on it.

Reads the core's state and changes nothing. Imports domain values and its neighbours. Read on in `room.py`,
whose plan this tells, and in `explaining.py` for decisions that were made.
"""

from __future__ import annotations

import math

import attrs

from runner.domain.device_bytes import DeviceBytes
from runner.domain.explained import PlannedDevice, PlannedObstacle, PlannedVictim, PlanReport
from runner.oci.digest import Digest
from runner.scheduling.callers import Callers
from runner.scheduling.instances import Attempt, Instance
from runner.scheduling.lifecycle import InstanceState
from runner.scheduling.loads import Loads
from runner.scheduling.protection import LeftAlone
from runner.scheduling.room import Eviction, RoomPlan, Wait, WaitReason
from runner.scheduling.room_making import RoomMaking
from runner.scheduling.state import SchedulerState
from runner.scheduling.swap import Demand, Resident, Stand, expected_swap_s

HYPOTHETICAL = -1
"""The load id of a load that nobody asked for."""


@attrs.frozen(kw_only=True)
class Wish:
    """What is asked about: a model that would need this footprint for a context of so many tokens.

    `least_context_size` is what was asked for, 0 for the default.
    """

    model_id: Digest
    name: str
    footprint: DeviceBytes
    context_size: int
    least_context_size: int = 0
    basis: str = ""


@attrs.define
class Planning:
    _state: SchedulerState
    _callers: Callers
    _loads: Loads
    _room: RoomMaking

    def report(self, wish: Wish) -> PlanReport:
        """The plan at the core's present time.

        1. It is in quarantine, or left alone since its workers keep crashing: refused.
        2. It is in memory and suffices: served at once, or in the order of its line.
        3. It is on its way into memory, or has to come back first: in line.
        4. It waits for room: as the core would decide now.
        5. It is not there, or too small: as the core would decide about this load beside those that wait.
        """
        state = self._state
        instance = state.table.by_model.get(wish.model_id)
        refusal = state.protection.would_refuse(wish.model_id, wish.name, state.now_s)
        if refusal is not None:
            wait_s = refusal.retry_after_s if isinstance(refusal, LeftAlone) else None
            return self._told(wish, instance, "refuse", refusal.why, wait_s=wait_s)  # 1
        if instance is not None:
            suffices = wish.least_context_size <= instance.context_size
            if instance.state is InstanceState.READY and suffices:
                return self._ready(wish, instance)  # 2
            if instance.state is InstanceState.LOADING:
                why = "it is being loaded" if suffices else "it is being loaded, and then once more, larger"
                return self._in_line(wish, instance, why)  # 3
            if instance.state in _COMING_BACK:
                return self._in_line(wish, instance, _COMING_BACK[instance.state])  # 3
            if instance.state is InstanceState.QUEUED and suffices:
                return self._queued(wish, instance)  # 4
        return self._hypothetical(wish, instance)  # 5

    # in memory, or nearly

    def _ready(self, wish: Wish, instance: Instance) -> PlanReport:
        if instance.has_free_lease:
            return self._told(wish, instance, "ready", "it is loaded and has a free place", wait_s=0.0)
        return self._in_line(wish, instance, "it is loaded, and all its places are taken")

    def _in_line(self, wish: Wish, instance: Instance, why: str) -> PlanReport:
        if instance.is_full:
            return self._told(wish, instance, "refuse", "its line is full", wait_s=None)
        return self._told(
            wish,
            instance,
            "in_line",
            why,
            position=len(instance.line) + 1,
            wait_s=self._callers.expected_wait_s(instance),
        )

    # loads

    def _queued(self, wish: Wish, instance: Instance) -> PlanReport:
        demands = self._room.demands()
        position = next(
            (number for number, one in enumerate(demands, 1) if one.load_id == instance.load_id), 0
        )
        return self._of_load(
            attrs.evolve(wish, footprint=instance.footprint, context_size=instance.context_size),
            instance,
            next(one for one in demands if one.load_id == instance.load_id),
            self._room.plan(demands),
            position,
        )

    def _hypothetical(self, wish: Wish, instance: Instance | None) -> PlanReport:
        never = self._never_fits(wish, instance)
        if never is not None:
            return self._told(wish, instance, "refuse", f"it is {never}", wait_s=None)
        state = self._state
        is_there = instance is not None and instance in state.table.serving()
        demand = Demand(
            load_id=HYPOTHETICAL,
            needed=wish.footprint,
            since_s=state.now_s,
            load_s=state.pace.load_s(wish.model_id, wish.footprint),
            replaces=instance.load_id if is_there and instance is not None else None,
        )
        others = [one for one in self._room.demands() if state.table.by_load[one.load_id] is not instance]
        demands = [*others, demand]
        return self._of_load(wish, instance, demand, self._room.plan(demands), len(demands))

    def _never_fits(self, wish: Wish, instance: Instance | None) -> str | None:
        attempt = Attempt(load_id=HYPOTHETICAL, footprint=wish.footprint)
        return self._loads.never_fits(instance, attempt)

    def _of_load(
        self, wish: Wish, instance: Instance | None, demand: Demand, plan: RoomPlan, position: int
    ) -> PlanReport:
        """
        1. It starts.
        2. Idle models stop for it.
        3. Models in use give way for it.
        4. It waits: for processes that end, for models in use, behind others.
        """
        pace = self._state.pace
        victims = [one for one in (*plan.stops, *plan.yields) if one.for_id == demand.load_id]
        wait = next((one for one in plan.waits if one.load_id == demand.load_id), None)
        if wait is None:  # 1
            return self._told(wish, instance, "load", "it fits into what is free", wait_s=demand.load_s)
        told_victims = tuple(self._victim(one, one in plan.stops) for one in victims)
        if wait.reason is WaitReason.ENDING:
            stops = bool(told_victims)
            return self._told(  # 2, 4
                wish,
                instance,
                "evict" if stops else "wait",
                _evicting(told_victims) if stops else "processes that end make room for it",
                victims=told_victims,
                wait_s=pace.stop_s + demand.load_s,
                position=0 if stops else position,
            )
        residents = {one.load_id: one for one in self._room.residents()}
        if wait.reason is WaitReason.YIELDING:  # 3
            swaps_s = [expected_swap_s(residents[one.victim_id], demand, 0.0, pace.stop_s) for one in victims]
            return self._told(
                wish,
                instance,
                "swap",
                _evicting(told_victims),
                victims=told_victims,
                wait_s=max(swaps_s, default=None),
                position=position,
            )
        obstacles = tuple(  # 4
            self._obstacle(residents[load_id], stand, plan) for load_id, stand in wait.stands.items()
        )
        return self._told(
            wish,
            instance,
            "wait",
            _waiting(wait),
            obstacles=obstacles,
            wait_s=self._expected_s(demand, plan, obstacles),
            position=position,
        )

    def _expected_s(
        self, demand: Demand, plan: RoomPlan, obstacles: tuple[PlannedObstacle, ...]
    ) -> float | None:
        """At the latest when those in use have to give way; None where nothing says that they will."""
        if plan.look_at_s == math.inf or not obstacles:
            return None
        swap_s = self._state.pace.stop_s + demand.load_s
        turn_s = demand.since_s + self._state.rules.swap_wait_s - self._state.now_s
        return max(plan.look_at_s - self._state.now_s, turn_s, swap_s)

    # parts of a report

    def _victim(self, eviction: Eviction, is_now: bool) -> PlannedVictim:
        state = self._state
        one = state.table.by_load[eviction.victim_id]
        return PlannedVictim(
            model=one.name,
            model_id=str(one.model_id),
            when="at once" if is_now else "when its requests have ended",
            freed_bytes=one.footprint.total_bytes,
            cost_s=eviction.cost_s,
            reload_s=state.pace.load_s(one.model_id, one.footprint),
            idle_s=None if one.leases else state.now_s - one.idle_since_s,
            running=len(one.leases),
            waiting=len(one.line),
        )

    def _obstacle(self, resident: Resident, stand: Stand, plan: RoomPlan) -> PlannedObstacle:
        one = self._state.table.by_load[resident.load_id]
        is_taken = stand in (Stand.FREE, Stand.YIELDS)
        changes_with_time = stand not in (Stand.PINNED, Stand.NEEDED, Stand.FREE, Stand.YIELDS)
        return PlannedObstacle(
            model=one.name,
            model_id=str(one.model_id),
            why="it would go, but that is not enough" if is_taken else stand.value,
            held_bytes=one.footprint.total_bytes,
            running=len(one.leases),
            waiting=len(one.line),
            stays_for_s=plan.look_at_s - self._state.now_s
            if changes_with_time and plan.look_at_s < math.inf
            else None,
        )

    def _told(
        self,
        wish: Wish,
        instance: Instance | None,
        verdict: str,
        why: str,
        *,
        wait_s: float | None,
        victims: tuple[PlannedVictim, ...] = (),
        obstacles: tuple[PlannedObstacle, ...] = (),
        position: int = 0,
    ) -> PlanReport:
        pace = self._state.pace
        is_there = verdict in ("ready", "in_line") and instance is not None and instance.context_size
        return PlanReport(
            model=wish.name,
            model_id=str(wish.model_id),
            state=NOT_LOADED if instance is None else instance.state.value,
            verdict=verdict,
            why=why,
            context_size=instance.context_size if is_there and instance is not None else wish.context_size,
            basis=wish.basis,
            devices=tuple(self._device(wish.footprint, device) for device in self._devices(wish)),
            victims=victims,
            obstacles=obstacles,
            expected_load_s=pace.load_s(wish.model_id, wish.footprint),
            is_load_measured=pace.is_load_measured(wish.model_id),
            expected_wait_s=wait_s,
            position=position,
            waiting=0 if instance is None else len(instance.line),
            swap_wait_s=self._state.rules.swap_wait_s,
        )

    def _devices(self, wish: Wish) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._state.ledger.budget.devices, *wish.footprint.devices)))

    def _device(self, needed: DeviceBytes, device: str) -> PlannedDevice:
        ledger, leaving = self._state.ledger, self._state.table.leaving()
        coming_bytes = ledger.free[device] + leaving[device]
        return PlannedDevice(
            device=device,
            needed_bytes=needed[device],
            free_bytes=ledger.free[device],
            leaving_bytes=leaving[device],
            reserved_bytes=ledger.reserved[device],
            budget_bytes=ledger.budget[device],
            missing_bytes=max(0, needed[device] - coming_bytes) if needed[device] else 0,
        )


NOT_LOADED = "not loaded"

_COMING_BACK = {
    InstanceState.YIELDING: "it gives way to another model and has to come back first",
    InstanceState.STOPPING: "its process ends and it has to come back first",
    InstanceState.COOLING: "its worker crashed a moment ago, and the next one starts after a delay",
    InstanceState.SIZING: "its footprint is being determined",
}


def _evicting(victims: tuple[PlannedVictim, ...]) -> str:
    names = ", ".join(one.model for one in victims)
    cost_s = sum(one.cost_s for one in victims)
    return f"{names} would make room, whose absence is expected to cost {cost_s:.1f} s of waiting"


def _waiting(wait: Wait) -> str:
    return wait.reason.value
