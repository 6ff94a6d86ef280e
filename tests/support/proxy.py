"""A forward proxy on loopback for made-up hosts: plain requests and tunnels, by a table of host → port.

Every request is kept with its headers, so that tests see which secret reached whom.
"""

from __future__ import annotations

import http.client
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import attrs

_HOP_BY_HOP = {"proxy-authorization", "proxy-connection", "connection", "keep-alive"}


@attrs.define
class ScriptedProxy:
    """`routes`: on which loopback port a host is. `requests`: (method, target, headers in lower case)."""

    routes: dict[str, int] = attrs.field(factory=dict)
    port: int = 0
    requests: list[tuple[str, str, dict[str, str]]] = attrs.field(factory=list)

    def url(self, user_info: str = "") -> str:
        return f"http://{user_info}{'@' if user_info else ''}127.0.0.1:{self.port}"


@contextmanager
def scripted_proxy(**routes: int) -> Iterator[ScriptedProxy]:
    """A proxy that runs until the block ends; neither threads nor sockets are left."""
    proxy = ScriptedProxy(dict(routes))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_ProxyAnswers,), {"proxy": proxy}))
    server.daemon_threads = False
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="proxy")
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _ProxyAnswers(BaseHTTPRequestHandler):
    proxy: ScriptedProxy
    protocol_version = "HTTP/1.1"
    timeout = 10.0

    def do_GET(self) -> None:
        self.close_connection = True
        self._keep()
        parts = urlsplit(self.path)
        port = self.proxy.routes.get(parts.hostname or "")
        if port is None:
            self._refuse()
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request(self.command, target, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {*_HOP_BY_HOP, "server", "date"}:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self) -> None:
        self.close_connection = True
        self._keep()
        port = self.proxy.routes.get(self.path.partition(":")[0])
        if port is None:
            self._refuse()
            return
        with socket.create_connection(("127.0.0.1", port), timeout=10) as upstream:
            self.send_response(200)
            self.end_headers()
            _relay(self.connection, upstream)

    def _keep(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.proxy.requests.append((self.command, self.path, headers))

    def _refuse(self) -> None:
        self.send_response(502)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


def _relay(left: socket.socket, right: socket.socket) -> None:
    """Bytes in both directions, until one side ends."""
    other = {left: right, right: left}
    while True:
        readable, _, _ = select.select([left, right], [], [], 10)
        if not readable:
            return
        for source in readable:
            try:
                content = source.recv(1 << 16)
                if not content:
                    return
                other[source].sendall(content)
            except OSError:
                return
