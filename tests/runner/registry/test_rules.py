from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import InvalidReference
from runner.registry.rules import Authority, BadUrl, Endpoint, NetworkRules, host_of


def base_url(registry: str, rules: NetworkRules | None = None) -> str:
    return (rules or NetworkRules()).endpoint(registry).url("/v2/")


def test_docker_hub_answers_at_a_host_of_another_name() -> None:
    endpoint = NetworkRules().endpoint("docker.io")
    assert endpoint.url("/v2/") == "https://registry-1.docker.io/v2/"
    assert endpoint.registry == "docker.io"


@pytest.mark.parametrize(
    ("registry", "url"),
    [
        ("reg.example", "https://reg.example/v2/"),
        ("reg.example:5000", "https://reg.example:5000/v2/"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000/v2/"),
        ("localhost:5000", "http://localhost:5000/v2/"),
        ("localhost", "http://localhost/v2/"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2/"),
        ("[::1]:5000", "http://[::1]:5000/v2/"),
        ("localhost.example:5000", "https://localhost.example:5000/v2/"),
    ],
)
def test_only_this_machine_speaks_plain_http_by_default(registry: str, url: str) -> None:
    assert base_url(registry) == url


def test_K08_plain_http_and_unverified_tls_are_for_the_registries_the_user_lists() -> None:
    rules = NetworkRules(
        insecure=frozenset({"reg.lan:5000"}), unverified=frozenset({"localhost:1", "self.lan"})
    )
    assert base_url("reg.lan:5000", rules) == "http://reg.lan:5000/v2/"
    assert base_url("reg.lan:5001", rules) == "https://reg.lan:5001/v2/"
    assert base_url("reg.lan", rules) == "https://reg.lan/v2/"
    assert base_url("localhost:1", rules) == "https://localhost:1/v2/"
    assert rules.is_unverified(Authority("https", "self.lan", 443))
    assert not rules.is_unverified(Authority("https", "self.lan", 444))
    assert not rules.is_unverified(Authority("https", "reg.lan", 5000))


def test_a_ca_file_means_tls_and_counts_for_a_registry_or_a_host() -> None:
    rules = NetworkRules(ca_files={"localhost:5000": Path("/one"), "reg.lan": Path("/two")})
    assert base_url("localhost:5000", rules) == "https://localhost:5000/v2/"
    assert rules.ca_file(Authority("https", "localhost", 5000)) == Path("/one")
    assert rules.ca_file(Authority("https", "localhost", 5001)) is None
    assert rules.ca_file(Authority("https", "reg.lan", 8443)) == Path("/two")


def test_mirrors_come_before_the_registry_with_their_paths() -> None:
    mirrors = {"docker.io": ("mirror.lan", "http://other.lan:5000/hub/v2/", "localhost:5000")}
    found = NetworkRules(mirrors=mirrors).pull_endpoints("docker.io")
    assert [endpoint.url("/v2/") for endpoint in found] == [
        "https://mirror.lan/v2/",
        "http://other.lan:5000/hub/v2/",
        "http://localhost:5000/v2/",
        "https://registry-1.docker.io/v2/",
    ]
    assert found[0].registry == "docker.io (mirror mirror.lan)"
    assert len(NetworkRules(mirrors=mirrors).pull_endpoints("ghcr.io")) == 1


def test_a_registry_that_is_no_host_is_refused() -> None:
    with pytest.raises(InvalidReference):
        NetworkRules().endpoint("reg.example:99999")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://reg.example/",
        "file:///etc/passwd",
        "//reg.example/",
        "/v2/",
        "reg.example",
        "",
        "https://",
        "https:///v2/",
        "https://user@reg.example/",
        "https://user:pw@reg.example/",
        "https://reg.example:0x50/",
        "https://reg.example:65536/",
        "https://reg.example\\@evil.example/",
        "https://reg.example /",
        "https://reg.example\n/",
        "https://reg.exämple/",
        "https://[::1/",
        "https://[fe80::1%25eth0]/",
        "https://evil%2eexample/",
        "https://reg.example/" + "x" * 16384,
    ],
)
def test_S07_what_could_be_read_in_two_ways_is_no_url(url: str) -> None:
    with pytest.raises(BadUrl) as caught:
        Authority.of(url)
    assert "pw" not in str(caught.value)


def test_an_authority_knows_default_ports_and_brackets() -> None:
    assert Authority.of("https://Reg.Example/x") == Authority("https", "reg.example", 443)
    assert Authority.of("http://reg.example:8080") == Authority("http", "reg.example", 8080)
    assert str(Authority.of("http://[::1]:5000/v2/")) == "http://[::1]:5000"
    assert str(Authority.of("https://reg.example:443/v2/")) == "https://reg.example"


@given(st.text(max_size=60))
def test_no_text_is_a_fault_of_ours(text: str) -> None:
    for candidate in (text, f"https://{text}", f"http://reg.example{text}"):
        try:
            authority = Authority.of(candidate)
        except BadUrl:
            continue
        assert authority.host.isascii()
        assert 0 <= authority.port <= 65535


def test_an_endpoint_of_a_setting_keeps_its_path() -> None:
    endpoint = Endpoint.of_url("https://hub.lan:8443/base/", registry="huggingface.co")
    assert endpoint.url("/api") == "https://hub.lan:8443/base/api"
    assert endpoint.registry == "huggingface.co"
    assert Endpoint.of_url("https://hub.lan").registry == "hub.lan"


def test_the_host_of_a_registry_is_told_from_its_port() -> None:
    assert host_of("reg.example:5000") == "reg.example"
    assert host_of("reg.example") == "reg.example"
    assert host_of("[::1]:5000") == "::1"
    assert host_of("[::1]") == "::1"
