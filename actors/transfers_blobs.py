"""All blobs that are being fetched: one transfer per digest, shared by every pull that needs it (S21).

A transfer is nobody's child: it runs beside the pulls, goes on while anyone waits for it, and stops, to be
resumed, when the last one has left. Imports the transfer of one blob.
"""

from __future__ import annotations

import attrs
import trio

from actors.transfers_blob import BlobMeter, BlobSource, BlobTools, DownloadStore, transfer_blob
from runner.errors import Unavailable
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store.blobs import StoredBlob


@attrs.define(eq=False)
class _Flight:
    """One transfer under way, and how many wait for it."""

    descriptor: Descriptor
    source: BlobSource
    meter: BlobMeter
    is_repair: bool
    waiters: int = 0
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ended: trio.Event = attrs.field(factory=trio.Event)
    blob: StoredBlob | None = None
    error: Exception | None = None

    @property
    def is_open(self) -> bool:
        """Whether others may still wait for it."""
        return not self.scope.cancel_called and not self.ended.is_set()


@attrs.define(eq=False)
class BlobTicket:
    """One pull's view of one blob. `meter` is that of the transfer which works for it at the moment.

    `is_repair`: what lies in the store is damaged, and to be replaced.
    """

    descriptor: Descriptor
    is_repair: bool = False
    meter: BlobMeter = attrs.field(init=False)
    transferred_bytes: int = 0
    """What came over the network while it waited."""

    def __attrs_post_init__(self) -> None:
        self.meter = BlobMeter(self.descriptor.size_bytes)


class BlobTransfers:
    """Fetches blobs side by side. Lives as long as the nursery that it works in."""

    def __init__(self, nursery: trio.Nursery, store: DownloadStore, tools: BlobTools) -> None:
        self._nursery = nursery
        self._store = store
        self._tools = tools
        self._flights: dict[Digest, _Flight] = {}

    async def fetch(self, ticket: BlobTicket, source: BlobSource) -> StoredBlob:
        """The blob, in the store.

        1. Nobody fetches it: begin.
        2. Somebody does: wait for that. When it fails with a source that is not ours, or was just given up,
           go on from what it has left with ours.
        3. Somebody fetches it as of another size, so one of us is wrong: wait, then find out.

        Raises what the transfer raises; see `transfer_blob`.
        """
        descriptor = ticket.descriptor
        while True:
            flight = self._flights.get(descriptor.digest)
            if flight is None:
                flight = self._begin(ticket, source)  # 1
            elif not flight.is_open or flight.descriptor.size_bytes != descriptor.size_bytes:
                await flight.ended.wait()  # 3
                continue
            ticket.meter = flight.meter
            await self._wait(flight, ticket)
            if flight.blob is not None:
                return flight.blob
            if flight.error is not None and flight.source == source:
                raise flight.error

    async def _wait(self, flight: _Flight, ticket: BlobTicket) -> None:
        """Until it ends. The last one to leave earlier stops it, and waits until it has stopped."""
        flight.waiters += 1
        before_bytes = flight.meter.transferred_bytes if flight.waiters > 1 else 0
        try:
            await flight.ended.wait()
        finally:
            ticket.transferred_bytes += flight.meter.transferred_bytes - before_bytes
            flight.waiters -= 1
            if not flight.waiters and not flight.ended.is_set():
                flight.scope.cancel()
                with trio.CancelScope(shield=True):
                    await flight.ended.wait()

    def _begin(self, ticket: BlobTicket, source: BlobSource) -> _Flight:
        descriptor = ticket.descriptor
        meter = BlobMeter(descriptor.size_bytes, done_bytes=ticket.meter.done_bytes)
        flight = _Flight(descriptor, source, meter, ticket.is_repair)
        self._flights[descriptor.digest] = flight
        self._nursery.start_soon(self._run, flight)
        return flight

    async def _run(self, flight: _Flight) -> None:
        try:
            with flight.scope:
                flight.blob = await transfer_blob(
                    flight.descriptor,
                    flight.source,
                    self._store,
                    self._tools,
                    flight.meter,
                    is_repair=flight.is_repair,
                )
        except Exception as error:  # a fault of ours is for those who wait, too
            flight.error = error
        except BaseException:
            flight.error = Unavailable("the transfer was interrupted")
            raise
        finally:
            del self._flights[flight.descriptor.digest]
            flight.ended.set()

    def __repr__(self) -> str:
        return f"<BlobTransfers {len(self._flights)} under way>"
