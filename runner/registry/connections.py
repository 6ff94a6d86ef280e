"""The connections under the one door out: every address is checked before, and whenever, it is talked to.

Owns what urllib3 builds connections from (pools, connections, the reader of answers) and the `Call` that
each of them obeys. A connection finds its call in a context variable, since the libraries between the door
and here pass nothing through. Imports errors, addresses, pace and rules. The door: `transport.py` beside it.
"""

from __future__ import annotations

import contextvars
import http.client
import io
import socket
from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

import attrs
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.response import HTTPResponse

from runner.errors import AddressRefused
from runner.registry.abort import Abort
from runner.registry.addresses import Place, Resolver, is_loopback, refusal_of
from runner.registry.pace import Pace
from runner.registry.rules import Authority, Endpoint, NetworkRules

Dial: TypeAlias = Callable[[Place, float], socket.socket]
"""Connect to one address within so many seconds; raises OSError."""

_PLACES_MAX: Final = 8  # of one name; more are not tried
_READ_BUFFER_BYTES: Final = 1 << 16
_CHUNKED_READ_BYTES: Final = 1 << 14  # the library waits until so much is there; at the least rate 16 s
_INTERNAL_SUFFIXES: Final = (
    ".localhost",
    ".local",
    ".internal",
    ".lan",
    ".home",
    ".home.arpa",
    ".corp",
    ".intranet",
)


def dial(place: Place, timeout_s: float) -> socket.socket:
    """A TCP connection to this very address."""
    connecting = socket.socket(place.family, socket.SOCK_STREAM)
    try:
        connecting.settimeout(timeout_s)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connecting.connect(place.sockaddr)
    except BaseException:
        connecting.close()
        raise
    return connecting


@attrs.frozen(kw_only=True)
class Wiring:
    """What connections get from outside; tests give their own."""

    resolve: Resolver
    dial: Dial
    clock: Callable[[], float]


@attrs.define(kw_only=True)
class Call:
    """One request on its way to one server: where it may go, how slow it may be, who may end it."""

    rules: NetworkRules
    wiring: Wiring
    origin: Endpoint
    target: Authority
    is_secret: bool
    abort: Abort
    pace: Pace
    _watched: list[socket.socket] = attrs.field(factory=list, init=False)

    def watch(self, held: socket.socket) -> None:
        """The abort wakes this socket until `release`. Raises TransferAborted."""
        self.abort.watch(held)
        self._watched.append(held)

    def release(self) -> None:
        """The connection is done with, or goes back into its pool."""
        for held in self._watched:
            self.abort.release(held)
        self._watched.clear()

    @property
    def is_named_by_user(self) -> bool:
        return self.target == self.origin.authority

    def places(self) -> tuple[Place, ...]:
        """The checked addresses of the target. Raises AddressRefused, and OSError when there are none."""
        self.abort.raise_if_aborted()
        found = self.wiring.resolve(self.target.host, self.target.port)
        if not found:
            raise OSError("the name has no address")
        self.check(found)
        return found[:_PLACES_MAX]

    def check(self, places: tuple[Place, ...]) -> None:
        """Raises AddressRefused.

        1. A secret goes over plain http to this machine only (K08).
        2. A host the user named may lie anywhere.
        3. One that an answer named must have public addresses only (S07), unless the user allowed that very
           host and the registry itself lies at an address of that sort.
        """
        if self.is_secret and self.target.scheme == "http" and not _are_loopback(places):
            raise self._in_the_clear()
        if self.is_named_by_user:
            return
        kinds = [kind for kind in (refusal_of(place.address) for place in places) if kind is not None]
        if kinds and not self._is_allowed():
            raise AddressRefused(
                self.origin.registry,
                f"it sends us to {self.target.netloc}, which is at a {kinds[0]} address; "
                "`private_registries` allows it if that is meant",
            )

    def check_before_proxy(self) -> None:
        """For a target that a proxy is asked for, by name (S10). Raises AddressRefused.

        What this machine can resolve is checked as always. Behind many a proxy it cannot: a name from an
        answer must then at least not look like one of an internal network.
        """
        if self.is_secret and self.target.scheme == "http":
            raise self._in_the_clear()
        try:
            self.places()
        except OSError:
            self._check_unresolved()

    def _in_the_clear(self) -> AddressRefused:
        return AddressRefused(
            self.origin.registry,
            f"credentials are not sent over plain http to {self.target.netloc}; "
            "it needs TLS, for which `registry_ca_files` can name its CA",
        )

    def _check_unresolved(self) -> None:
        host = self.target.host
        if self.is_named_by_user or self._is_allowed():
            return
        if "." not in host or host.endswith(_INTERNAL_SUFFIXES):
            raise AddressRefused(
                self.origin.registry, f"it sends us to {self.target.netloc}, an internal name"
            )

    def _is_allowed(self) -> bool:
        return self.rules.is_allowed_private(self.target.host, self.target.port) and self._is_origin_private()

    def _is_origin_private(self) -> bool:
        own = self.wiring.resolve(self.origin.authority.host, self.origin.authority.port)
        return any(refusal_of(place.address) is not None for place in own)

    def connect(self, places: tuple[Place, ...]) -> socket.socket:
        """A connection to the first of these addresses that accepts one. Raises OSError."""
        last_error: OSError | None = None
        for place in places:
            self.abort.raise_if_aborted()
            try:
                return self.wiring.dial(place, self.rules.connect_timeout_s)
            except OSError as error:
                last_error = error
        raise last_error or OSError("the name has no address")


def _are_loopback(places: tuple[Place, ...]) -> bool:
    return all(is_loopback(place.address) for place in places)


_current: contextvars.ContextVar[Call] = contextvars.ContextVar("call")


def begin(call: Call) -> contextvars.Token[Call]:
    """Connections of this thread obey the call until `finish`."""
    return _current.set(call)


def current() -> Call:
    """The call of this thread."""
    return _current.get()


def finish(token: contextvars.Token[Call]) -> None:
    _current.reset(token)


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
        self._pace = _current.get().pace
        self._reader = PacedReader(raw, _current.get())
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
        call = _current.get()
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
        _current.get().watch(self.sock)  # TLS has put a socket of its own in the place of the first

    def _raise_if_elsewhere(self: Any, call: Call) -> None:
        """What was checked and what is connected to must be the same, however many parsers read the URL."""
        if (self.host.removeprefix("[").removesuffix("]"), self.port) != (call.target.host, call.target.port):
            raise AddressRefused(call.origin.registry, "the address of a request could be read in two ways")

    def request(self: Any, *args: Any, **kwargs: Any) -> None:
        call = _current.get()
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
