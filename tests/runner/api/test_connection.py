from __future__ import annotations

import logging
import os
import socket

import pytest
import trio
import trio.testing
from quart import request

from runner.api.app import RunnerApp, bare_app
from runner.api.body import READ_AHEAD_BYTES
from runner.api.connection import Connection
from runner.api.streaming import EventStream
from tests.support.http_server import LIMIT_S, RawClient, ScriptedSource, serving

pytestmark = pytest.mark.anyio

HOST = "Host: localhost\r\n"
HEAD = f"POST /body HTTP/1.1\r\n{HOST}"


class EndlessSource(ScriptedSource):
    """Always has more, without ever waiting."""

    async def next_chunk(self) -> bytes:
        self.taken_bytes += 4096
        return b"x" * 4096


class Site:
    """Routes that wait, and what became of them."""

    def __init__(self) -> None:
        self.source = ScriptedSource()
        self.endless = EndlessSource()
        self.began = trio.Event()
        self.cancelled = trio.Event()
        self.release = trio.Event()
        self.app = self._build()

    def _build(self) -> RunnerApp:
        app = bare_app()

        @app.get("/json")
        async def small() -> dict[str, bool]:
            return {"ok": True}

        @app.route("/wait", methods=["GET", "POST"])
        async def wait() -> dict[str, bool]:
            self.began.set()
            try:
                await self.release.wait()
            except trio.Cancelled:
                self.cancelled.set()
                raise
            return {"ok": True}

        @app.post("/body")
        async def body() -> dict[str, int]:
            try:
                return {"bytes": len(await request.get_data())}
            except trio.Cancelled:
                self.cancelled.set()
                raise

        @app.post("/control/v1/blobs")
        async def blobs() -> dict[str, int]:
            await self.release.wait()
            return {"bytes": sum([len(piece) async for piece in request.body])}

        @app.get("/stream")
        async def stream() -> EventStream:
            return EventStream(self.source)

        @app.get("/endless")
        async def endless() -> EventStream:
            return EventStream(self.endless)

        return app


async def bounded(event: trio.Event, limit_s: float = LIMIT_S) -> None:
    with trio.fail_after(limit_s):
        await event.wait()


def our_errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


# Deadlines (N08). The clock stands still until a test lets time pass.


@pytest.fixture
def virtual_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock()


async def pass_time(clock: trio.testing.MockClock, seconds: float) -> None:
    """Let everybody do what there is to do, then let time pass, then again."""
    await trio.testing.wait_all_tasks_blocked(0.005)
    clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked(0.005)


def is_open(client: RawClient) -> bool:
    """The server has neither sent anything nor closed."""
    copy = socket.socket(fileno=socket.dup(client.stream.socket.fileno()))
    with copy:
        copy.setblocking(False)
        try:
            copy.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False


async def test_N08_a_connection_that_sends_nothing_is_closed_after_10_s_without_a_word(
    virtual_clock: trio.testing.MockClock,
) -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        await pass_time(virtual_clock, 9.9)
        assert is_open(client)
        await pass_time(virtual_clock, 0.2)
        assert not is_open(client)
        await client.wait_closed()


async def test_N08_half_a_head_is_refused_after_10_s_and_a_drip_gains_no_time(
    virtual_clock: trio.testing.MockClock,
) -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        for byte in "GET /json":
            await pass_time(virtual_clock, 1.1)
            assert is_open(client)
            await client.send(byte)
        await pass_time(virtual_clock, 0.2)
        answer = await client.answer()
        assert (answer.status, answer.error_code) == (408, "request_timeout")
        await client.wait_closed()


async def test_N08_a_head_that_arrives_in_pieces_in_time_is_served() -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        for byte in f"GET /json HTTP/1.1\r\n{HOST}\r\n":
            await client.send(byte)
        assert (await client.answer()).status == 200


async def test_N08_a_body_that_stalls_for_30_s_ends_its_request(
    virtual_clock: trio.testing.MockClock,
) -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        await client.send(f"{HEAD}Content-Length: 100\r\n\r\nabc")
        await pass_time(virtual_clock, 29.9)
        assert is_open(client)
        await pass_time(virtual_clock, 0.2)
        assert (await client.answer()).error_code == "request_timeout"
        assert site.cancelled.is_set()
        await client.wait_closed()


async def test_N08_a_drip_is_no_progress_of_a_body(virtual_clock: trio.testing.MockClock) -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        await client.send(f"{HEAD}Content-Length: 5000\r\n\r\n")
        await client.send(b"x" * 500)
        await pass_time(virtual_clock, 20)
        await client.send(b"x" * 523)  # 1023 in all
        await pass_time(virtual_clock, 10.1)
        assert (await client.answer()).error_code == "request_timeout"


async def test_N08_a_body_that_makes_progress_may_take_long(virtual_clock: trio.testing.MockClock) -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        await client.send(f"{HEAD}Content-Length: 5120\r\n\r\n")
        for _ in range(5):
            await pass_time(virtual_clock, 29)
            assert is_open(client)
            await client.send(b"x" * 1024)
        assert (await client.answer()).json() == {"bytes": 5120}


async def test_N08_a_body_that_nobody_takes_is_not_the_fault_of_its_client(
    virtual_clock: trio.testing.MockClock,
) -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        size_bytes = 16_000_000
        async with trio.open_nursery() as nursery:
            head = f"POST /control/v1/blobs HTTP/1.1\r\n{HOST}Content-Length: {size_bytes}\r\n\r\n"
            nursery.start_soon(client.stream.send_all, head.encode() + b"x" * size_bytes)
            await pass_time(virtual_clock, 120)
            site.release.set()
            assert (await client.answer()).json() == {"bytes": size_bytes}


async def test_an_idle_connection_is_kept_for_75_s_and_closed_without_a_word(
    virtual_clock: trio.testing.MockClock,
) -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        for _ in range(2):
            assert (await client.request("GET", "/json")).status == 200
            await pass_time(virtual_clock, 74.9)
            assert is_open(client)
        await pass_time(virtual_clock, 0.2)
        await client.wait_closed()


async def test_N08_the_second_head_has_10_s_from_its_first_byte(
    virtual_clock: trio.testing.MockClock,
) -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        await client.request("GET", "/json")
        await pass_time(virtual_clock, 70)
        await client.send("GET /js")
        await pass_time(virtual_clock, 9.9)
        assert is_open(client)
        await pass_time(virtual_clock, 0.2)
        assert (await client.answer()).status == 408


async def test_an_answer_may_take_longer_than_every_deadline(virtual_clock: trio.testing.MockClock) -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        await client.send(f"POST /wait HTTP/1.1\r\n{HOST}Content-Length: 3\r\n\r\nabc")
        await pass_time(virtual_clock, 3600)
        site.release.set()
        assert (await client.answer()).json() == {"ok": True}


# Clients that leave (N23)


async def leave_by_closing(client: RawClient) -> None:
    await client.aclose()


async def leave_by_half_closing(client: RawClient) -> None:
    await client.stream.send_eof()


async def leave_by_reset(client: RawClient) -> None:
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    await client.aclose()


LEAVING = [leave_by_closing, leave_by_half_closing, leave_by_reset]


@pytest.mark.parametrize("leave", LEAVING)
async def test_N23_a_client_that_leaves_before_the_answer_cancels_its_request(
    leave: object, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        await client.send(f"GET /wait HTTP/1.1\r\n{HOST}\r\n")
        await bounded(site.began)
        await leave(client)  # type: ignore[operator]  # one of LEAVING
        await bounded(site.cancelled, 1)
        await server.until(connections=0)
    assert our_errors(caplog) == []


@pytest.mark.parametrize("leave", LEAVING)
async def test_N23_a_client_that_leaves_in_mid_stream_closes_the_source_once(
    leave: object, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        site.source.feed.send_nowait(b"data: 1\n\n")
        await client.send(f"GET /stream HTTP/1.1\r\n{HOST}\r\n")
        await client.head()
        await client.chunk()
        await leave(client)  # type: ignore[operator]  # one of LEAVING
        await bounded(site.source.closed, 1)
        await server.until(connections=0)
    assert site.source.times_closed == 1
    assert site.source.aborted_with is None
    assert our_errors(caplog) == []


async def test_N23_a_client_that_leaves_an_endless_stream_is_noticed_by_the_writer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        await client.send(f"GET /endless HTTP/1.1\r\n{HOST}\r\n")
        await client.head()
        await leave_by_reset(client)
        await bounded(site.endless.closed, 1)
        assert (await server.get("/json")).status == 200
    assert site.endless.times_closed == 1
    assert our_errors(caplog) == []


async def test_N23_a_client_that_leaves_is_noticed_while_more_of_its_requests_wait() -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        await client.send(f"GET /wait HTTP/1.1\r\n{HOST}\r\n" + f"GET /json HTTP/1.1\r\n{HOST}\r\n" * 20)
        await bounded(site.began)
        await client.aclose()
        await bounded(site.cancelled, 1)


async def test_N23_a_client_that_leaves_in_the_middle_of_its_body_cancels_its_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        await client.send(f"{HEAD}Content-Length: 100\r\n\r\nabc")
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        await bounded(site.cancelled, 1)
        await server.until(connections=0)
    assert our_errors(caplog) == []


# Clients that do not read (N24)


async def test_N24_a_client_that_does_not_read_is_dropped_after_30_s_and_holds_little_meanwhile(
    virtual_clock: trio.testing.MockClock,
) -> None:
    site = Site()
    async with serving(site.app) as server:
        slow = await server.connect()
        await slow.send(f"GET /endless HTTP/1.1\r\n{HOST}\r\n")
        await slow.head()
        await pass_time(virtual_clock, 29.9)
        assert not site.endless.closed.is_set()
        assert site.endless.taken_bytes - unread_bytes(slow) < 1024 * 1024
        assert (await server.get("/json")).status == 200
        await pass_time(virtual_clock, 0.2)
        assert site.endless.times_closed == 1
        await server.until(connections=0)
        with pytest.raises(trio.BrokenResourceError):
            await slow.rest()


def unread_bytes(client: RawClient) -> int:
    """What lies in the client's own buffer, which is not held for it by the server."""
    copy = socket.socket(fileno=socket.dup(client.stream.socket.fileno()))
    with copy:
        copy.setblocking(False)
        return len(copy.recv(64 * 1024 * 1024, socket.MSG_PEEK))


async def test_N24_a_slow_reader_that_keeps_reading_is_served(virtual_clock: trio.testing.MockClock) -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        size_bytes = 16_000_000
        site.source.feed.send_nowait(b"x" * size_bytes)
        site.source.feed.close()
        await client.send(f"GET /stream HTTP/1.1\r\n{HOST}\r\n")
        received = 0
        while received < size_bytes:
            received += len(await client.stream.receive_some(2_000_000))
            await pass_time(virtual_clock, 20)
        assert trio.current_time() > 60


async def test_a_source_that_always_has_more_leaves_others_their_turn() -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        async with trio.open_nursery() as nursery:

            async def read_for_ever() -> None:
                while True:
                    await client.stream.receive_some()

            await client.send(f"GET /endless HTTP/1.1\r\n{HOST}\r\n")
            nursery.start_soon(read_for_ever)
            for _ in range(3):
                assert (await server.get("/json")).status == 200
            nursery.cancel_scope.cancel()


async def test_two_writers_do_not_mix_their_bytes() -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        await server.until(connections=1)
        [connection] = server.server._connections
        size_bytes = 8_000_000
        async with trio.open_nursery() as nursery:
            for byte in (b"a", b"b"):
                nursery.start_soon(connection.write, byte * size_bytes)
            received = await client.exactly(2 * size_bytes)
        assert received in (b"a" * size_bytes + b"b" * size_bytes, b"b" * size_bytes + b"a" * size_bytes)


# Giving way (O07)


async def test_O07_a_connection_gives_way_once_it_has_answered() -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        await server.until(connections=1)
        [connection] = server.server._connections
        assert not connection.give_way()
        await client.request("GET", "/json")
        await trio.testing.wait_all_tasks_blocked(0.005)
        assert connection.give_way()
        assert not connection.give_way()  # no second one may take its place
        await client.wait_closed()


async def test_O07_a_connection_does_not_give_way_though_nobody_has_read_its_request_yet() -> None:
    async with serving(Site().app) as server:
        client = await server.connect_unix()
        await client.request("GET", "/json")
        await trio.testing.wait_all_tasks_blocked(0.005)
        [connection] = server.server._connections
        os.write(client.stream.socket.fileno(), b"G")  # the server has no turn before the next line
        assert not connection.give_way()
        await client.send(f"ET /json HTTP/1.1\r\n{HOST}\r\n")
        assert (await client.answer()).status == 200


async def test_O07_a_connection_does_not_give_way_while_more_of_its_requests_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    next_request = Connection.next_request
    has_given_way = []

    def ask_at_once(connection: Connection, early: bytes) -> None:
        next_request(connection, early)
        has_given_way.append(connection.give_way())

    monkeypatch.setattr(Connection, "next_request", ask_at_once)
    async with serving(Site().app) as server:
        client = await server.connect()
        await client.send(f"GET /json HTTP/1.1\r\n{HOST}\r\n" * 2)
        for _ in range(2):
            assert (await client.answer()).status == 200
        await client.wait_closed()
    assert has_given_way == [False, True]


# Uploads


async def test_N09_an_upload_is_held_back_while_its_route_does_not_take_it() -> None:
    site = Site()
    size_bytes = 16 * 1024 * 1024
    sent = 0
    async with serving(site.app, control_body_bytes=1000) as server:
        client = await server.connect()
        async with trio.open_nursery() as nursery:

            async def upload() -> None:
                nonlocal sent
                await client.send(
                    f"POST /control/v1/blobs HTTP/1.1\r\n{HOST}Content-Length: {size_bytes}\r\n\r\n"
                )
                for _ in range(size_bytes // 65536):
                    await client.send(b"x" * 65536)
                    sent += 65536

            nursery.start_soon(upload)
            await trio.testing.wait_all_tasks_blocked(0.05)
            [connection] = server.server._connections
            taken_in_bytes = connection._running_protocol.body_bytes
            assert READ_AHEAD_BYTES < taken_in_bytes < 1024 * 1024
            assert sent < size_bytes
            site.release.set()
            assert (await client.answer()).json() == {"bytes": size_bytes}
