"""The worker's side of hibernation: bytes of states between the engine and the daemon, a piece at a time.

    in    OfferStates, StateKept ──> what could be had
          Engine.wanted_state ──> WantState ──> StatePart* | StateGone ──> Engine.bring_state
    out   Hibernation.outgoing ──> SaveState ──> (MoreParts ──> SavedPart*)* ──> StateKept
    end   Shutdown ──> (SaveState, SavedPart*)*, until the bytes or the time are used up

One state is on its way in each direction, so that two buffers are held at most. Parts go out between steps,
few of them while there is other work, and only those that the daemon has asked for: these it reads at once,
whatever its disk does, so that no step waits for one. Whatever goes wrong with a state, requests go on
without it.

Imports the engine, the wire and the standard library. Used by `loop.py`.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from typing import Final

import attrs

from runner.engine.engine import Engine
from runner.engine.hibernation import Hibernation, KnownState
from runner.engine.host_cache import HeldState, room_for
from runner.wire.messages import (
    FromWorker,
    MoreParts,
    OfferStates,
    SavedPart,
    SaveState,
    Shutdown,
    StateGone,
    StateKept,
    StateOffer,
    StatePart,
    WantState,
)
from runner.wire.state_schema import STATE_BYTES_MAX, STATE_PART_BYTES, STATE_TOKENS_MAX

PARTS_BESIDE_WORK: Final = 2
"""Between two steps that others wait for: 1 MiB, which takes about a millisecond."""
_STEP_OF_A_PART_S: Final = 0.01
"""For each such part of a step's time, one more: less than a tenth of the time goes into sending."""

StateAnswer = OfferStates | StatePart | StateGone | MoreParts | StateKept
"""What the daemon says of states."""


@attrs.define(eq=False)
class _Arrival:
    """A state on its way in."""

    state_id: int
    room: mmap.mmap
    n_arrived: int = 0


class StateCarrier:
    """For the thread that steps. `advance` is called before each step, and whenever a message came."""

    def __init__(self, send: Callable[[FromWorker], None]) -> None:
        self._send = send
        self._arrival: _Arrival | None = None
        self._departing: HeldState | None = None
        """Announced; the engine's, until it is told that it is sent."""
        self._n_sent = 0
        self._n_allowed = 0

    def __repr__(self) -> str:
        return f"<StateCarrier: {'one' if self._arrival else 'none'} coming, {self._n_sent} bytes gone>"

    def has_to_send(self, engine: Engine) -> bool:
        """Something could be sent now, without waiting for an answer."""
        if self._arrival is None and engine.wanted_state is not None:
            return True
        outgoing = engine.hibernation.outgoing
        return outgoing is not None and (self._departing is None or self._can_send_part(outgoing))

    def hear(self, answer: StateAnswer, engine: Engine) -> None:
        match answer:
            case OfferStates():
                engine.hibernation.learn(map(_known, answer.offers))
                engine.hibernation.allow(min(answer.room_bytes, STATE_BYTES_MAX))
            case StatePart():
                self._take(answer, engine)
            case StateGone():
                self._lose(answer.state_id, engine)
            case MoreParts():
                self._n_allowed += answer.count
            case StateKept():
                self._end_departure(answer, engine.hibernation)

    def advance(self, engine: Engine) -> None:
        """Ask for what is wanted, and send of what goes out as much as may be."""
        self._ask_for_wanted(engine)
        outgoing = engine.hibernation.outgoing
        if outgoing is None:
            return
        if self._departing is None:
            if len(outgoing.tokens) > STATE_TOKENS_MAX:
                engine.hibernation.sent(None)
                return
            self._announce(outgoing)
        n_parts = PARTS_BESIDE_WORK + int(engine.step_s / _STEP_OF_A_PART_S)
        while self._can_send_part(outgoing) and (n_parts > 0 or not engine.has_work):
            self._n_allowed -= 1
            n_parts -= 1
            self._send_part(outgoing)

    def leave(self, engine: Engine, order: Shutdown, clock: Callable[[], float]) -> None:
        """Send what the engine would lose, until the bytes or the time of `order` are used up; first the rest
        of what is on its way out. Ends all sequences.

        A state that is cut short by the clock is worth nothing, and the daemon drops it.
        """
        engine.hibernation.allow(0)  # what ends now is saved below
        due_s = clock() + order.save_s
        left_bytes = order.save_bytes
        outgoing = engine.hibernation.outgoing
        if outgoing is not None:
            if self._departing is None:
                self._announce(outgoing)
                left_bytes -= len(outgoing.data)
            if not self._send_rest(outgoing, clock, due_s):
                return
        try:
            for state in engine.saved_states(min(left_bytes, STATE_BYTES_MAX)):
                size_bytes = len(state.data)
                if size_bytes > left_bytes or len(state.tokens) > STATE_TOKENS_MAX:
                    continue
                self._announce(state)
                if not self._send_rest(state, clock, due_s):
                    return
                left_bytes -= size_bytes
        except MemoryError:
            sys.stderr.write("no memory to save states\n")

    def close(self) -> None:
        if self._arrival is not None:
            self._arrival.room.close()
            self._arrival = None

    # in

    def _ask_for_wanted(self, engine: Engine) -> None:
        while self._arrival is None and (wanted := engine.wanted_state) is not None:
            try:
                self._arrival = _Arrival(wanted.state_id, room_for(wanted.size_bytes))
            except MemoryError:
                self._bring(wanted.state_id, None, engine)
            else:
                self._send(WantState(wanted.state_id))

    def _take(self, part: StatePart, engine: Engine) -> None:
        """At the last part it is put into cells."""
        arrival = self._arrival
        if arrival is None or arrival.state_id != part.state_id:
            return
        end = arrival.n_arrived + len(part.data)
        if end > len(arrival.room):
            self._lose(part.state_id, engine)
            return
        arrival.room[arrival.n_arrived : end] = part.data
        arrival.n_arrived = end
        if end < len(arrival.room):
            return
        self._arrival = None
        with arrival.room, memoryview(arrival.room) as state:
            self._bring(arrival.state_id, state, engine)

    def _lose(self, state_id: int, engine: Engine) -> None:
        if self._arrival is not None and self._arrival.state_id == state_id:
            self.close()
        self._bring(state_id, None, engine)

    def _bring(self, state_id: int, state: memoryview | None, engine: Engine) -> None:
        """What cannot be had, or not be restored, is not asked for again."""
        is_good = engine.bring_state(state_id, state)
        if not is_good:
            sys.stderr.write("a saved state could not be restored\n")
        if state is None or not is_good:
            engine.hibernation.forget(state_id)

    # out

    def _can_send_part(self, outgoing: HeldState) -> bool:
        return self._n_allowed > 0 and self._n_sent < len(outgoing.data)

    def _announce(self, state: HeldState) -> None:
        self._departing = state
        self._n_sent = self._n_allowed = 0
        self._send(SaveState(owner=state.owner, tokens=tuple(state.tokens), size_bytes=len(state.data)))

    def _send_rest(self, state: HeldState, clock: Callable[[], float], due_s: float) -> bool:
        """False when there was no time for all of it."""
        while self._n_sent < len(state.data):
            if clock() >= due_s:
                return False
            self._send_part(state)
        return True

    def _send_part(self, outgoing: HeldState) -> None:
        end = min(self._n_sent + STATE_PART_BYTES, len(outgoing.data))
        self._send(SavedPart(bytes(outgoing.data[self._n_sent : end])))
        self._n_sent = end

    def _end_departure(self, answer: StateKept, hibernation: Hibernation) -> None:
        self._departing = None
        self._n_allowed = 0
        hibernation.allow(min(answer.room_bytes, STATE_BYTES_MAX))
        hibernation.sent(answer.state_id)


def _known(offer: StateOffer) -> KnownState:
    return KnownState(
        state_id=offer.state_id, owner=offer.owner, tokens=list(offer.tokens), size_bytes=offer.size_bytes
    )
