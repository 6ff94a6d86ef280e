"""Answers and bodies that do not fit in one piece: `EventStream` out, `RequestBody` in.

Owns the side of streaming that routes see, and the ASGI class that joins Quart to the serving layer. A route
returns `EventStream(source)`; the serving layer pulls chunks from the source and closes it exactly once,
whatever happens. May import errors and Quart. The other side: `runner.api.protocol`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Protocol, cast

import trio
from quart import has_request_context, request
from quart.wrappers.response import ResponseBody
from quart_trio.wrappers import TrioResponse

from runner.api import sse
from runner.errors import RunnerError

OPEN_STREAMS = "runner.open_streams"
"""Key in the ASGI scope: the streams that a request made, closed when it ends, whether sent or not."""


class ByteSource(Protocol):
    """Where the bytes of a streamed answer come from; written by the dialects.

    The server calls `next_chunk` again and again from one task, `abort` at most once and never during a
    `next_chunk`, and `close` exactly once, last, in every case: end, error, cancellation, client gone.
    """

    async def next_chunk(self) -> bytes:
        """Everything that is ready, waiting for the first byte of it; `b""` ends the answer normally.

        May be cancelled at any await; nothing more is asked for then. An exception cuts the answer off
        without its normal end and is logged: an error that the client should see is a chunk.
        """
        ...

    def abort(self, error: RunnerError) -> bytes:
        """The last bytes of an answer that the server ends early (an error event in the dialect's shape)."""
        ...

    def close(self) -> None:
        """Give everything back. Does not wait: it is also called in cancelled tasks."""
        ...


class EventStream(TrioResponse):
    """A response of unknown length, read from a `ByteSource` as fast as the client takes it."""

    def __init__(
        self,
        source: ByteSource,
        content_type: str = sse.CONTENT_TYPE,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(_SourceBody(self), status=status, headers=headers, content_type=content_type)
        self.headers.setdefault("Cache-Control", "no-cache")
        self.headers.setdefault("X-Accel-Buffering", "no")
        self.timeout = None  # Quart would cut the answer at RESPONSE_TIMEOUT without a word
        self.source = source
        self._is_closed = False
        if has_request_context():  # so that the source is closed even when this object is lost on its way out
            scope = cast(dict[str, Any], request.scope)
            scope.setdefault(OPEN_STREAMS, []).append(self)

    def close(self) -> None:
        """Close the source, once."""
        if not self._is_closed:
            self._is_closed = True
            self.source.close()


class _SourceBody(ResponseBody):
    """What Quart iterates where the serving layer does not take over (its test client)."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self._chunks()

    async def __aexit__(
        self, exc_type: type | None, exc_value: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stream.close()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while chunk := await self._stream.source.next_chunk():
            yield chunk
            await trio.lowlevel.checkpoint()
