"""The transfer of one blob into the store: the shell of `runner/registry/transfer.py`.

One task owns the plan and hears of every outcome; every range is a request of its own in a thread, which
writes what comes to its place in the partial file. Imports the plan and the store's partial blobs.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar, assert_never

import attrs
import trio

from actors.transfers_threads import run_abortable
from runner.errors import (
    ContentMismatch,
    RangeRefused,
    RegistryUnavailable,
    RunnerError,
    StoreError,
    TransferAborted,
)
from runner.oci.manifest import Descriptor
from runner.registry.abort import Abort
from runner.registry.transfer import (
    AbortAttempt,
    BlobEffect,
    BlobEvent,
    BlobPlan,
    Fetch,
    GiveUp,
    Look,
    RangeAborted,
    RangeEnded,
    RangeFailed,
    RangeOpened,
    RangeRules,
    RangesRefused,
    Shorten,
    StartOver,
)
from runner.store.blobs import StoredBlob
from runner.store.partials import PartialBlob

T = TypeVar("T")

BUFFER_BYTES = 1 << 20  # each connection has one; larger ones gain nothing
CHECKPOINT_BYTES = 16 << 20
"""When so much has come, it is synced and journalled, as soon as somebody looks…"""
CHECKPOINT_S = 2.0
"""…and also when less has come in so long: a kill costs no more than that."""
LOOK_S = 0.25
NOTES_MAX = 4


class BlobBody(Protocol):
    """What a server sends of a blob; see `runner/registry/client.py`."""

    def readinto(self, buffer: memoryview) -> int:
        """Bytes that came; 0 at the end. Raises RegistryUnavailable when that is too early."""
        ...

    def close(self) -> None: ...


class BlobSource(Protocol):
    """Where a blob can be had. Equal sources fail alike."""

    @property
    def registry(self) -> str:
        """Whom errors name."""
        ...

    def open(self, descriptor: Descriptor, *, start: int, end: int | None, abort: Abort) -> BlobBody:
        """The bytes from `start` to `end`; without an end the whole blob, and no range is asked for.

        Blocks. Raises RangeRefused for an answer with other bytes, RegistryUnavailable when it may help to
        try again, any other RegistryError when it does not.
        """
        ...


class DownloadStore(Protocol):
    """What a transfer needs of the store."""

    async def begin_download(self, descriptor: Descriptor) -> PartialBlob | StoredBlob: ...

    async def begin_repair(self, descriptor: Descriptor) -> PartialBlob: ...

    async def adopt_download(self, partial: PartialBlob) -> StoredBlob: ...


@attrs.define
class BlobMeter:
    """How far one blob is. Written by its transfer, read by whoever shows progress."""

    size_bytes: int
    done_bytes: int = 0
    transferred_bytes: int = 0
    is_verifying: bool = False
    notes: deque[str] = attrs.field(factory=lambda: deque(maxlen=NOTES_MAX))

    def note(self, text: str) -> None:
        """Something that people should know; the newest few are kept."""
        if text not in self.notes:
            self.notes.append(text)


@attrs.frozen(kw_only=True)
class BlobTools:
    """What all transfers share: the connections there may be, disk threads, rules and chance."""

    connections: trio.CapacityLimiter
    disk: trio.CapacityLimiter
    rules: RangeRules = attrs.field(factory=RangeRules)
    chance: Callable[[], float] = random.random


async def transfer_blob(
    descriptor: Descriptor,
    source: BlobSource,
    store: DownloadStore,
    tools: BlobTools,
    meter: BlobMeter,
    *,
    is_repair: bool = False,
) -> StoredBlob:
    """Bring one blob into the store, going on where an earlier transfer stopped.

    1. Content that is there already is not fetched; of content to repair, the good pieces are not.
    2. A server without ranges: all of it from the beginning, into a new file (S20).
    3. Another digest than expected, and some bytes were there before: once more from the beginning, since
       they may be at fault.
    4. Another digest although all bytes came now: ContentMismatch names digest and registry (S02).

    Cancelled or failed, what has come stays to be resumed. Raises RegistryError, DiskFull, StoreError.
    """
    may_range = may_resume = True
    while True:
        begin = store.begin_repair if is_repair else store.begin_download
        begun = await begin(descriptor)
        if isinstance(begun, StoredBlob):
            meter.done_bytes = descriptor.size_bytes
            return begun  # 1
        had_bytes = begun.done_bytes
        try:
            if await _fill(begun, source, tools, meter, may_range=may_range):
                with trio.CancelScope(shield=True):  # cut off in the middle, both would own the file
                    return await store.adopt_download(begun)
        except ContentMismatch as error:
            await _in_disk_thread(begun.discard, tools)
            if not had_bytes or not may_resume:
                raise ContentMismatch(f"{source.registry}: {error}") from None  # 4
            meter.note(f"what was kept of {descriptor.digest.short()} was wrong; starting again")  # 3
            may_resume = is_repair = False
        except BaseException:
            await _in_disk_thread(begun.close, tools)
            raise
        else:
            meter.note(f"{source.registry} sends no ranges; starting again without")  # 2
            await _in_disk_thread(begun.discard, tools)
            may_range = is_repair = False


async def _fill(
    part: PartialBlob, source: BlobSource, tools: BlobTools, meter: BlobMeter, *, may_range: bool
) -> bool:
    """Fetch what is missing and verify it; False when that must begin anew, without ranges."""
    transfer = _BlobTransfer(part, source, tools, meter, may_range=may_range)
    if not await transfer.run():
        return False
    meter.is_verifying = True
    try:
        await _in_disk_thread(part.finish, tools)
    finally:
        meter.is_verifying = False
    return True


async def _in_disk_thread(action: Callable[[], None], tools: BlobTools) -> None:
    """To its end, also when cancelled."""
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(action, limiter=tools.disk)


@attrs.define
class _Ticket:
    """One range under way. The thread moves `position`, the owner may bring `end` nearer."""

    attempt_id: int
    start: int
    end: int
    is_whole: bool
    abort: Abort = attrs.field(factory=Abort)
    position: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.position = self.start


class _BlobTransfer:
    """One run of a plan."""

    def __init__(
        self, part: PartialBlob, source: BlobSource, tools: BlobTools, meter: BlobMeter, *, may_range: bool
    ) -> None:
        self._part = part
        self._source = source
        self._tools = tools
        self._meter = meter
        self._plan = BlobPlan(part.size_bytes, part.missing(), tools.rules, may_range=may_range)
        self._tickets: dict[int, _Ticket] = {}
        # at most two events of every attempt, and an attempt follows only upon an event
        self._tell, self._heard = trio.open_memory_channel[BlobEvent](4 * tools.rules.connections)
        self._token = trio.lowlevel.current_trio_token()
        self._last_error: RegistryUnavailable | None = None
        self._end: Exception | None = None
        self._must_begin_anew = False
        self._is_hashing = False
        self._is_syncing = False
        self._unsynced_bytes = 0
        self._synced_s = trio.current_time()

    async def run(self) -> bool:
        """Until all bytes are there; False when they must come anew. Raises what ended it."""
        self._count()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._handle(Look({}))
            while not self._has_ended:
                event: BlobEvent | None = None
                with trio.move_on_after(self._patience_s()):
                    event = await self._heard.receive()
                self._handle(event or Look(self._positions()))
                self._work_along()
            nursery.cancel_scope.cancel()
        self._count()
        if self._end is not None:
            raise self._end
        return not self._must_begin_anew

    @property
    def _has_ended(self) -> bool:
        return self._plan.is_complete or self._end is not None or self._must_begin_anew

    # events

    def _handle(self, event: BlobEvent) -> None:
        for effect in self._plan.handle(event, trio.current_time()):
            self._carry_out(effect)
            if self._has_ended:
                break
        if isinstance(event, RangeFailed) and not self._has_ended:
            self._meter.note(f"{event.error}; trying again")
        self._count()

    def _carry_out(self, effect: BlobEffect) -> None:
        match effect:
            case Fetch():
                ticket = _Ticket(effect.attempt_id, effect.start, effect.end, effect.is_whole)
                self._tickets[ticket.attempt_id] = ticket
                self._nursery.start_soon(self._attempt, ticket)
            case AbortAttempt(attempt_id):
                if attempt_id in self._tickets:  # else it has ended, and its event is on the way
                    self._tickets[attempt_id].abort.abort()
            case Shorten(attempt_id, end):
                if attempt_id in self._tickets:
                    self._tickets[attempt_id].end = end
            case StartOver():
                self._must_begin_anew = True
            case GiveUp():
                self._end = self._last_error
            case _:
                assert_never(effect)

    def _patience_s(self) -> float:
        """How long to wait for an event; longer than a look's time only when nothing is under way."""
        rest_s = self._plan.not_before_s - trio.current_time()
        return LOOK_S if self._tickets else max(LOOK_S, rest_s)

    def _positions(self) -> dict[int, int]:
        return {ticket.attempt_id: ticket.position for ticket in self._tickets.values()}

    def _count(self) -> None:
        self._meter.done_bytes = self._part.done_bytes

    # one range

    async def _attempt(self, ticket: _Ticket) -> None:
        event: BlobEvent
        try:
            fetch = partial(self._fetch, ticket)
            await run_abortable(fetch, ticket.abort, limiter=self._tools.connections)
            event = RangeEnded(ticket.attempt_id, ticket.position)
        except TransferAborted:
            event = RangeAborted(ticket.attempt_id, ticket.position)
        except RangeRefused as error:
            event = RangesRefused(attempt_id=ticket.attempt_id, error=error, chance=self._tools.chance())
        except RegistryUnavailable as error:
            event = self._failed(ticket, error)
        except RunnerError as error:
            self._end = self._end or error
            event = Look({})
        finally:
            del self._tickets[ticket.attempt_id]
            self._meter.transferred_bytes += ticket.position - ticket.start
        self._tell.send_nowait(event)

    def _failed(self, ticket: _Ticket, error: RegistryUnavailable) -> RangeFailed:
        self._last_error = error
        return RangeFailed(
            attempt_id=ticket.attempt_id,
            position=ticket.position,
            error=error,
            chance=self._tools.chance(),
        )

    def _fetch(self, ticket: _Ticket) -> None:
        """In a thread: ask, and write what comes to its place."""
        asked_end = ticket.end
        end = None if ticket.is_whole else asked_end
        body = self._source.open(self._part.descriptor, start=ticket.start, end=end, abort=ticket.abort)
        try:
            self._token.run_sync_soon(self._tell_opened, ticket.attempt_id)
            buffer = memoryview(bytearray(min(BUFFER_BYTES, ticket.end - ticket.start)))
            while ticket.position < ticket.end:
                wanted = min(len(buffer), ticket.end - ticket.position)
                size_bytes = body.readinto(buffer[:wanted])
                if not size_bytes:
                    raise RegistryUnavailable(self._source.registry, "the connection ended too early")
                self._part.write_at(ticket.position, buffer[:size_bytes])
                ticket.position += size_bytes
                self._unsynced_bytes += (
                    size_bytes  # by several threads: a few may get lost, and nothing with them
                )
            if ticket.position == asked_end:
                body.readinto(buffer[:1])  # sees that there is not one byte more (S02)
        finally:
            body.close()

    def _tell_opened(self, attempt_id: int) -> None:
        if attempt_id in self._tickets:
            self._tell.send_nowait(RangeOpened(attempt_id))

    # beside the ranges

    def _work_along(self) -> None:
        """While more is coming: hash what lies without a gap from the beginning, and checkpoint in time."""
        if not self._is_hashing and not self._has_ended:
            self._is_hashing = True
            self._nursery.start_soon(self._hash_forward)
        if not self._is_syncing and self._must_checkpoint():
            self._is_syncing, self._unsynced_bytes = True, 0
            self._nursery.start_soon(self._checkpoint)

    def _must_checkpoint(self) -> bool:
        is_time = trio.current_time() - self._synced_s >= CHECKPOINT_S
        return self._unsynced_bytes >= CHECKPOINT_BYTES or (self._unsynced_bytes > 0 and is_time)

    async def _checkpoint(self) -> None:
        """Beside the ranges, so that a slow disk keeps none of them waiting."""
        try:
            await self._in_disk_thread(self._part.checkpoint)
        finally:
            self._is_syncing, self._synced_s = False, trio.current_time()

    async def _hash_forward(self) -> None:
        try:
            hashed_bytes: int | None = 1
            while hashed_bytes and not self._has_ended:
                hashed_bytes = await self._in_disk_thread(self._part.hash_forward)
        finally:
            self._is_hashing = False

    async def _in_disk_thread(self, action: Callable[[], T]) -> T | None:
        try:
            return await trio.to_thread.run_sync(action, limiter=self._tools.disk)
        except StoreError as error:
            self._end = self._end or error
            return None
