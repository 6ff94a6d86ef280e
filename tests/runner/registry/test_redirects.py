"""Any chain of redirects, against the rules of S07 and S08 written down a second time, and simply."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import AddressRefused, RegistryError
from runner.registry.rules import Authority, NetworkRules
from runner.registry.transport import REDIRECTS_MAX, Authorization
from tests.support.hostile_registry import redirect
from tests.support.registry_client import open_door
from tests.support.scripted_http import FakeNetwork, Reply, Request, ScriptedServer

PUBLIC = {"reg.example": "93.184.216.34", "cdn.example": "93.184.216.35", "other.example": "93.184.216.36"}
PRIVATE = {
    "inner.example": "10.0.0.1",
    "metadata.example": "169.254.169.254",
    "mapped.example": "::ffff:10.0.0.1",
}
OWN = "http://reg.example"
SECRET = "Bearer canary"
PLACES = [
    *(f"http://{host}" for host in (*PUBLIC, *PRIVATE)),
    "http://reg.example:8080",
    "http://REG.example",
    "http://reg.example:80",
    "http://10.0.0.1",
    "http://[::1]",
    "ftp://reg.example",
]


class Chain:
    """Answers the n-th request with a redirect to the n-th place of its list, and the last with 200."""

    def __init__(self) -> None:
        self.places: list[str] = []
        self.seen: list[tuple[str, str | None]] = []

    def __call__(self, request: Request) -> Reply:
        number = len(self.seen)
        self.seen.append((request.headers["host"], request.headers.get("authorization")))
        return (
            redirect(f"{self.places[number]}/{number}") if number < len(self.places) else Reply(200, b"end")
        )


@pytest.fixture(scope="module")
def chain() -> Iterator[tuple[Chain, int]]:
    answers = Chain()
    with ScriptedServer(answers) as server:
        yield answers, server.port


def expected(places: list[str]) -> tuple[list[tuple[str, str | None]], type[Exception] | None]:
    """Who is asked and with which secret, and how it ends."""
    seen: list[tuple[str, str | None]] = [("reg.example", SECRET)]
    secret: str | None = SECRET
    for number, place in enumerate(places):
        if place.startswith("ftp:"):
            return seen, RegistryError
        if number == REDIRECTS_MAX:
            return seen, RegistryError
        authority = Authority.of(place)
        is_own = authority == Authority.of(OWN)
        if not is_own:
            secret = None
            if authority.host not in PUBLIC:
                return seen, AddressRefused
        seen.append((authority.netloc, secret))
    return seen, None


@given(places=st.lists(st.sampled_from(PLACES), max_size=REDIRECTS_MAX + 2))
def test_S08_any_chain_of_redirects_ends_as_the_rules_say(
    chain: tuple[Chain, int], places: list[str]
) -> None:
    answers, port = chain
    answers.places, answers.seen = places, []
    addresses = {host: (address,) for host, address in (PUBLIC | PRIVATE).items()}
    network = FakeNetwork(addresses, dict.fromkeys((*PUBLIC.values(), *PRIVATE.values(), "::1"), port))
    rules = NetworkRules(insecure=frozenset({"reg.example"}))
    seen, error = expected(places)
    with open_door(rules, network) as door:
        origin = rules.endpoint("reg.example")
        authorization = Authorization(SECRET, origin.authority, is_secret=False)

        def ask() -> bytes:
            with door.request("GET", origin.url("/"), origin=origin, authorization=authorization) as answer:
                return answer.read_small()

        if error is None:
            assert ask() == b"end"
        else:
            with pytest.raises(error):
                ask()
    assert answers.seen == seen
    assert set(network.dialled) <= set(PUBLIC.values())


@pytest.mark.parametrize("name", ["Authorization", "authorization", "Cookie", "Proxy-Authorization"])
def test_S08_a_secret_cannot_be_sent_as_a_plain_header(name: str) -> None:
    with open_door() as door:
        origin = door.rules.endpoint("localhost:1")
        with pytest.raises(ValueError, match="given as `authorization`"):
            door.request("GET", origin.url("/"), origin=origin, headers={name: "canary"})
