"""One request on its way: where it may go, with what secrets, how slow its answer may be, who may end it.

Owns the checks of addresses (S07, K08, S10) and the context variable in which connections find their call,
since the libraries between the door and its connections pass nothing through. Imports errors, addresses, pace
and rules. Who makes calls: `transport.py`; who obeys them: `connections.py`.
"""

from __future__ import annotations

import contextvars
import socket
from collections.abc import Callable
from typing import Final, TypeAlias

import attrs

from runner.errors import AddressRefused
from runner.registry.abort import Abort
from runner.registry.addresses import Place, Resolver, is_loopback, refusal_of
from runner.registry.pace import Pace
from runner.registry.rules import Authority, Endpoint, NetworkRules

Dial: TypeAlias = Callable[[Place, float], socket.socket]
"""Connect to one address within so many seconds; raises OSError."""

_PLACES_MAX: Final = 8  # of one name; more are not tried
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


def dial_directly(place: Place, timeout_s: float) -> socket.socket:
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
        host = self.target.host.rstrip(".")
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
