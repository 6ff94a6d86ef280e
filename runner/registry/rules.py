"""Where requests go and what the user allows on the way: hosts, schemes, mirrors, certificates. Pure.

Owns the types every request is described with. Imports errors and addresses. Who enforces the rules:
`runner/registry/transport.py`; where settings become a `NetworkRules`: `runner/daemon.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

import attrs

from runner.errors import InvalidReference
from runner.oci.reference import DEFAULT_REGISTRY
from runner.registry.addresses import is_loopback_name, literal_address
from runner.registry.proxies import Proxies

_PORTS: Final = {"http": 80, "https": 443}
_HUB_API_HOST: Final = "registry-1.docker.io"
_URL_LENGTH_MAX: Final = 16384  # signed download links have 1 to 4 KB


class BadUrl(ValueError):
    """Text that is no plain http or https URL; the message does not repeat it."""


@attrs.frozen
class Authority:
    """Whom one talks to: scheme, host (lower case, no brackets) and port. Secrets are bound to one."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Self:
        """The authority of an absolute URL. Raises BadUrl.

        Stricter than the libraries below: what they might read in two ways is no URL here.
        """
        if len(url) > _URL_LENGTH_MAX:
            raise BadUrl(f"a URL of {len(url)} characters")
        if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
            raise BadUrl("a URL with characters that do not belong into one")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise BadUrl("a URL with a malformed host or port") from None
        if parts.scheme not in _PORTS:
            raise BadUrl("a URL that is neither http nor https")
        if "@" in parts.netloc or not parts.hostname or "%" in parts.hostname:
            raise BadUrl("a URL with a user name or without a plain host")
        return cls(parts.scheme, parts.hostname, port if port is not None else _PORTS[parts.scheme])

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


@attrs.frozen
class Endpoint:
    """A server that the user named, by a model's name or in a setting; `registry` is the name for messages.

    Every host that is not `authority` was named by somebody else, and is checked (S07). Logins are kept under
    `login_name`.
    """

    registry: str
    authority: Authority
    prefix: str = ""
    """The path before `/v2`; begins with a slash when there is one."""
    login_name: str = attrs.field(default=attrs.Factory(lambda self: self.registry, takes_self=True))

    @classmethod
    def of_url(cls, url: str, *, registry: str | None = None) -> Self:
        """The endpoint at a URL from the settings, `/v2` at its end left out. Raises BadUrl."""
        authority = Authority.of(url)
        prefix = urlsplit(url).path.rstrip("/").removesuffix("/v2")
        return cls(registry or authority.netloc, authority, prefix)

    def url(self, path: str) -> str:
        """The URL of an absolute path below the endpoint."""
        return f"{self.authority}{self.prefix}{path}"

    @property
    def is_loopback(self) -> bool:
        return is_loopback_name(self.authority.host)


@attrs.frozen(kw_only=True)
class NetworkRules:
    """What the user allows. Registries are written as in model names: `reg.example:5000`, `docker.io`.

    `insecure` are spoken to over plain http, and get no credentials. `unverified` are spoken to over TLS
    whose certificates nobody checks. `ca_files` are PEM files trusted beside the system's, for a registry or
    a host. `allowed_private` are hosts, or `host:port`, that a registry which itself lies at a private
    address may send us to. `mirrors` are URLs or hosts tried first for pulls. `realms` are hosts of token
    servers that a registry may name beside its own. Machines at loopback addresses speak plain http, unless
    they have a CA file or are listed in `unverified`.
    """

    insecure: frozenset[str] = frozenset()
    unverified: frozenset[str] = frozenset()
    ca_files: Mapping[str, Path] = attrs.field(factory=dict)
    allowed_private: frozenset[str] = frozenset()
    mirrors: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    realms: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    proxies: Proxies = attrs.field(factory=Proxies)
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    user_agent: str = "runner"

    def endpoint(self, registry: str) -> Endpoint:
        """Where the registry of this name answers. Raises InvalidReference when the name is no host."""
        host = _HUB_API_HOST if registry == DEFAULT_REGISTRY else registry
        try:
            return Endpoint.of_url(f"{self._scheme(registry)}://{host}", registry=registry)
        except BadUrl as error:
            raise InvalidReference(registry, str(error)) from None

    def _scheme(self, registry: str) -> str:
        if registry in self.ca_files or registry in self.unverified:
            return "https"
        host = host_of(registry)
        return "http" if registry in self.insecure or is_loopback_name(host) else "https"

    def pull_endpoints(self, registry: str) -> tuple[Endpoint, ...]:
        """The mirrors of the registry in order, then the registry itself."""
        mirrors = tuple(self._mirror(text, registry) for text in self.mirrors.get(registry, ()))
        return (*mirrors, self.endpoint(registry))

    def _mirror(self, text: str, registry: str) -> Endpoint:
        url = text if "://" in text else f"{self._scheme(text)}://{text}"
        mirror = Endpoint.of_url(url)
        return attrs.evolve(mirror, registry=f"{registry} (mirror {mirror.login_name})")

    def ca_file(self, authority: Authority) -> Path | None:
        """The CA file for this server, by host and port or by host."""
        return self.ca_files.get(f"{authority.host}:{authority.port}") or self.ca_files.get(authority.host)

    def is_unverified(self, authority: Authority) -> bool:
        return bool({authority.netloc, f"{authority.host}:{authority.port}"} & self.unverified)

    def is_allowed_private(self, host: str, port: int) -> bool:
        return bool({host, f"{host}:{port}"} & self.allowed_private)


def host_of(registry: str) -> str:
    """The host of `host[:port]`, without brackets."""
    if literal_address(registry) is not None:
        return registry.removeprefix("[").removesuffix("]")
    host, colon, port = registry.rpartition(":")
    host = host if colon and port.isdigit() else registry
    return host.removeprefix("[").removesuffix("]")
