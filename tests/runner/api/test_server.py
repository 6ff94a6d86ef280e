from __future__ import annotations

import gc
import os
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from quart import request

from runner.api.app import RunnerApp, bare_app
from runner.api.connection import Connection
from runner.api.server import Server, ServerSettings, serve
from runner.api.streaming import EventStream
from runner.errors import StartRefused
from tests.support.http_server import LIMIT_S, RawClient, RunningServer, ScriptedSource, serving

pytestmark = pytest.mark.anyio

HOST = "Host: localhost\r\n"


class Site:
    def __init__(self) -> None:
        self.source = ScriptedSource()
        self.release = trio.Event()
        self.cancelled = trio.Event()
        self.app = self._build()

    def _build(self) -> RunnerApp:
        app = bare_app()

        @app.get("/json")
        async def small() -> dict[str, bool]:
            return {"ok": True}

        @app.get("/wait")
        async def wait() -> dict[str, bool]:
            try:
                await self.release.wait()
            except trio.Cancelled:
                self.cancelled.set()
                raise
            return {"ok": True}

        @app.post("/body")
        async def body() -> dict[str, int]:
            return {"bytes": len(await request.get_data())}

        @app.get("/stream")
        async def stream() -> EventStream:
            return EventStream(self.source)

        @app.get("/large")
        async def large() -> bytes:
            return b"x" * 50_000_000

        return app


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked(0.005)


# Starting


async def test_it_reports_the_addresses_it_is_bound_to() -> None:
    async with serving(Site().app) as server:
        assert server.addresses == (f"http://127.0.0.1:{server.port}", f"unix:{server.socket_path}")
        assert server.port > 0
        assert (await server.get("/json")).status == 200


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def test_a_server_that_cannot_listen_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async with serving(Site().app) as server:
        settings = ServerSettings(port=server.port, socket_path=tmp_path / "runner.sock")
        with pytest.raises(StartRefused, match="in use"):
            await Server(Site().app, settings).run()
        settings = ServerSettings(port=0, socket_path=server.socket_path)
        with pytest.raises(StartRefused, match="another daemon"):
            await Server(Site().app, settings).run()
    with pytest.raises(StartRefused, match="neither"):
        await Server(Site().app, ServerSettings(host=None)).run()
    assert names_in(tmp_path) == []


async def test_serve_ends_when_its_event_is_set() -> None:
    stop = trio.Event()

    async def run(task_status: Any) -> None:
        await serve(Site().app, ServerSettings(port=0), stop=stop, task_status=task_status)

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            [address] = await nursery.start(run)
            assert address.startswith("http://127.0.0.1:")
            stop.set()


async def test_it_counts_connections_and_running_requests() -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        await client.request("GET", "/json")
        statistics = server.server.statistics()
        assert (statistics.connections, statistics.running) == (1, 0)
        assert statistics.quiet_s > 0
        await client.send(f"GET /wait HTTP/1.1\r\n{HOST}\r\n")
        await settled()
        assert attrs.astuple(server.server.statistics()) == (1, 1, 0.0)


# One connection never harms another


async def test_an_exception_of_one_connection_is_logged_and_ends_that_connection_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site()
    async with serving(site.app) as server:
        bystander = await server.connect()
        await bystander.send(f"GET /wait HTTP/1.1\r\n{HOST}\r\n")
        await settled()
        with monkeypatch.context() as patched:

            async def fail(self: Connection, *_: Any) -> None:
                raise ValueError("a fault of ours")

            patched.setattr(Connection, "_pass_on", fail)
            client = await server.connect()
            await client.send(f"GET /json HTTP/1.1\r\n{HOST}\r\n")
            await client.wait_closed()
        assert "a fault of ours" in caplog.text
        site.release.set()
        assert (await bystander.answer()).json() == {"ok": True}
        assert (await server.get("/json")).status == 200


# Too many (O07)


def test_O07_at_most_256_connections() -> None:
    assert ServerSettings().max_connections == 256


async def test_O07_connections_above_the_limit_are_turned_away_until_one_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    async with serving(site.app, max_connections=3) as server:
        clients = [await server.connect() for _ in range(3)]
        for client in clients:
            await client.send(f"GET /wait HTTP/1.1\r\n{HOST}\r\n")
        await server.until(connections=3)
        for _ in range(3):
            await assert_turned_away(await server.connect())
        assert len(caplog.records) == 1
        await clients[0].aclose()
        await server.until(connections=2)
        assert (await server.get("/json")).status == 200
        site.release.set()
        for client in clients[1:]:
            assert (await client.answer()).status == 200


async def assert_turned_away(client: RawClient) -> None:
    answer = await client.answer()
    assert (answer.status, answer.error_code) == (503, "too_many_connections")
    assert answer.headers["retry-after"] == "1"


async def idle_clients(server: RunningServer, n_clients: int) -> list[RawClient]:
    """Whose requests have been answered, the first one's first."""
    clients = [await server.connect() for _ in range(n_clients)]
    for client in clients:
        await client.request("GET", "/json")
        await settled()
    return clients


async def assert_served(*clients: RawClient) -> None:
    for client in clients:
        assert (await client.request("GET", "/json")).status == 200


async def test_O07_below_the_limit_idle_connections_stay() -> None:
    async with serving(Site().app, max_connections=3) as server:
        clients = await idle_clients(server, 2)
        await assert_served(await server.connect(), *clients)


async def test_O07_at_the_limit_the_connection_that_was_idle_for_longest_gives_way() -> None:
    async with serving(Site().app, max_connections=3) as server:
        clients = await idle_clients(server, 3)
        await assert_served(clients[0])  # now it is the one that was used last
        for leaving in (clients[1], clients[2], clients[0]):
            clients.append(await server.connect_unix())
            await assert_served(clients[-1])
            await leaving.wait_closed()
            await server.until(connections=3)
        await assert_served(*clients[3:])


async def test_O07_above_the_limit_only_as_many_are_taken_as_can_give_way() -> None:
    async with serving(Site().app, max_connections=3) as server:
        idle = await idle_clients(server, 3)
        clients = [await server.connect() for _ in range(5)]
        for surplus in clients[3:]:
            await assert_turned_away(surplus)
        for client in idle:
            await client.wait_closed()
        await server.until(connections=3)
        await assert_served(*clients[:3])


async def test_O07_connections_with_a_request_under_way_never_give_way() -> None:
    site = Site()
    async with serving(site.app, max_connections=5) as server:
        waiting, streaming, sending, beginning, ahead = await idle_clients(server, 5)
        await waiting.send(f"GET /wait HTTP/1.1\r\n{HOST}\r\n")
        await streaming.send(f"GET /stream HTTP/1.1\r\n{HOST}\r\n")
        await sending.send(f"POST /body HTTP/1.1\r\n{HOST}Content-Length: 3\r\n\r\nab")
        await beginning.send("G")
        await ahead.send(f"GET /json HTTP/1.1\r\n{HOST}\r\nG")
        await ahead.answer()
        for _ in range(2):
            await assert_turned_away(await server.connect())
        site.release.set()
        site.source.feed.close()
        await sending.send("c")
        for client in (beginning, ahead):
            await client.send(f"ET /json HTTP/1.1\r\n{HOST}\r\n")
        for client in (waiting, streaming, sending, beginning, ahead):
            assert (await client.answer()).status == 200


async def test_O07_connections_that_have_not_asked_yet_do_not_give_way() -> None:
    async with serving(Site().app, max_connections=2) as server:
        clients = [await server.connect() for _ in range(2)]
        await assert_turned_away(await server.connect())
        await assert_served(*clients)


async def test_O07_without_descriptors_connections_are_turned_away_until_there_are_some() -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        gc.collect()
        waiting = [socket.socket() for _ in range(3)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # From here on no further descriptor can be opened: the limit is the first free number.
        first_free = os.dup(0)
        os.close(first_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
        try:
            for sock in waiting:
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", server.port))
            for sock in waiting:
                with trio.fail_after(LIMIT_S):
                    await trio.lowlevel.wait_readable(sock)
                assert sock.recv(100).startswith(b"HTTP/1.1 503")
            assert (await client.request("GET", "/json")).status == 200
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for sock in waiting:
                sock.close()
        assert (await server.get("/json")).status == 200


# Shutdown (L09). The clock stands still until a test lets time pass.


@pytest.fixture
def virtual_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock()


async def pass_time(clock: trio.testing.MockClock, seconds: float) -> None:
    await settled()
    clock.jump(seconds)
    await settled()


@attrs.frozen
class Run:
    server: RunningServer
    ended: trio.Event
    scope: trio.CancelScope


@asynccontextmanager
async def run_to_end(site: Site, path: Path) -> AsyncIterator[Run]:
    """A server that the block stops; leaving it waits for its end."""
    ended = trio.Event()
    server = Server(site.app, ServerSettings(port=0, socket_path=path))

    async def run(task_status: Any) -> None:
        await server.run(task_status=task_status)
        ended.set()

    async with trio.open_nursery() as nursery:
        running = RunningServer(server, await nursery.start(run), path)
        try:
            yield Run(running, ended, nursery.cancel_scope)
        finally:
            with trio.CancelScope(shield=True):
                await running.close_clients()


async def test_L09_with_nothing_running_it_stops_at_once(
    virtual_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    async with run_to_end(Site(), tmp_path / "s") as run:
        server = run.server
        idle = await server.connect()
        await idle.request("GET", "/json")
        silent = await server.connect()
        half = await server.connect()
        await half.send("GET /js")
        await settled()
        server.server.stop()
        await settled()
        assert run.ended.is_set()
        for client in (idle, silent, half):
            await client.wait_closed()
    assert not (tmp_path / "s").exists()


async def test_L09_running_requests_are_finished_while_new_connections_are_refused(
    virtual_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    site = Site()
    async with run_to_end(site, tmp_path / "s") as run:
        server = run.server
        waiting, streaming = await server.connect(), await server.connect()
        await waiting.send(f"GET /wait HTTP/1.1\r\n{HOST}\r\n")
        await streaming.send(f"GET /stream HTTP/1.1\r\n{HOST}\r\n")
        await streaming.head()
        server.server.stop()
        await pass_time(virtual_clock, 29.9)
        with pytest.raises(OSError):
            await server.connect()
        assert not (tmp_path / "s").exists()
        assert not run.ended.is_set()
        site.release.set()
        answer = await waiting.answer()
        assert (answer.json(), answer.headers["connection"]) == ({"ok": True}, "close")
        await waiting.wait_closed()
        site.source.feed.send_nowait(b"data: 1\n\n")
        assert await streaming.chunk() == b"data: 1\n\n"
        site.source.feed.close()
        assert await streaming.rest() == b"0\r\n\r\n"
        await settled()
        assert run.ended.is_set()
    assert (site.source.times_closed, site.source.aborted_with) == (1, None)


async def test_L09_after_30_s_streams_end_with_an_error_event_and_requests_with_an_error(
    virtual_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    site = Site()
    async with run_to_end(site, tmp_path / "s") as run:
        server = run.server
        waiting, streaming, sending = [await server.connect() for _ in range(3)]
        await waiting.send(f"GET /wait HTTP/1.1\r\n{HOST}\r\n")
        await streaming.send(f"GET /stream HTTP/1.1\r\n{HOST}\r\n")
        await streaming.head()
        await sending.send(f"POST /body HTTP/1.1\r\n{HOST}Content-Length: 9000\r\n\r\nabc")
        await settled()
        server.server.stop()
        await pass_time(virtual_clock, 20)
        await sending.send(b"x" * 2000)
        await pass_time(virtual_clock, 10.1)
        assert await streaming.rest() == b"10\r\ndata: draining\n\n\r\n0\r\n\r\n"
        for client in (waiting, sending):
            answer = await client.answer()
            assert (answer.status, answer.error_code) == (503, "draining")
            assert answer.headers["retry-after"] == "5"
        await sending.aclose()  # it might still be sending, and is given a moment to read its answer
        await settled()
        assert run.ended.is_set()
        assert site.cancelled.is_set()
    assert site.source.times_closed == 1


async def test_L09_a_stream_of_http_1_0_has_its_last_words_too(
    virtual_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    site = Site()
    async with run_to_end(site, tmp_path / "s") as run:
        server = run.server
        streaming = await server.connect()
        await streaming.send(f"GET /stream HTTP/1.0\r\n{HOST}\r\n")
        site.source.feed.send_nowait(b"data: 1\n\n")
        await settled()
        server.server.stop()
        await pass_time(virtual_clock, 30.1)
        assert (await streaming.rest()).endswith(b"\r\n\r\ndata: 1\n\ndata: draining\n\n")
        await settled()
        assert run.ended.is_set()


async def test_L09_clients_that_do_not_read_cannot_delay_the_end(
    virtual_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    site = Site()
    async with run_to_end(site, tmp_path / "s") as run:
        server = run.server
        clients = [await server.connect() for _ in range(2)]
        for client, path in zip(clients, ("/stream", "/large"), strict=True):
            await client.send(f"GET {path} HTTP/1.1\r\n{HOST}\r\n")
        site.source.feed.send_nowait(b"x" * 50_000_000)
        await settled()
        server.server.stop()
        await pass_time(virtual_clock, 29)  # their write deadline passes a second later
        assert not run.ended.is_set()
        await pass_time(virtual_clock, 1.1)
        await pass_time(virtual_clock, 2.1)
        assert run.ended.is_set()
        for client in clients:
            with pytest.raises(trio.BrokenResourceError):
                await client.rest()
    assert site.source.times_closed == 1


async def test_L09_what_is_left_after_the_last_words_is_cut_off(
    virtual_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    site = Site()
    async with run_to_end(site, tmp_path / "s") as run:
        server = run.server
        sending, stuck = [await server.connect() for _ in range(2)]
        await sending.send(f"POST /body HTTP/1.1\r\n{HOST}Content-Length: 30000000\r\n\r\n")
        await stuck.send(f"GET /stream HTTP/1.1\r\n{HOST}\r\n")
        await settled()
        server.server.stop()
        await pass_time(virtual_clock, 20)
        await sending.send(b"x" * 2000)
        site.source.feed.send_nowait(b"x" * 50_000_000)
        await pass_time(virtual_clock, 10.1)
        assert (await sending.answer()).status == 503  # and it goes on sending
        await pass_time(virtual_clock, 2.1)
        assert run.ended.is_set()
        with pytest.raises(trio.BrokenResourceError):
            await stuck.rest()
    assert site.source.times_closed == 1


async def test_L09_being_cancelled_ends_at_once_whatever_runs(
    virtual_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    site = Site()
    async with run_to_end(site, tmp_path / "s") as run:
        server = run.server
        waiting, stuck, refused = [await server.connect() for _ in range(3)]
        await waiting.send(f"GET /wait HTTP/1.1\r\n{HOST}\r\n")
        await stuck.send(f"GET /large HTTP/1.1\r\n{HOST}\r\n")
        await refused.send(f"POST /body HTTP/1.1\r\n{HOST}Origin: null\r\nContent-Length: 9\r\n\r\n")
        await settled()
        server.server.stop()
        await settled()
        run.scope.cancel()
    assert site.cancelled.is_set()
    assert not (tmp_path / "s").exists()
    assert server.server.statistics().connections == 0
