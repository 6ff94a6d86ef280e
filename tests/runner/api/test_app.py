from __future__ import annotations

import pytest
import trio
from werkzeug.exceptions import NotFound

from runner.api.app import AppContext, RunnerApp, bare_app, build_app
from runner.errors import ModelNotFound
from tests.support.fake_handles import FakeParts
from tests.support.http_server import serving

pytestmark = pytest.mark.anyio


def whole_app(parts: FakeParts) -> RunnerApp:
    return build_app(
        AppContext(
            store=parts.store,
            puller=parts.puller,
            scheduler=parts.scheduler,
            daemon=parts.daemon,
            remote=parts.remote,
        )
    )


async def test_L15_health_and_readiness_answer_and_readiness_ends_with_draining() -> None:
    parts = FakeParts.make()
    async with serving(whole_app(parts)) as server:
        client = await server.connect()
        assert (await client.request("GET", "/health")).json() == {"status": "ok"}
        assert (await client.request("GET", "/ready")).json() == {"status": "ready"}
        parts.daemon.is_draining = True
        answer = await client.request("GET", "/ready")
        assert (answer.status, answer.error_code) == (503, "draining")
        assert (await client.request("GET", "/health")).status == 200
        assert (await client.request("HEAD", "/health")).status == 200


async def test_every_dialect_is_there() -> None:
    async with serving(whole_app(FakeParts.make())) as server:
        for path in (
            "/v1/models",
            "/engines/v1/models",
            "/engines/llama.cpp/v1/models",
            "/control/v1/status",
        ):
            assert (await server.get(path)).status == 200, path


async def test_N06_no_route_that_changes_something_answers_a_reading_method() -> None:
    app = whole_app(FakeParts.make())
    rules = [rule for rule in app.url_map.iter_rules() if "<backend>" not in rule.rule]  # 404 to every method
    reading = {rule.endpoint for rule in rules if "GET" in (rule.methods or ())}
    changing = {rule.endpoint for rule in rules if {"POST", "DELETE"} & set(rule.methods or ())}
    both = reading & changing
    assert both == set()


def app_with_routes() -> RunnerApp:
    app = bare_app()

    @app.get("/models/<path:name>")
    async def show(name: str) -> dict[str, str]:
        return {"name": name}

    @app.get("/grouped")
    async def grouped() -> None:
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                raise ModelNotFound("ai/none")

            nursery.start_soon(fail)

    @app.get("/http")
    async def http() -> None:
        raise ExceptionGroup("", [NotFound(), ExceptionGroup("", [ValueError("secret")])])

    return app


async def test_N19_a_path_is_decoded_once_and_never_repaired() -> None:
    async with serving(app_with_routes()) as server:
        for path, name in (
            ("a%2Fb", "a/b"),
            ("a%252Fb", "a%2Fb"),
            ("a//b", "a//b"),
            ("a/../b", "a/../b"),
            ("a%5Cb", "a\\b"),
            ("%E4", "\ufffd"),
        ):
            answer = await server.get(f"/models/{path}")
            assert (answer.status, answer.json()) == (200, {"name": name}), path


async def test_a_slash_at_the_end_is_neither_here_nor_there() -> None:
    app = bare_app()

    @app.get("/thing")
    async def thing() -> dict[str, bool]:
        return {"ok": True}

    async with serving(app) as server:
        assert (await server.get("/thing")).status == 200
        assert (await server.get("/thing/")).status == 200


async def test_an_error_of_a_nursery_is_answered_as_itself() -> None:
    async with serving(app_with_routes()) as server:
        answer = await server.get("/grouped")
        assert (answer.status, answer.error_code) == (404, "model_not_found")
        answer = await server.get("/http")
        assert (answer.status, answer.error_code) == (404, "not_found")


async def test_what_is_not_there_or_not_allowed_is_an_error_in_our_shape() -> None:
    async with serving(app_with_routes()) as server:
        client = await server.connect()
        answer = await client.request("GET", "/nowhere")
        assert (answer.status, answer.error_code) == (404, "not_found")
        answer = await client.request("DELETE", "/grouped")
        assert (answer.status, answer.error_code) == (405, "method_not_allowed")
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
        answer = await client.request("BREW", "/grouped")
        assert (answer.status, answer.error_code) == (405, "method_not_allowed")
