"""A streamed answer: from the events of one generation to the bytes of one dialect.

The path of every token in the daemon. A wake takes everything that is ready and makes one chunk of it;
nothing is awaited but the events. Imports `inference`; the server that pulls is `runner/api/streaming.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

import trio

from runner.api.inference import Generation, Opening
from runner.domain.events import Failed, Finished, GenerationEvent
from runner.errors import RunnerError

HEAD_HELD_S: Final = 15.0  # how long the head of an answer may wait for the worker's acceptance
IDLE_S: Final = 15.0  # without a word before a sign of life is sent; proxies often cut at 30 or 60


class Encoder(Protocol):
    """One answer in the shape of one dialect. Pure."""

    def opening(self, fingerprint: str) -> bytes:
        """What comes before the first text; may be nothing. Called first, once the request is accepted."""
        ...

    def encode(self, events: Iterable[GenerationEvent]) -> bytes:
        """May be nothing. `Finished` brings the normal end, `Failed` an error event and no end."""
        ...

    def error(self, error: RunnerError) -> bytes:
        """An error event; may come before `opening`."""
        ...

    def idle(self) -> bytes:
        """Bytes that a reader skips."""
        ...


async def hold_head(opening: Opening) -> None:
    """Wait for the worker's acceptance while an error can still have a status of its own, at most 15 s.

    Raises what `Opening.wait` raises, with the opening closed; also when cancelled.
    """
    try:
        with trio.move_on_after(HEAD_HELD_S):
            await opening.wait()
    except BaseException:
        opening.close()
        raise


class GenerationSource:
    """The `ByteSource` of a streamed generation."""

    def __init__(self, opening: Opening, encoder: Encoder) -> None:
        self._opening = opening
        self._encoder = encoder
        self._generation: Generation | None = None
        self._is_flowing = False
        self._has_ended = False

    async def next_chunk(self) -> bytes:
        if self._has_ended:
            return b""
        try:
            return await self._next()
        except RunnerError as error:
            return self.abort(error)

    def abort(self, error: RunnerError) -> bytes:
        self._has_ended = True
        return self._encoder.error(error)

    def close(self) -> None:
        self._opening.close()

    async def _next(self) -> bytes:
        """1. Before acceptance: wait for it.  2. Before the first text: signs of life.  3. Text."""
        if self._generation is None:  # 1
            with trio.move_on_after(IDLE_S):
                self._generation = await self._opening.wait()
            if self._generation is None:
                return self._encoder.idle()
            opening = self._encoder.opening(self._generation.fingerprint)
            if opening:
                return opening
        while not self._is_flowing:  # 2
            with trio.move_on_after(IDLE_S):
                chunk = self._take(await self._generation.receive())
                self._is_flowing = bool(chunk)
                if self._is_flowing or self._has_ended:
                    return chunk
                continue
            return self._encoder.idle()
        while not self._has_ended:  # 3: no timer, which would cost as much as all the rest
            chunk = self._take(await self._generation.receive())
            if chunk:
                return chunk
        return b""

    def _take(self, events: list[GenerationEvent]) -> bytes:
        if not events or type(events[-1]) in (Finished, Failed):
            self._has_ended = True
        return self._encoder.encode(events)
