"""The HTTP server: listeners, the set of connections, and the order of shutdown.

Owns how many connections there are: at the limit the one that has been idle for longest gives way to a new
one, which is turned away when none is idle. Owns how all of them end: stop accepting, close the idle ones,
wait for the running ones, give the rest a last word, cut off what is left. An exception of one connection is
logged and ends that connection only. May import trio and the rest of the serving layer:
`runner.api.listeners`, `runner.api.connection`, `runner.api.protocol`. It serves any ASGI app that needs no
lifespan; ours is `runner.api.app`, whose parts begin and end in the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from pathlib import Path

import attrs
import trio
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework

from runner.api.admission import AdmissionPolicy
from runner.api.connection import Connection, Deadlines
from runner.api.errors import Refusal
from runner.api.head import HeadLimits
from runner.api.listeners import Listener, listen_tcp, listen_unix
from runner.api.middleware import choose_request_id
from runner.api.protocol import ProtocolSettings, hypercorn_config, raw_answer
from runner.errors import Draining, StartRefused

log = logging.getLogger(__name__)

_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_EXHAUSTED_PAUSE_S = 0.1
_OVERLOADED = Refusal(
    status=503, code="too_many_connections", message="too many connections are open", retry_after_s=1
)


@attrs.frozen(kw_only=True)
class ServerSettings:
    """`host` None listens on no port, `socket_path` None on no socket. Sizes in bytes, times in seconds.

    `allowed_hosts` are further Host headers to accept, `allowed_origins` web origins that may use the server.
    """

    host: str | None = "127.0.0.1"
    port: int = 12434
    socket_path: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: frozenset[str] = frozenset()
    max_connections: int = 256
    control_body_bytes: int = 1024 * 1024
    inference_body_bytes: int = 32 * 1024 * 1024
    head_limits: HeadLimits = attrs.field(factory=HeadLimits)
    deadlines: Deadlines = attrs.field(factory=Deadlines)
    grace_s: float = 30.0
    last_words_s: float = 2.0


@attrs.frozen(kw_only=True)
class ServerStatistics:
    """A moment's numbers. `quiet_s`: since a request ran, 0 while one runs."""

    connections: int
    running: int
    quiet_s: float


class Server:
    """Serves until `stop` is called (or the event given is set) and every connection has ended.

    Cancelling ends at once: connections are closed without another word. After a failure it may run again.
    """

    def __init__(self, app: ASGIFramework, settings: ServerSettings, stop: trio.Event | None = None) -> None:
        self._app = app
        self._settings = settings
        self._connections: dict[Connection, None] = {}
        """The one that was accepted, or has answered, longest ago first."""
        self._context = WorkerContext(None)
        self._stopping = trio.Event() if stop is None else stop
        self._empty = trio.Event()
        self._last_busy_s = 0.0
        self._is_shedding = False

    async def run(self, *, task_status: trio.TaskStatus[tuple[str, ...]] = trio.TASK_STATUS_IGNORED) -> None:
        """Reports the bound addresses (`http://127.0.0.1:12434`, `unix:/…`). Raises `StartRefused`."""
        self._note_answer()
        with contextlib.ExitStack() as listening:
            listeners = await self._listen(listening)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(self._accept, listener, connections)
                    task_status.started(tuple(listener.address for listener in listeners))
                    await self._stopping.wait()
                    accepting.cancel_scope.cancel()
                listening.close()
                await self._drain()
                connections.cancel_scope.cancel()

    def stop(self) -> None:
        """Begin the ordered shutdown; `run` returns when it is through."""
        self._stopping.set()

    def statistics(self) -> ServerStatistics:
        running = sum(not connection.is_idle for connection in self._connections)
        return ServerStatistics(
            connections=len(self._connections),
            running=running,
            quiet_s=0.0 if running else trio.current_time() - self._last_busy_s,
        )

    # Accepting

    async def _listen(self, stack: contextlib.ExitStack) -> list[Listener]:
        settings = self._settings
        listeners = []
        if settings.host is not None:
            listeners.append(listen_tcp(settings.host, settings.port, allowed_hosts=settings.allowed_hosts))
            stack.callback(listeners[-1].close)
        if settings.socket_path is not None:
            listeners.append(await listen_unix(settings.socket_path))
            stack.callback(listeners[-1].close)
        if not listeners:
            raise StartRefused("there is neither a port nor a socket to listen on")
        return listeners

    async def _accept(self, listener: Listener, nursery: trio.Nursery) -> None:
        protocol_settings = self._protocol_settings(listener)
        with _SpareDescriptor() as spare:
            while True:
                await trio.lowlevel.wait_readable(listener.socket)
                try:
                    client, _ = listener.socket.accept()
                except OSError as error:
                    if error.errno in _NO_DESCRIPTORS:
                        self._note_shedding("descriptors")
                        spare.shed_one(listener.socket)
                        await trio.sleep(_EXHAUSTED_PAUSE_S)
                    continue  # any other error is that connection's, which is gone
                self._admit_connection(client, protocol_settings, nursery)

    def _admit_connection(
        self, client: socket.socket, protocol_settings: ProtocolSettings, nursery: trio.Nursery
    ) -> None:
        if len(self._connections) >= self._settings.max_connections and not self._make_room():
            self._note_shedding("connections")
            _shed(client)
            return
        self._is_shedding = False
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
        connection = Connection(stream, protocol_settings, self._settings.deadlines, self._on_answered)
        self._connections[connection] = None
        nursery.start_soon(self._serve, connection)

    def _make_room(self) -> bool:
        """The new one need not wait until the old one is closed: they are as many as before in a moment."""
        return any(connection.give_way() for connection in self._connections)

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.run()
        except Exception as error:
            log.error("a connection failed and was closed", exc_info=error)
        except BaseExceptionGroup as group:
            errors, others = group.split(Exception)
            if errors is not None:
                log.error("a connection failed and was closed", exc_info=errors)
            if others is not None:
                raise others from None
        finally:
            self._note_answer()
            del self._connections[connection]
            if not self._connections:
                self._empty.set()

    def _on_answered(self, connection: Connection) -> None:
        self._note_answer()
        del self._connections[connection]
        self._connections[connection] = None

    def _note_answer(self) -> None:
        self._last_busy_s = trio.current_time()

    def _note_shedding(self, of_what: str) -> None:
        """Once per shortage, not once per connection."""
        if not self._is_shedding:
            self._is_shedding = True
            log.warning("out of %s; new connections are turned away", of_what)

    def _protocol_settings(self, listener: Listener) -> ProtocolSettings:
        settings = self._settings
        return ProtocolSettings(
            app=self._app,
            policy=AdmissionPolicy(
                hosts=listener.hosts,
                origins=settings.allowed_origins,
                control_body_bytes=settings.control_body_bytes,
                inference_body_bytes=settings.inference_body_bytes,
            ),
            head_limits=settings.head_limits,
            context=self._context,
            config=hypercorn_config(),
        )

    # Ending

    async def _drain(self) -> None:
        """See the module docstring for the order."""
        await self._context.terminated.set()
        for connection in tuple(self._connections):
            connection.close_if_idle()
        if await self._all_gone_within(self._settings.grace_s):
            return
        for connection in tuple(self._connections):
            connection.end_early(Draining())
        if await self._all_gone_within(self._settings.last_words_s):
            return
        for connection in tuple(self._connections):
            connection.abort()

    async def _all_gone_within(self, limit_s: float) -> bool:
        with trio.move_on_after(limit_s):
            while self._connections:
                self._empty = trio.Event()
                await self._empty.wait()
        return not self._connections


async def serve(
    app: ASGIFramework,
    settings: ServerSettings,
    *,
    stop: trio.Event | None = None,
    task_status: trio.TaskStatus[tuple[str, ...]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set; see `Server`, which also counts connections."""
    await Server(app, settings, stop).run(task_status=task_status)


class _SpareDescriptor:
    """A descriptor held back, so that without any other a connection can still be taken and turned away."""

    def __init__(self) -> None:
        self._descriptor = -1

    def __enter__(self) -> _SpareDescriptor:
        self._descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def shed_one(self, listening: socket.socket) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        try:
            client, _ = listening.accept()
            _shed(client)
            self._descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass  # another thread was faster; the next round tries again


def _shed(client: socket.socket) -> None:
    """One answer, if the socket takes it, and the end."""
    with client:
        try:
            client.setblocking(False)
            client.send(raw_answer(_OVERLOADED, choose_request_id(())))
        except OSError:
            pass
