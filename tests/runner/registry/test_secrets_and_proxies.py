"""Which secrets of the user's surroundings reach whom: `.netrc`, proxy variables, tokens (K09, S10)."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from runner.errors import AddressRefused, RegistryUnavailable
from runner.oci.reference import Reference
from runner.registry.addresses import Place
from runner.registry.huggingface import Hub
from runner.registry.proxies import Proxies
from runner.registry.rules import NetworkRules
from runner.registry.transport import Door
from tests.support.hub import SIGNATURE, ScriptedHub, ScriptedRepository, scripted_hub
from tests.support.proxy import ScriptedProxy, scripted_proxy

NAME = "Org/Tiny-GGUF"
REFERENCE = Reference.parse(f"hf.co/{NAME}")
WEIGHTS = b"weights" * 1000
TOKEN = "hf_tokenCanary41"
PROXY_USER = "proxyCanaryUser:proxyCanary%2FPassword"
PROXY_AUTHORIZATION = "Basic " + base64.b64encode(b"proxyCanaryUser:proxyCanary/Password").decode()
PUBLIC = ip_address("93.184.216.34")


def public(host: str, port: int) -> tuple[Place, ...]:
    """Every name is public, but for the proxy's own address."""
    return (Place(ip_address(host) if host == "127.0.0.1" else PUBLIC, port),)


def fill(hub: ScriptedHub) -> ScriptedRepository:
    return hub.add(ScriptedRepository(name=NAME, files={"a-Q4_0.gguf": WEIGHTS, "LICENSE": b"as you like"}))


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


@pytest.fixture
def hub() -> Iterator[ScriptedHub]:
    with scripted_hub() as running:
        fill(running)
        yield running


@pytest.fixture
def proxy(hub: ScriptedHub) -> Iterator[ScriptedProxy]:
    with scripted_proxy() as running:
        running.routes["hub.example"] = port_of(hub.url)
        running.routes["cdn.example"] = port_of(hub.content_url)
        hub.redirect_to = f"http://cdn.example/{NAME}/a-Q4_0.gguf?X-Signature={SIGNATURE}"
        yield running


def pull(door: Door, endpoint: str, token: str | None = None) -> bytes:
    """The weights of the model, as a pull gets them."""
    client = Hub(door, endpoint=endpoint, token=token)
    selection = client.resolve(REFERENCE, source_text=f"hf.co/{NAME}")
    received = bytearray()
    buffer = bytearray(4096)
    with client.open_file(selection, selection.files[0]) as body:
        while size_bytes := body.readinto(memoryview(buffer)):
            received += buffer[:size_bytes]
    return bytes(received)


def test_K09_netrc_is_not_read(hub: ScriptedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".netrc"
    file.write_text("machine 127.0.0.1 login netrcCanary password netrcCanary\ndefault login x password y\n")
    file.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(file))
    door = Door(NetworkRules(allowed_private=frozenset({urlsplit(hub.content_url).netloc})))
    assert pull(door, hub.url) == WEIGHTS
    door.close()
    assert hub.requests
    assert all("authorization" not in request.headers for request in hub.requests)


def test_K09_variables_that_nobody_handed_over_make_no_proxy(
    hub: ScriptedHub, proxy: ScriptedProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY":
        monkeypatch.setenv(variable, proxy.url(PROXY_USER))
    hub.redirect_to = None
    door = Door(NetworkRules(allowed_private=frozenset({urlsplit(hub.content_url).netloc})))
    assert pull(door, hub.url) == WEIGHTS
    door.close()
    assert proxy.requests == []


def test_K09_this_machine_is_not_reached_through_the_proxy(hub: ScriptedHub, proxy: ScriptedProxy) -> None:
    hub.redirect_to = None
    rules = NetworkRules(
        proxies=Proxies(http=proxy.url(PROXY_USER)),
        allowed_private=frozenset({urlsplit(hub.content_url).netloc}),
    )
    door = Door(rules)
    assert pull(door, hub.url) == WEIGHTS
    door.close()
    assert proxy.requests == []


def test_S10_a_pull_goes_through_a_proxy_at_a_private_address(hub: ScriptedHub, proxy: ScriptedProxy) -> None:
    door = Door(NetworkRules(proxies=Proxies(http=proxy.url(PROXY_USER))), resolve=public)
    assert pull(door, "http://hub.example") == WEIGHTS
    door.close()
    assert [urlsplit(target).netloc for _, target, _ in proxy.requests] == ["hub.example"] * 3 + [
        "cdn.example"
    ]


def test_K09_the_secret_of_the_proxy_reaches_the_proxy_only(hub: ScriptedHub, proxy: ScriptedProxy) -> None:
    door = Door(NetworkRules(proxies=Proxies(http=proxy.url(PROXY_USER))), resolve=public)
    pull(door, "http://hub.example")
    door.close()
    assert {headers.get("proxy-authorization") for _, _, headers in proxy.requests} == {PROXY_AUTHORIZATION}
    assert all("proxy-authorization" not in request.headers for request in hub.requests)
    assert all("authorization" not in headers for _, _, headers in proxy.requests)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_hub(authority: trustme.CA) -> Iterator[ScriptedHub]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hub.example", "cdn.example").configure_cert(context)
    with scripted_hub(context) as running:
        fill(running)
        running.redirect_to = f"https://cdn.example/{NAME}/a-Q4_0.gguf?X-Signature={SIGNATURE}"
        yield running


def test_K09_a_tunnel_hides_the_token_from_the_proxy_and_the_proxys_secret_from_the_hub(
    tls_hub: ScriptedHub, authority: trustme.CA, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(authority.cert_pem.bytes())
    with scripted_proxy() as proxy:
        proxy.routes["hub.example"] = port_of(tls_hub.url)
        proxy.routes["cdn.example"] = port_of(tls_hub.content_url)
        rules = NetworkRules(
            proxies=Proxies(https=proxy.url(PROXY_USER)),
            ca_files={"hub.example": file, "cdn.example": file},
        )
        door = Door(rules, resolve=public)
        assert pull(door, "https://hub.example", TOKEN) == WEIGHTS
        door.close()
        assert {method for method, _, _ in proxy.requests} == {"CONNECT"}
        assert {headers.get("proxy-authorization") for _, _, headers in proxy.requests} == {
            PROXY_AUTHORIZATION
        }
        assert TOKEN not in str(proxy.requests)
    assert {request.headers.get("authorization") for request in tls_hub.seen()} == {f"Bearer {TOKEN}"}
    assert all("authorization" not in request.headers for request in tls_hub.seen("content"))
    assert all("proxy-authorization" not in request.headers for request in tls_hub.requests)


def test_S10_a_target_that_an_answer_named_is_still_checked_behind_a_proxy(
    hub: ScriptedHub, proxy: ScriptedProxy
) -> None:
    def internal(host: str, port: int) -> tuple[Place, ...]:
        return (Place(ip_address("10.0.0.5"), port),) if host == "cdn.example" else public(host, port)

    door = Door(NetworkRules(proxies=Proxies(http=proxy.url())), resolve=internal)
    with pytest.raises(AddressRefused, match=r"cdn\.example, which is at a private address"):
        pull(door, "http://hub.example")
    door.close()
    assert hub.seen("content") == []


def test_K01_a_proxy_that_fails_is_not_named_with_its_secret(hub: ScriptedHub, proxy: ScriptedProxy) -> None:
    door = Door(NetworkRules(proxies=Proxies(http=proxy.url(PROXY_USER))), resolve=public)
    proxy.routes.clear()
    with pytest.raises(RegistryUnavailable) as refused:
        pull(door, "http://hub.example")
    door.close()
    nobody = Door(NetworkRules(proxies=Proxies(http="http://proxyCanaryUser:pw@127.0.0.1:9")), resolve=public)
    with pytest.raises(RegistryUnavailable) as unreachable:
        pull(nobody, "http://hub.example")
    nobody.close()
    for error in refused, unreachable:
        assert "Canary" not in str(error.value)
        assert "Canary" not in repr(error.value)
    assert "Canary" not in repr(nobody.rules)
