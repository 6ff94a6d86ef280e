"""What a request raises when the network fails: the registry's name, a reason, nothing of the libraries."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import pytest

from runner.errors import RegistryError, RegistryUnavailable
from runner.registry.addresses import Place
from runner.registry.rules import NetworkRules
from runner.registry.transport import Door
from tests.support.hostile_registry import closing, redirect
from tests.support.scripted_http import FakeNetwork, ScriptedServer

OWN = "93.184.216.34"


def failing(error: Exception) -> Callable[[Place, float], object]:
    def dial(_place: Place, _timeout_s: float) -> object:
        raise error

    return dial


def ask(door: Door, registry: str = "reg.example") -> None:
    origin = door.rules.endpoint(registry)
    try:
        door.request("GET", origin.url("/v2/?signature=canary"), origin=origin).close()
    finally:
        door.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ConnectionRefusedError(111, "Connection refused"),
            "no connection to the server: Connection refused",
        ),
        (OSError(113, "No route to host"), "no connection to the server: No route to host"),
        (TimeoutError("timed out"), "the server did not answer in time"),
        (ConnectionResetError(104, "reset"), "no connection to the server: Connection reset by peer"),
        (ssl.SSLEOFError(8, "EOF"), "broke off the TLS connection"),
    ],
)
def test_a_connection_that_fails_is_worth_another_attempt(error: Exception, words: str) -> None:
    network = FakeNetwork({"reg.example": (OWN,)})
    with pytest.raises(RegistryUnavailable) as caught:
        ask(Door(NetworkRules(), resolve=network.resolve, dial=failing(error)))
    assert str(caught.value).startswith("reg.example: ")
    assert words in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_name_that_nobody_knows_is_told() -> None:
    with pytest.raises(RegistryUnavailable, match=r"the name reg\.example cannot be resolved"):
        ask(Door(NetworkRules(), resolve=FakeNetwork().resolve))


def test_a_name_without_addresses_is_told() -> None:
    network = FakeNetwork({"reg.example": ()})
    with pytest.raises(RegistryUnavailable):
        ask(Door(NetworkRules(), resolve=network.resolve, dial=network.dial))


def test_every_address_of_the_users_registry_is_tried() -> None:
    with ScriptedServer(lambda _request: closing(b"HTTP/1.1 204 No Content\r\n\r\n")) as server:
        network = FakeNetwork({"reg.example": ("10.0.0.1", "10.0.0.2")}, {"10.0.0.2": server.port})
        rules = NetworkRules(insecure=frozenset({"reg.example"}))
        ask(Door(rules, resolve=network.resolve, dial=network.dial))
    assert network.dialled == ["10.0.0.1", "10.0.0.2"]


def test_a_host_that_an_answer_named_is_told_by_its_name() -> None:
    with ScriptedServer(lambda _request: redirect("http://cdn.example/x?signature=canary")) as server:
        network = FakeNetwork({"reg.example": (OWN,), "cdn.example": ("93.184.216.35",)}, {OWN: server.port})
        rules = NetworkRules(insecure=frozenset({"reg.example"}))
        with pytest.raises(
            RegistryUnavailable, match=r"^reg\.example: no connection to cdn\.example"
        ) as caught:
            ask(Door(rules, resolve=network.resolve, dial=network.dial))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "sent", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\x15\x03\x01\x00\x02\x02F"]
)
def test_what_does_not_speak_http_is_told(sent: bytes) -> None:
    with ScriptedServer(lambda _request: closing(sent)) as server:
        with pytest.raises(RegistryUnavailable, match=r"brought no HTTP|without an answer"):
            ask(Door(NetworkRules()), server.netloc)


def test_a_server_without_tls_where_tls_is_spoken_is_told() -> None:
    with ScriptedServer(lambda _request: closing(b"")) as server:
        network = FakeNetwork({"reg.example": (OWN,)}, {OWN: server.port})
        with pytest.raises(RegistryError):
            ask(Door(NetworkRules(), resolve=network.resolve, dial=network.dial))
