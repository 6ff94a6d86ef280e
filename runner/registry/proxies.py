"""Which proxy a request goes through. Pure; the variables are read by the daemon and given as a mapping.

Documented and tested because a wrong rule sends secrets elsewhere (K09): `HTTP_PROXY`, `HTTPS_PROXY` and
`NO_PROXY`, the lower-case spelling winning. This machine is never asked for through a proxy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Self

import attrs

from runner.registry.addresses import is_loopback_name, literal_address


@attrs.frozen(kw_only=True)
class Proxies:
    """Proxy URLs by the scheme of the target. They may hold passwords and are never shown."""

    http: str | None = attrs.field(default=None, repr=False)
    https: str | None = attrs.field(default=None, repr=False)
    no_proxy: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """What the usual variables say; an empty one counts as absent."""

        def value(name: str) -> str | None:
            return environment.get(name) or environment.get(name.upper()) or None

        everywhere = value("all_proxy")
        return cls(
            http=value("http_proxy") or everywhere,
            https=value("https_proxy") or everywhere,
            no_proxy=tuple(
                entry.strip().lower() for entry in (value("no_proxy") or "").split(",") if entry.strip()
            ),
        )

    def for_target(self, scheme: str, host: str, port: int) -> str | None:
        """The URL of the proxy for this target, None to go there directly.

        1. This machine is reached directly.
        2. So is what `NO_PROXY` lists: `*`, a domain with everything below it, an address, a network in CIDR
           notation; each but the last with or without a port.
        3. Everything else takes the proxy of its scheme.
        """
        host = host.lower().removeprefix("[").removesuffix("]")
        if is_loopback_name(host) or any(_covers(entry, host, port) for entry in self.no_proxy):
            return None
        proxy = self.https if scheme == "https" else self.http
        if proxy is not None and "://" not in proxy:
            proxy = f"http://{proxy}"
        return proxy


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    address = literal_address(host)
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, port_text = _split_port(entry)
    if port_text and port_text != str(port):
        return False
    if address is not None:
        return address == literal_address(name)
    name = name.removeprefix("*").removeprefix(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _split_port(entry: str) -> tuple[str, str]:
    if literal_address(entry) is not None:  # ::1 has colons and no port
        return entry, ""
    name, colon, port = entry.rpartition(":")
    return (name, port) if colon and port.isdigit() else (entry, "")
