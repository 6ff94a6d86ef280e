"""A token server as registries name them: tokens for scopes, by password, by identity token or to anybody."""

from __future__ import annotations

import base64
import itertools
import json
import ssl
from urllib.parse import parse_qsl, urlsplit

from tests.support.scripted_http import Reply, Request, ScriptedServer, Talk


class TokenServer(ScriptedServer):
    """Gives tokens that a `RegistryServer` checks. Without `password` and `identity_token` anybody gets one.

    `expires_in_s` is what it says; `revoke` is how a token really ends.
    """

    service = "a registry"

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        password: str | None = None,
        identity_token: str | None = None,
        expires_in_s: int | None = 300,
        realm_url: str | None = None,
    ) -> None:
        super().__init__(self._answer, tls=tls)
        self.password = password
        self.identity_token = identity_token
        self.expires_in_s = expires_in_s
        self.scopes: dict[str, tuple[str, ...]] = {}
        self._realm_url = realm_url
        self._numbers = itertools.count(1)

    @property
    def realm(self) -> str:
        return f"{self._realm_url or self.url}/token"

    def is_valid(self, token: str, scope: str) -> bool:
        granted = self.scopes.get(token)
        if granted is None:
            return False
        return not scope or any(_covers(one, scope) for one in granted)

    def revoke(self) -> None:
        """Every token so far is worth nothing."""
        self.scopes.clear()

    def _answer(self, request: Request) -> Reply | Talk:
        if request.method == "POST":
            form = dict(parse_qsl(request.body.decode()))
            if form.get("refresh_token") != self.identity_token or form.get("grant_type") != "refresh_token":
                return Reply(401, b"{}")
            return self._grant(tuple(form.get("scope", "").split()), "access_token")
        if self.password is not None:
            wanted = "Basic " + base64.b64encode(f"user:{self.password}".encode()).decode()
            if request.headers.get("authorization") != wanted:
                return Reply(401, b"{}")
        pairs = parse_qsl(urlsplit(request.target).query)
        return self._grant(tuple(value for name, value in pairs if name == "scope"), "token")

    def _grant(self, scopes: tuple[str, ...], member: str) -> Reply:
        token = f"token-{next(self._numbers)}"
        self.scopes[token] = scopes
        document: dict[str, object] = {member: token}
        if self.expires_in_s is not None:
            document["expires_in"] = self.expires_in_s
        return Reply(200, json.dumps(document).encode())


def _covers(granted: str, wanted: str) -> bool:
    resource, _, actions = granted.rpartition(":")
    wanted_resource, _, wanted_actions = wanted.rpartition(":")
    return resource == wanted_resource and set(wanted_actions.split(",")) <= set(actions.split(","))
