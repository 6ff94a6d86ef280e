"""Room for those who wait: surveys who competes, and carries out what `room.py` plans.

Part of `core.py`, which calls it after every event. Read on in `swap.py` for the policy.
"""

from __future__ import annotations

import attrs

from runner.scheduling.callers import Callers
from runner.scheduling.decisions import Action, amounts
from runner.scheduling.eviction import choose_victims
from runner.scheduling.instances import Instance
from runner.scheduling.lifecycle import InstanceState, Trigger
from runner.scheduling.loads import Loads
from runner.scheduling.room import Eviction, RoomPlan, Wait, WaitReason, candidate_of, plan_room
from runner.scheduling.state import SchedulerState
from runner.scheduling.swap import Demand, Resident, Stand


@attrs.define
class RoomMaking:
    _state: SchedulerState
    _callers: Callers
    _loads: Loads

    # what there is

    def residents(self) -> list[Resident]:
        """Models in memory that serve, as the policy sees them."""
        return [self._resident(one) for one in self._state.table.serving()]

    def demands(self) -> list[Demand]:
        """Loads that wait for room, the one whose requests have waited longest first."""
        table = self._state.table
        found = [
            Demand(
                load_id=one.load_id,
                needed=one.footprint,
                since_s=waits[0],
                waiting=waits[1],
                load_s=self._load_s(one),
                needs=None if (owner := table.owner_of(one)) is None else owner.load_id,
            )
            for one in table.in_state(InstanceState.QUEUED)
            if (waits := one.waits_for_room) is not None
        ]
        found += [demand for one in table.serving() if (demand := self._growing(one)) is not None]
        return sorted(found, key=lambda demand: (demand.since_s, demand.load_id))

    def plan(self, demands: list[Demand]) -> RoomPlan:
        state = self._state
        return plan_room(
            demands,
            self.residents(),
            free=state.ledger.free,
            leaving=state.table.leaving(),
            rules=state.rules,
            now_s=state.now_s,
            stop_s=state.pace.stop_s,
        )

    # what is done

    def relieve_pressure(self) -> None:
        """Stop idle models while more is reserved than the ceiling; those in use and pinned ones stay."""
        state = self._state
        over = (state.ledger.reserved - state.table.leaving() - state.ceiling).positive()
        if not over:
            return
        idle = {one.load_id: one for one in state.table.idle() if not one.is_pinned}
        candidates = [
            candidate_of(self._resident(one), state.rules, state.now_s)
            for one in idle.values()
            if any(one.footprint[device] for device in over.devices)
        ]
        for victim in choose_victims(candidates, over) or candidates:
            one = idle[victim.load_id]
            self._loads.stop(
                one,
                Action.EVICT,
                f"the budget shrank below what is reserved ({' and '.join(over.devices)})",
                {
                    **amounts("freed_bytes", one.footprint),
                    **amounts("over_bytes", over),
                    **amounts("budget_bytes", state.ledger.budget),
                    "idle_s": state.now_s - one.idle_since_s,
                    "cost_s": victim.cost_s,
                },
            )

    def refuse_overdue(self) -> None:
        """Whoever has waited too long for models in use is told so."""
        now_s = self._state.now_s
        for one in tuple(self._state.table.by_model.values()):
            waits, wait_s = one.waits_for_room, one.room_wait_s(self._state.rules)
            if waits is None or waits[0] + wait_s > now_s:
                continue
            is_growing = one.state is InstanceState.READY
            least = one.context_size if is_growing else -1
            overdue = one.line.take_overdue(now_s, wait_s, needing_more_than=least)
            needed = one.growth.footprint if is_growing and one.growth is not None else None
            why = "models in use made no room in time"
            self._callers.refuse_for_room(one, overdue, why, needed=needed)
            self._loads.cancel_if_unwanted(one)

    def give_room(self) -> None:
        """Start what fits, stop and hold back what has to go, and let go on what need not any more."""
        state = self._state
        plan = self.plan(self.demands())
        state.look_at_s = plan.look_at_s
        for load_id in plan.starts:
            self._loads.start(state.table.by_load[load_id])
        for eviction in plan.stops:
            self._evict(eviction)
        for eviction in plan.yields:
            self._hold_back(eviction)
        kept = {eviction.victim_id for eviction in plan.yields}
        for one in state.table.in_state(InstanceState.YIELDING):
            if one.load_id not in kept:
                one.move(Trigger.KEEPS_ROOM, state.now_s)
                state.note(one, Action.RESUME, "its room is not needed any more", {"waiting": len(one.line)})
                self._callers.grant_waiting(one)
        for wait in plan.waits:
            self._note_wait(wait)

    def _evict(self, eviction: Eviction) -> None:
        state = self._state
        victim, winner = state.table.by_load[eviction.victim_id], state.table.by_load[eviction.for_id]
        is_reload = victim is winner
        why = (
            "somebody needs a larger context"
            if is_reload
            else f"makes room for {winner.name}; its absence costs least of what could go"
        )
        self._loads.stop(
            victim,
            Action.RELOAD if is_reload else Action.EVICT,
            why,
            {
                **amounts("freed_bytes", victim.footprint),
                **amounts("shortage_bytes", eviction.shortage),
                "idle_s": state.now_s - victim.idle_since_s,
                "cost_s": eviction.cost_s,
                "waiting": len(victim.line),
            },
            others=() if is_reload else (winner.name,),
        )

    def _hold_back(self, eviction: Eviction) -> None:
        state = self._state
        victim, winner = state.table.by_load[eviction.victim_id], state.table.by_load[eviction.for_id]
        if victim.state is InstanceState.YIELDING:
            return
        victim.move(Trigger.GIVES_WAY, state.now_s)
        since_s, others_waiting = winner.waits_for_room or (state.now_s, 0)
        numbers = {
            "leases": len(victim.leases),
            "waiting": len(victim.line),
            "others_waiting": others_waiting,
            "others_waited_s": state.now_s - since_s,
        }
        if eviction.costs_s is not None:
            numbers |= {"drain_cost_s": eviction.costs_s[0], "swap_cost_s": eviction.costs_s[1]}
        why = (
            f"serving its own requests first would cost those for {winner.name} more than a swap"
            if eviction.costs_s is not None
            else f"those who wait for {winner.name} have waited as long as they should"
        )
        state.note(victim, Action.YIELD, why, numbers, others=(winner.name,))

    def _note_wait(self, wait: Wait) -> None:
        """Once per reason, since every event looks at those who wait."""
        state = self._state
        one = state.table.by_load[wait.load_id]
        why, others = self._reason(one, wait)
        if one.noted_wait == why:
            return
        one.noted_wait = why
        is_growth = one.load_id != wait.load_id
        needed = one.growth.footprint if is_growth and one.growth is not None else one.footprint
        state.note(
            one,
            Action.QUEUE,
            why,
            {
                **amounts("needed_bytes", needed),
                **amounts("free_bytes", state.ledger.free),
                **amounts("shortage_bytes", wait.shortage),
                "waiting": len(one.line),
            },
            others=others,
        )

    def _reason(self, instance: Instance, wait: Wait) -> tuple[str, tuple[str, ...]]:
        """In words, with the names of the models that are in the way."""
        table = self._state.table
        stands: dict[Stand, list[str]] = {}
        for load_id, stand in wait.stands.items():
            other = table.by_load.get(load_id)
            if other is not None and stand is not Stand.FREE:
                stands.setdefault(stand, []).append("it" if other is instance else other.name)
        names = tuple(name for group in stands.values() for name in group)
        told = "; ".join(f"{', '.join(group)}: {stand.value}" for stand, group in stands.items())
        is_explained = wait.reason in (WaitReason.BLOCKED, WaitReason.YIELDING) and told
        return (f"{wait.reason.value} ({told})" if is_explained else wait.reason.value), names

    # small things

    def _load_s(self, one: Instance) -> float:
        """An annex is there at once, so that it goes before any model."""
        return 0.0 if one.owner_id is not None else self._state.pace.load_s(one.model_id, one.footprint)

    def _resident(self, one: Instance) -> Resident:
        pace = self._state.pace
        return Resident(
            load_id=one.load_id,
            size=one.footprint,
            ready_since_s=one.ready_since_s,
            idle_since_s=one.idle_since_s,
            leases=len(one.leases),
            waiting=len(one.line),
            slots=one.leases_limit,
            use_s=pace.use_s(one.model_id),
            drain_s=pace.drain_s(one.model_id),
            reload_s=self._load_s(one),
            returns_s=pace.returns_s(one.model_id),
            is_pinned=one.is_pinned,
            is_yielding=one.state is InstanceState.YIELDING,
        )

    def _growing(self, one: Instance) -> Demand | None:
        growth, waits = one.growth, one.waits_for_room
        if growth is None or not growth.is_sized or waits is None:
            return None
        return Demand(
            load_id=growth.load_id,
            needed=growth.footprint,
            since_s=waits[0],
            waiting=waits[1],
            load_s=self._state.pace.load_s(one.model_id, growth.footprint),
            replaces=one.load_id,
        )
