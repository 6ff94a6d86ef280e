from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.registry.addresses import Place, is_loopback_name, literal_address, refusal_of, resolve

PUBLIC = ["1.1.1.1", "93.184.216.34", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0"]
PUBLIC += [
    "11.0.0.0",
    "9.255.255.255",
    "192.167.255.255",
    "192.169.0.0",
    "169.253.255.255",
    "126.255.255.255",
]
PUBLIC += [
    "128.0.0.0",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001::1",
    "2001:4860:4860::8888",
]

REFUSED = {
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "10.0.0.1": "private",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.168.1.1": "private",
    "198.18.0.1": "private",
    "169.254.169.254": "link-local",
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "100.64.0.0": "shared",
    "100.127.255.255": "shared",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "192.0.0.1": "reserved",
    "192.0.2.1": "reserved",
    "::1": "loopback",
    "::": "unspecified",
    "fe80::1": "link-local",
    "febf::1": "link-local",
    "fc00::1": "private",
    "fd12:3456::1": "private",
    "fec0::1": "private",
    "ff02::1": "multicast",
    "2001:db8::1": "reserved",
    "::127.0.0.1": "v4-in-v6",
    "::93.184.216.34": "v4-in-v6",
    "::ffff:127.0.0.1": "v4-in-v6",
    "::ffff:10.0.0.1": "v4-in-v6",
    "::ffff:93.184.216.34": "v4-in-v6",
    "::ffff:0:10.0.0.1": "v4-in-v6",
    "64:ff9b::7f00:1": "v4-in-v6",
    "64:ff9b::5db8:d822": "v4-in-v6",
    "64:ff9b:1::a00:1": "v4-in-v6",
    "2002:7f00:1::": "v4-in-v6",
    "2002:a00:1::1": "v4-in-v6",
    "2001:0:53aa:64c::1": "v4-in-v6",
    "2606:4700::5efe:a00:1": "v4-in-v6",
    "2606:4700::200:5efe:7f00:1": "v4-in-v6",
}


@pytest.mark.parametrize("text", PUBLIC)
def test_S07_public_addresses_may_be_named_by_answers(text: str) -> None:
    assert refusal_of(ipaddress.ip_address(text)) is None


@pytest.mark.parametrize(("text", "kind"), REFUSED.items())
def test_S07_every_other_kind_of_address_is_told_by_its_name(text: str, kind: str) -> None:
    assert refusal_of(ipaddress.ip_address(text)) == kind


@given(st.ip_addresses(v=4))
def test_S07_no_v4_address_passes_in_the_clothes_of_v6(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    wrapped = [
        number,  # ::a.b.c.d
        (0xFFFF << 32) | number,  # mapped
        (0xFFFF << 48) | number,  # translated
        (0x64FF9B << 96) | number,  # NAT64
        (0x2002 << 112) | (number << 80) | 1,  # 6to4
        (0x20010000 << 96) | (number ^ 0xFFFFFFFF),  # Teredo
        (0x26064700 << 96) | (0x5EFE << 32) | number,  # ISATAP
    ]
    for each in wrapped:
        assert refusal_of(ipaddress.IPv6Address(each)) is not None


@given(st.ip_addresses())
def test_S07_what_the_standard_library_calls_not_global_is_refused(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    known_global = ("192.0.0.9", "192.0.0.10", "2001:1::", "2001:3::", "2001:4:112::")
    if not address.is_global and not str(address).startswith(("2001:", *known_global)):
        assert refusal_of(address) is not None


def test_this_machine_is_known_by_all_its_spellings() -> None:
    for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"):
        assert is_loopback_name(host)
    for host in ("localhost.example", "127.0.0.1.example", "example", "10.0.0.1", "127.1"):
        assert not is_loopback_name(host)


def test_addresses_are_told_from_names() -> None:
    assert literal_address("[::1]") == ipaddress.ip_address("::1")
    assert literal_address("10.0.0.1") == ipaddress.ip_address("10.0.0.1")
    assert literal_address("registry.example") is None
    assert literal_address("10.1") is None


@pytest.mark.parametrize("text", ["127.0.0.1", "0x7f.1", "2130706433", "127.1", "0177.0.0.1"])
def test_S07_old_spellings_of_an_address_are_resolved_before_they_are_checked(text: str) -> None:
    (place,) = resolve(text, 80)
    assert place == Place(ipaddress.ip_address("127.0.0.1"), 80)
    assert refusal_of(place.address) == "loopback"


def test_a_place_has_the_form_that_sockets_take() -> None:
    assert Place(ipaddress.ip_address("1.2.3.4"), 5).sockaddr == ("1.2.3.4", 5)
    assert Place(ipaddress.ip_address("fe80::1"), 5, scope_id=2).sockaddr == ("fe80::1", 5, 0, 2)
