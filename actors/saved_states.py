"""What was saved of engines' caches, across loads and across runs of this daemon: the owner of those files.

    a worker ──> begin, write, keep ──> files ──> offers, read ──> itself, or one of the same weights

The index is in memory and changed by the trio thread alone; files are written and read in threads, one part
of a state at a time. Nothing here is needed for an answer: whatever fails costs a state, and is told to
`report`.

Imports the files' format and the wire's messages. Read on in `runner/store/states.py` and, for one worker's
side, in `actors/state_traffic.py`.
"""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import attrs
import trio

from runner.store.states import (
    STATE_BYTES_MAX,
    STATE_TOKENS_MAX,
    StateFile,
    StateFiles,
    StateKey,
    StateRefused,
    StateWriter,
    file_bytes_of,
    surplus,
)
from runner.wire.messages import SaveState, StateOffer
from runner.wire.state_schema import OFFERS_MAX

AGE_MAX_S: Final = 24 * 3600.0
"""Since a state was last used."""
OFFERED_TOKENS_MAX: Final = 500_000
_SUPERSEDED_TOKENS: Final = 64
_PRUNE_S: Final = 3600.0
_DISK_S: Final = 2.0
"""For one write, and for what must not be left half done: a worker that ends may wait so long."""

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class StatesUsage:
    """What is kept, and the bytes that it takes of the disk."""

    states: int = 0
    size_bytes: int = 0


@attrs.frozen
class StateNotice:
    """Something about saved states that whoever looks after the daemon should know, as a sentence."""

    message: str


class StateReader:
    """The parts of one state, in order. Close it."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts

    async def next_part(self) -> bytes:
        """b"" after the last one. Raises StateRefused, OSError."""
        return await _in_thread(lambda: next(self._parts, b""))

    def close(self) -> None:
        close = getattr(self._parts, "close", None)
        if close is not None:
            try:
                close()
            except ValueError:  # a thread that nobody waits for any more is still reading
                pass


class SavedStates:
    """At most `limit_bytes` of files below `root`; 0 keeps nothing, and removes what was kept.

    `keep_free_bytes` of the disk are left alone. `is_wanted` tells, in a thread, whether weights of that
    digest are in the store. `clock` is Unix time.
    """

    def __init__(
        self,
        root: Path,
        *,
        limit_bytes: int,
        keep_free_bytes: int = 0,
        is_wanted: Callable[[str], bool] = lambda digest: True,
        report: Callable[[StateNotice], None] = lambda notice: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._files = StateFiles(root)
        self._limit_bytes = limit_bytes
        self._keep_free_bytes = keep_free_bytes
        self._is_wanted = is_wanted
        self._report = report
        self._clock = clock
        self._ids = itertools.count(1)
        self._states: dict[int, StateFile] = {}
        """By id, the one that was not used for longest first."""
        self._writing: dict[StateWriter, int] = {}
        """With the bytes that each may come to take; these are reserved."""
        self._reserved_bytes = 0
        self._is_open = False
        self._on_gone: set[Callable[[frozenset[int]], None]] = set()

    def __repr__(self) -> str:
        usage = self.usage
        return f"<SavedStates: {usage.states}, {usage.size_bytes} bytes>"

    @property
    def is_on(self) -> bool:
        return self._is_open and self._limit_bytes > 0

    @property
    def largest_bytes(self) -> int:
        """Of a state that is kept; 0 when none is."""
        return _state_bytes_within(self._limit_bytes - self._reserved_bytes) if self.is_on else 0

    async def room_bytes(self) -> int:
        """The same, as the disk is now."""
        try:
            free_bytes = await _to_its_end(self._free_bytes)
        except OSError:
            return 0
        return min(self.largest_bytes, _state_bytes_within(free_bytes))

    @property
    def usage(self) -> StatesUsage:
        return StatesUsage(
            states=len(self._states), size_bytes=sum(state.file_bytes for state in self._states.values())
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read what is there; then look now and then for what is too old, until cancelled."""
        await self.open()
        task_status.started()
        while True:
            await trio.sleep(_PRUNE_S)
            await self._drop_surplus()

    async def open(self) -> None:
        """Never fatal: without its directory nothing is kept."""
        if self._limit_bytes == 0 and not self._root.exists():
            return
        try:
            found, reasons = await _in_thread(self._files.open)
        except OSError as error:
            self._tell(f"states cannot be saved in {self._root}: {error.strerror}")
            return
        for reason in reasons:
            self._tell(reason)
        self._states = {next(self._ids): state for state in found}
        self._is_open = True
        await self.forget_unwanted()
        await self._drop_surplus()

    def subscribe(self, on_gone: Callable[[frozenset[int]], None]) -> None:
        """Have it told, until `unsubscribe`, which states cannot be had any more; it must not block."""
        self._on_gone.add(on_gone)

    def unsubscribe(self, on_gone: Callable[[frozenset[int]], None]) -> None:
        self._on_gone.discard(on_gone)

    # out of files

    def offers(self, key: StateKey) -> tuple[StateOffer, ...]:
        """What is there for a worker of this key, the most recently used first: not all of it, when that is
        much."""
        offers: list[StateOffer] = []
        n_tokens = 0
        for state_id, state in reversed(self._states.items()):
            if state.key != key:
                continue
            n_tokens += state.n_tokens
            if len(offers) == OFFERS_MAX or n_tokens > OFFERED_TOKENS_MAX:
                break
            tokens = array("i")
            tokens.frombytes(state.tokens)
            offers.append(
                StateOffer(
                    state_id=state_id, owner=state.owner, tokens=tuple(tokens), size_bytes=state.state_bytes
                )
            )
        return tuple(offers)

    async def read(self, state_id: int) -> StateReader | None:
        """A reader of a state that is still there; it counts as used now."""
        state = self._states.get(state_id)
        if state is None:
            return None
        try:
            used = await _in_thread(partial(self._files.note_use, state, self._clock()))
        except OSError as error:
            self._take_out([state_id])
            self._tell(f"a saved state is gone: {error.strerror}")
            return None
        if self._states.pop(state_id, None) is None:
            return None  # it had to go meanwhile
        self._states[state_id] = used
        return StateReader(self._files.parts(used))

    async def drop(self, state_id: int, reason: str) -> None:
        """It proved to be none of ours, or not whole."""
        states = self._take_out([state_id])
        if states:
            self._tell(f"a saved state was removed: {reason}")
            await self._remove(states)

    # into files

    async def begin(self, key: StateKey, announced: SaveState) -> StateWriter | None:
        """A writer for a state that a worker is about to send; None when it is not to be kept. The caller
        writes, and then has it kept or abandons it."""
        n_tokens = len(announced.tokens)
        needed_bytes = file_bytes_of(n_tokens, announced.size_bytes)
        left_bytes = self._limit_bytes - needed_bytes - self._reserved_bytes
        if not self.is_on or left_bytes < 0:
            return None
        self._reserved_bytes += needed_bytes  # before anything waits: others begin meanwhile
        writer = None
        try:
            await self._drop_surplus(left_bytes)
            if await _in_thread(self._free_bytes) >= needed_bytes:
                writer = await _to_its_end(partial(self._begin, key, announced), StateWriter.abandon)
        except (OSError, StateRefused) as error:
            self._tell(f"a state could not be saved: {error}")
        finally:
            if writer is None:
                self._reserved_bytes -= needed_bytes
            else:
                self._writing[writer] = needed_bytes
        return writer

    async def write(self, writer: StateWriter, data: bytes) -> bool:
        """False when it cannot be written, or not soon, and is to be abandoned."""
        try:
            await _to_its_end(partial(writer.write, data))
        except (OSError, StateRefused) as error:
            self._tell(f"a state could not be saved: {error}")
            return False
        return True

    async def keep(self, writer: StateWriter) -> int | None:
        """It is whole: its id, unless it cannot be kept after all. What it has nearly all of is superseded,
        and goes."""
        try:
            state = await _to_its_end(writer.finish, lambda state: self._files.remove([state]))
        except (OSError, StateRefused) as error:
            self._tell(f"a state could not be saved: {error}")
            return None
        finally:
            self._reserved_bytes -= self._writing.pop(writer, 0)
        former = [state_id for state_id, other in self._states.items() if _supersedes(state, other)]
        state_id = next(self._ids)
        self._states[state_id] = state
        await self._remove(self._take_out(former))
        await self._drop_surplus()
        if not await _in_thread(partial(self._are_wanted, state.key)):  # gone while it was written
            await self._remove(self._take_out([state_id]))
        return state_id if state_id in self._states else None

    async def abandon(self, writer: StateWriter) -> None:
        """Leave nothing of it, now or once the disk lets us; else the next start does."""
        self._reserved_bytes -= self._writing.pop(writer, 0)
        try:
            await _to_its_end(writer.abandon)
        except (OSError, ValueError) as error:
            self._tell(f"what is left of a state could not be removed: {error}")

    # giving up

    async def forget_unwanted(self) -> None:
        """Models may have been removed: states of weights that are in the store no more go."""
        digests = {digest for state in self._states.values() for digest in state.key.weights}
        if not digests:
            return
        unwanted = await _in_thread(lambda: {digest for digest in digests if not self._is_wanted(digest)})
        gone = [
            state_id for state_id, state in self._states.items() if not unwanted.isdisjoint(state.key.weights)
        ]
        await self._remove(self._take_out(gone))

    async def _drop_surplus(self, limit_bytes: int | None = None) -> None:
        """Their order is that of use, whatever the clock did meanwhile; what was used after now, was now."""
        now_s = self._clock()
        for state_id, state in self._states.items():
            if state.used_s > now_s:
                self._states[state_id] = attrs.evolve(state, used_s=now_s)
        gone = surplus(
            list(self._states.values()),
            now_s=now_s,
            limit_bytes=self._limit_bytes if limit_bytes is None else limit_bytes,
            age_max_s=AGE_MAX_S,
        )
        names = {state.path for state in gone}
        await self._remove(
            self._take_out([state_id for state_id, state in self._states.items() if state.path in names])
        )

    def _take_out(self, state_ids: Iterable[int]) -> list[StateFile]:
        """Out of the index, and whoever was offered them is told; those that are there."""
        gone = {state_id: self._states.pop(state_id) for state_id in state_ids if state_id in self._states}
        if gone:
            for on_gone in tuple(self._on_gone):
                on_gone(frozenset(gone))
        return list(gone.values())

    async def _remove(self, states: list[StateFile]) -> None:
        """Out of the index they are already."""
        if not states:
            return
        try:
            await _to_its_end(partial(self._files.remove, states))
        except OSError as error:
            self._tell(f"a saved state could not be removed: {error.strerror or error}")

    def _begin(self, key: StateKey, announced: SaveState) -> StateWriter:
        return self._files.begin(key, announced.owner, announced.tokens, announced.size_bytes, self._clock())

    def _are_wanted(self, key: StateKey) -> bool:
        return all(map(self._is_wanted, key.weights))

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._root).free - self._keep_free_bytes

    def _tell(self, message: str) -> None:
        self._report(StateNotice(message))


def _state_bytes_within(file_bytes: int) -> int:
    """Of the largest state whose file takes no more, or a little less."""
    return max(0, file_bytes - file_bytes_of(STATE_TOKENS_MAX, STATE_BYTES_MAX) + STATE_BYTES_MAX)


def _supersedes(state: StateFile, other: StateFile) -> bool:
    """It has all tokens of the other one but for a few at its end: templates tell an answer otherwise than it
    was generated, when it has become history, and leave out what was thought before."""
    if (state.key, state.owner) != (other.key, other.owner) or state.n_tokens < other.n_tokens:
        return False
    n_needed = other.n_tokens - min(_SUPERSEDED_TOKENS, other.n_tokens // 8)
    return state.tokens.startswith(other.tokens[: 4 * n_needed])


async def _in_thread(work: Callable[[], T]) -> T:
    """Left to itself on cancellation: a disk that hangs must not keep a worker from ending."""
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


async def _to_its_end(work: Callable[[], T], undo: Callable[[T], None] = lambda result: None) -> T:
    """Also when cancelled: nothing else may happen to a file meanwhile. Raises TimeoutError, which is an
    OSError, when the disk takes so long that it is left to itself: what it has done too late, it undoes."""
    results: list[T] = []
    decided = threading.Lock()  # by the thread, that it is in time, or by us, that it is not; never released

    def run() -> None:
        results.append(work())
        if not decided.acquire(blocking=False):
            undo(results[0])

    with trio.CancelScope(shield=True), trio.move_on_after(_DISK_S):
        await _in_thread(run)
    if decided.acquire(blocking=False):
        raise TimeoutError("the disk takes too long")
    return results[0]
