"""One worker's exchange of saved states with the daemon: offered and sent after its load, taken at its end.

    Loaded ──> OfferStates     WantState ──> StatePart* | StateGone     Shutdown ──> (SaveState, SavedPart*)*

What the worker says is not trusted: it gets only what was offered to it, which was saved of its very weights,
and leaves no more than it was asked for. In memory are one part on its way in either direction, and one that
waits to be sent.

Imports the wire and the handle's outbox. Used by `actors/worker.py`; read on in `actors/saved_states.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import attrs
import trio

from actors.saved_states import SavedStates, StateReader
from actors.worker_handle import Outbox
from runner.domain.engine import EngineOptions
from runner.domain.model import ModelFiles
from runner.hardware.probe import free_memory_bytes
from runner.store.states import StateKey, StateRefused, StateWriter
from runner.wire.codec import encode
from runner.wire.messages import (
    Loaded,
    OfferStates,
    SavedPart,
    SaveState,
    Shutdown,
    StateGone,
    StatePart,
)

WANTED_MAX: Final = 2
"""A worker asks for the next state when it has read the last part of the one before."""
SEND_S: Final = 10.0
"""For one state; a prompt waits for it, and is computed when the disk takes longer."""
SAVED_MAX: Final = 64
"""States that one worker may leave."""
_NAME_MAX: Final = 256
_SHARE_OF_FREE: Final = 4


@attrs.frozen(kw_only=True)
class SavingRules:
    """What a worker may save when it is asked to end: for how long, and how many bytes in all.

    A state is in the worker's memory as a whole while it is saved or restored: it may take a part of what
    `free_bytes` tells, and no more.
    """

    save_s: float = 1.0
    save_bytes: int = 512 * 1024 * 1024
    free_bytes: Callable[[], int] = free_memory_bytes

    def room_bytes(self) -> int:
        return max(0, self.free_bytes()) // _SHARE_OF_FREE


class StateTraffic:
    """Of one worker. Without `states`, or for weights that are not known by digests, it does nothing."""

    def __init__(
        self,
        states: SavedStates | None,
        files: ModelFiles,
        options: EngineOptions,
        outbox: Outbox,
        rules: SavingRules,
    ) -> None:
        self._states = states if states is not None and states.is_on and files.weights_digests else None
        self._files = files
        self._options = options
        self._outbox = outbox
        self._rules = rules
        self._key: StateKey | None = None
        self._offered: frozenset[int] = frozenset()
        self._wanted: deque[int] = deque()
        self._news = trio.Event()
        self._writer: StateWriter | None = None
        self._n_saved = 0
        self._left_bytes = 0

    @property
    def save_s(self) -> float:
        """What saving adds to the time that a worker has to end."""
        return self._rules.save_s if self._key is not None else 0.0

    # after the load

    def loaded(self, loaded: Loaded) -> None:
        """Offer what there is. From now on the worker may ask, and save at its end."""
        if self._states is None:
            return
        self._key = StateKey(
            weights=tuple(map(str, self._files.weights_digests)),
            engine=loaded.engine_version[:_NAME_MAX],
            architecture=self._files.model.architecture[:_NAME_MAX],
            key_type=self._options.key_type.value,
            value_type=self._options.value_type.value,
            flash_attention=self._options.flash_attention.value,
        )
        room_bytes = self._rules.room_bytes()
        offers = tuple(offer for offer in self._states.offers(self._key) if offer.size_bytes <= room_bytes)
        self._offered = frozenset(offer.state_id for offer in offers)
        if offers:
            self._outbox.put(encode(OfferStates(offers)))

    def want(self, state_id: int) -> bool:
        """The worker asks for a state; False when it must not."""
        if state_id not in self._offered or len(self._wanted) >= WANTED_MAX:
            return False
        self._wanted.append(state_id)
        self._news.set()
        return True

    async def serve(self) -> None:
        """Send what is wanted, until cancelled."""
        while True:
            while self._wanted:
                await self._send(self._wanted[0])
                self._wanted.popleft()
            self._news = trio.Event()
            await self._news.wait()

    async def _send(self, state_id: int) -> None:
        assert self._states is not None, "only what was offered can be wanted"
        reader = await self._states.read(state_id)
        try:
            if reader is None or not await self._send_parts(state_id, reader):
                self._outbox.put(encode(StateGone(state_id)))
        finally:
            if reader is not None:
                reader.close()

    async def _send_parts(self, state_id: int, reader: StateReader) -> bool:
        assert self._states is not None
        try:
            with trio.move_on_after(SEND_S):
                while part := await reader.next_part():
                    await self._outbox.until_empty()
                    self._outbox.put(encode(StatePart(state_id, part)))
                return True
        except (StateRefused, OSError) as error:
            await self._states.drop(state_id, str(error))
        return False

    # at the end

    def farewell(self) -> Shutdown:
        """What to tell a worker that is to end in order."""
        if self._key is None:
            return Shutdown()
        self._left_bytes = min(self._rules.save_bytes, self._rules.room_bytes())
        return Shutdown(save_bytes=self._left_bytes, save_s=self._rules.save_s)

    async def take(self, messages: Iterable[object]) -> None:
        """What a worker said after its farewell; all but states is of no interest any more."""
        for message in messages:
            match message:
                case SaveState():
                    await self._begin(message)
                case SavedPart():
                    await self._write(message.data)

    async def end(self) -> None:
        """No more will come: what is not whole is abandoned."""
        writer, self._writer = self._writer, None
        if writer is not None and self._states is not None:
            await self._states.abandon(writer)

    async def _begin(self, announced: SaveState) -> None:
        await self.end()
        self._n_saved += 1
        if self._states is None or self._key is None:
            return
        if self._n_saved > SAVED_MAX or announced.size_bytes > self._left_bytes:
            return
        self._left_bytes -= announced.size_bytes
        self._writer = await self._states.begin(self._key, announced)

    async def _write(self, data: bytes) -> None:
        if self._writer is None or self._states is None:
            return
        if not await self._states.write(self._writer, data):
            await self.end()
        elif self._writer.is_complete:
            writer, self._writer = self._writer, None
            await self._states.keep(writer)
