"""Streamed answers: what a route returns, and how its bytes reach the serving layer.

Owns `EventStream` and the ASGI class that joins Quart to the serving layer. A route returns
`EventStream(source)`; chunks are pulled from the source as fast as the client takes them, and the source is
closed exactly once, whatever happens. May import errors and Quart. The other side: `runner.api.protocol`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Protocol, cast

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import has_request_context, request
from quart.typing import ResponseTypes
from quart.utils import encode_headers
from quart.wrappers import Request
from quart.wrappers.response import ResponseBody
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioResponse

from runner.api import sse
from runner.api.body import RequestBody
from runner.errors import RunnerError

EXCHANGE = "runner.exchange"
"""Key in the state of an ASGI scope: what the serving layer offers beyond ASGI, an `Exchange`."""

_OPEN_STREAMS = "runner.open_streams"
"""Key in an ASGI scope: the streams that a request made; they end with it, whether sent or not."""

_NURSERY = "runner.nursery"
"""Key in an ASGI scope: the nursery of the request."""


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
            cast(dict[str, Any], request.scope).setdefault(_OPEN_STREAMS, []).append(self)

    def close(self) -> None:
        """Close the source, once."""
        if not self._is_closed:
            self._is_closed = True
            self.source.close()


def request_nursery() -> trio.Nursery:
    """For tasks that live until the answer to the current request has left, or its client has."""
    return cast(trio.Nursery, cast(dict[str, Any], request.scope)[_NURSERY])


class _SourceBody(ResponseBody):
    """What Quart iterates where the serving layer is not there to take over (its test client)."""

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


class EarlyEnd:
    """The switch by which the server ends one stream: the pump stops, says why to the client, and ends."""

    def __init__(self) -> None:
        self.error: RunnerError | None = None
        self._pumping: trio.CancelScope | None = None

    @property
    def is_pumping(self) -> bool:
        return self._pumping is not None

    def request(self, error: RunnerError) -> None:
        """Stop the pump with this error; does nothing when none runs."""
        if self._pumping is not None:
            self.error = error
            self._pumping.cancel()

    async def pump(self, stream: EventStream, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Write the chunks of a stream until it ends, or until `request` asks its source for last words.

        A write that was cut in the middle makes the next one raise, so nothing follows half a chunk.
        """
        source = stream.source
        with trio.CancelScope() as self._pumping:
            while chunk := await source.next_chunk():
                await write(chunk)
        was_stopped, self._pumping = self._pumping.cancelled_caught, None
        if was_stopped and self.error is not None and (last := source.abort(self.error)):
            await write(last)


class Exchange(Protocol):
    """One request and its answer as the serving layer sees them, beyond what ASGI can say."""

    request_id: str
    early_end: EarlyEnd

    @property
    def can_stream(self) -> bool:
        """The answer may be written in chunks without ASGI (HTTP/1.1, and the method has a body)."""
        ...

    async def begin_stream(self, status: int, headers: list[tuple[bytes, bytes]]) -> None: ...

    async def write_chunk(self, data: bytes) -> None: ...

    async def end_stream(self) -> None: ...


class HttpConnection(TrioASGIHTTPConnection):
    """Quart's side of one request: holds the client back, closes sources, writes streams the fast way."""

    async def handle_messages(  # type: ignore[override]  # quart-trio passes its nursery, Quart does not
        self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable
    ) -> None:
        body = cast(RequestBody, request.body)
        while True:
            message = await receive()
            if message["type"] == "http.request":
                body.append(message.get("body", b""))
                if message.get("more_body", False):
                    await body.wait_for_room()
                else:
                    body.set_complete()
            elif message["type"] == "http.disconnect":
                break
        nursery.cancel_scope.cancel()

    async def handle_request(  # type: ignore[override]  # as above
        self, nursery: trio.Nursery, request: Request, send: ASGISendCallable
    ) -> None:
        cast(dict[str, Any], self.scope)[_NURSERY] = nursery
        try:
            await super().handle_request(nursery, request, send)
        finally:
            for stream in cast(dict[str, Any], self.scope).pop(_OPEN_STREAMS, ()):
                stream.close()

    async def _send_response(self, send: ASGISendCallable, response: ResponseTypes) -> None:
        if not isinstance(response, EventStream):
            await super()._send_response(send, response)
            return
        try:
            await self._send_stream(send, response)
        finally:
            response.close()

    async def _send_stream(self, send: ASGISendCallable, response: EventStream) -> None:
        exchange = cast(Exchange | None, self.scope.get("state", {}).get(EXCHANGE))
        headers = encode_headers(response.headers)
        if exchange is not None and exchange.can_stream:
            await exchange.begin_stream(response.status_code, headers)
            await exchange.early_end.pump(response, exchange.write_chunk)
            await exchange.end_stream()
            return

        async def write(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        if self.scope["method"] != "HEAD":
            early_end = EarlyEnd() if exchange is None else exchange.early_end
            await early_end.pump(response, write)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
