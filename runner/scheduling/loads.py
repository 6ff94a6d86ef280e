"""The steps of a load: begin, size, reserve and start, stop, give up, forget; also of the next, larger one.

Part of `core.py`, which says when. Read on in `lifecycle.py` for the states.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs

from runner.scheduling import effects, events
from runner.scheduling.callers import Callers
from runner.scheduling.decisions import Action, amounts
from runner.scheduling.instances import Attempt, Instance, total
from runner.scheduling.lifecycle import HOLDING_MEMORY, InstanceState, Trigger
from runner.scheduling.state import SchedulerState

_NO_NUMBERS: Mapping[str, float] = MappingProxyType({})


@attrs.define
class Loads:
    _state: SchedulerState
    _callers: Callers

    # on the way into memory

    def begin(self, instance: Instance) -> None:
        """Somebody waits for a model that is not in memory."""
        state = self._state
        not_before_s = state.protection.not_before_s(instance.model_id)
        if not_before_s <= state.now_s:
            self.size(instance, Trigger.WANTED)
            return
        instance.move(Trigger.BACKED_OFF, state.now_s)
        instance.cooled_at_s = not_before_s
        delay_s = not_before_s - state.now_s
        state.note(instance, Action.DELAY, "its worker crashed a moment ago", {"delay_s": delay_s})

    def size(self, instance: Instance, trigger: Trigger) -> None:
        """Begin an attempt for the largest context that somebody in line needs."""
        instance.move(trigger, self._state.now_s)
        instance.attempt = self._new_attempt(instance)

    def resize(self, instance: Instance) -> None:
        """Another attempt takes the place of one that has no worker yet."""
        self._drop_attempt(instance.attempt)
        self.size(instance, Trigger.RESIZED)

    def sized(self, instance: Instance, event: events.ModelSized) -> None:
        """The footprint of the present attempt is known. Refused at once is whoever it can never serve.

        1. Somebody came for a larger context meanwhile: sized again.
        2. The model cannot have the context that somebody needs: they are refused.
        3. It exceeds the budget, less what is pinned: those are refused who made it so large; for others who
           are content with less it is sized again.
        4. Otherwise it queues for room.
        """
        attempt = instance.attempt
        instance.move(Trigger.SIZED, self._state.now_s)
        attempt.footprint, attempt.context_size = event.footprint, event.context_size
        instance.noted_wait = ""
        if instance.line.largest_need > max(attempt.asked_context_size, attempt.context_size):  # 1
            self.resize(instance)
            return
        self._refuse_beyond(instance, attempt.context_size)  # 2
        why = self.never_fits(instance, attempt)
        if why is not None and instance.is_wanted:  # 3
            largest = instance.line.take_needing(attempt.asked_context_size - 1)
            self._callers.refuse_for_room(instance, largest, why)
            if instance.is_wanted:
                self.resize(instance)
        self.cancel_if_unwanted(instance)

    def never_fits(self, instance: Instance | None, attempt: Attempt) -> str | None:
        """Why no eviction can ever make room for it, None when one can. A pinned instance makes room for
        itself; what an annex belongs to makes none for it."""
        state = self._state
        if not attempt.footprint.fits_in(state.ledger.budget):
            return "larger than the whole budget"
        others = [one for one in state.table.pinned() if one is not instance]
        owner = None if instance is None else state.table.owner_of(instance)
        if not attempt.footprint.fits_in(state.ledger.budget - total(others)):
            return "larger than what pinned models leave"
        if owner is not None and owner not in others:
            others.append(owner)
        if not attempt.footprint.fits_in(state.ledger.budget - total(others)):
            return "larger than what its own model leaves"
        return None

    def start(self, instance: Instance) -> None:
        """Reserve its bytes and start its worker."""
        state = self._state
        free = state.ledger.free
        state.ledger.reserve(instance.load_id, instance.footprint)
        instance.move(Trigger.ROOM_RESERVED, state.now_s)
        state.note(
            instance,
            Action.LOAD,
            "it is wanted and fits",
            {
                **amounts("needed_bytes", instance.footprint),
                **amounts("free_bytes", free),
                **amounts("budget_bytes", state.ledger.budget),
                "waiting": len(instance.line),
                "context_size": instance.context_size,
                "expected_s": state.pace.load_s(instance.model_id, instance.footprint),
            },
        )
        state.do(effects.StartWorker(instance.load_id))

    # on the way out

    def stop(
        self,
        instance: Instance,
        action: Action,
        why: str,
        numbers: Mapping[str, float] = _NO_NUMBERS,
        *,
        others: tuple[str, ...] = (),
    ) -> None:
        self._state.note(instance, action, why, numbers, others=others)
        self.end_worker(instance)

    def end_worker(self, instance: Instance) -> None:
        instance.move(Trigger.STOP_ASKED, self._state.now_s)
        self._state.do(effects.StopWorker(instance.load_id))

    def cancel_if_unwanted(self, instance: Instance) -> None:
        """A load for which nobody waits any more is given up; what is in memory or ending is left alone."""
        if instance.is_wanted:
            return
        if instance.state is InstanceState.LOADING:
            self.stop(instance, Action.CANCEL, "nobody waits for it any more")
        elif instance.state not in HOLDING_MEMORY:
            self._drop_attempt(instance.attempt)
            instance.move(Trigger.NOT_WANTED, self._state.now_s)
            self.over(instance)

    def over(self, instance: Instance, *, is_crash: bool = False) -> None:
        """The attempt is over: begin the next one when somebody waits, else forget the instance.

        A larger one that was sized meanwhile takes its place, unless there has to be a delay after a crash.
        """
        table = self._state.table
        table.by_load.pop(instance.load_id, None)
        if is_crash or instance.line.largest_need <= instance.context_size:
            self.drop_growth(instance)
        instance.attempt = Attempt(load_id=instance.load_id)
        if not len(instance.line):
            del table.by_model[instance.model_id]
        elif instance.growth is not None:
            self._continue_with_growth(instance, instance.growth)
        else:
            self.begin(instance)

    # the next, larger one

    def follow_needs(self) -> None:
        """Models that are too small for somebody in line have their next attempt sized, others have none."""
        for instance in self._state.table.serving():
            need = instance.line.largest_need
            growth = instance.growth
            if need <= instance.context_size:
                self.drop_growth(instance)
            elif growth is None or max(growth.asked_context_size, growth.context_size) < need:
                self.drop_growth(instance)
                instance.growth = self._new_attempt(instance)

    def growth_sized(self, instance: Instance, growth: Attempt, event: events.ModelSized) -> None:
        """Refuse those whom the next attempt could never serve, so that nothing stops in vain."""
        growth.footprint, growth.context_size = event.footprint, event.context_size
        self._refuse_beyond(instance, max(growth.context_size, instance.context_size))
        why = self.never_fits(instance, growth)
        if why is not None:
            needy = instance.line.take_needing(instance.context_size)
            self._callers.refuse_for_room(instance, needy, why, needed=growth.footprint)

    def drop_growth(self, instance: Instance) -> None:
        if instance.growth is not None:
            self._drop_attempt(instance.growth)
            instance.growth = None

    def _continue_with_growth(self, instance: Instance, growth: Attempt) -> None:
        instance.attempt, instance.growth = growth, None
        instance.noted_wait = ""
        instance.move(Trigger.WANTED, self._state.now_s)
        if growth.is_sized:
            instance.move(Trigger.SIZED, self._state.now_s)

    # attempts

    def _new_attempt(self, instance: Instance) -> Attempt:
        need = instance.line.largest_need
        attempt = Attempt(load_id=self._state.new_load_id(), asked_context_size=need)
        self._state.table.by_load[attempt.load_id] = instance
        self._state.do(effects.SizeModel(attempt.load_id, instance.model_id, need, instance.owner_id))
        return attempt

    def _drop_attempt(self, attempt: Attempt) -> None:
        """Give up an attempt that has no worker; there is none yet while the instance cools."""
        if self._state.table.by_load.pop(attempt.load_id, None) is not None:
            self._state.do(effects.DropLoad(attempt.load_id))

    def _refuse_beyond(self, instance: Instance, context_size: int) -> None:
        for waiter in instance.line.take_needing(context_size):
            refusal = effects.ContextTooLarge(
                model=instance.name, wanted=waiter.context_size, most=context_size
            )
            why = "the model cannot have so large a context"
            numbers = {"wanted_tokens": waiter.context_size, "most_tokens": context_size}
            self._state.note(instance, Action.REFUSE, why, numbers)
            self._callers.refuse(waiter.ticket, refusal, why, instance)
