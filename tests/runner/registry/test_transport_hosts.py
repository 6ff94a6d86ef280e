"""Where the door lets requests go, and with which secrets: S07, S08, S10, K08, K09."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trustme

from runner.errors import AddressRefused, RegistryError, RegistryUnavailable
from runner.registry.proxies import Proxies
from runner.registry.rules import Authority, Endpoint, NetworkRules
from runner.registry.transport import Authorization, Door
from tests.support.hostile_registry import redirect
from tests.support.proxy import scripted_proxy
from tests.support.registry_client import open_door
from tests.support.scripted_http import FakeNetwork, Reply, Request, ScriptedServer

OWN, CDN = "93.184.216.34", "93.184.216.35"
"""Public addresses: of the registry the user named, and of a host that an answer names."""


@attrs.frozen
class Scene:
    """A registry `reg.example` of the user's, and a content server `cdn.example`."""

    registry: ScriptedServer
    content: ScriptedServer
    network: FakeNetwork
    door: Door
    origin: Endpoint

    def get(self, path: str = "/start", authorization: Authorization | None = None) -> bytes:
        request = self.door.request(
            "GET", self.origin.url(path), origin=self.origin, authorization=authorization
        )
        with request as answer:
            return answer.read_small()

    def seen_by(self, server: ScriptedServer, header: str = "authorization") -> list[str | None]:
        return [request.headers.get(header) for request in server.requests]


@contextlib.contextmanager
def scene(
    location: str = "http://cdn.example/blob",
    *,
    cdn: tuple[str, ...] = (CDN,),
    own: tuple[str, ...] = (OWN,),
    rules: NetworkRules | None = None,
) -> Iterator[Scene]:
    """The registry redirects every request for `/start` to `location`."""

    def answer(request: Request) -> Reply:
        return redirect(location) if request.path == "/start" else Reply(200, b"own")

    rules = rules or NetworkRules()
    rules = attrs.evolve(rules, insecure=rules.insecure | {"reg.example"})
    with ScriptedServer(answer) as registry, ScriptedServer(lambda _request: Reply(200, b"cdn")) as content:
        servers = dict.fromkeys(own, registry.port) | dict.fromkeys(cdn, content.port)
        network = FakeNetwork({"reg.example": own, "cdn.example": cdn}, servers)
        with open_door(rules, network) as door:
            yield Scene(registry, content, network, door, rules.endpoint("reg.example"))


# S07


def test_S07_a_redirect_to_a_public_host_is_followed() -> None:
    with scene() as this:
        assert this.get() == b"cdn"
        assert this.network.dialled == [OWN, CDN]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fd00::1",
        "::",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:93.184.216.35",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "::127.0.0.1",
    ],
)
def test_S07_a_redirect_to_any_other_address_is_refused_before_it_is_dialled(address: str) -> None:
    for location in (
        f"http://{f'[{address}]' if ':' in address else address}/blob",
        "http://cdn.example/blob",
    ):
        with scene(location, cdn=(address,)) as this:
            with pytest.raises(AddressRefused) as caught:
                this.get()
            assert this.network.dialled == [OWN]
            assert "reg.example" in str(caught.value)
            assert this.content.requests == []


@pytest.mark.parametrize(
    "addresses", [(CDN, "10.0.0.1"), ("10.0.0.1", CDN), (CDN, "::1"), (CDN,) * 8 + ("10.0.0.1",)]
)
def test_S07_all_addresses_of_a_name_must_pass(addresses: tuple[str, ...]) -> None:
    with scene(cdn=addresses) as this:
        with pytest.raises(AddressRefused):
            this.get()
        assert this.network.dialled == [OWN]


def test_S07_the_connection_goes_to_the_address_that_was_checked() -> None:
    """A name that means something else when it is asked for again gains nothing."""
    with scene() as this:
        answers = iter([(CDN,), ("127.0.0.1",), ("127.0.0.1",)])
        looked_up = this.network.resolve

        def resolve(host: str, port: int) -> tuple[object, ...]:
            if host == "cdn.example":
                this.network.addresses[host] = next(answers)
            return looked_up(host, port)

        this.door._wiring = attrs.evolve(this.door._wiring, resolve=resolve)
        assert this.get() == b"cdn"
        assert this.network.dialled == [OWN, CDN]


def test_S07_a_kept_connection_is_checked_again_for_who_may_use_it() -> None:
    """The user's own request may go to a private host; a redirect to it may not, over that connection."""
    with scene("http://cdn.example/blob", cdn=("10.0.0.1",)) as this:
        own = Endpoint.of_url("http://cdn.example")
        with this.door.request("GET", own.url("/"), origin=own) as answer:
            assert answer.read_small() == b"cdn"
        with pytest.raises(AddressRefused):
            this.get()
        assert len(this.content.requests) == 1


def test_S07_the_users_own_registry_may_lie_anywhere() -> None:
    with scene("/own", own=("10.0.0.1",)) as this:
        assert this.get() == b"own"


def test_S07_another_port_of_the_users_own_host_is_another_host() -> None:
    with scene("http://reg.example:8080/x", own=("10.0.0.1",)) as this:
        with pytest.raises(AddressRefused, match=r"reg\.example:8080"):
            this.get()


@pytest.mark.parametrize("allowed", ["cdn.example", "cdn.example:80"])
@pytest.mark.parametrize(("own", "is_refused"), [("10.0.0.1", False), (OWN, True)])
def test_S07_a_private_host_is_reached_if_the_user_allowed_it_and_the_registry_is_private_too(
    allowed: str, own: str, is_refused: bool
) -> None:
    rules = NetworkRules(allowed_private=frozenset({allowed}))
    with scene(cdn=("10.0.0.2",), own=(own,), rules=rules) as this:
        if is_refused:
            with pytest.raises(AddressRefused):
                this.get()
        else:
            assert this.get() == b"cdn"


@pytest.mark.parametrize("allowed", ["other.example", "cdn.example:81", "example", "10.0.0.2"])
def test_S07_what_the_user_allowed_is_no_more_than_that(allowed: str) -> None:
    rules = NetworkRules(allowed_private=frozenset({allowed}))
    with scene(cdn=("10.0.0.2",), own=("10.0.0.1",), rules=rules) as this:
        with pytest.raises(AddressRefused):
            this.get()


@pytest.mark.parametrize(
    "location",
    [
        "ftp://cdn.example/",
        "file:///etc/passwd",
        "http://user:canary@cdn.example/",
        "http://cdn.example\\@127.0.0.1/",
        "http://[::1/",
        "http://cdn.example:99999/",
    ],
)
def test_S07_a_location_that_is_no_plain_url_is_refused(location: str) -> None:
    with scene(location) as this:
        with pytest.raises(RegistryError) as caught:
            this.get()
        assert not isinstance(caught.value, RegistryUnavailable)
        assert "canary" not in str(caught.value)
        assert this.network.dialled == [OWN]


def test_S07_a_host_that_the_layers_below_write_otherwise_is_refused() -> None:
    with scene("http://cdn.example./blob") as this:
        this.network.addresses["cdn.example."] = (CDN,)
        with pytest.raises(AddressRefused, match="read in two ways"):
            this.get()
        assert this.network.dialled == [OWN]


def test_S07_a_url_in_an_answer_is_checked_like_a_redirect() -> None:
    with scene(cdn=("10.0.0.1",)) as this:
        with pytest.raises(AddressRefused):
            this.door.request("PUT", "http://cdn.example/upload", origin=this.origin, body=b"x")
        with pytest.raises(AddressRefused):
            this.door.request("GET", "http://127.0.0.1:2375/containers/json", origin=this.origin)


# S08


def chain(length: int) -> ScriptedServer:
    """Redirects `/<n>` to `/<n - 1>`, and answers `/0`."""

    def answer(request: Request) -> Reply:
        number = int(request.path[1:])
        return redirect(f"/{number - 1}") if number else Reply(200, b"arrived")

    return ScriptedServer(answer)


@pytest.mark.parametrize(("length", "is_refused"), [(4, False), (5, False), (6, True)])
def test_S08_at_most_5_redirects_are_followed(length: int, is_refused: bool) -> None:
    with chain(length) as server, open_door() as door:
        origin = Endpoint.of_url(server.url)
        if is_refused:
            with pytest.raises(RegistryError, match="more than 5 times"):
                door.request("GET", origin.url(f"/{length}"), origin=origin)
            assert len(server.requests) == 6
        else:
            with door.request("GET", origin.url(f"/{length}"), origin=origin) as answer:
                assert answer.read_small() == b"arrived"


SECRET = "Bearer canary"


def secret_for(authority: Authority, *, is_secret: bool = False) -> Authorization:
    return Authorization(SECRET, authority, is_secret=is_secret)


@pytest.mark.parametrize(
    ("location", "is_sent"),
    [
        ("/own", True),
        ("http://reg.example/own", True),
        ("http://reg.example:80/own", True),
        ("http://REG.example/own", True),
        ("http://reg.example:8080/own", False),
        ("http://cdn.example/blob", False),
        ("http://sub.reg.example/own", False),
    ],
)
def test_S08_secrets_leave_at_the_first_change_of_scheme_host_or_port(location: str, is_sent: bool) -> None:
    with scene(location) as this:
        this.network.addresses["sub.reg.example"] = (OWN,)
        this.get(authorization=secret_for(this.origin.authority))
        seen = this.seen_by(this.registry) + this.seen_by(this.content)
        assert seen == [SECRET, SECRET if is_sent else None]


def test_S08_secrets_do_not_come_back_with_a_redirect_home() -> None:
    with scene("http://cdn.example/blob") as this:
        this.content.answer = lambda _request: redirect("http://reg.example/own")
        assert this.get(authorization=secret_for(this.origin.authority)) == b"own"
        assert this.seen_by(this.registry) == [SECRET, None]
        assert this.seen_by(this.content) == [None]


def test_S08_a_secret_for_one_server_is_sent_to_no_other_from_the_start() -> None:
    with scene() as this:
        this.door.request(
            "PUT",
            "http://cdn.example/upload",
            origin=this.origin,
            body=b"x",
            authorization=secret_for(this.origin.authority),
        ).close()
        assert this.seen_by(this.content) == [None]


def test_S08_a_secret_in_a_body_is_not_redirected_elsewhere() -> None:
    with scene(own=("127.0.0.1",)) as this:
        with pytest.raises(RegistryError, match=r"redirects a secret to cdn\.example"):
            this.door.request(
                "POST", this.origin.url("/start"), origin=this.origin, body=b"x", is_body_secret=True
            )
        assert this.content.requests == []


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def tls_for(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, key_type=trustme.KeyType.ECDSA).configure_cert(context)
    return context


@contextlib.contextmanager
def tls_registry(
    authority: trustme.CA, rules: NetworkRules, *names: str, location: str | None = None
) -> Iterator[tuple[Door, Endpoint, FakeNetwork, ScriptedServer]]:
    reply = Reply(200, b"hello") if location is None else redirect(location)
    with ScriptedServer(lambda _request: reply, tls=tls_for(authority, *names)) as server:
        network = FakeNetwork({"reg.example": (OWN,), "cdn.example": (CDN,)}, {OWN: server.port})
        with open_door(rules, network) as door:
            yield door, rules.endpoint("reg.example"), network, server


def test_a_private_ca_is_trusted_for_the_registry_it_is_configured_for(
    authority: trustme.CA, ca_file: Path
) -> None:
    rules = NetworkRules(ca_files={"reg.example": ca_file})
    with tls_registry(authority, rules, "reg.example") as (door, origin, _, _):
        with door.request("GET", origin.url("/"), origin=origin) as answer:
            assert answer.read_small() == b"hello"


def test_K08_a_certificate_that_nobody_vouches_for_is_refused(authority: trustme.CA, ca_file: Path) -> None:
    rules = NetworkRules(ca_files={"other.example": ca_file})
    with tls_registry(authority, rules, "reg.example") as (door, origin, _, server):
        with pytest.raises(RegistryError, match=r"certificate of reg\.example is not valid") as caught:
            door.request("GET", origin.url("/"), origin=origin)
        assert not isinstance(caught.value, RegistryUnavailable)
        assert server.requests == []


def test_K08_a_certificate_of_another_name_is_refused_though_the_address_is_right(
    authority: trustme.CA, ca_file: Path
) -> None:
    rules = NetworkRules(ca_files={"reg.example": ca_file})
    with tls_registry(authority, rules, "other.example", OWN) as (door, origin, _, _):
        with pytest.raises(RegistryError, match="not valid"):
            door.request("GET", origin.url("/"), origin=origin)


def test_K08_verification_is_switched_off_for_one_registry_and_visibly(
    authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    rules = NetworkRules(unverified=frozenset({"reg.example"}))
    with tls_registry(authority, rules, "other.example") as (door, origin, network, server):
        with door.request("GET", origin.url("/"), origin=origin) as answer:
            assert answer.read_small() == b"hello"
        assert "certificates of reg.example are not verified" in caplog.text
        network.servers[CDN] = server.port
        with pytest.raises(RegistryError, match="not valid"):
            door.request("GET", "https://cdn.example/", origin=origin)


def test_a_ca_file_that_is_none_is_told(authority: trustme.CA, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for path in (broken, tmp_path / "missing.pem"):
        with tls_registry(authority, NetworkRules(ca_files={"reg.example": path}), "reg.example") as parts:
            door, origin, _, _ = parts
            with pytest.raises(RegistryError, match="its CA file cannot be read"):
                door.request("GET", origin.url("/"), origin=origin)


@pytest.mark.parametrize("location", ["http://cdn.example/blob", "http://reg.example/blob"])
def test_S08_https_is_not_left_for_http(authority: trustme.CA, ca_file: Path, location: str) -> None:
    rules = NetworkRules(ca_files={"reg.example": ca_file})
    with tls_registry(authority, rules, "reg.example", location=location) as (door, origin, network, _):
        with pytest.raises(RegistryError, match="plain http"):
            door.request("GET", origin.url("/"), origin=origin)
        with pytest.raises(RegistryError, match="plain http"):
            door.request("GET", location, origin=origin)
        assert network.dialled == [OWN]


def test_S08_https_is_not_left_for_http_behind_a_registry_without_tls(
    authority: trustme.CA, ca_file: Path
) -> None:
    rules = NetworkRules(ca_files={"cdn.example": ca_file})
    tls = tls_for(authority, "cdn.example")
    with ScriptedServer(lambda _request: redirect("http://reg.example/own"), tls=tls) as content:
        with scene("https://cdn.example/blob", rules=rules) as this:
            this.network.servers[CDN] = content.port
            with pytest.raises(RegistryError, match="redirects from https to plain http"):
                this.get()
            assert len(content.requests) == 1
            assert len(this.registry.requests) == 1


# K08: secrets and plain http


def test_K08_credentials_go_over_plain_http_to_this_machine_only() -> None:
    with scene("/own") as this:
        with pytest.raises(AddressRefused, match=r"not sent over plain http to reg\.example"):
            this.get(authorization=secret_for(this.origin.authority, is_secret=True))
        assert this.network.dialled == []
        assert this.get() == b"own"
        with pytest.raises(AddressRefused, match="plain http"):
            this.get(authorization=secret_for(this.origin.authority, is_secret=True))
        assert this.seen_by(this.registry) == [None, None]
    with scene("/own", own=("127.0.0.1",)) as this:
        assert this.get(authorization=secret_for(this.origin.authority, is_secret=True)) == b"own"


def test_K08_a_name_with_one_address_elsewhere_is_not_this_machine() -> None:
    with scene("/own", own=("127.0.0.1", OWN)) as this:
        with pytest.raises(AddressRefused):
            this.get(authorization=secret_for(this.origin.authority, is_secret=True))


# S10


def proxied(port: int) -> NetworkRules:
    proxy = f"http://127.0.0.1:{port}"
    return NetworkRules(proxies=Proxies(http=proxy, https=proxy))


@pytest.mark.parametrize("host", ["10.0.0.1", "127.0.0.2", "[::1]", "169.254.169.254", "inner.example"])
def test_S10_a_target_at_a_private_address_is_refused_before_the_proxy_is_asked(host: str) -> None:
    with scripted_proxy() as proxy:
        with scene(f"http://{host}/x", rules=proxied(proxy.port)) as this:
            proxy.routes["reg.example"] = this.registry.port
            this.network.addresses["inner.example"] = ("10.0.0.1",)
            with pytest.raises(AddressRefused):
                this.get()
            assert len(proxy.requests) == 1


@pytest.mark.parametrize(
    "host",
    [
        "metadata",
        "metadata.google.internal",
        "nas.local",
        "db.lan",
        "x.home.arpa",
        "nas.local.",
        "localhost.",
    ],
)
def test_S10_an_internal_name_that_only_the_proxy_can_resolve_is_refused(host: str) -> None:
    with scripted_proxy() as proxy:
        with scene(f"http://{host}/x", rules=proxied(proxy.port)) as this:
            proxy.routes["reg.example"] = this.registry.port
            with pytest.raises(AddressRefused, match="an internal name"):
                this.get()
            assert len(proxy.requests) == 1


def test_S10_a_public_name_that_only_the_proxy_can_resolve_is_asked_for() -> None:
    with scripted_proxy() as proxy:
        with scene("http://cdn.example/x", rules=proxied(proxy.port)) as this:
            proxy.routes.update({"reg.example": this.registry.port, "cdn.example": this.content.port})
            this.network.addresses.clear()
            assert this.get() == b"cdn"
            assert set(this.network.dialled) == {"127.0.0.1"}


def test_K08_no_credentials_in_the_clear_through_a_proxy() -> None:
    with scripted_proxy() as proxy:
        with scene("/own", rules=proxied(proxy.port)) as this:
            for addresses in ((OWN,), None):
                if addresses is None:
                    this.network.addresses.clear()
                with pytest.raises(AddressRefused, match="plain http"):
                    this.get(authorization=secret_for(this.origin.authority, is_secret=True))
            assert proxy.requests == []
