"""The one door out: every request of this program to another machine goes through `Door.request` (S07–S11).

Owns redirects, where secrets may go, sizes and encodings of answers. Imports calls, rules and pace. How
requests are carried: `carrier.py`. What is asked of registries through it: `client.py`; of hubs:
`huggingface.py`. Everything blocks, for threads; `Abort` ends it from outside.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, BinaryIO, Final, Self
from urllib.parse import urljoin

import attrs

from runner.errors import RegistryError, RegistryUnavailable, RunnerError
from runner.registry import addresses
from runner.registry.abort import Abort
from runner.registry.call import Call, Dial, Wiring, begin, dial_directly, finish
from runner.registry.pace import HEADERS_S, Pace
from runner.registry.rules import Authority, BadUrl, Endpoint, NetworkRules

if TYPE_CHECKING:
    from runner.registry.carrier import Carried, Carrier

REDIRECTS_MAX: Final = 5
SMALL_ANSWER_BYTES_MAX: Final = 64 << 10
SMALL_ANSWER_S: Final = 120.0
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_KEEPS_METHOD: Final = (307, 308)
_SECRET_HEADERS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})


@attrs.frozen
class Authorization:
    """An Authorization header and the only server that may see it. `is_secret`: not over plain http (K08)."""

    value: str = attrs.field(repr=False)
    authority: Authority
    is_secret: bool = True


@attrs.frozen
class StreamedBody:
    """A request body of known length that is read piece by piece, and anew for every attempt to send it.

    `open_source()` gives a file at its first byte; `on_sent` is told the bytes sent so far.
    """

    size_bytes: int
    open_source: Callable[[], BinaryIO]
    on_sent: Callable[[int], None] | None = None


class Answer:
    """The answer to one request; close it, or read it to its end. A context manager.

    `authority` is the server that gave it, after redirects.
    """

    def __init__(self, carried: Carried, call: Call) -> None:
        self._carried = carried
        self._call = call
        self.status = carried.status
        self.headers = carried.headers
        self.authority = call.target
        self.registry = call.origin.registry

    @property
    def content_length(self) -> int | None:
        """The announced length; None when there is none. Raises RegistryError for what is no length."""
        text = self.headers.get("Content-Length")
        if text is None or self.headers.get("Transfer-Encoding"):
            return None
        if not (text.isascii() and text.isdigit()) or len(text) > 18:
            self._give_up()
            raise RegistryError(self.registry, "it announced a length that is no number")
        return int(text)

    def readinto(self, buffer: memoryview) -> int:
        """At least one byte of the body; 0 at its end, which may have come too early.

        Raises RegistryUnavailable when the server broke off or is too slow, TransferAborted.
        """
        try:
            return self._carried.body.read_some(buffer)
        except Exception as error:
            self._give_up()
            raise _translated(error, self._call) from None

    def read_small(self, limit_bytes: int = SMALL_ANSWER_BYTES_MAX) -> bytes:
        """The whole body, which is read to one byte beyond the limit at most (S04).

        Raises RegistryError above the limit, RegistryUnavailable when it is cut short, TransferAborted.
        """
        announced_bytes = self.content_length
        if announced_bytes is not None and announced_bytes > limit_bytes:
            self._give_up()
            raise RegistryError(
                self.registry, f"it announced {announced_bytes} bytes; the limit is {limit_bytes}"
            )
        buffer = memoryview(bytearray(min(limit_bytes, announced_bytes or limit_bytes) + 1))
        size_bytes = 0
        while size_bytes < len(buffer) and (read_bytes := self.readinto(buffer[size_bytes:])):
            size_bytes += read_bytes
        if size_bytes > limit_bytes:
            self._give_up()
            raise RegistryError(self.registry, f"it sent more than the limit of {limit_bytes} bytes")
        if announced_bytes is not None and size_bytes != announced_bytes:
            self._give_up()
            raise RegistryUnavailable(
                self.registry, f"it broke off after {size_bytes} of {announced_bytes} bytes"
            )
        self.close()
        return bytes(buffer[:size_bytes])

    def discard(self) -> None:
        """Read a small body to its end, so that the connection can be kept; raises nothing."""
        with contextlib.suppress(RunnerError):
            self.read_small()
        self.close()

    def close(self) -> None:
        """Keep the connection when the body was read to its end, else close it. May be called twice."""
        self._call.release()
        self._carried.keep()

    def _give_up(self) -> None:
        self._call.release()
        self._carried.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Answer {self.status} from {self.authority}>"


class Door:
    """Sends requests out, under the rules. Thread-safe. `close` it in the end.

    `resolve`, `dial` and `clock` are those of the system unless a test brings its own.
    """

    def __init__(
        self,
        rules: NetworkRules,
        *,
        resolve: addresses.Resolver = addresses.resolve,
        dial: Dial = dial_directly,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules = rules
        self._wiring = Wiring(resolve=resolve, dial=dial, clock=clock)
        self._lock = threading.Lock()
        self._carrier: Carrier | None = None

    def request(
        self,
        method: str,
        url: str,
        *,
        origin: Endpoint,
        headers: Mapping[str, str] | None = None,
        body: bytes | StreamedBody | None = None,
        authorization: Authorization | None = None,
        abort: Abort | None = None,
        is_body_secret: bool = False,
        is_small: bool = True,
        head_s: float = HEADERS_S,
    ) -> Answer:
        """The answer, whatever its status, after at most five redirects; its body is not yet read.

        `origin` is the server the user named; every other host is checked, whether it stands in `url` or in
        a redirect. `authorization` goes to its own authority only, and no further than the first redirect
        that leaves it. `is_body_secret` holds the body to the same rules. `is_small`: the
        answer must have come whole within two minutes. `head_s` is how long the
        head may take.

        Raises RegistryUnavailable when another attempt may help, AddressRefused, RegistryError,
        TransferAborted.
        """
        abort = abort or Abort()
        target = self._first_target(url, origin)
        for n_redirects in range(REDIRECTS_MAX + 1):
            if authorization is not None and authorization.authority != target:
                authorization = None  # for good, also when a later redirect leads back (S08)
            call = Call(
                rules=self.rules,
                wiring=self._wiring,
                origin=origin,
                target=target,
                is_secret=is_body_secret or (authorization is not None and authorization.is_secret),
                abort=abort,
                pace=Pace(head_s=head_s, total_s=head_s + SMALL_ANSWER_S if is_small else None),
            )
            answer = self._send(call, method, url, self._headers(headers, authorization), body)
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or location is None:
                return self._checked(answer)
            answer.close()
            if answer.status not in _KEEPS_METHOD and method not in ("GET", "HEAD"):
                raise RegistryError(
                    origin.registry, f"it answered {method} with the redirect {answer.status}"
                )
            url = _joined(url, location)
            next_target = self._next_target(target, url, origin)
            if is_body_secret and next_target != target:
                raise RegistryError(origin.registry, f"it redirects a secret to {next_target.netloc}")
            target = next_target
            if n_redirects == REDIRECTS_MAX:
                break
        raise RegistryError(origin.registry, f"it redirected more than {REDIRECTS_MAX} times")

    def _first_target(self, url: str, origin: Endpoint) -> Authority:
        try:
            target = Authority.of(url)
        except BadUrl as error:
            raise RegistryError(origin.registry, f"it named {error}") from None
        if target.scheme == "http" and origin.authority.scheme == "https":
            raise RegistryError(origin.registry, f"it leads from https to plain http at {target.netloc}")
        return target

    def _next_target(self, last: Authority, url: str, origin: Endpoint) -> Authority:
        target = self._first_target(url, origin)
        if target.scheme == "http" and last.scheme == "https":
            raise RegistryError(origin.registry, f"it redirects from https to plain http at {target.netloc}")
        return target

    def _send(
        self, call: Call, method: str, url: str, headers: dict[str, str], body: bytes | StreamedBody | None
    ) -> Answer:
        call.abort.raise_if_aborted()
        carrier = self._loaded()
        token = begin(call)
        try:
            carried = carrier.carry(method, url, headers, body)
            call.pace.begin_body()
            return Answer(carried, call)
        except Exception as error:
            call.release()
            raise _translated(error, call) from None
        finally:
            finish(token)

    def _loaded(self) -> Carrier:
        with self._lock:
            if self._carrier is None:
                from runner.registry.carrier import Carrier

                self._carrier = Carrier(self.rules)
            return self._carrier

    def _checked(self, answer: Answer) -> Answer:
        encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            answer.close()
            raise RegistryError(answer.registry, "it sent a compressed answer, which nobody asked for")
        return answer

    def _headers(
        self, headers: Mapping[str, str] | None, authorization: Authorization | None
    ) -> dict[str, str]:
        if not _SECRET_HEADERS.isdisjoint(name.lower() for name in headers or ()):
            raise ValueError("secrets are given as `authorization`, which knows where they may go")
        sent = {"Accept-Encoding": "identity", "User-Agent": self.rules.user_agent, **(headers or {})}
        if authorization is not None:
            sent["Authorization"] = authorization.value
        return sent

    def rest(self) -> None:
        """Close the connections that are kept for later, but not those in use; the door stays open.

        For when nothing is going on: a server closes what is idle after a while, and this end would stay.
        """
        with self._lock:
            if self._carrier is not None:
                self._carrier.rest()

    def close(self) -> None:
        """Close the connections that are kept."""
        with self._lock:
            if self._carrier is not None:
                self._carrier.close()


def _translated(error: Exception, call: Call) -> Exception:
    from runner.registry.faults import translated  # as late as the libraries it knows

    return translated(error, call)


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        return location  # refused where it is parsed
