"""The dialects through the real serving layer over sockets: chunks, clients that leave, uploads, endings."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from runner.domain.events import Accepted, TextDelta
from tests.support.api import app_over
from tests.support.fake_handles import FakeParts, finished, spoken
from tests.support.http_server import LIMIT_S, RawClient, serving

pytestmark = pytest.mark.anyio

MODEL = "ai/smollm2:135M-Q4_1"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Why?"}]}
PATH = "/v1/chat/completions"


async def ask(client: RawClient, path: str = PATH, **fields: Any) -> None:
    body = json.dumps({**CHAT, **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    await client.send(head.encode() + body)


async def until(condition: Any) -> None:
    with trio.fail_after(LIMIT_S):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.001)


async def test_a_stream_leaves_as_its_tokens_come() -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1)])
    async with serving(app_over(parts)) as server:
        client = await server.connect()
        await ask(client, stream=True)
        status, headers = await client.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        assert b'"role":"assistant"' in await client.chunk()
        stream = parts.scheduler.workers[0].streams[0]
        for text in ("Be", "cause"):
            stream.deliver([TextDelta(text, 1)])
            assert json.dumps(text).encode() in await client.chunk()
        stream.deliver([TextDelta(".", 1), finished()])
        last = await client.chunk()
        assert last.count(b"data: ") == 3  # what is ready together leaves together
        assert last.endswith(b"data: [DONE]\n\n")
        assert await client.chunk() == b""
        await until(lambda: parts.scheduler.outstanding == 0)
        # and the connection is good for another request
        parts.scheduler.workers[0].script = lambda _: spoken("fine")
        await ask(client)
        assert (await client.answer()).json()["choices"][0]["message"]["content"] == "fine"


@pytest.mark.parametrize("stream", [True, False])
async def test_N23_a_client_that_leaves_frees_its_place_within_a_second(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1), TextDelta("Be", 1)])
    async with serving(app_over(parts)) as server:
        client = await server.connect()
        await ask(client, stream=stream)
        worker = parts.scheduler.workers[0]
        if stream:
            await client.until(b'"Be"')
        await until(lambda: bool(worker.streams))
        await client.aclose()
        with trio.fail_after(1):
            await until(lambda: parts.scheduler.outstanding == 0 and bool(worker.cancelled))
        await server.until(connections=0)
    assert caplog.records == []


async def test_N23_a_client_that_leaves_while_its_model_loads_leaves_the_queue() -> None:
    parts = FakeParts.make()
    parts.scheduler.gate = trio.Event()
    async with serving(app_over(parts)) as server:
        client = await server.connect()
        await ask(client, stream=True)
        await until(lambda: bool(parts.scheduler.acquired))
        await client.aclose()
        await until(lambda: parts.scheduler.cancelled_acquires == 1)


async def test_L01_a_worker_that_dies_in_mid_stream_ends_it_with_an_error_event_alone() -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1), TextDelta("Be", 1)])
    async with serving(app_over(parts)) as server:
        client = await server.connect()
        await ask(client, stream=True)
        await client.until(b'"Be"')
        parts.scheduler.workers[0].die()
        rest = await client.until(b"\r\n0\r\n\r\n")
        assert b'"code":"worker_crashed"' in rest
        assert b"[DONE]" not in rest


async def test_L09_a_stream_that_outlasts_the_grace_ends_with_an_error_event_alone() -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1), TextDelta("Be", 1)])
    async with serving(app_over(parts), grace_s=0.05) as server:
        client = await server.connect()
        await ask(client, stream=True)
        await client.until(b'"Be"')
        server.server.stop()
        rest = await client.rest()
        assert b'"code":"draining"' in rest
        assert b"[DONE]" not in rest
        await until(lambda: parts.scheduler.outstanding == 0)
    assert len(parts.scheduler.workers[0].cancelled) == 1


async def test_N19_an_escaped_name_is_decoded_once() -> None:
    async with serving(app_over(FakeParts.make())) as server:
        for name, status in (
            ("ai/smollm2:135M-Q4_1", 200),
            ("ai%2Fsmollm2%3A135M-Q4_1", 200),
            ("ai%252Fsmollm2", 400),
            ("%2e%2e%2fetc", 400),
            ("ai/absent", 404),
        ):
            assert (await server.get(f"/v1/models/{name}")).status == status, name


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_an_upload_is_larger_than_any_other_body_and_never_held(is_chunked: bool) -> None:
    parts = FakeParts.make()
    size_bytes, piece = 3 * 1024 * 1024, b"x" * 65536
    framing = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {size_bytes}"
    async with serving(app_over(parts)) as server:
        client = await server.connect()
        await client.send(f"POST /control/v1/blobs HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n")
        for _ in range(size_bytes // len(piece)):
            await client.send(b"10000\r\n" + piece + b"\r\n" if is_chunked else piece)
        if is_chunked:
            await client.send(b"0\r\n\r\n")
        answer = await client.answer()
    assert (answer.status, answer.json()["size_bytes"]) == (201, size_bytes)
    assert parts.store.changes[0][1] == (None if is_chunked else size_bytes)


async def test_N09_other_control_bodies_are_limited() -> None:
    async with serving(app_over(FakeParts.make())) as server:
        client = await server.connect()
        answer = await client.request("POST", "/control/v1/tag", body=b"x" * (1024 * 1024 + 1))
        assert (answer.status, answer.error_code) == (413, "request_too_large")


async def test_a_store_that_refuses_an_upload_answers_although_the_body_goes_on() -> None:
    parts = FakeParts.make()
    async with serving(app_over(parts)) as server:
        client = await server.connect()
        head = "POST /control/v1/blobs HTTP/1.1\r\nHost: localhost\r\nX-Content-Digest: md5:0\r\n"
        await client.send(f"{head}Content-Length: 1000000\r\n\r\nxxxx")
        answer = await client.answer()
    assert (answer.status, answer.error_code) == (400, "invalid_parameter")
