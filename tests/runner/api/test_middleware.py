from __future__ import annotations

import re

import pytest

from runner.api.app import RunnerApp, bare_app
from runner.api.middleware import choose_request_id, request_id
from tests.support.http_server import serving

pytestmark = pytest.mark.anyio

ORIGIN = "http://app.example"


def app_for(origins: frozenset[str]) -> RunnerApp:
    app = bare_app(origins)

    @app.get("/id")
    async def show() -> dict[str, str]:
        return {"id": request_id()}

    @app.post("/post")
    async def post() -> dict[str, bool]:
        return {"ok": True}

    return app


def test_N20_an_id_is_kept_when_it_is_harmless() -> None:
    for good in ("a", "A-Za.z0_9", "x" * 64):
        assert choose_request_id([good]) == good
    for bad in ("", "x" * 65, "a b", "a\n", "\na", "a\r\nb: c", "é", "a:b", "a/b"):
        assert re.fullmatch(r"req_[0-9a-f]{24}", choose_request_id([bad])), bad
    assert choose_request_id(["a", "a"]) != "a"
    assert choose_request_id([]) != choose_request_id([])


async def test_a_route_sees_the_id_that_its_client_gets() -> None:
    async with serving(app_for(frozenset())) as server:
        answer = await server.get("/id")
        assert answer.json() == {"id": answer.headers["x-request-id"]}


async def test_without_the_serving_layer_ids_work_too() -> None:
    client = app_for(frozenset()).test_client()
    response = await client.get("/id", headers={"X-Request-Id": "mine"})
    assert (await response.get_json(), response.headers["x-request-id"]) == ({"id": "mine"}, "mine")


async def test_N03_by_default_no_origin_is_granted_anything() -> None:
    async with serving(app_for(frozenset())) as server:
        client = await server.connect()
        for method, path in (("GET", "/id"), ("OPTIONS", "/id"), ("GET", "/nowhere")):
            answer = await client.request(method, path)
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert "vary" not in answer.headers


async def test_N03_a_listed_origin_is_granted_by_name_and_never_by_a_star() -> None:
    async with serving(app_for(frozenset({ORIGIN})), allowed_origins=frozenset({ORIGIN})) as server:
        client = await server.connect()
        answer = await client.request("GET", "/id", f"Origin: {ORIGIN}", "Sec-Fetch-Site: cross-site")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
        assert answer.headers["vary"] == "Origin"
        answer = await client.request("GET", "/id")
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["vary"] == "Origin"
        answer = await client.request("GET", "/nowhere", f"Origin: {ORIGIN}")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (404, ORIGIN)


async def test_a_browser_that_asks_first_gets_leave() -> None:
    async with serving(app_for(frozenset({ORIGIN})), allowed_origins=frozenset({ORIGIN})) as server:
        client = await server.connect()
        asks = (f"Origin: {ORIGIN}", "Access-Control-Request-Method: POST")
        answer = await client.request("OPTIONS", "/post", *asks)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, ORIGIN)
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "Content-Type" in answer.headers["access-control-allow-headers"]
        json = (f"Origin: {ORIGIN}", "Content-Type: application/json")
        assert (await client.request("POST", "/post", *json, body=b"{}")).status == 200


async def test_N05_a_form_of_a_listed_origin_is_refused() -> None:
    async with serving(app_for(frozenset({ORIGIN})), allowed_origins=frozenset({ORIGIN})) as server:
        client = await server.connect()
        answer = await client.request(
            "POST", "/post", f"Origin: {ORIGIN}", "Content-Type: text/plain", body=b"{}"
        )
        assert (answer.status, answer.error_code) == (415, "unsupported_media_type")
