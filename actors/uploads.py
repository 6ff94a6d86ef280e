"""Content on its way from a client to a file of the store, in threads.

No actor: whoever uploads drives its own writer, and the store only begins and adopts it. Imports the store's
writer. Read on in `actors/store.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from functools import partial
from typing import TypeVar

import trio

from runner.store.blobs import BlobWriter

T = TypeVar("T")

UPLOAD_BUFFER_BYTES = 1 << 20  # one trip to a thread costs 0.3 ms, so small chunks travel together
_UPLOADS_AT_ONCE = 4


class UploadThreads:
    """The threads that uploads take turns in."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(_UPLOADS_AT_ONCE)

    async def write_all(self, chunks: AsyncIterable[bytes], writer: BlobWriter) -> None:
        """Open, fill and finish the writer, holding one buffer of content at a time."""
        await self.run(writer.open)
        buffer = bytearray()
        async for chunk in chunks:
            buffer += chunk
            if len(buffer) >= UPLOAD_BUFFER_BYTES:
                await self.run(partial(writer.write, buffer))
                buffer = bytearray()
        await self.run(partial(writer.write, buffer))
        await self.run(writer.finish)

    async def end(self, action: Callable[[], None]) -> None:
        """Give something up, also when the caller is cancelled."""
        with trio.CancelScope(shield=True):
            await self.run(action)

    async def run(self, action: Callable[[], T]) -> T:
        """What the action returns; a thread that has begun is waited for, also when the caller is
        cancelled."""
        return await trio.to_thread.run_sync(action, limiter=self._limiter)
