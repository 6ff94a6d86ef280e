"""A way to a server on loopback that counts what the server sends, and lets through only so much of it."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
from collections.abc import Iterator


class GatedProxy:
    """Connections to `netloc` lead to the server. `passed_bytes` is what the server has sent through; beyond
    `limit_bytes` it waits until the limit is raised."""

    def __init__(self, server: str, *, limit_bytes: float = math.inf) -> None:
        self._server = server
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._is_closing = False
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.passed_bytes = 0
        self._start(self._accept)

    @property
    def netloc(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def limit(self, limit_bytes: float = math.inf) -> None:
        """How much may pass from now on, beginning to count anew."""
        with self._changed:
            self.passed_bytes, self._limit_bytes = 0, limit_bytes
            self._changed.notify_all()

    def wait_until_full(self) -> None:
        """Until as much has passed as may."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.passed_bytes >= self._limit_bytes, timeout=60)

    def close(self) -> None:
        with self._changed:
            self._is_closing = True
            for each in (self._listener, *self._sockets):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        host, _, port = self._server.rpartition(":")
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection((host, int(port)))
            with self._changed:
                self._sockets += [client, server]
                if self._is_closing:
                    return
            self._start(self._forward, client, server, False)
            self._start(self._forward, server, client, True)

    def _forward(self, source: socket.socket, target: socket.socket, is_gated: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 18):
                if is_gated and not self._pass(len(piece)):
                    break
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pass(self, size_bytes: int) -> bool:
        """Wait for room; False when the proxy ends first."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing or self.passed_bytes < self._limit_bytes)
            self.passed_bytes += size_bytes
            self._changed.notify_all()
            return not self._is_closing


@contextlib.contextmanager
def gated_proxy(server: str, *, limit_bytes: float = math.inf) -> Iterator[GatedProxy]:
    """Runs until the block ends; no thread or socket is left."""
    proxy = GatedProxy(server, limit_bytes=limit_bytes)
    try:
        yield proxy
    finally:
        proxy.close()
