"""The connections under the one door out: every address is checked before, and whenever, it is talked to.

Owns what urllib3 builds connections from: pools, connections, the reader of answers. Each obeys the call of
its thread. Imports errors, addresses and calls. Loaded with the first request, by `carrier.py`.
"""

from __future__ import annotations

import http.client
import io
import socket
from typing import Any, Final, cast

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.response import HTTPResponse

from runner.errors import AddressRefused
from runner.registry.addresses import Place
from runner.registry.call import Call, current

_READ_BUFFER_BYTES: Final = 1 << 16
_CHUNKED_READ_BYTES: Final = 1 << 14  # the library waits until so much is there; at the least rate 16 s


class PacedReader(io.RawIOBase):
    """The socket of an answer, read under its call: every wait is measured, and a thrown abort is told.

    `is_plain`: what comes now is content and nothing else.
    """

    def __init__(self, source: io.RawIOBase, call: Call) -> None:
        self._source = source
        self._call = call
        self.is_plain = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        """As the socket's. Raises TooSlow, TooMuchFraming and TransferAborted besides."""
        clock = self._call.wiring.clock
        began_s = clock()
        try:
            size_bytes = self._source.readinto(buffer)
        except (OSError, ValueError):
            self._call.abort.raise_if_aborted()
            raise
        self._call.abort.raise_if_aborted()
        if self.is_plain:
            self._call.pace.note_content(size_bytes or 0)
        self._call.pace.note(size_bytes or 0, clock() - began_s)
        return size_bytes

    def close(self) -> None:
        if not self.closed:
            self._source.close()
            super().close()


class PacedAnswer(http.client.HTTPResponse):
    """An answer read through a PacedReader, returning what has come instead of waiting for a full buffer."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        raw = cast(io.RawIOBase, sock.makefile("rb", buffering=0))
        self.fp.close()
        self._pace = current().pace
        self._reader = PacedReader(raw, current())
        self.fp = io.BufferedReader(self._reader, _READ_BUFFER_BYTES)

    def read_some(self, buffer: memoryview) -> int:
        """At least one byte into the buffer; 0 at the end, whether that is the announced one or not."""
        if self.isclosed() or not len(buffer):
            return 0
        if self.chunked:
            size_bytes = self.readinto(buffer[:_CHUNKED_READ_BYTES])
            self._pace.note_content(size_bytes)
            return size_bytes
        self._reader.is_plain = True
        size_bytes = self.fp.readinto1(buffer[: self.length])  # all of it when the length is None
        if self.length is not None:
            self.length -= size_bytes
        if not size_bytes or self.length == 0:
            self._finish()
        return size_bytes

    def finish_if_empty(self) -> None:
        """A body that is known to be empty is over before it was read."""
        if not self.isclosed() and self.length == 0:
            self._finish()

    def _finish(self) -> None:
        """The body is over, so that the connection may serve the next request."""
        cast(Any, self)._close_conn()


class _Guard:
    """What both kinds of connection add: only checked addresses, and a socket that the abort can wake."""

    _places: tuple[Place, ...] = ()
    response_class: Any = PacedAnswer

    def _new_conn(self: Any) -> socket.socket:
        call = current()
        if self.proxy is not None:  # the user named it, so its address is not checked; the target's was (S10)
            self._places = ()
            connected = call.connect(call.wiring.resolve(self._dns_host, self.port))
        else:
            self._raise_if_elsewhere(call)
            self._places = call.places()
            connected = call.connect(self._places)
        try:
            call.watch(connected)
        except BaseException:  # given up just now; nobody else knows of the socket yet
            connected.close()
            raise
        return connected

    def connect(self: Any) -> None:
        super().connect()  # type: ignore[misc]  # the connection that this is mixed into
        current().watch(self.sock)  # TLS has put a socket of its own in the place of the first

    def _raise_if_elsewhere(self: Any, call: Call) -> None:
        """What was checked and what is connected to must be the same, however many parsers read the URL."""
        if (self.host.removeprefix("[").removesuffix("]"), self.port) != (call.target.host, call.target.port):
            raise AddressRefused(call.origin.registry, "the address of a request could be read in two ways")

    def request(self: Any, *args: Any, **kwargs: Any) -> None:
        call = current()
        if self.sock is not None:
            if self.proxy is None:  # a connection kept from before, perhaps for somebody who may do more
                self._raise_if_elsewhere(call)
                call.check(self._places)
            call.watch(self.sock)
        super().request(*args, **kwargs)  # type: ignore[misc]  # the connection that this is mixed into

    def getresponse(self: Any) -> Any:
        response: HTTPResponse = super().getresponse()  # type: ignore[misc]
        response.paced = response._original_response  # type: ignore[attr-defined]
        return response


class GuardedConnection(_Guard, HTTPConnection):
    pass


class GuardedTlsConnection(_Guard, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = GuardedConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = GuardedTlsConnection

    def _validate_conn(self, conn: Any) -> None:
        """Connect, without the library's warning about what the user asked for and the log tells."""
        if conn.is_closed:
            conn.connect()


POOLS: Final = {"http": _Pool, "https": _TlsPool}
"""For `pool_classes_by_scheme` of a urllib3 pool manager."""
