"""HTTP/1.1 of one connection: bytes in, requests to the app; answers of the app, bytes out.

Owns the order of things on a connection: head, admission, body, answer, next head. Built on hypercorn's
protocol classes and h11; stands between `runner.api.connection` (the socket, its deadlines) and Quart.
Differs from hypercorn's own in what docs/requirements.md asks for: heads are read strictly and admitted
before the app starts, bodies are counted, refusals are JSON, an answer leaves in as few writes as it can, a
client that leaves is noticed even while more of its requests wait. One object lives as long as its
connection.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Protocol, cast

import attrs
import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Event as ConnectionEvent
from hypercorn.protocol.events import Body, EndBody, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIFramework,
    ASGIReceiveEvent,
    ASGISendEvent,
    ConnectionState,
    H11SendableEvent,
    Scope,
)

from runner.api.admission import AdmissionPolicy, admit, body_limit_bytes, too_large
from runner.api.errors import INTERNAL_ERROR, Refusal, encode
from runner.api.head import HeadLimits, HeadReader, HeadRefused, RequestHead
from runner.api.middleware import REQUEST_ID_HEADER, choose_request_id
from runner.api.streaming import EXCHANGE, EarlyEnd

log = logging.getLogger(__name__)

EARLY_BYTES_MAX = 64 * 1024
"""How much of the next requests is read while one is answered, so that a client that leaves is noticed."""

_BODY_QUEUE = 4  # pieces of at most one read each between the reader and the app
_EVENTS_UNTIL_YIELD = 256  # one read may hold ten thousand chunks of one byte, at some 10 µs each
_CHUNK_LINE_BYTES = 16 * 1024  # a chunk header or the trailers; h11 refuses more
_CLOSE = (b"connection", b"close")
_ANSWER_PENDING = frozenset({h11.IDLE, h11.SEND_RESPONSE})


class ClientGone(Exception):
    """The answer can no longer be delivered. Nobody's fault; ends the request and is not logged."""


class Link(Protocol):
    """What the protocol needs of its connection."""

    async def write(self, data: bytes) -> None:
        """Raises `ClientGone`."""
        ...

    def next_request(self, early: bytes) -> None:
        """The answer has left; `early` are bytes of the next request that were read already."""
        ...

    def hang_up(self) -> None:
        """Read nothing more, cancel the app, close."""
        ...


class Phase(enum.Enum):
    HEAD = "waiting for a head"
    BODY = "reading a body"
    ANSWER = "waiting for the answer"
    OVER = "nothing more is read or answered"


@attrs.frozen(kw_only=True)
class ProtocolSettings:
    """What all connections of one listener share. `context.terminated` is set when the server stops."""

    app: ASGIFramework
    policy: AdmissionPolicy
    head_limits: HeadLimits
    context: WorkerContext
    config: Config


def hypercorn_config() -> Config:
    config = Config()
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    config.keep_alive_max_requests = 2**62
    config.h11_max_incomplete_size = _CHUNK_LINE_BYTES
    return config


class Http1Protocol(H11Protocol):
    """See the module. `client` and `server` are (host, port), None on a unix socket."""

    def __init__(
        self,
        settings: ProtocolSettings,
        link: Link,
        nursery: trio.Nursery,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
    ) -> None:
        super().__init__(
            cast(AppWrapper, settings.app),
            settings.config,
            settings.context,
            _AppTasks(nursery, self._run_app),
            ConnectionState({EXCHANGE: self}),
            False,
            client,
            server,
            _never_called,
        )
        self.phase = Phase.HEAD
        self.body_bytes = 0
        """Of this request, so far."""
        self.must_linger = False
        """The client may still be sending; closing at once would take the answer from it."""
        self.request_id = ""
        self.early_end = EarlyEnd()
        self._settings = settings
        self._link = link
        self._head_reader = HeadReader(settings.head_limits)
        self._head: RequestHead | None = None
        self._body_limit_bytes: int | None = None
        self._early = bytearray()
        self._held = b""

    # What arrives

    @property
    def is_head_begun(self) -> bool:
        return self.phase is Phase.HEAD and not self._head_reader.is_empty

    @property
    def is_full(self) -> bool:
        """Enough of the next requests is here; read on when the running one is answered."""
        return len(self._early) >= EARLY_BYTES_MAX

    async def receive(self, data: bytes) -> None:
        """Bytes from the client. Waits while the app does not take its body."""
        match self.phase:
            case Phase.HEAD:
                await self._receive_head(data)
            case Phase.BODY:
                self.connection.receive_data(data)
                await self._pass_body()
            case Phase.ANSWER:
                self._early += data
            case Phase.OVER:
                pass

    async def _receive_head(self, data: bytes) -> None:
        try:
            head = self._head_reader.feed(data)
        except HeadRefused as error:
            await self.refuse(error.refusal)
            return
        if head is not None:
            await self._begin_request(head)

    async def _begin_request(self, head: RequestHead) -> None:
        self._head = head
        self.request_id = choose_request_id(head.values(REQUEST_ID_HEADER))
        refusal = admit(head, self._settings.policy)
        if refusal is not None:
            await self.refuse(refusal)
            return
        # A new parser for each request: what was read early passes the strict reader, never h11 alone.
        self.connection = h11.Connection(h11.SERVER, self.config.h11_max_incomplete_size)
        self.connection.receive_data(self._head_reader.raw)
        try:
            request = self.connection.next_event()
        except h11.RemoteProtocolError:  # the one rule left to h11, for a unix socket: TCP was refused before
            await self.refuse(_bad_request("a request of HTTP/1.1 has exactly one Host header"))
            return
        if self._head_reader.rest:
            self.connection.receive_data(self._head_reader.rest)
        self.phase = Phase.BODY
        self.body_bytes = 0
        self.early_end = EarlyEnd()
        self._body_limit_bytes = body_limit_bytes(head, self._settings.policy)
        await self._create_stream(cast(h11.Request, request))
        if self.connection.they_are_waiting_for_100_continue:
            await self._send_h11_event(
                h11.InformationalResponse(status_code=100, headers=self.config.response_headers("h11"))
            )
        await self._pass_body()

    async def _pass_body(self) -> None:
        """Hand the app what has arrived, in one piece however it was cut into chunks."""
        stream = cast(HTTPStream, self.stream)
        data, n_events = bytearray(), 0
        event = self._next_body_event()
        while isinstance(event, h11.Data):
            data += event.data
            n_events += 1
            if n_events % _EVENTS_UNTIL_YIELD == 0:
                await trio.lowlevel.checkpoint()
            event = self._next_body_event()
        if self.phase is not Phase.BODY:  # the app has ended meanwhile
            return
        self.body_bytes += len(data)
        if self._body_limit_bytes is not None and self.body_bytes > self._body_limit_bytes:
            await self.refuse(too_large(self._body_limit_bytes))
            return
        if event is None:
            await self.refuse(_bad_request("the body is malformed"))
            return
        is_complete = isinstance(event, h11.EndOfMessage)
        if is_complete:
            self.phase = Phase.ANSWER
        if data:
            await stream.handle(Body(stream_id=STREAM_ID, data=bytes(data)))
        if is_complete:
            await stream.handle(EndBody(stream_id=STREAM_ID))

    def _next_body_event(self) -> object | None:
        """None: malformed."""
        try:
            return self.connection.next_event()
        except h11.RemoteProtocolError:
            return None

    async def time_out(self) -> None:
        """The client took too long. One that has sent nothing of a request is left without an answer."""
        if self.phase is Phase.HEAD and not self.is_head_begun:
            self._end()
        else:
            await self.refuse(
                Refusal(status=408, code="request_timeout", message="the request did not arrive in time")
            )

    # What leaves

    @property
    def can_stream(self) -> bool:
        return self._head is not None and self._head.version == "1.1" and self._head.method != "HEAD"

    @property
    def is_cut_unseen(self) -> bool:
        """An unfinished answer that would look complete if the connection ended normally."""
        return (
            self._head is not None
            and self._head.version == "1.0"
            and self.connection.our_state is h11.SEND_BODY
        )

    async def begin_stream(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head at once, since the first chunk may be long in coming; ASGI is not asked any more."""
        if self.phase is Phase.OVER:
            raise ClientGone
        cast(HTTPStream, self.stream).state = ASGIHTTPState.CLOSED
        headers = [*headers, *self.config.response_headers("h11")]
        if self.context.terminated.is_set():
            headers.append(_CLOSE)
        await self._write(self.connection.send(h11.Response(status_code=status, headers=headers)))

    async def write_chunk(self, data: bytes) -> None:
        """`data` is not empty: an empty chunk is the end."""
        await self._write(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        await self._send_h11_event(h11.EndOfMessage())

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with an error in place of the app, if nothing of its answer has left, and close."""
        if self.phase is Phase.OVER:
            return
        can_answer = (
            self.phase is Phase.HEAD or bool(self._held) or self.connection.our_state in _ANSWER_PENDING
        )
        is_read = self.phase is Phase.ANSWER
        self.phase = Phase.OVER
        try:
            if can_answer:
                await self._link.write(self._raw_refusal(refusal))
                self.must_linger = not is_read
        except ClientGone:
            pass
        finally:
            self._end()

    def _raw_refusal(self, refusal: Refusal) -> bytes:
        if self._head is None:
            return raw_answer(refusal, choose_request_id(()))
        return raw_answer(refusal, self.request_id, with_body=self._head.method != "HEAD")

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, Response) and self.context.terminated.is_set():
            event = Response(event.stream_id, [*event.headers, _CLOSE], event.status_code)
        await super().stream_send(event)

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """A head waits for the first piece of its body, so that a small answer is one write."""
        if self.phase is Phase.OVER:
            raise ClientGone
        data = self.connection.send(event) or b""
        if isinstance(event, h11.Response):
            self._held = data
            return
        data, self._held = self._held + data, b""
        if data:
            await self._link.write(data)

    async def _write(self, data: bytes) -> None:
        if self.phase is Phase.OVER:
            raise ClientGone
        await self._link.write(data)

    # What comes after an answer

    async def _maybe_recycle(self) -> None:
        """The answer has left. Nothing here waits: the task may be cancelled by its own success.

        hypercorn tells the app that its client is gone at this point, for apps that would wait on. Quart does
        not, and it ends the whole request when it hears that, with everything that still runs on its behalf.
        """
        if self.stream is not None:
            self.stream.closed = True
            self.stream = None
        if self.phase is Phase.OVER:
            return
        states = self.connection.our_state, self.connection.their_state
        if states != (h11.DONE, h11.DONE) or self.context.terminated.is_set():
            self.must_linger = self.phase is Phase.BODY
            self._end()
            return
        early = self.connection.trailing_data[0] + bytes(self._early)
        self._early.clear()
        self._head_reader = HeadReader(self._settings.head_limits)
        self._head = None
        self.phase = Phase.HEAD
        self._link.next_request(early)

    def _end(self) -> None:
        self.phase = Phase.OVER
        self._link.hang_up()

    # The app

    async def _run_app(
        self,
        app: ASGIFramework,
        scope: Scope,
        receive: Callable[[], Awaitable[ASGIReceiveEvent]],
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> None:
        """One request in a task of its own; its failure is its own too."""
        try:
            await app(scope, receive, send)
            await send(None)
        except (trio.Cancelled, ClientGone):
            return
        except BaseExceptionGroup as group:
            _, error = group.split((trio.Cancelled, ClientGone))
            await self._on_app_failure(error)
        except Exception as error:
            await self._on_app_failure(error)

    async def _on_app_failure(self, error: BaseException | None) -> None:
        if error is None:
            return
        if not isinstance(error, Exception):
            raise error
        log.error("an answer failed on its way out (%s)", self.request_id, exc_info=error)
        await self.refuse(INTERNAL_ERROR)


class _AppTasks:
    """hypercorn's task group, with the requests of one connection as tasks of its nursery."""

    def __init__(self, nursery: trio.Nursery, run_app: Callable[..., Awaitable[None]]) -> None:
        self._nursery = nursery
        self._run_app = run_app

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        sender, receiver = trio.open_memory_channel[ASGIReceiveEvent](_BODY_QUEUE)
        self._nursery.start_soon(self._run_app, app, scope, receiver.receive, send)

        async def put(event: ASGIReceiveEvent) -> None:
            try:
                sender.send_nowait(event)
            except trio.WouldBlock:
                await sender.send(event)

        return put

    def spawn(self, func: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self._nursery.start_soon(func, *args)

    async def __aenter__(self) -> _AppTasks:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass


async def _never_called(event: ConnectionEvent) -> None:
    raise AssertionError(f"hypercorn wanted to send {event} by itself")


def _bad_request(message: str) -> Refusal:
    return Refusal(status=400, code="bad_request", message=message)


def raw_answer(refusal: Refusal, request_id: str, *, with_body: bool = True) -> bytes:
    """A whole HTTP/1.1 answer that closes the connection, for where no app and no h11 are at hand."""
    body = encode(refusal)
    lines = [
        f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}",
        *(f"{name}: {value}" for name, value in refusal.headers),
        f"content-length: {len(body)}",
        f"{REQUEST_ID_HEADER}: {request_id}",
        "connection: close",
        "\r\n",
    ]
    return "\r\n".join(lines).encode("latin-1") + (body if with_body else b"")
