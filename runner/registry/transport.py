"""The one door out: every request of this program to another machine goes through `Door.request` (S07–S11).

Owns redirects, where secrets may go, sizes and encodings of answers, and the session of oras that carries the
requests out. Imports the modules of connections, rules and pace. What is asked of registries through it:
`client.py`; of hubs: `huggingface.py`. Everything blocks, for threads; `Abort` ends it from outside.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any, BinaryIO, Final, Self, cast
from urllib.parse import urljoin

import attrs
import oras.provider
import requests
from oras.auth.base import AuthBackend
from requests.adapters import HTTPAdapter

from runner.errors import RegistryError, RegistryUnavailable, RunnerError, StoreError
from runner.registry import addresses, connections
from runner.registry.abort import Abort
from runner.registry.connections import Call, PacedAnswer, Wiring
from runner.registry.faults import translated
from runner.registry.pace import HEADERS_S, Pace
from runner.registry.rules import Authority, BadUrl, Endpoint, NetworkRules
from runner.registry.tls import TlsContexts

REDIRECTS_MAX: Final = 5
SMALL_ANSWER_BYTES_MAX: Final = 64 << 10
SMALL_ANSWER_S: Final = 120.0
_SEND_BYTES: Final = 64 << 10  # a piece must leave within the connect timeout
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_KEEPS_METHOD: Final = (307, 308)
_POOLS_MAX: Final = 32  # servers that connections are kept for
_KEPT_PER_POOL: Final = 16


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

    def __init__(self, response: requests.Response, call: Call) -> None:
        self._response = response
        self._call = call
        self._paced: PacedAnswer = cast(Any, response.raw).paced
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
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
            return self._paced.read_some(buffer)
        except Exception as error:
            self._give_up()
            raise translated(error, self._call) from None

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
        self._paced.finish_if_empty()
        if self._paced.isclosed():
            self._response.raw.release_conn()
        self._response.close()

    def _give_up(self) -> None:
        self._call.release()
        self._response.raw.close()

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
        dial: connections.Dial = connections.dial,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        logging.getLogger("urllib3").setLevel(
            logging.ERROR
        )  # below that it logs URLs, signatures included (K01)
        self.rules = rules
        self._wiring = Wiring(resolve=resolve, dial=dial, clock=clock)
        self._adapter = _Adapter(rules)
        self._carrier = _Carrier(self._adapter)

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
        token = connections.begin(call)
        try:
            response = self._carrier.carry(
                method, url, headers, _SentBody(body) if isinstance(body, StreamedBody) else body
            )
            call.pace.begin_body()
            return Answer(response, call)
        except Exception as error:
            call.release()
            raise translated(error, call) from None
        finally:
            connections.finish(token)

    def _checked(self, answer: Answer) -> Answer:
        encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            answer.close()
            raise RegistryError(answer.registry, "it sent a compressed answer, which nobody asked for")
        return answer

    def _headers(
        self, headers: Mapping[str, str] | None, authorization: Authorization | None
    ) -> dict[str, str]:
        sent = {"Accept-Encoding": "identity", "User-Agent": self.rules.user_agent, **(headers or {})}
        if authorization is not None:
            sent["Authorization"] = authorization.value
        return sent

    def close(self) -> None:
        """Close the connections that are kept."""
        self._carrier.session.close()


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        return location  # refused where it is parsed


class _SentBody:
    """What requests takes for a body of known length. One send reads it once."""

    def __init__(self, body: StreamedBody) -> None:
        self._body = body

    def __len__(self) -> int:
        return self._body.size_bytes

    def __iter__(self) -> Iterator[bytes]:
        left_bytes = self._body.size_bytes
        with self._body.open_source() as source:
            while left_bytes:
                piece = source.read(min(_SEND_BYTES, left_bytes))
                if not piece:
                    raise StoreError("the file to send is shorter than it was")
                yield piece
                left_bytes -= len(piece)
                if self._body.on_sent is not None:
                    self._body.on_sent(self._body.size_bytes - left_bytes)


class _Adapter(HTTPAdapter):
    """Sends what the session prepared over guarded connections, through a proxy where the rules say so."""

    def __init__(self, rules: NetworkRules) -> None:
        self._rules = rules
        self._tls = TlsContexts(rules)
        super().__init__(pool_connections=_POOLS_MAX, pool_maxsize=_KEPT_PER_POOL)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = connections.POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = connections.POOLS
        return manager

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host_params, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        if host_params["scheme"] != "https":
            return host_params, {}
        return host_params, {"ssl_context": self._tls.context(connections.current().target)}

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Nothing: the context of the pool decides."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        call = connections.current()
        target = call.target
        proxy = self._rules.proxies.for_target(target.scheme, target.host, target.port)
        if proxy is not None:
            call.check_before_proxy()
        kwargs["proxies"] = {target.scheme: proxy} if proxy is not None else {}
        kwargs["timeout"] = (self._rules.connect_timeout_s, max(self._rules.read_timeout_s, call.pace.head_s))
        kwargs["stream"] = True  # else the whole body would be read into memory
        return super().send(request, *args, **kwargs)


class _Session(requests.Session):
    """No redirects, no cookies, nothing from the environment or `.netrc` (K09): the door does all that."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None


class _Challenged(Exception):
    def __init__(self, response: requests.Response) -> None:
        super().__init__("the server wants credentials")
        self.response = response


class _NoAuthentication(AuthBackend):  # type: ignore[misc]  # oras has no types
    """Hands 401 and 403 back: who may see which secret is not for a library to decide."""

    def authenticate_request(self, original: requests.Response, *_args: Any, **_kwargs: Any) -> Any:
        raise _Challenged(original)


class _Carrier(oras.provider.Registry):  # type: ignore[misc]  # oras has no types
    """oras's client with our session under it, for one request at a time and without its pauses of 131 s."""

    def __init__(self, adapter: _Adapter) -> None:
        super().__init__()
        session = _Session()
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        session.adapters.clear()
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        session.headers.clear()
        self.session: requests.Session = session
        self.auth = _NoAuthentication()
        self._unretried = oras.provider.Registry.do_request.__wrapped__

    def carry(self, method: str, url: str, headers: dict[str, str], body: Any) -> requests.Response:
        try:
            response = self._unretried(self, url, method, data=body, headers=headers, stream=True)
        except _Challenged as challenged:
            response = challenged.response
        assert isinstance(response, requests.Response)
        return response
