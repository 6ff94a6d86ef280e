from __future__ import annotations

import pytest

from runner.api.admission import AdmissionPolicy, admit
from runner.api.head import HeadLimits, HeadReader, RequestHead

HOSTS = frozenset({"localhost", "localhost:8", "127.0.0.1", "127.0.0.1:8", "[::1]", "[::1]:8", "gpu.lan"})
TCP = AdmissionPolicy(hosts=HOSTS)
UNIX = AdmissionPolicy(hosts=None)
WITH_ORIGIN = AdmissionPolicy(hosts=HOSTS, origins=frozenset({"http://app.example"}))
JSON = "Content-Type: application/json"
ALLOWED = "Origin: http://app.example"


def head(
    *lines: str, method: str = "GET", target: str = "/v1/models", host: str | None = "localhost:8"
) -> RequestHead:
    if host is not None:
        lines = (f"Host: {host}", *lines)
    text = "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""])
    parsed = HeadReader(HeadLimits()).feed(text.encode("latin-1"))
    assert parsed is not None
    return parsed


def status(request: RequestHead, policy: AdmissionPolicy = TCP) -> int | None:
    refusal = admit(request, policy)
    return None if refusal is None else refusal.status


def test_N02_a_listed_host_enters() -> None:
    assert {host: status(head(host=host)) for host in HOSTS} == dict.fromkeys(HOSTS)


OTHER_HOSTS = [
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.nip.example",
    "LOCALHOST",
    "localhost.",
    "localhost:9",
    "localhost:",
    "localhost:80@evil.example",
    "evil.example@localhost:8",
    "localhost:8, evil.example",
    "127.1",
    "2130706433",
    "0.0.0.0",
    "::1",
    "[::1",
    "[::]",
    "",
    None,
]


def test_N02_any_other_host_is_refused() -> None:
    assert {host: status(head(host=host)) for host in OTHER_HOSTS} == dict.fromkeys(OTHER_HOSTS, 403)


def test_N02_a_repeated_host_is_refused_even_when_both_are_listed() -> None:
    assert status(head("Host: localhost:8")) == 403
    assert status(head("Host: evil.example")) == 403


def test_N02_an_absolute_target_must_name_the_same_authority() -> None:
    assert status(head(target="http://localhost:8/v1/models")) is None
    assert status(head(target="http://evil.example/v1/models")) == 403
    assert status(head(target="http://127.0.0.1/v1/models")) == 403
    assert status(head(target="http://user@localhost:8/v1/models")) == 403
    assert status(head(target="http:///v1/models")) == 403


def test_N02_a_unix_socket_does_not_ask_for_a_host() -> None:
    assert status(head(host=None), UNIX) is None
    assert status(head(host="evil.example"), UNIX) is None


@pytest.mark.parametrize("policy", [TCP, UNIX], ids=["tcp", "unix"])
def test_N03_by_default_every_origin_is_refused(policy: AdmissionPolicy) -> None:
    for origin in ("http://app.example", "null", "http://localhost:8", "file://", ""):
        for method in ("GET", "HEAD", "OPTIONS", "POST", "DELETE"):
            request = head(f"Origin: {origin}", JSON, method=method)
            assert status(request, policy) == 403, (origin, method)


def test_N03_an_origin_must_match_exactly() -> None:
    assert status(head(ALLOWED), WITH_ORIGIN) is None
    for origin in (
        "null",
        "https://app.example",
        "http://app.example:80",
        "http://APP.example",
        "http://app.example/",
        "http://app.example.evil.example",
        "http://app.example http://evil.example",
    ):
        assert status(head(f"Origin: {origin}"), WITH_ORIGIN) == 403, origin
        assert status(head(ALLOWED, f"Origin: {origin}"), WITH_ORIGIN) == 403, origin


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_N04_a_page_of_another_site_is_refused_unless_its_origin_is_listed(method: str) -> None:
    for site in ("cross-site", "same-site", "Cross-Site", "unknown", ""):
        check_foreign_site(site, method)


def check_foreign_site(site: str, method: str) -> None:
    lines = (f"Sec-Fetch-Site: {site}", JSON)
    assert status(head(*lines, method=method)) == 403
    assert status(head(*lines, method=method), WITH_ORIGIN) == 403
    assert status(head(ALLOWED, *lines, method=method), WITH_ORIGIN) is None


def test_N04_one_bad_value_among_several_is_enough() -> None:
    assert status(head("Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site")) == 403


@pytest.mark.parametrize("site", ["none", "same-origin"])
def test_N04_a_page_of_our_own_and_an_address_typed_by_the_user_enter(site: str) -> None:
    assert status(head(f"Sec-Fetch-Site: {site}")) is None


PAGES = [(ALLOWED,), ("Sec-Fetch-Mode: no-cors",), ("Sec-Fetch-Dest: empty", "Sec-Fetch-Site: none")]


FOREIGN_TYPES = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/jsonx",
    "text/plain; application/json",
    "",
    None,
]


@pytest.mark.parametrize("page", PAGES)
def test_N05_a_page_must_send_json(page: tuple[str, ...]) -> None:
    for media_type in FOREIGN_TYPES:
        check_foreign_type(page, media_type)


def check_foreign_type(page: tuple[str, ...], media_type: str | None) -> None:
    lines = page if media_type is None else (*page, f"Content-Type: {media_type}")
    for method in ("POST", "PUT", "DELETE", "GET"):
        assert status(head(*lines, "Content-Length: 2", method=method), WITH_ORIGIN) == 415
        assert status(head(*lines, "Transfer-Encoding: chunked", method=method), WITH_ORIGIN) == 415
    assert status(head(*lines, method="POST"), WITH_ORIGIN) == 415
    assert status(head(*lines, method="GET"), WITH_ORIGIN) is None


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON ; charset=utf-8"])
def test_N05_json_of_a_page_enters(media_type: str, page: tuple[str, ...]) -> None:
    request = head(*page, f"Content-Type: {media_type}", "Content-Length: 2", method="POST")
    assert status(request, WITH_ORIGIN) is None
    assert status(head(*page, f"Content-Type: {media_type}", JSON, method="POST"), WITH_ORIGIN) == 415


@pytest.mark.parametrize(
    "lines", [(), ("Content-Type: text/plain",), ("Content-Type: application/octet-stream",)]
)
def test_N05_a_command_line_may_leave_the_type_out(lines: tuple[str, ...]) -> None:
    assert status(head(*lines, "Content-Length: 2", method="POST")) is None


MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("target", "limit_bytes"),
    [
        ("/control/v1/start", MIB),
        ("/%63ontrol/v1/start?x", MIB),
        ("/control/v1/blobs/", MIB),
        ("/models/create", MIB),
        ("/models/ai/smollm2/push", MIB),
        ("/v1/chat/completions", 32 * MIB),
        ("/engines/llama.cpp/v1/completions", 32 * MIB),
    ],
)
def test_N09_an_announced_body_above_the_limit_of_its_route_is_refused(target: str, limit_bytes: int) -> None:
    def verdict(size_bytes: int) -> int | None:
        return status(head(f"Content-Length: {size_bytes}", method="POST", target=target))

    assert [verdict(limit_bytes + more) for more in (-1, 0, 1)] == [None, None, 413]


@pytest.mark.parametrize("target", ["/control/v1/blobs", "/control/v1/load", "/models/load"])
def test_N09_only_an_upload_is_unlimited(target: str) -> None:
    assert status(head("Content-Length: 9000000000000", method="POST", target=f"{target}?x")) is None
    assert status(head("Content-Length: 9000000000000", method="PUT", target=target)) == 413
    assert status(head("Content-Length: 9000000000000", method="POST", target=f"{target}/x")) == 413


@pytest.mark.parametrize(
    ("method", "lines", "expected"),
    [
        ("TRACE", (), 405),
        ("GET", ("Connection: Upgrade", "Upgrade: websocket"), 400),
        ("GET", ("Connection: Upgrade", "Upgrade: websocket, h2c"), 400),
        ("GET", ("Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket"), 400),
    ],
)
def test_N25_upgrades_and_tunnels_are_refused(method: str, lines: tuple[str, ...], expected: int) -> None:
    assert status(head(*lines, method=method)) == expected


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_N25_an_offer_of_http2_is_passed_over(method: str) -> None:
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    assert status(head(*offer, method=method)) is None


def test_N25_connect_is_refused() -> None:
    assert status(head(method="CONNECT", target="localhost:8")) == 405
    assert status(head(method="CONNECT", target="evil.example:443")) == 403
    assert status(head(method="CONNECT", target="evil.example:443"), UNIX) == 405


def test_the_host_is_judged_before_everything_else() -> None:
    request = head("Upgrade: x", "Content-Length: 99999999999", method="TRACE", host="evil.example")
    refusal = admit(request, TCP)
    assert refusal is not None
    assert refusal.code == "host_not_allowed"
