"""What carries requests out: oras's client over a session of requests over our guarded connections.

Owns the settings of those libraries: no redirects, cookies or `.netrc` of theirs, no retries, proxies by the
rules. Imports connections, calls and tls. Loaded with the first request, by `transport.py`: the libraries
take a tenth of a second.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final, cast

import oras.provider
import requests
from oras.auth.base import AuthBackend
from requests.adapters import HTTPAdapter

from runner.errors import StoreError
from runner.registry import connections
from runner.registry.call import current
from runner.registry.rules import NetworkRules
from runner.registry.tls import TlsContexts

if TYPE_CHECKING:
    from runner.registry.transport import StreamedBody

_SEND_BYTES: Final = 64 << 10  # a piece must leave within the connect timeout
_POOLS_MAX: Final = 32  # servers that connections are kept for
_KEPT_PER_POOL: Final = 16


class Carried:
    """An answer as the libraries have it; `body` is read, `keep` or `drop` ends it."""

    def __init__(self, response: requests.Response) -> None:
        self._raw: Any = response.raw
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.body: connections.PacedAnswer = cast(Any, response.raw).paced

    def keep(self) -> None:
        """Give the connection back for the next request, if the body is over; else drop it."""
        self.body.finish_if_empty()
        if self.body.isclosed():
            self._raw.release_conn()
        self._raw.close()

    def drop(self) -> None:
        """Close the connection."""
        self._raw.close()


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
        return host_params, {"ssl_context": self._tls.context(current().target)}

    def clear(self) -> None:
        """Close idle connections; one in use is closed when it would be kept."""
        self.poolmanager.clear()
        for manager in tuple(self.proxy_manager.values()):
            manager.clear()

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Nothing: the context of the pool decides."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        call = current()
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


class Carrier(oras.provider.Registry):  # type: ignore[misc]  # oras has no types
    """oras's client with our session under it, for one request at a time and without its pauses of 131 s."""

    def __init__(self, rules: NetworkRules) -> None:
        super().__init__()
        logging.getLogger("urllib3").setLevel(
            logging.ERROR
        )  # below that it logs URLs, signatures included (K01)
        self._adapter = adapter = _Adapter(rules)
        session = _Session()
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        session.adapters.clear()
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        session.headers.clear()
        self.session: requests.Session = session
        self.auth = _NoAuthentication()
        self._unretried = oras.provider.Registry.do_request.__wrapped__

    def rest(self) -> None:
        """Close the connections that are kept and not in use."""
        self._adapter.clear()

    def close(self) -> None:
        """Close the connections that are kept."""
        self.session.close()

    def carry(
        self, method: str, url: str, headers: dict[str, str], body: bytes | StreamedBody | None
    ) -> Carried:
        """Send a request under the call of this thread. Raises whatever the libraries do."""
        data = body if body is None or isinstance(body, bytes) else _SentBody(body)
        try:
            response = self._unretried(self, url, method, data=data, headers=headers, stream=True)
        except _Challenged as challenged:
            response = challenged.response
        return Carried(response)
