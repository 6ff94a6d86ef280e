"""Which addresses an answer may send us to (S07). Pure, except for `resolve`, which asks the system.

Owns the list of ranges that are not the public internet. Imports nothing of ours. Who applies it, to every
address of a name and to the one connected to: `runner/registry/connections.py`.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Final, TypeAlias

import attrs

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_REFUSED_V4: Final = (
    ("0.0.0.0/8", "unspecified"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared"),  # carrier-grade NAT, and where several VPNs put their hosts
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),  # clouds serve their credentials there
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "reserved"),
    ("192.0.2.0/24", "reserved"),
    ("192.88.99.0/24", "reserved"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "private"),
    ("198.51.100.0/24", "reserved"),
    ("203.0.113.0/24", "reserved"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
)
_REFUSED_V6: Final = (
    ("::1/128", "loopback"),
    ("::/128", "unspecified"),
    ("::/96", "v4-in-v6"),  # v4-compatible
    ("::ffff:0:0/96", "v4-in-v6"),  # v4-mapped
    ("::ffff:0:0:0/96", "v4-in-v6"),  # v4-translated
    ("64:ff9b::/96", "v4-in-v6"),  # NAT64
    ("64:ff9b:1::/48", "v4-in-v6"),  # NAT64, local use
    ("100::/64", "reserved"),
    ("2001::/32", "v4-in-v6"),  # Teredo
    ("2001:2::/48", "reserved"),
    ("2001:10::/28", "reserved"),
    ("2001:20::/28", "reserved"),
    ("2001:db8::/32", "reserved"),
    ("2002::/16", "v4-in-v6"),  # 6to4
    ("3fff::/20", "reserved"),
    ("5f00::/16", "reserved"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "private"),  # site-local, no longer in use and still routed by some
    ("ff00::/8", "multicast"),
)
_ISATAP: Final = (0x00005EFE, 0x02005EFE)  # the upper half of an interface id that ends in a v4 address

REFUSED: Final = tuple(
    (ipaddress.ip_network(network), kind) for network, kind in (*_REFUSED_V4, *_REFUSED_V6)
)
"""From the registries of special-purpose addresses (RFC 6890 and its successors), the first match telling."""


@attrs.frozen
class Place:
    """One address of a host, with its port, as the socket API wants it."""

    address: IpAddress
    port: int
    scope_id: int = 0

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET if self.address.version == 4 else socket.AF_INET6

    @property
    def sockaddr(self) -> tuple[str, int] | tuple[str, int, int, int]:
        if self.address.version == 4:
            return str(self.address), self.port
        return str(self.address), self.port, 0, self.scope_id


Resolver: TypeAlias = Callable[[str, int], tuple[Place, ...]]
"""Every address of a host; raises OSError when there is none. Blocks like the system's resolver."""


def resolve(host: str, port: int) -> tuple[Place, ...]:
    """What the system says, in its order of preference; old spellings such as `0x7f.1` included."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return tuple(dict.fromkeys(_place(sockaddr) for *_, sockaddr in found))


def _place(sockaddr: tuple[object, ...]) -> Place:
    text, port = str(sockaddr[0]).partition("%")[0], int(str(sockaddr[1]))
    scope_id = int(str(sockaddr[3])) if len(sockaddr) == 4 else 0
    return Place(ipaddress.ip_address(text), port, scope_id)


def refusal_of(address: IpAddress) -> str | None:
    """The kind of an address that answers may not name (`loopback`, `private`, …); None for others."""
    for network, kind in REFUSED:
        if address.version == network.version and address in network:
            return kind
    if isinstance(address, ipaddress.IPv6Address) and (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return "v4-in-v6"
    return None


def is_loopback(address: IpAddress) -> bool:
    return address.is_loopback


def is_loopback_name(host: str) -> bool:
    """Whether a host, as it is written, means this machine: `localhost`, `127.…`, `::1`."""
    if host == "localhost":
        return True
    literal = literal_address(host)
    return literal is not None and is_loopback(literal)


def literal_address(host: str) -> IpAddress | None:
    """The address that this text is, with or without the brackets of a URL; None for a name."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
