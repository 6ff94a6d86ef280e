from __future__ import annotations

import pytest

from runner.registry.proxies import Proxies

EVERYWHERE = {"http_proxy": "http://proxy:1", "https_proxy": "http://proxy:2"}


def chosen(url_parts: tuple[str, str, int], **environment: str) -> str | None:
    return Proxies.from_environment({**EVERYWHERE, **environment}).for_target(*url_parts)


def test_K09_each_scheme_has_its_proxy_and_none_without_variables() -> None:
    assert chosen(("http", "reg.example", 80)) == "http://proxy:1"
    assert chosen(("https", "reg.example", 443)) == "http://proxy:2"
    assert Proxies.from_environment({}).for_target("https", "reg.example", 443) is None
    assert Proxies.from_environment({"https_proxy": ""}).for_target("https", "reg.example", 443) is None


def test_K09_the_lower_case_spelling_wins_and_all_proxy_fills_in() -> None:
    both = {"HTTPS_PROXY": "http://upper", "https_proxy": "http://lower"}
    assert Proxies.from_environment(both).https == "http://lower"
    assert Proxies.from_environment({"HTTPS_PROXY": "http://upper"}).https == "http://upper"
    assert Proxies.from_environment({"ALL_PROXY": "http://all"}).http == "http://all"


def test_a_proxy_without_a_scheme_is_an_http_one() -> None:
    assert chosen(("https", "reg.example", 443), https_proxy="proxy:3128") == "http://proxy:3128"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]"])
def test_K09_this_machine_is_never_asked_for_through_a_proxy(host: str) -> None:
    assert chosen(("http", host, 5000)) is None


@pytest.mark.parametrize(
    ("no_proxy", "host", "port", "is_direct"),
    [
        ("*", "reg.example", 443, True),
        ("reg.example", "reg.example", 443, True),
        ("REG.example", "Reg.Example", 443, True),
        ("example", "reg.example", 443, True),
        (".example", "reg.example", 443, True),
        ("*.example", "reg.example", 443, True),
        (".example", "example", 443, True),
        ("example", "regexample", 443, False),
        ("reg.example", "example", 443, False),
        ("reg.example:443", "reg.example", 443, True),
        ("reg.example:444", "reg.example", 443, False),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.0.0.0/8", "reg.example", 443, False),
        ("10.1.2.3", "10.1.2.3", 443, True),
        ("10.1.2.3:80", "10.1.2.3", 443, False),
        ("fd00::/8", "fd00::1", 443, True),
        ("fd00::1", "[fd00::1]", 443, True),
        ("1.2.3", "10.1.2.3", 443, False),
        ("x/y, .", "reg.example", 443, False),
        ("a, reg.example ,b", "reg.example", 443, True),
        ("", "reg.example", 443, False),
    ],
)
def test_K09_no_proxy_lists_what_is_reached_directly(
    no_proxy: str, host: str, port: int, is_direct: bool
) -> None:
    assert (chosen(("https", host, port), no_proxy=no_proxy) is None) is is_direct


def test_K01_proxies_are_not_shown() -> None:
    proxies = Proxies(https="http://user:canary@proxy", http="http://user:canary@proxy")
    assert "canary" not in repr(proxies)
