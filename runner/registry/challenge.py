"""What a registry says it wants (WWW-Authenticate), and which token servers it may name (S09). Pure.

Imports rules. RFC 9110 section 11.6.1 is the grammar. Who answers challenges: `tokens.py` beside this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import attrs

from runner.registry.rules import Authority, Endpoint, NetworkRules

_LENGTH_MAX: Final = 8192
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME: Final = re.compile(rf"[\s,]*({_WORD})(?=\s|,|$)")
_PARAMETER: Final = re.compile(rf'[\s,]*({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))(?=\s|,|$)')
_TOKEN68: Final = re.compile(r"\s*[A-Za-z0-9._~+/-]+=*(?=\s|,|$)")
_ESCAPED: Final = re.compile(r"\\(.)")

_KNOWN_REALMS: Final[Mapping[str, tuple[str, ...]]] = {
    "registry-1.docker.io": ("auth.docker.io",),
    "registry.gitlab.com": ("gitlab.com",),
    "docker.elastic.co": ("docker-auth.elastic.co",),
    "registry.digitalocean.com": ("api.digitalocean.com",),
}
"""Registries whose token servers have names that do not show they belong together."""


@attrs.frozen
class Challenge:
    """One way to authenticate: the scheme and the names of the parameters in lower case."""

    scheme: str
    parameters: Mapping[str, str] = attrs.field(factory=dict)


def parse_challenges(text: str) -> tuple[Challenge, ...]:
    """The challenges in a header, or in several joined by commas; none from what is malformed."""
    if len(text) > _LENGTH_MAX:
        return ()
    found: list[Challenge] = []
    position = 0
    while text[position:].strip(" \t,"):
        scheme = _SCHEME.match(text, position)
        if scheme is None:
            return ()
        parameters, position = _parameters(text, scheme.end())
        found.append(Challenge(scheme[1].lower(), parameters))
    return tuple(found)


def _parameters(text: str, position: int) -> tuple[dict[str, str], int]:
    parameters: dict[str, str] = {}
    while (matched := _PARAMETER.match(text, position)) is not None:
        name = matched[1].lower()
        value = _ESCAPED.sub(r"\1", matched[2]) if matched[2] is not None else matched[3]
        parameters.setdefault(name, value)
        position = matched.end()
    if not parameters and (token68 := _TOKEN68.match(text, position)) is not None:
        position = token68.end()
    return parameters, position


def is_realm_allowed(realm: Authority, endpoint: Endpoint, rules: NetworkRules) -> bool:
    """Whether a registry may have its tokens from there, with or without credentials.

    1. Never over plain http when the registry itself speaks TLS.
    2. A host of the registry's own: the same, one below it, or the one it is below. Names that only share
       their ending may belong to different people.
    3. A pair that is known, or that the user configured.
    """
    own = endpoint.authority
    if realm.scheme == "http" and own.scheme == "https":
        return False
    if realm.host == own.host or realm.host.endswith(f".{own.host}"):
        return True
    if "." in realm.host and own.host.endswith(f".{realm.host}"):
        return True
    if realm.host in _KNOWN_REALMS.get(own.host, ()):
        return True
    configured = (*rules.realms.get(endpoint.registry, ()), *rules.realms.get(own.netloc, ()))
    return realm.host in configured or realm.netloc in configured
