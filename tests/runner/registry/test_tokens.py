from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from runner.domain.transfer import RemoteCredentials
from runner.errors import (
    AddressRefused,
    RegistryDenied,
    RegistryError,
    RegistryUnauthorized,
    RegistryUnavailable,
    TransferAborted,
)
from runner.registry.abort import Abort
from runner.registry.client import RegistryClient
from runner.registry.rules import NetworkRules
from runner.registry.tokens import GRANTS_MAX
from tests.support.registry_client import read_all, registry_client
from tests.support.registry_server import RegistryServer, error_reply
from tests.support.scripted_http import FakeNetwork, Reply, Request, ScriptedServer, SteppingClock
from tests.support.token_server import TokenServer

USER = RemoteCredentials(username="user", password="canary")
LOCAL = frozenset({"127.0.0.1"})
"""Another port of this machine is another host, which a registry of this machine may only name if allowed."""


@contextlib.contextmanager
def token_registry(tokens: TokenServer) -> Iterator[RegistryServer]:
    with tokens, RegistryServer(tokens=tokens) as registry:
        registry.add_model(b"weights")
        yield registry


def client_for(
    registry: RegistryServer,
    login: RemoteCredentials | None = None,
    clock: SteppingClock | None = None,
    rules: NetworkRules | None = None,
) -> contextlib.AbstractContextManager[RegistryClient]:
    logins = {registry.netloc: login} if login is not None else {}
    return registry_client(rules or NetworkRules(allowed_private=LOCAL), clock=clock, logins=logins)


def authorizations(server: ScriptedServer) -> list[str | None]:
    return [request.headers.get("authorization") for request in server.requests]


# Basic


def test_a_password_is_sent_when_it_is_asked_for_and_from_then_on() -> None:
    with RegistryServer(password="canary") as registry:
        registry.add_model(b"weights")
        with client_for(registry, USER) as client:
            client.resolve(registry.reference())
            client.resolve(registry.reference())
        first, *others = authorizations(registry)
        assert first is None
        assert len(others) == 2
        assert all(header is not None and header.startswith("Basic ") for header in others)


@pytest.mark.parametrize("login", [None, RemoteCredentials(username="user", password="wrong")])
def test_a_wrong_or_missing_password_is_told_with_what_to_do(login: RemoteCredentials | None) -> None:
    with RegistryServer(password="canary") as registry, client_for(registry, login) as client:
        for _ in range(2):
            with pytest.raises(RegistryUnauthorized, match=f"`runner ctl login {registry.netloc}`"):
                client.resolve(registry.reference())


def test_credentials_of_a_request_win_over_those_of_the_user() -> None:
    with RegistryServer(password="canary") as registry:
        registry.add_model(b"weights")
        with client_for(registry, RemoteCredentials(username="user", password="old")) as client:
            client.resolve(registry.reference(), given=USER)
            with pytest.raises(RegistryUnauthorized):
                client.resolve(registry.reference())


def test_a_login_is_checked_with_one_request_and_its_answer() -> None:
    with RegistryServer(password="canary") as registry, client_for(registry) as client:
        client.check_login(registry.netloc, USER)
        with pytest.raises(RegistryUnauthorized):
            client.check_login(registry.netloc, RemoteCredentials(username="user", password="wrong"))
        with pytest.raises(RegistryUnauthorized):
            client.check_login(registry.netloc, None)


@pytest.mark.parametrize(("status", "words"), [(404, "no registry at this address"), (500, "500")])
def test_a_login_where_there_is_no_registry_is_told(status: int, words: str) -> None:
    with RegistryServer() as registry, client_for(registry) as client:
        registry.before = lambda _request: Reply(status)
        with pytest.raises(RegistryError, match=words):
            client.check_login(registry.netloc, USER)


def test_who_waits_for_the_token_of_another_thread_may_be_given_up() -> None:
    tokens, abort = TokenServer(), Abort()
    with token_registry(tokens) as registry, client_for(registry) as client:
        answer_tokens, has_asked, may_answer = tokens.answer, threading.Event(), threading.Event()

        def answer(request: Request) -> object:
            has_asked.set()
            may_answer.wait(10)
            return answer_tokens(request)

        tokens.answer = answer
        first = threading.Thread(target=client.resolve, args=(registry.reference(),))
        first.start()
        has_asked.wait(10)
        registry.before = lambda _request: abort.abort()
        with pytest.raises(TransferAborted):
            client.resolve(registry.reference(), abort=abort)
        registry.before = lambda _request: None
        may_answer.set()
        first.join()


# Bearer


def test_S09_an_anonymous_pull_sends_no_credentials_to_the_token_server() -> None:
    tokens = TokenServer()
    with token_registry(tokens) as registry, client_for(registry) as client:
        client.resolve(registry.reference())
        (request,) = tokens.requests
        assert request.query == {"service": "a registry", "scope": "repository:ai/tiny:pull"}
        assert authorizations(tokens) == [None]
        assert authorizations(registry) == [None, "Bearer token-1"]


def test_a_password_is_exchanged_for_a_token_of_just_the_scope_that_is_needed() -> None:
    tokens = TokenServer(password="canary")
    with token_registry(tokens) as registry, client_for(registry, USER) as client:
        client.resolve(registry.reference())
        assert list(tokens.scopes.values()) == [("repository:ai/tiny:pull",)]
        assert authorizations(registry) == [None, "Bearer token-1"]
        assert all("canary" not in str(request.target) for request in tokens.requests)


def test_one_token_serves_a_whole_pull() -> None:
    tokens = TokenServer()
    with token_registry(tokens) as registry, client_for(registry) as client:
        found = client.resolve(registry.reference())
        (layer,) = found.manifest.layers
        for _ in range(3):
            read_all(client, registry.reference(), layer.digest, layer.size_bytes)
        assert len(tokens.requests) == 1


def test_an_identity_token_is_exchanged_in_the_body_and_never_sent_as_a_token() -> None:
    tokens = TokenServer(identity_token="canary", password="nobody has it")
    login = RemoteCredentials(identity_token="canary")
    with token_registry(tokens) as registry, client_for(registry, login) as client:
        client.resolve(registry.reference())
        (request,) = tokens.requests
        assert request.method == "POST"
        assert b"refresh_token=canary" in request.body
        assert authorizations(tokens) == [None]
        assert "canary" not in str(authorizations(registry))


def test_a_bearer_token_of_a_request_is_sent_as_it_is() -> None:
    tokens = TokenServer()
    with token_registry(tokens) as registry, client_for(registry) as client:
        tokens.scopes["mine"] = ("repository:ai/tiny:pull",)
        client.resolve(registry.reference(), given=RemoteCredentials(bearer_token="mine"))
        assert authorizations(registry) == ["Bearer mine"]
        with pytest.raises(RegistryUnauthorized):
            client.resolve(registry.reference(), given=RemoteCredentials(bearer_token="other"))
        assert tokens.requests == []


@pytest.mark.parametrize("token", ["", "a b", "a\r\nX-Injected: b", "ü", "x" * 40_000])
def test_a_given_token_that_could_not_stand_in_a_header_is_not_sent(token: str) -> None:
    with RegistryServer() as registry, client_for(registry) as client:
        with pytest.raises(RegistryUnauthorized):
            client.resolve(registry.reference(), given=RemoteCredentials(bearer_token=token))
        assert registry.requests == []


def test_a_token_that_ends_in_mid_pull_is_fetched_anew() -> None:
    tokens = TokenServer()
    with token_registry(tokens) as registry, client_for(registry) as client:
        found = client.resolve(registry.reference())
        (layer,) = found.manifest.layers
        tokens.revoke()
        assert read_all(client, registry.reference(), layer.digest, layer.size_bytes) == b"weights"
        assert authorizations(registry)[-2:] == ["Bearer token-1", "Bearer token-2"]


@pytest.mark.parametrize(
    ("told_s", "later_s", "n_tokens"),
    [
        (300, 269.0, 1),
        (300, 271.0, 2),
        (None, 53.0, 1),
        (None, 55.0, 2),
        (1, 53.0, 1),
        (-5, 53.0, 1),
        (10**12, 3600.0, 1),
        (10**12, 86400.0, 2),
    ],
)
def test_a_token_is_fetched_anew_before_it_ends(told_s: int | None, later_s: float, n_tokens: int) -> None:
    clock = SteppingClock()
    tokens = TokenServer(expires_in_s=told_s)
    with token_registry(tokens) as registry, client_for(registry, clock=clock) as client:
        client.resolve(registry.reference())
        clock.now_s += later_s
        client.resolve(registry.reference())
        assert len(tokens.requests) == n_tokens


def test_of_many_threads_that_need_one_token_one_fetches_it() -> None:
    tokens = TokenServer()
    with token_registry(tokens) as registry, client_for(registry) as client:
        reference = registry.reference()
        threads = [threading.Thread(target=client.resolve, args=(reference,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(tokens.requests) == 1
        assert authorizations(registry).count("Bearer token-1") == 8


@pytest.mark.parametrize("n_repositories", [GRANTS_MAX - 1, GRANTS_MAX, GRANTS_MAX + 1])
def test_O08_a_bounded_number_of_tokens_is_kept(n_repositories: int) -> None:
    tokens = TokenServer()
    with token_registry(tokens) as registry, client_for(registry) as client:
        for number in range(n_repositories):
            registry.add_model(b"weights", repository=f"ai/model{number}")
            client.resolve(registry.reference(f"ai/model{number}:1"))
        client.resolve(registry.reference("ai/model0:1"))
        assert len(tokens.requests) == n_repositories + (n_repositories > GRANTS_MAX)


def test_a_token_server_that_refuses_the_password_is_told_with_what_to_do() -> None:
    tokens = TokenServer(password="another")
    with token_registry(tokens) as registry, client_for(registry, USER) as client:
        with pytest.raises(RegistryUnauthorized, match=f"`runner ctl login {registry.netloc}`") as caught:
            client.resolve(registry.reference())
        assert "canary" not in str(caught.value)


def test_a_token_that_is_not_enough_is_told_and_fetched_once() -> None:
    tokens = TokenServer()
    with token_registry(tokens) as registry, client_for(registry) as client:
        tokens.is_valid = lambda _token, _scope: False
        with pytest.raises(RegistryUnauthorized):
            client.resolve(registry.reference())
        assert len(tokens.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, b"no json"),
        Reply(200, b"[]"),
        Reply(200, b"{}"),
        Reply(200, b'{"token": 5}'),
        Reply(200, b'{"token": ""}'),
        Reply(200, b'{"token": "a\\r\\nX-Injected: b"}'),
        Reply(200, b'{"token": "a b"}'),
        Reply(200, b'{"token": "\\u00fc"}'),
        Reply(200, b'{"token": "' + b"x" * 40_000 + b'"}'),
        Reply(200, b'{"token": "' + b"x" * 70_000 + b'"}'),
    ],
    ids=["text", "list", "empty", "number", "no token", "newline", "blank", "umlaut", "long", "longer"],
)
def test_S04_what_is_no_token_is_refused(reply: Reply) -> None:
    tokens = TokenServer()
    with token_registry(tokens) as registry, client_for(registry) as client:
        tokens.answer = lambda _request: reply
        with pytest.raises(RegistryError) as caught:
            client.resolve(registry.reference())
        assert not isinstance(caught.value, RegistryUnavailable)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(403, RegistryDenied), (429, RegistryUnavailable), (500, RegistryUnavailable), (400, RegistryError)],
)
def test_S06_a_token_server_that_fails_is_told_like_a_registry_that_does(
    status: int, expected: type[RegistryError]
) -> None:
    tokens = TokenServer()
    with token_registry(tokens) as registry, client_for(registry) as client:
        tokens.answer = lambda _request: error_reply(status, "FAILED", ("Retry-After", "9"))
        with pytest.raises(expected) as caught:
            client.resolve(registry.reference())
        if isinstance(caught.value, RegistryUnavailable):
            assert caught.value.retry_after_s == 9.0


@pytest.mark.parametrize("header", ["", "Negotiate", "Bearer", 'Bearer service="x"', 'Digest realm="x"', '"'])
def test_a_challenge_that_nobody_can_answer_is_a_401(header: str) -> None:
    with RegistryServer() as registry, client_for(registry, USER) as client:
        registry.before = lambda _request: error_reply(401, "UNAUTHORIZED", ("WWW-Authenticate", header))
        with pytest.raises(RegistryError):
            client.resolve(registry.reference())
        assert "canary" not in str(registry.requests)


# Realms


def challenging(realm: str) -> Reply:
    return error_reply(401, "UNAUTHORIZED", ("WWW-Authenticate", f'Bearer realm="{realm}",service="x"'))


@pytest.mark.parametrize("login", [None, USER, RemoteCredentials(identity_token="canary")])
@pytest.mark.parametrize(
    "realm",
    [
        "http://evil.example/token",
        "https://evil.example/token",
        "http://127.0.0.1.evil.example/token",
        "ftp://127.0.0.1/token",
        "//evil.example/token",
        "http://127.0.0.1@evil.example/token",
        "",
    ],
)
def test_S09_a_realm_elsewhere_gets_nothing_not_even_a_request(
    realm: str, login: RemoteCredentials | None
) -> None:
    network = FakeNetwork({"evil.example": ("93.184.216.34",), "127.0.0.1.evil.example": ("93.184.216.34",)})
    with RegistryServer() as registry:
        registry.before = lambda _request: challenging(realm)
        logins = {} if login is None else {registry.netloc: login}
        with registry_client(network=network, logins=logins) as client:
            with pytest.raises(RegistryError) as caught:
                client.resolve(registry.reference())
        assert set(network.dialled) == {"127.0.0.1"}
        assert "canary" not in str(registry.requests)
        assert "canary" not in str(caught.value)


def test_S09_the_message_names_both_hosts() -> None:
    with RegistryServer() as registry, client_for(registry, USER) as client:
        registry.before = lambda _request: challenging("https://evil.example/token")
        with pytest.raises(RegistryError) as caught:
            client.resolve(registry.reference())
        assert "evil.example" in str(caught.value)
        assert registry.netloc in str(caught.value)


def test_S07_a_realm_on_another_port_of_this_machine_must_be_allowed() -> None:
    tokens = TokenServer()
    with token_registry(tokens) as registry:
        with client_for(registry, rules=NetworkRules()) as client:
            with pytest.raises(AddressRefused, match="loopback"):
                client.resolve(registry.reference())
        assert tokens.requests == []


def test_S09_a_password_goes_to_no_realm_over_plain_http_but_on_this_machine() -> None:
    rules = NetworkRules(insecure=frozenset({"reg.example"}))
    with RegistryServer() as registry:
        registry.before = lambda _request: challenging("http://reg.example/token")
        network = FakeNetwork({"reg.example": ("93.184.216.34",)}, {"93.184.216.34": registry.port})
        for login in (USER, RemoteCredentials(identity_token="canary")):
            with registry_client(rules, network, logins={"reg.example": login}) as client:
                with pytest.raises(AddressRefused, match="plain http"):
                    client.check_login("reg.example", None)
        assert [request.path for request in registry.requests] == ["/v2/", "/v2/"]


def test_S08_a_host_that_a_redirect_leads_to_gets_no_answer_to_its_challenge() -> None:
    with ScriptedServer(lambda _request: challenging("https://evil.example/token")) as evil:
        with RegistryServer() as registry:
            digest = registry.add_blob(b"weights")
            location = f"http://cdn.example/{digest}"
            registry.before = lambda _request: Reply(307, b"", (("Location", location),))
            network = FakeNetwork({"cdn.example": ("93.184.216.34",)}, {"93.184.216.34": evil.port})
            logins = {registry.netloc: USER, "cdn.example": USER}
            with registry_client(network=network, logins=logins) as client:
                with pytest.raises(RegistryError):
                    client.open_blob(registry.reference(), digest, 7)
        assert authorizations(evil) == [None]
