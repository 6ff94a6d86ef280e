"""Content on its way from a client to a file of the store, in threads.

No actor: whoever uploads drives its own writer, and the store only begins and adopts it. Imports the store's
writer. Read on in `actors/store.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from functools import partial

import trio

from runner.store.blobs import BlobWriter

UPLOAD_BUFFER_BYTES = 1 << 20  # one trip to a thread costs 0.3 ms, so small chunks travel together
_UPLOADS_AT_ONCE = 4


class UploadThreads:
    """The threads that uploads take turns in."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(_UPLOADS_AT_ONCE)

    async def write_all(self, chunks: AsyncIterable[bytes], writer: BlobWriter) -> None:
        """Open, fill and finish the writer, holding one buffer of content at a time."""
        await self._run(writer.open)
        buffer = bytearray()
        async for chunk in chunks:
            buffer += chunk
            if len(buffer) >= UPLOAD_BUFFER_BYTES:
                await self._run(partial(writer.write, buffer))
                buffer = bytearray()
        await self._run(partial(writer.write, buffer))
        await self._run(writer.finish)

    async def abandon(self, writer: BlobWriter) -> None:
        """Leave nothing of it, also when the caller is cancelled."""
        with trio.CancelScope(shield=True):
            await self._run(writer.abandon)

    async def _run(self, action: Callable[[], None]) -> None:
        await trio.to_thread.run_sync(action, limiter=self._limiter)
