"""One worker's exchange of saved states with the daemon: offered and sent to it, and taken from it.

    Loaded ──> OfferStates              WantState ──> StatePart* | StateGone
    SaveState ──> (MoreParts, SavedPart*)* ──> StateKept
    Shutdown ──> (SaveState, SavedPart*)*

What the worker says is not trusted: it gets only what was offered to it, which was saved of its very weights,
and sends no more parts than it was asked for. In memory are the parts that it may send, one on its way to it,
and one that waits for that.

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
    MoreParts,
    OfferStates,
    SavedPart,
    SaveState,
    Shutdown,
    StateGone,
    StateKept,
    StatePart,
    WantState,
)
from runner.wire.state_schema import OFFERS_MAX

WANTED_MAX: Final = OFFERS_MAX
"""A worker asks for the next state when it has read the last part of the one before, or that it is gone: of
those that are withdrawn while one is read, several may be asked for."""
ROOM_INTERVAL_S: Final = 30.0
SEND_S: Final = 5.0
"""For one state; a prompt waits for it, and is computed when the disk takes longer."""
PARTS_AHEAD: Final = 32
"""That a worker may send before they are written: 16 MiB."""
SAVED_MAX: Final = 64
"""States that one worker may leave at its end."""
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
        self._offered: dict[int, None] = {}
        """Ids, the one that was offered or wanted last at the end."""
        self._wanted: deque[int] = deque()
        self._wanted_news = trio.Event()
        self._arrived: deque[SaveState | SavedPart] = deque()
        self._arrived_news = trio.Event()
        self._is_saving = False
        """A state was announced, and not answered yet."""
        self._n_allowed = 0
        self._writer: StateWriter | None = None
        self._told_bytes = 0
        """Room for one state, as the worker knows it."""
        self._n_left = 0
        self._left_bytes = 0

    @property
    def save_s(self) -> float:
        """What saving adds to the time that a worker has to end."""
        return self._rules.save_s if self._key is not None else 0.0

    # what a running worker says

    def loaded(self, loaded: Loaded) -> None:
        """Offer what there is. From now on the worker may ask, and save."""
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
        self._offered = dict.fromkeys(offer.state_id for offer in reversed(offers))
        self._states.subscribe(self._withdraw)
        self._told_bytes = min(room_bytes, self._states.largest_bytes)
        self._outbox.put(encode(OfferStates(offers, self._told_bytes)))

    def hear(self, message: WantState | SaveState | SavedPart) -> bool:
        """False when it must not say that:

        1. It wants a state, of which few may wait. What was not offered, or is not any more, is gone to it.
        2. It announces one, when the one before was answered.
        3. It sends a part that it was asked for.
        """
        if self._key is None:
            return False
        match message:
            case WantState(state_id) if len(self._wanted) < WANTED_MAX:  # 1
                self._wanted.append(state_id)
                self._wanted_news.set()
                return True
            case SaveState() if not self._is_saving:  # 2
                self._is_saving = True
                self._n_allowed = 0
            case SavedPart() if self._n_allowed > 0:  # 3
                self._n_allowed -= 1
            case _:
                return False
        self._arrived.append(message)
        self._arrived_news.set()
        return True

    async def serve(self) -> None:
        """Send what is wanted, and write what is saved, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve_wanted)
            nursery.start_soon(self._serve_arrived)
            nursery.start_soon(self._tell_more_room)

    # to the worker

    async def _serve_wanted(self) -> None:
        while True:
            while self._wanted:
                await self._send(self._wanted[0])
                self._wanted.popleft()
            self._wanted_news = trio.Event()
            await self._wanted_news.wait()

    async def _send(self, state_id: int) -> None:
        is_sent = False
        with trio.move_on_after(SEND_S):
            is_sent = state_id in self._offered and await self._send_state(state_id)
        if not is_sent:
            self._outbox.put(encode(StateGone(state_id)))

    async def _send_state(self, state_id: int) -> bool:
        assert self._states is not None, "only what was offered can be wanted"
        reader = await self._states.read(state_id)
        if reader is None:
            return False
        try:
            return await self._send_parts(state_id, reader)
        finally:
            reader.close()

    async def _send_parts(self, state_id: int, reader: StateReader) -> bool:
        assert self._states is not None
        try:
            while part := await reader.next_part():
                await self._outbox.until_empty()
                self._outbox.put(encode(StatePart(state_id, part)))
            self._offer(state_id)
            return True
        except (StateRefused, OSError) as error:
            await self._states.drop(state_id, str(error))
        return False

    def _offer(self, state_id: int) -> None:
        """Of those that were used longest ago, the worker is told that they are gone, when they are too many
        for it."""
        self._offered.pop(state_id, None)
        self._offered[state_id] = None
        if len(self._offered) > OFFERS_MAX:
            self._withdraw(frozenset({next(iter(self._offered))}))

    def _withdraw(self, state_ids: frozenset[int]) -> None:
        for state_id in state_ids & self._offered.keys():
            del self._offered[state_id]
            self._outbox.put(encode(StateGone(state_id)))

    # from the worker, while it runs

    async def _serve_arrived(self) -> None:
        while True:
            while self._arrived:
                await self._take(self._arrived.popleft())
            self._arrived_news = trio.Event()
            await self._arrived_news.wait()

    async def _take(self, message: SaveState | SavedPart) -> None:
        """1. Begin one that is announced, if it may be.  2. Write a part, and ask for another.  3. Keep what
        is whole.  4. Parts that were on their way when a state was given up are passed over."""
        match message:
            case SaveState():  # 1
                await self._begin(message)
                if self._writer is None:
                    await self._answer(None)
                else:
                    self._allow(PARTS_AHEAD)
            case SavedPart() if self._writer is not None:  # 2
                is_written = await self._write(message.data)
                if is_written and self._writer.is_complete:  # 3
                    await self._answer(await self._keep())
                elif is_written:
                    self._allow(1)
                else:
                    await self._abandon()
                    await self._answer(None)

    def _allow(self, n_parts: int) -> None:
        self._n_allowed += n_parts
        self._outbox.put(encode(MoreParts(n_parts)))

    async def _answer(self, state_id: int | None) -> None:
        """The next one may be announced."""
        assert self._states is not None
        room_bytes = min(self._rules.room_bytes(), await self._states.room_bytes())
        self._is_saving = False
        self._told_bytes = room_bytes
        self._outbox.put(encode(StateKept(state_id, room_bytes)))
        if state_id is not None:
            self._offer(state_id)

    async def _tell_more_room(self) -> None:
        """A worker that may save little, or nothing, does not ask again: memory and disks are full for a
        while."""
        while True:
            await trio.sleep(ROOM_INTERVAL_S)
            if self._states is None or self._key is None or self._is_saving:
                continue
            room_bytes = min(self._rules.room_bytes(), await self._states.room_bytes())
            if room_bytes > self._told_bytes and not self._is_saving:
                self._told_bytes = room_bytes
                self._outbox.put(encode(OfferStates((), room_bytes)))

    # at the end

    def farewell(self) -> Shutdown:
        """What to tell a worker that is to end in order."""
        if self._key is None:
            return Shutdown()
        self._left_bytes = min(self._rules.save_bytes, self._rules.room_bytes())
        return Shutdown(save_bytes=self._left_bytes, save_s=self._rules.save_s)

    async def take(self, messages: Iterable[object]) -> None:
        """What a worker said after its farewell, and parts of before; all but states is of no interest any
        more."""
        arrived, self._arrived = list(self._arrived), deque()
        for message in (*arrived, *messages):
            match message:
                case SaveState():
                    await self._begin_last(message)
                case SavedPart() if self._writer is not None:
                    if not await self._write(message.data):
                        await self._abandon()
                    elif self._writer.is_complete:
                        await self._keep()

    async def end(self) -> None:
        """The worker is gone: what is not whole is abandoned."""
        if self._states is not None:
            self._states.unsubscribe(self._withdraw)
        await self._abandon()

    async def _begin_last(self, announced: SaveState) -> None:
        self._n_left += 1
        if self._n_left > SAVED_MAX or announced.size_bytes > self._left_bytes:
            await self._abandon()
            return
        self._left_bytes -= announced.size_bytes
        await self._begin(announced)

    # files

    async def _abandon(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None and self._states is not None:
            await self._states.abandon(writer)

    async def _begin(self, announced: SaveState) -> None:
        await self._abandon()
        if self._states is not None and self._key is not None:
            self._writer = await self._states.begin(self._key, announced)

    async def _write(self, data: bytes) -> bool:
        assert self._states is not None and self._writer is not None
        return await self._states.write(self._writer, data)

    async def _keep(self) -> int | None:
        assert self._states is not None and self._writer is not None
        writer, self._writer = self._writer, None
        return await self._states.keep(writer)
