"""TLS as the rules want it for each server: the system's certificates, private ones, or none checked.

Imports errors and rules. Contexts are kept, since reading the system's certificates takes milliseconds.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable

import certifi

from runner.errors import RegistryError
from runner.registry.rules import Authority, NetworkRules

log = logging.getLogger(__name__)


class TlsContexts:
    """One TLS context per kind of server; thread-safe."""

    def __init__(self, rules: NetworkRules) -> None:
        self._rules = rules
        self._lock = threading.Lock()
        self._contexts: dict[str, ssl.SSLContext] = {}

    def context(self, authority: Authority) -> ssl.SSLContext:
        """The context for this server. Raises RegistryError when its CA file cannot be read."""
        with self._lock:
            if self._rules.is_unverified(authority):
                return self._kept(f"unverified {authority.netloc}", lambda: _unverified(authority))
            ca_file = self._rules.ca_file(authority)
            if ca_file is None:
                return self._kept("", _verifying)
            return self._kept(f"ca {ca_file}", lambda: _trusting(authority, str(ca_file)))

    def _kept(self, key: str, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        if key not in self._contexts:
            self._contexts[key] = make()
        return self._contexts[key]


def _verifying() -> ssl.SSLContext:
    """What the system trusts, and what Mozilla does: some systems come without certificates."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(certifi.where())
    return context


def _trusting(authority: Authority, ca_file: str) -> ssl.SSLContext:
    context = _verifying()
    try:
        context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError):
        raise RegistryError(authority.netloc, "its CA file cannot be read as PEM certificates") from None
    return context


def _unverified(authority: Authority) -> ssl.SSLContext:
    log.warning("certificates of %s are not verified, as the settings say", authority.netloc)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
