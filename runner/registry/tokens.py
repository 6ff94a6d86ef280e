"""Answers to challenges: Basic, and Bearer with tokens from the registry's token server, kept while valid.

Owns the tokens. Imports challenge, rules, the door and where credentials are found. Thread-safe: of many
threads that need one token, one fetches it.
"""

from __future__ import annotations

import base64
import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeAlias
from urllib.parse import urlencode

import attrs
import orjson

from runner.domain.transfer import RemoteCredentials
from runner.errors import RegistryError, RegistryUnauthorized
from runner.registry.abort import Abort
from runner.registry.challenge import Challenge, is_realm_allowed, parse_challenges
from runner.registry.refusals import error_of
from runner.registry.rules import Authority, BadUrl, Endpoint
from runner.registry.transport import Answer, Authorization, Door

GRANTS_MAX: Final = 64
_TOKEN_LENGTH_MAX: Final = 32 << 10
_LIFETIME_MIN_S: Final = 60  # the token specification's default, and the least it lets servers mean
_LIFETIME_MAX_S: Final = 24 * 3600
_LIFETIME_SHARE: Final = 0.9  # used so long, since the server's clock began before ours
_LOOK_AROUND_S: Final = 0.1  # who waits for a token of another thread may be given up meanwhile
_CLIENT_ID: Final = "runner"

Scopes: TypeAlias = tuple[str, ...]
"""Such as `repository:ai/smollm2:pull`."""


class FindsCredentials(Protocol):
    """Where credentials come from: `credentials.py`."""

    def find(self, registry: str) -> RemoteCredentials | None: ...


@attrs.frozen
class _Key:
    authority: Authority
    scopes: Scopes
    identity: RemoteCredentials | None


@attrs.frozen
class _Grant:
    authorization: Authorization
    expires_s: float


class Authenticator:
    """Knows, or finds out, which Authorization a request to a registry needs."""

    def __init__(self, door: Door, credentials: FindsCredentials, *, clock: Callable[[], float]) -> None:
        self._door = door
        self._credentials = credentials
        self._clock = clock
        self._lock = threading.Lock()
        self._grants: OrderedDict[_Key, _Grant] = OrderedDict()
        self._fetching: dict[Authority, threading.Lock] = {}

    def identity(self, endpoint: Endpoint, given: RemoteCredentials | None) -> RemoteCredentials | None:
        """As whom to talk to this server: what came with the request, else what the user has for it."""
        if given is not None and not given.is_empty:
            return given
        return self._credentials.find(endpoint.login_name)

    def known(
        self, endpoint: Endpoint, scopes: Scopes, identity: RemoteCredentials | None
    ) -> Authorization | None:
        """What to send before having been asked; None while nothing is known.

        Raises RegistryUnauthorized for a given token that cannot be sent.
        """
        if identity is not None and identity.bearer_token is not None:
            if not _is_token(identity.bearer_token):
                raise RegistryUnauthorized(endpoint.registry, "the given token holds what no token does")
            return _bearer(identity.bearer_token, endpoint.authority, is_secret=True)
        with self._lock:
            key = _Key(endpoint.authority, scopes, identity)
            grant = self._grants.get(key)
            if grant is None or self._clock() >= grant.expires_s:
                return None
            self._grants.move_to_end(key)
            return grant.authorization

    def answer_to(
        self,
        challenged: Answer,
        endpoint: Endpoint,
        scopes: Scopes,
        identity: RemoteCredentials | None,
        *,
        used: Authorization | None,
        abort: Abort,
    ) -> Authorization | None:
        """What to send after a 401; None when there is nothing better than what was `used`.

        Raises RegistryUnauthorized when the token server refuses, RegistryError for a realm that is not the
        registry's, and what a request raises.
        """
        challenges = {
            each.scheme: each for each in parse_challenges(challenged.headers.get("WWW-Authenticate", ""))
        }
        if identity is not None and identity.bearer_token is not None:
            return None
        key = _Key(endpoint.authority, scopes, identity)
        with self._fetching_alone(endpoint.authority, abort):
            newer = self.known(endpoint, scopes, identity)
            if newer is not None and newer != used:
                return newer
            if "bearer" in challenges:
                grant = self._fetch(challenges["bearer"], endpoint, scopes, identity, abort)
            elif "basic" in challenges and identity is not None and identity.password is not None:
                authorization = _basic(identity, endpoint.authority)
                if authorization == used:
                    self._forget(key)
                    return None
                grant = _Grant(authorization, float("inf"))
            else:
                return None
            self._keep(key, grant)
        return grant.authorization

    @contextlib.contextmanager
    def _fetching_alone(self, authority: Authority, abort: Abort) -> Iterator[None]:
        with self._lock:
            if len(self._fetching) > GRANTS_MAX:
                self._fetching = {each: lock for each, lock in self._fetching.items() if lock.locked()}
            lock = self._fetching.setdefault(authority, threading.Lock())
        while not lock.acquire(timeout=_LOOK_AROUND_S):
            abort.raise_if_aborted()
        try:
            yield
        finally:
            lock.release()

    def _keep(self, key: _Key, grant: _Grant) -> None:
        with self._lock:
            self._grants[key] = grant
            self._grants.move_to_end(key)
            while len(self._grants) > GRANTS_MAX:
                self._grants.popitem(last=False)

    def _forget(self, key: _Key) -> None:
        with self._lock:
            self._grants.pop(key, None)

    def _fetch(
        self,
        challenge: Challenge,
        endpoint: Endpoint,
        scopes: Scopes,
        identity: RemoteCredentials | None,
        abort: Abort,
    ) -> _Grant:
        realm = challenge.parameters.get("realm", "")
        authority = self._realm_authority(realm, endpoint)
        asked_s = self._clock()
        fields = [("service", challenge.parameters["service"])] if "service" in challenge.parameters else []
        if identity is not None and identity.identity_token is not None:
            answer = self._exchange(
                realm, fields, scopes, identity.identity_token, endpoint, authority, abort
            )
        else:
            answer = self._ask(realm, fields, scopes, identity, endpoint, authority, abort)
        if answer.status == 401:
            answer.close()
            fault = "needs a login" if identity is None else "does not accept the credentials"
            raise RegistryUnauthorized(
                endpoint.registry,
                f"its token server {fault}; `runner ctl login {endpoint.login_name}` logs in",
            )
        if answer.status != 200:
            raise error_of(answer, "a token", login_name=endpoint.login_name)
        token, lifetime_s = _read_token(answer.read_small(), endpoint)
        authorization = _bearer(token, endpoint.authority, is_secret=identity is not None)
        return _Grant(authorization, asked_s + lifetime_s * _LIFETIME_SHARE)

    def _realm_authority(self, realm: str, endpoint: Endpoint) -> Authority:
        try:
            authority = Authority.of(realm)
        except BadUrl as error:
            raise RegistryError(endpoint.registry, f"it names as its token server {error}") from None
        if not is_realm_allowed(authority, endpoint, self._door.rules):
            raise RegistryError(
                endpoint.registry,
                f"{endpoint.authority} names {authority} as its token server, not known to belong to it; "
                "if it does, `registry_realms` in the settings allows it",
            )
        return authority

    def _ask(
        self,
        realm: str,
        fields: list[tuple[str, str]],
        scopes: Scopes,
        identity: RemoteCredentials | None,
        endpoint: Endpoint,
        authority: Authority,
        abort: Abort,
    ) -> Answer:
        has_password = identity is not None and identity.password is not None
        query = urlencode([*fields, *(("scope", scope) for scope in scopes)])
        separator = "&" if "?" in realm else "?"
        return self._door.request(
            "GET",
            f"{realm}{separator}{query}" if query else realm,
            origin=endpoint,
            authorization=_basic(identity, authority) if identity is not None and has_password else None,
            abort=abort,
        )

    def _exchange(
        self,
        realm: str,
        fields: list[tuple[str, str]],
        scopes: Scopes,
        identity_token: str,
        endpoint: Endpoint,
        authority: Authority,
        abort: Abort,
    ) -> Answer:
        """The refresh flow of the token specification; the secret stands in the body."""
        form = [
            ("grant_type", "refresh_token"),
            *fields,
            ("client_id", _CLIENT_ID),
            ("scope", " ".join(scopes)),
            ("refresh_token", identity_token),
        ]
        return self._door.request(
            "POST",
            realm,
            origin=endpoint,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            body=urlencode(form).encode(),
            is_body_secret=True,
            abort=abort,
        )


def _read_token(content: bytes, endpoint: Endpoint) -> tuple[str, float]:
    """The token and its lifetime in seconds."""
    try:
        document = orjson.loads(content)
        token = document.get("token") or document.get("access_token")
        lifetime_s = document.get("expires_in")
    except (ValueError, AttributeError):
        raise RegistryError(endpoint.registry, "its token server answered with something else") from None
    if not isinstance(token, str) or not _is_token(token):
        raise RegistryError(endpoint.registry, "its token server gave no usable token")
    if type(lifetime_s) is not int:
        lifetime_s = _LIFETIME_MIN_S
    return token, float(min(max(lifetime_s, _LIFETIME_MIN_S), _LIFETIME_MAX_S))


def _is_token(text: str) -> bool:
    """Whether this can stand in a header, and after `Bearer`."""
    return 0 < len(text) <= _TOKEN_LENGTH_MAX and text.isascii() and text.isprintable() and " " not in text


def _bearer(token: str, authority: Authority, *, is_secret: bool) -> Authorization:
    return Authorization(f"Bearer {token}", authority, is_secret=is_secret)


def _basic(identity: RemoteCredentials, authority: Authority) -> Authorization:
    pair = f"{identity.username or ''}:{identity.password or ''}".encode()
    return Authorization(f"Basic {base64.b64encode(pair).decode()}", authority)
