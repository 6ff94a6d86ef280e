from __future__ import annotations

import logging
import os
import random
from typing import Any

import pytest
import trio
import trio.testing
from quart import request

from runner.api.app import RunnerApp, bare_app
from runner.api.streaming import EventStream
from tests.support.http_server import RawClient, ScriptedSource, serving

pytestmark = pytest.mark.anyio

HOST = "Host: localhost\r\n"


class Site:
    """A small application that remembers which of its routes ran."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.source = ScriptedSource()
        self.release = trio.Event()
        self.app = self._build()

    def _build(self) -> RunnerApp:
        app = bare_app()

        @app.before_request
        async def remember() -> None:
            self.seen.append(f"{request.method} {request.path}")

        @app.get("/json")
        async def small() -> dict[str, bool]:
            return {"ok": True}

        @app.post("/body")
        @app.post("/control/v1/body")
        async def body() -> dict[str, int]:
            return {"bytes": len(await request.get_data())}

        @app.get("/stream")
        async def stream() -> EventStream:
            return EventStream(self.source)

        @app.post("/early")
        async def early() -> dict[str, bool]:
            return {"ok": True}

        @app.get("/wait")
        async def wait() -> dict[str, bool]:
            await self.release.wait()
            return {"ok": True}

        @app.get("/fail")
        async def fail() -> None:
            raise RuntimeError("secret at /etc/passwd")

        @app.get("/fail-late")
        async def fail_late() -> Any:
            async def pieces() -> Any:
                raise RuntimeError("secret at /etc/passwd")
                yield b""

            return pieces()

        return app


async def exchange(client: RawClient, data: str | bytes) -> bytes:
    """Send, and read until the server closes."""
    await client.send(data)
    return await client.rest()


SMUGGLED = f"GET /json HTTP/1.1\r\n{HOST}\r\n"
AMBIGUOUS_REQUESTS = [
    f"POST /body HTTP/1.1\r\n{HOST}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    f"POST /body HTTP/1.1\r\n{HOST}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    f"POST /body HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    f"POST /body HTTP/1.1\r\n{HOST}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    f"POST /body HTTP/1.1\r\n{HOST}A: b\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /body HTTP/1.1\nHost: localhost\nContent-Length: 0\n\n",
    f"POST /body HTTP/1.1\r\n{HOST}Content-Length: 0\n\r\n",
    f"POST /body HTTP/1.0\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
]
MALFORMED_CHUNKS = [
    "z\r\nabc\r\n",
    "-1\r\n",
    "3\r\nabcd\r\n",
    "3\nabc\r\n",
    "\r\n",
    "3;\n\r\nabc\r\n",
    "0x3\r\nabc\r\n",
]


async def test_N07_an_ambiguous_request_is_refused_and_nothing_behind_it_is_read() -> None:
    site = Site()
    async with serving(site.app) as server:
        for ambiguous in AMBIGUOUS_REQUESTS:
            client = await server.connect()
            answer = await exchange(client, ambiguous + SMUGGLED)
            assert answer.startswith(b"HTTP/1.1 400 "), ambiguous
            assert answer.count(b"x-request-id") == 1, ambiguous
    assert site.seen == []


async def test_N07_a_malformed_chunk_is_refused_and_nothing_behind_it_is_read() -> None:
    site = Site()
    async with serving(site.app) as server:
        for chunk in MALFORMED_CHUNKS:
            client = await server.connect()
            await client.send(f"POST /body HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
            await trio.testing.wait_all_tasks_blocked()
            answer = await exchange(client, chunk + SMUGGLED)
            assert answer.startswith(b"HTTP/1.1 400 "), chunk
            assert answer.count(b"x-request-id") == 1, chunk
    assert set(site.seen) == {"POST /body"}


async def test_N07_every_refusal_ends_the_connection() -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        answer = await client.request("GET", "/json", "Origin: null")
        assert (answer.status, answer.error_code) == (403, "origin_not_allowed")
        assert answer.headers["connection"] == "close"
        await client.wait_closed()


async def test_N02_a_foreign_host_is_refused_before_routing_and_before_its_body() -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        await client.send(
            "POST /body HTTP/1.1\r\nHost: evil.example\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
        )
        answer = await client.answer()
        assert (answer.status, answer.error_code) == (403, "host_not_allowed")
        for host in (
            "",
            "Host: localhost\r\nHost: localhost\r\n",
            "Host: LOCALHOST\r\n",
            "Host: localhost.\r\n",
        ):
            client = await server.connect()
            await client.send(f"GET /json HTTP/1.1\r\n{host}\r\n")
            assert (await client.answer()).error_code == "host_not_allowed"
        client = await server.connect()
        await client.send(f"GET http://evil.example/json HTTP/1.1\r\n{HOST}\r\n")
        assert (await client.answer()).error_code == "host_not_allowed"
    assert site.seen == []


async def test_N02_the_own_port_belongs_to_the_host() -> None:
    async with serving(Site().app) as server:
        for host, status in ((f"[::1]:{server.port}", 200), (f"localhost:{server.port + 1}", 403)):
            client = await server.connect()
            await client.send(f"GET /json HTTP/1.1\r\nHost: {host}\r\n\r\n")
            assert (await client.answer()).status == status


async def test_N02_on_the_unix_socket_any_host_is_served_and_N03_an_origin_is_not() -> None:
    async with serving(Site().app) as server:
        client = await server.connect_unix()
        for host in ("evil.example", "a b", ":::", "x" * 300):
            await client.send(f"GET /json HTTP/1.1\r\nHost: {host}\r\n\r\n")
            assert (await client.answer()).status == 200, host
        assert (await client.request("GET", "/json", "Origin: http://localhost")).status == 403
        client = await server.connect_unix()
        await client.send("GET /json HTTP/1.0\r\n\r\n")
        assert (await client.answer()).status == 200
        client = await server.connect_unix()
        await client.send("GET /json HTTP/1.1\r\n\r\n")
        assert (await client.answer()).error_code == "bad_request"


async def test_an_absolute_target_is_routed_by_its_path() -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        await client.send(f"GET http://localhost/json?x HTTP/1.1\r\n{HOST}\r\n")
        assert (await client.answer()).json() == {"ok": True}


@pytest.mark.parametrize(("path", "limit_bytes"), [("/control/v1/body", 1000), ("/body", 3000)])
async def test_N09_a_body_is_counted_while_it_arrives(path: str, limit_bytes: int) -> None:
    async with serving(Site().app, control_body_bytes=1000, inference_body_bytes=3000) as server:
        for size_bytes in (limit_bytes - 1, limit_bytes):
            client = await server.connect()
            await client.send(f"POST {path} HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n")
            await client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (size_bytes, b"x" * size_bytes))
            assert (await client.answer()).json() == {"bytes": size_bytes}
        client = await server.connect()
        await client.send(f"POST {path} HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n")
        await client.send(b"%x\r\n%b\r\n" % (limit_bytes, b"x" * limit_bytes))
        await trio.testing.wait_all_tasks_blocked()
        await client.send(b"1\r\nx")
        answer = await client.answer()
        assert (answer.status, answer.error_code) == (413, "request_too_large")
        await client.wait_closed()


async def test_N09_an_announced_body_is_refused_before_it_arrives() -> None:
    site = Site()
    async with serving(site.app, inference_body_bytes=3000) as server:
        client = await server.connect()
        await client.send(
            f"POST /body HTTP/1.1\r\n{HOST}Content-Length: 3001\r\nExpect: 100-continue\r\n\r\n"
        )
        assert (await client.answer()).status == 413
    assert site.seen == []


async def test_N09_a_client_that_keeps_sending_can_still_read_why_it_was_refused() -> None:
    async with serving(Site().app, inference_body_bytes=1000) as server:
        client = await server.connect()
        await client.send(f"POST /body HTTP/1.1\r\n{HOST}Content-Length: 4000000\r\n\r\n")
        await client.send(b"x" * 4_000_000)
        assert (await client.answer()).status == 413


async def test_N09_large_headers_are_refused() -> None:
    async with serving(Site().app) as server:
        for lines in (f"A: {'b' * 65536}\r\n", "A: b\r\n" * 100):
            client = await server.connect()
            await client.send(f"GET /json HTTP/1.1\r\n{HOST}{lines}\r\n")
            answer = await client.answer()
            assert (answer.status, answer.error_code) == (431, "headers_too_large")


async def test_N09_an_endless_chunk_header_is_refused() -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        await client.send(f"POST /body HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n1;{'x' * 20000}")
        assert (await client.answer()).status == 400


async def test_O06_a_body_in_chunks_of_one_byte_leaves_others_their_turn() -> None:
    async with serving(Site().app) as server:
        client, other = await server.connect(), await server.connect()
        size_bytes = 100_000
        async with trio.open_nursery() as nursery:
            head = f"POST /body HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n"
            nursery.start_soon(client.send, head + "1\r\nx\r\n" * size_bytes + "0\r\n\r\n")
            answered = 0

            async def ask_meanwhile() -> None:
                nonlocal answered
                while True:
                    assert (await other.request("GET", "/json")).status == 200
                    answered += 1

            nursery.start_soon(ask_meanwhile)
            assert (await client.answer()).json() == {"bytes": size_bytes}
            nursery.cancel_scope.cancel()
        assert answered > 10


async def test_a_body_is_asked_for_when_the_client_waits_for_that() -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        await client.send(f"POST /body HTTP/1.1\r\n{HOST}Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.head())[0] == 100
        await client.send(b"abc")
        assert (await client.answer()).json() == {"bytes": 3}


async def test_one_connection_serves_one_request_after_the_other() -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        for _ in range(3):
            assert (await client.request("GET", "/json")).json() == {"ok": True}
            assert (await client.request("POST", "/body", body=b"x" * 200_000)).json() == {"bytes": 200_000}
        assert server.server.statistics().connections == 1


async def test_requests_sent_together_are_answered_in_order() -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        post = f"POST /body HTTP/1.1\r\n{HOST}Content-Length: 3\r\n\r\nabc"
        chunked = f"POST /body HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
        get = f"GET /json HTTP/1.1\r\n{HOST}\r\n"
        await client.send(post + get + chunked + get + post)
        answers = [(await client.answer()).json() for _ in range(5)]
        assert answers == [{"bytes": 3}, {"ok": True}, {"bytes": 2}, {"ok": True}, {"bytes": 3}]


async def test_much_more_than_is_read_early_may_follow_a_running_request() -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, f"GET /wait HTTP/1.1\r\n{HOST}\r\n")
            await trio.testing.wait_all_tasks_blocked()
            body = b"x" * 5_000_000
            head = f"POST /body HTTP/1.1\r\n{HOST}Content-Length: {len(body)}\r\n\r\n".encode()
            nursery.start_soon(client.send, head + body + SMUGGLED.encode())
            await trio.testing.wait_all_tasks_blocked()
            assert site.seen == ["GET /wait"]
            site.release.set()
            assert (await client.answer()).json() == {"ok": True}
            assert (await client.answer()).json() == {"bytes": len(body)}
            assert (await client.answer()).json() == {"ok": True}


async def test_a_client_that_says_so_is_answered_and_left() -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        answer = await client.request("GET", "/json", "Connection: close")
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await client.wait_closed()


async def test_a_route_that_does_not_want_the_body_answers_and_the_connection_ends() -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        await client.send(f"POST /early HTTP/1.1\r\n{HOST}Content-Length: 4000000\r\n\r\n")
        await client.send(b"x" * 4_000_000)
        assert (await client.answer()).json() == {"ok": True}
        await client.wait_closed()


async def test_a_small_answer_leaves_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        await client.request("GET", "/json")
        written = []

        def count(descriptor: int, data: bytes, write: Any = os.write) -> int:
            if bytes(data[:4]) != b"HTTP" and len(data) == 8:  # trio's own wake-ups are one byte
                written.append(data)
            if bytes(data[:4]) == b"HTTP":
                written.append(data)
            return int(write(descriptor, data))

        monkeypatch.setattr(os, "write", count)
        await client.request("GET", "/json")
        assert len(written) == 1


# Streams


async def test_a_stream_is_sent_in_chunks_as_they_come_and_the_connection_stays() -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        await client.send(f"GET /stream HTTP/1.1\r\n{HOST}\r\n")
        status, headers = await client.head()
        assert (status, headers["content-type"], headers["transfer-encoding"]) == (
            200,
            "text/event-stream",
            "chunked",
        )
        for chunk in (b"data: 1\n\n", b"x" * 100_000):
            await site.source.feed.send(chunk)
            assert await client.chunk() == chunk
        site.source.feed.close()
        assert await client.chunk() == b""
        assert site.source.times_closed == 1
        assert (await client.request("GET", "/json")).status == 200
        assert server.server.statistics().connections == 1


async def test_http_1_0_gets_a_stream_without_chunks_that_ends_with_the_connection() -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        site.source.feed.send_nowait(b"data: 1\n\n")
        site.source.feed.send_nowait(b"data: 2\n\n")
        site.source.feed.close()
        await client.send(f"GET /stream HTTP/1.0\r\n{HOST}\r\n")
        answer = await client.answer()
        assert answer.body == b"data: 1\n\ndata: 2\n\n"
        assert "transfer-encoding" not in answer.headers
        assert site.source.times_closed == 1


async def test_head_of_a_stream_has_no_body_and_asks_the_source_for_nothing() -> None:
    site = Site()
    site.source.feed.send_nowait(b"data: 1\n\n")
    async with serving(site.app) as server:
        client = await server.connect()
        assert (await client.request("HEAD", "/stream")).status == 200
        assert (site.source.taken_bytes, site.source.times_closed) == (0, 1)
        assert (await client.request("GET", "/json")).status == 200


async def test_a_source_that_fails_cuts_the_answer_off(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        site.source.feed.send_nowait(b"data: 1\n\n")
        site.source.feed.send_nowait(RuntimeError("broken"))
        await client.send(f"GET /stream HTTP/1.1\r\n{HOST}\r\n")
        answer = await client.rest()
        assert answer.endswith(b"data: 1\n\n\r\n")
        assert site.source.times_closed == 1
        assert "broken" in caplog.text
        assert (await server.get("/json")).status == 200


async def test_http_1_0_is_reset_when_its_answer_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    async with serving(site.app) as server:
        client = await server.connect()
        site.source.feed.send_nowait(b"data: 1\n\n")
        site.source.feed.send_nowait(RuntimeError("broken"))
        await client.send(f"GET /stream HTTP/1.0\r\n{HOST}\r\n")
        with pytest.raises(trio.BrokenResourceError):
            await client.rest()


# Failures


@pytest.mark.parametrize("path", ["/fail", "/fail-late"])
async def test_N21_a_failure_tells_the_log_and_not_the_client(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Site().app) as server:
        answer = await server.get(path)
        assert (answer.status, answer.error_code) == (500, "internal_error")
        assert b"secret" not in answer.body and b"passwd" not in answer.body
        assert "secret" in caplog.text
        assert (await server.get("/json")).status == 200


async def test_N25_an_upgrade_with_bytes_behind_it_is_refused_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    upgrade = (
        f"GET /json HTTP/1.1\r\n{HOST}Connection: Upgrade\r\nUpgrade: %s\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    async with serving(Site().app) as server:
        for trailing in ("", "x", "\x00\xff garbage"):
            client = await server.connect()
            answer = await exchange(client, upgrade % "websocket" + trailing)
            assert answer.startswith(b"HTTP/1.1 400 ") and b"upgrade_refused" in answer
            client = await server.connect()
            await client.send(upgrade % "h2c" + trailing)
            assert (await client.answer()).status == 200  # not 101: it goes on as HTTP/1.1
        for data, status in (
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            (f"TRACE /json HTTP/1.1\r\n{HOST}\r\n", 405),
            ("CONNECT localhost HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        ):
            client = await server.connect()
            assert (await exchange(client, data)).startswith(b"HTTP/1.1 %d " % status)
        assert (await server.get("/json")).status == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_whatever_arrives_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """Requests with random damage, in random pieces, by clients that leave at random."""
    chance = random.Random(7)
    intact = [
        f"GET /json HTTP/1.1\r\n{HOST}\r\n",
        f"POST /body HTTP/1.1\r\n{HOST}Content-Length: 5\r\n\r\nhello",
        f"POST /body HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        f"POST /body HTTP/1.1\r\n{HOST}Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        f"GET /json HTTP/1.1\r\n{HOST}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\nx",
    ]

    def damaged() -> bytes:
        data = bytearray("".join(chance.choices(intact, k=2)).encode())
        for _ in range(chance.randrange(3)):
            data[chance.randrange(len(data))] = chance.choice(b"\0\r\n :,x0\xff")
        return bytes(data)

    async with serving(Site().app) as server:
        for _ in range(150):
            client = await server.connect()
            data = damaged()
            cut = chance.randrange(len(data))
            await client.send(data[:cut])
            if chance.random() < 0.5:
                await trio.testing.wait_all_tasks_blocked()
            try:
                await client.stream.send_all(data[cut:])
                await trio.testing.wait_all_tasks_blocked()
            except trio.BrokenResourceError:
                pass
            await client.aclose()
        await server.until(connections=0)
        assert (await server.get("/json")).status == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# Request ids


async def test_N20_a_harmless_request_id_is_kept_and_any_other_is_replaced() -> None:
    async with serving(Site().app) as server:
        client = await server.connect()
        for path in ("/json", "/nowhere", "/fail"):
            answer = await client.request("GET", path, f"X-Request-Id: {'a.B_-9' + 'x' * 58}")
            assert answer.headers["x-request-id"] == "a.B_-9" + "x" * 58
        for bad in ("x" * 65, "a b", "a/b", "", "\xe4", "<script>"):
            answer = await client.request("GET", "/json", f"X-Request-Id: {bad}")
            assert answer.headers["x-request-id"].startswith("req_")
        answer = await client.request("GET", "/json", "X-Request-Id: a", "X-Request-Id: b")
        assert answer.headers["x-request-id"].startswith("req_")
        answer = await client.request("GET", "/json", "X-Request-Id: mine", "Origin: null")
        assert (answer.status, answer.headers["x-request-id"]) == (403, "mine")
