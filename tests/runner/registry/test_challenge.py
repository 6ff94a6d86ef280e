from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.registry.challenge import Challenge, is_realm_allowed, parse_challenges
from runner.registry.rules import Authority, NetworkRules


@pytest.mark.parametrize(
    ("text", "challenges"),
    [
        ("Basic", (Challenge("basic"),)),
        ('Basic realm="a registry"', (Challenge("basic", {"realm": "a registry"}),)),
        (
            'Bearer realm="https://auth/token",service="reg",scope="repository:a/b:pull,push"',
            (
                Challenge(
                    "bearer",
                    {"realm": "https://auth/token", "service": "reg", "scope": "repository:a/b:pull,push"},
                ),
            ),
        ),
        (
            'bearer REALM="r" , Service=reg, Basic realm="x, Bearer y"',
            (
                Challenge("bearer", {"realm": "r", "service": "reg"}),
                Challenge("basic", {"realm": "x, Bearer y"}),
            ),
        ),
        ('Basic realm="a \\"quoted\\" one"', (Challenge("basic", {"realm": 'a "quoted" one'}),)),
        ("Negotiate YWJj==, Basic realm=x", (Challenge("negotiate"), Challenge("basic", {"realm": "x"}))),
        ("Bearer realm = x", (Challenge("bearer", {"realm": "x"}),)),
        ("Bearer realm=x,realm=y", (Challenge("bearer", {"realm": "x"}),)),
        ("", ()),
        (" , ,", ()),
        ('"', ()),
        ('Bearer realm="never closed', ()),
        ("Bearer realm=x " + "y" * 9000, ()),
    ],
)
def test_challenges_are_read(text: str, challenges: tuple[Challenge, ...]) -> None:
    assert parse_challenges(text) == challenges


@given(st.text(max_size=200) | st.text(alphabet=' ",=\\abc\t', max_size=200))
def test_any_text_is_read_or_gives_none(text: str) -> None:
    assert isinstance(parse_challenges(text), tuple)


def allowed(realm: str, registry: str, **rules: object) -> bool:
    made = NetworkRules(**rules)
    return is_realm_allowed(Authority.of(realm), made.endpoint(registry), made)


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("reg.example", "https://reg.example/token"),
        ("reg.example", "https://reg.example:8443/token"),
        ("reg.example:5000", "https://reg.example/token"),
        ("reg.example", "https://auth.reg.example/token"),
        ("registry.corp.example", "https://corp.example/jwt/auth"),
        ("docker.io", "https://auth.docker.io/token"),
        ("registry.gitlab.com", "https://gitlab.com/jwt/auth"),
        ("127.0.0.1:5000", "http://127.0.0.1:5001/token"),
    ],
)
def test_S09_a_registry_has_its_tokens_from_its_own_site_or_a_known_pair(registry: str, realm: str) -> None:
    assert allowed(realm, registry)


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("reg.example", "https://evil.example/token"),
        ("reg.example", "https://example.reg/token"),
        ("reg.example", "https://reg.example.evil/token"),
        ("reg.example", "https://evilreg.example/token"),
        ("reg.example", "http://reg.example/token"),
        ("reg.example", "https://example/token"),
        ("one.tenants.example", "https://two.tenants.example/token"),
        ("docker.io", "http://auth.docker.io/token"),
        ("docker.io", "https://auth.docker.io.evil.example/token"),
        ("ghcr.io", "https://auth.docker.io/token"),
    ],
)
def test_S09_no_other_realm_is_a_registrys_own(registry: str, realm: str) -> None:
    assert not allowed(realm, registry)


def test_S09_the_user_may_allow_a_realm_for_one_registry() -> None:
    realms = {"reg.example": ("login.example", "other.example:8443")}
    assert allowed("https://login.example/token", "reg.example", realms=realms)
    assert allowed("https://other.example:8443/token", "reg.example", realms=realms)
    assert not allowed("https://other.example/token", "reg.example", realms=realms)
    assert not allowed("http://login.example/token", "reg.example", realms=realms)
    assert not allowed("https://login.example/token", "two.example", realms=realms)
