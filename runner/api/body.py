"""The body of a request as routes read it: whole, or piece by piece with bounded memory.

Owns the hand-over between the task that reads the connection and the one that runs the route. Stands in
for Quart's own body, which takes everything in as fast as it comes. Limits are not here: the serving layer
counts what arrives (`runner.api.protocol`). May import trio.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import trio

READ_AHEAD_BYTES = 256 * 1024
"""How much is taken in before the route has said that it wants all of it."""


class RequestBody:
    """`await body` gives all of it; `async for piece in body` takes pieces and holds the client back.

    The first use decides: a body that was iterated cannot be awaited. What does not wait is Quart's side.
    """

    def __init__(
        self, expected_content_length: int | None = None, max_content_length: int | None = None
    ) -> None:
        self._data = bytearray()  # not a list of pieces: a body may arrive in pieces of one byte
        self._is_wanted_whole = False
        self._complete = trio.Event()
        self._arrival = trio.Event()
        self._room = trio.Event()

    def __aiter__(self) -> RequestBody:
        return self

    async def __anext__(self) -> bytes:
        """Whatever has arrived since the last piece, at most a little more than READ_AHEAD_BYTES."""
        while not self._data:
            if self._complete.is_set():
                raise StopAsyncIteration
            self._arrival = trio.Event()
            await self._arrival.wait()
        data = bytes(self._data)
        self.clear()
        return data

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._whole().__await__()

    async def _whole(self) -> bytes:
        self._is_wanted_whole = True
        self._room.set()
        await self._complete.wait()
        return bytes(self._data)

    async def wait_for_room(self) -> None:
        """Returns when the reader may bring more."""
        while len(self._data) > READ_AHEAD_BYTES and not self._is_wanted_whole:
            self._room = trio.Event()
            await self._room.wait()

    def append(self, data: bytes) -> None:
        if data:
            self._data += data
            self._arrival.set()

    def set_complete(self) -> None:
        self._complete.set()
        self._arrival.set()

    def set_result(self, data: bytes) -> None:
        self.append(data)
        self.set_complete()

    def clear(self) -> None:
        self._data.clear()
        self._room.set()
