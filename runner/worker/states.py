"""The worker's side of hibernation: states on their way in before a request, and out before the end.

    OfferStates ──> what could be had
    request that an offer would spare enough ──> WantState ──> StatePart* ──> Engine.restore ──> request
    Shutdown ──> SaveState, SavedPart*, … until the bytes or the time are used up

A request waits for one state at most. One state is on its way at a time, so that one buffer is held; requests
that want another one meanwhile are computed. Whatever goes wrong with a state, the requests go on without it.

Imports the engine, the wire and the standard library. Used by `loop.py`.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from typing import Final

import attrs

from runner.engine.engine import Engine
from runner.engine.hibernation import room_for
from runner.engine.prefix import Namespace
from runner.engine.sequence import SequenceRequest
from runner.wire.messages import (
    FromWorker,
    OfferStates,
    SavedPart,
    SaveState,
    Shutdown,
    StateOffer,
    StatePart,
    WantState,
)
from runner.wire.state_schema import STATE_BYTES_MAX, STATE_PART_BYTES, STATE_TOKENS_MAX

WAITING_MAX: Final = 64
"""Requests that wait for one state; more are computed, as all would be without states."""


@attrs.define(eq=False)
class _Arrival:
    """A state on its way in, and the requests that wait for it."""

    offer: StateOffer
    room: mmap.mmap
    n_arrived: int = 0
    waiting: list[SequenceRequest] = attrs.field(factory=list)


class OfferedStates:
    """What could be had, and what is on its way. For the thread that steps."""

    def __init__(self, send: Callable[[FromWorker], None]) -> None:
        self._send = send
        self._offers: dict[int, StateOffer] = {}
        self._arrival: _Arrival | None = None

    def __repr__(self) -> str:
        return f"<OfferedStates: {len(self._offers)}, {'one' if self._arrival else 'none'} on its way>"

    def offer(self, message: OfferStates) -> None:
        self._offers = {one.state_id: one for one in message.offers}

    def hold(self, request: SequenceRequest, engine: Engine) -> bool:
        """Whether the request now waits for a state; it is handed out by `take` or `lose` then."""
        if request.namespace is None or request.namespace.adapters or request.namespace.media:
            return False
        if request.echo and request.logprobs is not None:  # computed, whatever is there
            return False
        best = max(self._offers.values(), key=lambda one: _spared(one, request, engine), default=None)
        if best is None or not _spared(best, request, engine):
            return False
        if self._arrival is None and not self._ask_for(best):
            return False
        if self._arrival is None or self._arrival.offer is not best:
            return False
        if len(self._arrival.waiting) >= WAITING_MAX:
            return False
        self._arrival.waiting.append(request)
        return True

    def take(self, part: StatePart, engine: Engine) -> list[SequenceRequest]:
        """The requests that need wait no longer: at the last part, once the state is in cells or refused."""
        arrival = self._arrival
        if arrival is None or arrival.offer.state_id != part.state_id:
            return []
        end = arrival.n_arrived + len(part.data)
        if end > arrival.offer.size_bytes:
            return self.lose(part.state_id)
        arrival.room[arrival.n_arrived : end] = part.data
        arrival.n_arrived = end
        if end < arrival.offer.size_bytes:
            return []
        offer = arrival.offer
        with memoryview(arrival.room) as state:
            is_restored = engine.hibernation.restore(offer.tokens, Namespace(owner=offer.owner), state)
        if not is_restored:
            sys.stderr.write(f"a saved state of {len(offer.tokens)} tokens could not be restored\n")
            self._offers.pop(offer.state_id, None)
        return self._end_arrival(arrival)

    def lose(self, state_id: int) -> list[SequenceRequest]:
        """The requests that wait for a state that will not come."""
        self._offers.pop(state_id, None)
        arrival = self._arrival
        if arrival is None or arrival.offer.state_id != state_id:
            return []
        return self._end_arrival(arrival)

    def discard(self, request_id: str) -> None:
        """It was cancelled; what is on its way for it is restored all the same."""
        if self._arrival is not None:
            waiting = self._arrival.waiting
            self._arrival.waiting = [one for one in waiting if one.request_id != request_id]

    def close(self) -> None:
        if self._arrival is not None:
            self._end_arrival(self._arrival)

    def _ask_for(self, offer: StateOffer) -> bool:
        try:
            self._arrival = _Arrival(offer, room_for(offer.size_bytes))
        except MemoryError:
            return False
        self._send(WantState(offer.state_id))
        return True

    def _end_arrival(self, arrival: _Arrival) -> list[SequenceRequest]:
        self._arrival = None
        arrival.room.close()
        return arrival.waiting


def _spared(offer: StateOffer, request: SequenceRequest, engine: Engine) -> int:
    if request.namespace != Namespace(owner=offer.owner):
        return 0
    return engine.hibernation.count_spared(offer.tokens, request.prompt_tokens, request.namespace)


def save_states(
    engine: Engine, order: Shutdown, send: Callable[[FromWorker], None], clock: Callable[[], float]
) -> None:
    """Send what the engine would lose, until the bytes or the time of `order` are used up.

    A state that is cut short by the clock is worth nothing, and the daemon drops it. Ends all sequences.
    """
    due_s = clock() + order.save_s
    left_bytes = order.save_bytes
    try:
        for state in engine.saved_states(min(left_bytes, STATE_BYTES_MAX)):
            size_bytes = len(state.data)
            if size_bytes > left_bytes or len(state.tokens) > STATE_TOKENS_MAX:
                continue
            send(SaveState(owner=state.owner, tokens=state.tokens, size_bytes=size_bytes))
            for start in range(0, size_bytes, STATE_PART_BYTES):
                if clock() >= due_s:
                    return
                send(SavedPart(bytes(state.data[start : start + STATE_PART_BYTES])))
            left_bytes -= size_bytes
    except MemoryError:
        sys.stderr.write("no memory to save states\n")
