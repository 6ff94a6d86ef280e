"""What every way of bringing a model in has in common: its parts are fetched side by side and counted.

Imports the transfers of blobs and the boards. Read on in `actors/transfers_pull.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

import attrs
import trio

from actors.transfers import TransferBoard
from actors.transfers_blob import BlobSource
from actors.transfers_blobs import BlobTicket, BlobTransfers
from actors.transfers_threads import run_all
from runner.domain.transfer import LayerProgress, TransferPhase, TransferProgress
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.registry.transfer_queue import TransferQueue
from runner.store.blobs import StoredBlob

PARTS_AT_ONCE = 8
"""Of one model; each has two open files, and the connections are the same in any case."""


@attrs.frozen(kw_only=True)
class Part:
    """One file of a model and where it can be had."""

    descriptor: Descriptor
    kind: str
    title: str | None
    source: BlobSource


class LayerMeter(Protocol):
    """How far one layer is, whichever way it goes."""

    @property
    def done_bytes(self) -> int: ...


@attrs.define(eq=False)
class Course:
    """Where one transfer is; makes the progress that its board shows."""

    board: TransferBoard
    phase: TransferPhase = TransferPhase.RESOLVING
    queue_position: Callable[[], int | None] = lambda: None
    layers: list[tuple[LayerProgress, LayerMeter]] = attrs.field(factory=list)

    def add(self, part: Descriptor, kind: str, title: str | None, meter: LayerMeter) -> None:
        layer = LayerProgress(
            digest=str(part.digest), kind=kind, title=title, size_bytes=part.size_bytes, done_bytes=0
        )
        self.layers.append((layer, meter))

    def enter(self, phase: TransferPhase) -> None:
        self.phase = phase
        self.show()

    def show(self) -> None:
        """Let the board show this moment."""
        layers = tuple(
            attrs.evolve(layer, done_bytes=min(meter.done_bytes, layer.size_bytes))
            for layer, meter in self.layers
        )
        total_bytes = sum(layer.size_bytes for layer in layers)
        done_bytes = sum(layer.done_bytes for layer in layers)
        phase = self.phase
        if phase is TransferPhase.TRANSFERRING and done_bytes == total_bytes:
            phase = TransferPhase.VERIFYING
        self.board.show(
            TransferProgress(
                direction=self.board.direction,
                phase=phase,
                queue_position=self.queue_position(),
                layers=layers,
                total_bytes=total_bytes,
                done_bytes=done_bytes,
            )
        )


@attrs.define(eq=False)
class _TicketMeter:
    """Follows a ticket to whichever transfer works for it, and passes its notes on."""

    ticket: BlobTicket
    board: TransferBoard

    @property
    def done_bytes(self) -> int:
        for note in self.ticket.meter.notes:
            self.board.note(note)
        return self.ticket.meter.done_bytes


class Fetching:
    """The parts of one model on their way into the store."""

    def __init__(
        self, parts: Iterable[Part], blobs: BlobTransfers, course: Course, *, is_repair: bool = False
    ) -> None:
        """What two layers have in common is fetched and counted once."""
        self._parts: dict[Digest, Part] = {}
        self._tickets: dict[Digest, BlobTicket] = {}
        self._blobs = blobs
        for part in parts:
            digest = part.descriptor.digest
            if digest in self._parts:
                continue
            self._parts[digest] = part
            self._tickets[digest] = ticket = BlobTicket(part.descriptor, is_repair=is_repair)
            course.add(part.descriptor, part.kind, part.title, _TicketMeter(ticket, course.board))

    @property
    def descriptors(self) -> tuple[Descriptor, ...]:
        return tuple(part.descriptor for part in self._parts.values())

    @property
    def transferred_bytes(self) -> int:
        return sum(ticket.transferred_bytes for ticket in self._tickets.values())

    def expect_all(self) -> None:
        """All of it should be there: count it so, until a look at the disk tells otherwise."""
        for ticket in self._tickets.values():
            ticket.meter.done_bytes = ticket.meter.size_bytes

    async def run(self) -> dict[Digest, StoredBlob]:
        """Every part, in the store. Raises what the first one raises that fails."""
        fetches = [
            partial(self._blobs.fetch, self._tickets[digest], part.source)
            for digest, part in self._parts.items()
        ]
        blobs = await run_all(fetches, at_once=PARTS_AT_ONCE)
        return {blob.digest: blob for blob in blobs}


class TransferTurns:
    """The queue of one direction: who may transfer now."""

    def __init__(self, slots: int) -> None:
        self._queue = TransferQueue(slots)
        self._granted: dict[int, trio.Event] = {}
        self._next_id = 0

    @asynccontextmanager
    async def turn(self, key: object, course: Course) -> AsyncIterator[None]:
        """Wait until `key` may run, showing its place in the queue; it runs until the block ends."""
        entry_id, self._next_id = self._next_id, self._next_id + 1
        try:
            if not self._queue.enter(entry_id, key):
                self._granted[entry_id] = granted = trio.Event()
                course.queue_position = partial(self._queue.position, key)
                course.enter(TransferPhase.QUEUED)
                await granted.wait()
            yield
        finally:
            course.queue_position = lambda: None
            self._granted.pop(entry_id, None)
            for other_id in self._queue.leave(entry_id, key):
                self._granted[other_id].set()
