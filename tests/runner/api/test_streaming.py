from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing

from runner.api.app import bare_app
from runner.api.streaming import EarlyEnd, EventStream
from runner.errors import Draining, QueueFull
from tests.support.http_server import LIMIT_S, ScriptedSource, serving

pytestmark = pytest.mark.anyio

GET = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def test_quarts_test_client_reads_a_stream() -> None:
    source = ScriptedSource(b"a", b"b")
    source.feed.close()
    app = bare_app()

    @app.get("/")
    async def route() -> EventStream:
        return EventStream(source, "text/plain", status=201, headers={"X-Model": "m"})

    response = await app.test_client().get("/")
    assert (response.status_code, response.content_type, response.headers["x-model"]) == (
        201,
        "text/plain",
        "m",
    )
    assert await response.get_data() == b"ab"
    assert source.times_closed == 1


async def test_N23_a_stream_that_is_made_and_not_returned_is_closed() -> None:
    source = ScriptedSource()
    app = bare_app()

    @app.get("/")
    async def route() -> None:
        EventStream(source)
        raise QueueFull("full")

    async with serving(app) as server:
        assert (await server.get("/")).status == 429
        assert source.times_closed == 1


async def test_N23_a_stream_whose_head_is_never_sent_is_closed() -> None:
    source = ScriptedSource()
    app = bare_app()
    reached = trio.Event()

    @app.get("/")
    async def route() -> EventStream:
        return EventStream(source)

    @app.after_request
    async def linger(response: Any) -> Any:
        reached.set()
        await trio.sleep_forever()
        return response

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET)
        with trio.fail_after(LIMIT_S):
            await reached.wait()
            await client.aclose()
            await source.closed.wait()
        await server.until(connections=0)
    assert source.times_closed == 1


async def test_a_source_whose_last_words_fail_is_closed_and_its_connection_cut(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Speechless(ScriptedSource):
        def abort(self, error: Exception) -> bytes:
            raise ValueError("no words")

    source = Speechless()
    app = bare_app()

    @app.get("/")
    async def route() -> EventStream:
        return EventStream(source)

    async with serving(app, grace_s=0.0) as server:
        client = await server.connect()
        await client.send(GET)
        await client.head()
        server.server.stop()
        assert await client.rest() == b""
    assert source.times_closed == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def pump(source: ScriptedSource, early_end: EarlyEnd, written: list[bytes]) -> None:
    async def write(data: bytes) -> None:
        written.append(data)

    await early_end.pump(EventStream(source), write)


async def test_a_pump_writes_until_the_source_ends() -> None:
    written: list[bytes] = []
    source = ScriptedSource(b"a", b"b")
    source.feed.close()
    early_end = EarlyEnd()
    await pump(source, early_end, written)
    assert written == [b"a", b"b"]
    assert not early_end.is_pumping


async def test_a_pump_that_is_stopped_asks_its_source_for_last_words() -> None:
    written: list[bytes] = []
    source = ScriptedSource(b"a")
    early_end = EarlyEnd()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, source, early_end, written)
        await trio.testing.wait_all_tasks_blocked()
        assert early_end.is_pumping
        early_end.request(Draining())
    assert written == [b"a", b"data: draining\n\n"]
    assert isinstance(source.aborted_with, Draining)


async def test_a_pump_whose_source_has_no_last_words_writes_nothing_more() -> None:
    class Silent(ScriptedSource):
        def abort(self, error: Exception) -> bytes:
            return b""

    written: list[bytes] = []
    early_end = EarlyEnd()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, Silent(), early_end, written)
        await trio.testing.wait_all_tasks_blocked()
        early_end.request(Draining())
    assert written == []


async def test_stopping_what_does_not_pump_does_nothing() -> None:
    EarlyEnd().request(Draining())


async def test_a_pump_that_is_cancelled_from_outside_has_no_last_words() -> None:
    written: list[bytes] = []
    source = ScriptedSource(b"a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, source, EarlyEnd(), written)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert (written, source.aborted_with) == ([b"a"], None)
