"""A small HTTP server in threads, on loopback, that answers as it is told, rules of HTTP or not.

`ScriptedServer(answer)` calls `answer(Request)` for every request, in the connection's thread, and sends the
`Reply`; an answer may also be a function that talks on the socket itself. `FakeNetwork` gives these servers
names and addresses of the internet, through the resolver and dialler that a `Door` takes.
"""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import attrs

from runner.registry.addresses import Place


@attrs.frozen
class Request:
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))


@attrs.frozen
class Reply:
    """What to send. `sent_bytes`: break off there. `announces`: another Content-Length than the true one."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    sent_bytes: int | None = None
    announces: int | None = None
    is_chunked: bool = False


Talk = Callable[[socket.socket], None]
"""Takes over the connection; it is closed afterwards."""

Answering = Callable[[Request], "Reply | Talk"]


def wait_for_close(connection: socket.socket) -> None:
    """Return when the other side is gone; what it still sends is read."""
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass


class ScriptedServer:
    """Serves until the block ends; `requests` are those that came whole, in order."""

    def __init__(self, answer: Answering, *, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._is_closing = False
        self._acceptor = threading.Thread(target=self._accept)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def netloc(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.netloc}"

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        with self._lock:
            self._is_closing = True
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        served = connection
        try:
            if not self._hold(connection):
                return
            if self._tls is not None:
                served = self._tls.wrap_socket(connection, server_side=True)
                if not self._hold(served):
                    return
            _Handler(served, ("", 0), self)  # type: ignore[arg-type]  # it asks its server for nothing
        except OSError:  # the other side went away, or did not want the certificate
            pass
        finally:
            with self._lock:
                self._connections -= {connection, served}
            with contextlib.suppress(OSError):  # a plain close would be a reset to who has not read all
                socket.socket.shutdown(served, socket.SHUT_WR)
            connection.close()
            served.close()

    def _hold(self, connection: socket.socket) -> bool:
        with self._lock:
            self._connections.add(connection)
            return not self._is_closing


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        setattr(self, f"do_{self.command}", self._do)
        return True

    def _do(self) -> None:
        size_bytes = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size_bytes)
        if len(body) < size_bytes:
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, body)
        self.server.requests.append(request)
        reply = self.server.answer(request)
        if isinstance(reply, Reply):
            self._send(reply)
        else:
            self.wfile.flush()
            self.close_connection = True
            reply(self.connection)

    def _send(self, reply: Reply) -> None:
        lines = [f"HTTP/1.1 {reply.status} {http.client.responses.get(reply.status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in reply.headers]
        is_bodiless = self.command == "HEAD" or reply.status in (204, 304)
        if reply.is_chunked:
            lines.append("Transfer-Encoding: chunked")
        elif reply.status != 204:
            announced = len(reply.body) if reply.announces is None else reply.announces
            lines.append(f"Content-Length: {announced}")
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        body = b"" if is_bodiless else reply.body[: reply.sent_bytes]
        if reply.is_chunked and body:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        self.wfile.write(body)
        if reply.sent_bytes is not None:
            self.close_connection = True

    def log_message(self, *_args: object) -> None:
        pass


@attrs.define
class FakeNetwork:
    """Names with addresses, and addresses behind which servers of this test listen.

    `addresses` maps a host to its addresses; one that is missing cannot be resolved, unless it is an address
    itself. `servers` maps an address, or `address:port`, to a local port. `dialled` are the addresses tried.
    """

    addresses: dict[str, tuple[str, ...]] = attrs.field(factory=dict)
    servers: dict[str, int] = attrs.field(factory=dict)
    dialled: list[str] = attrs.field(factory=list)
    asked: list[str] = attrs.field(factory=list)

    def resolve(self, host: str, port: int) -> tuple[Place, ...]:
        self.asked.append(host)
        return tuple(Place(ipaddress.ip_address(text), port) for text in self._texts(host))

    def _texts(self, host: str) -> Iterable[str]:
        if host in self.addresses:
            return self.addresses[host]
        try:
            return (str(ipaddress.ip_address(host)),)
        except ValueError:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None

    def dial(self, place: Place, timeout_s: float) -> socket.socket:
        text = str(place.address)
        self.dialled.append(text)
        port = self.servers.get(f"{text}:{place.port}", self.servers.get(text))
        if port is None and text == "127.0.0.1":
            port = place.port
        if port is None:
            raise ConnectionRefusedError(111, "Connection refused")
        return socket.create_connection(("127.0.0.1", port), timeout_s)


@attrs.define
class SteppingClock:
    """Every look at it takes so many seconds, so that waits last as long as a test wants, in no time."""

    step_s: float = 0.0
    now_s: float = 1000.0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s
