"""The OpenAI endpoints through the whole application, over handles in memory."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import trio

from runner.api.openai.routes import PREFIXES
from runner.domain.events import Accepted, Failed, TextDelta
from runner.domain.generation import TextPrompt
from runner.errors import InsufficientMemory, QueueFull
from tests.support.api import answer_of, app_over, client_over, error_of, leave, post
from tests.support.fake_handles import FakeParts, FakeWorker, fake_model, spoken

pytestmark = pytest.mark.anyio

MODEL = "ai/smollm2:135M-Q4_1"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Why?"}]}
ID = re.compile(r"chatcmpl-[0-9a-f]{24}")


def events_in(stream: bytes) -> list[Any]:
    blocks = stream.decode().removesuffix("\n\n").split("\n\n")
    return [
        data if data == "[DONE]" else orjson.loads(data)
        for data in (block.removeprefix("data: ") for block in blocks)
    ]


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_every_endpoint_stands_under_every_prefix(prefix: str) -> None:
    parts = FakeParts.make(lambda _: spoken("Be", "cause"))
    client = client_over(parts)
    models = await answer_of(await client.get(f"{prefix}/models"))
    assert [model["id"] for model in models["data"]] == [f"docker.io/{MODEL}"]
    assert (await answer_of(await client.get(f"{prefix}/models/{MODEL}")))["owned_by"] == "docker"
    chat = await answer_of(await post(client, f"{prefix}/chat/completions", CHAT))
    assert chat["choices"][0]["message"] == {"role": "assistant", "content": "Because"}
    assert ID.fullmatch(chat["id"])
    text = await answer_of(await post(client, f"{prefix}/completions", {"model": MODEL, "prompt": "Why?"}))
    assert text["choices"][0]["text"] == "Because"
    assert parts.scheduler.outstanding == 0


async def test_the_worker_is_asked_what_the_client_asked() -> None:
    parts = FakeParts.make(lambda _: spoken("x"))
    body = {"model": MODEL, "prompt": "Why?", "max_tokens": 3, "keep_alive": 0}
    answer = await answer_of(await post(client_over(parts), "/v1/completions", body))
    [request] = parts.scheduler.workers[0].requests
    assert (request.prompt, request.max_tokens) == (TextPrompt("Why?"), 3)
    assert request.request_id == answer["id"]
    assert parts.scheduler.acquired == [(MODEL, 0.0)]


async def test_a_stream_is_served_as_events() -> None:
    parts = FakeParts.make(lambda _: spoken("Be", "cause"))
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    response = await post(client_over(parts), "/v1/chat/completions", body)
    assert response.content_type == "text/event-stream"
    assert response.status_code == 200
    *chunks, done = events_in(await response.get_data(as_text=False))
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]] == [
        {"role": "assistant", "content": ""},
        {"content": "Be"},
        {"content": "cause"},
        {},
    ]
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert parts.scheduler.outstanding == 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"model": "a//b"}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop[0]"),
    ],
)
async def test_N12_faults_are_answered_before_any_model_is_loaded(
    stream: bool, fields: dict[str, Any], param: str
) -> None:
    parts = FakeParts.make()
    response = await post(client_over(parts), "/v1/chat/completions", {**CHAT, "stream": stream, **fields})
    error = await error_of(response)
    assert response.status_code == 400
    assert (error["param"], error["type"], error["code"]) == (
        param,
        "invalid_request_error",
        "invalid_parameter",
    )
    assert parts.scheduler.acquired == []


async def test_N12_all_faults_are_in_one_message() -> None:
    body = {**CHAT, "temperature": 3, "top_p": "x", "n": 9}
    error = await error_of(await post(client_over(FakeParts.make()), "/v1/chat/completions", body))
    for name in ("temperature", "top_p", "n"):
        assert f"{name}: " in error["message"]


async def test_a_field_that_is_not_implemented_is_refused_by_name() -> None:
    response = await post(client_over(FakeParts.make()), "/v1/chat/completions", {**CHAT, "audio": {}})
    error = await error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", "audio")


async def test_N13_a_field_that_nobody_knows_never_reaches_the_worker() -> None:
    parts = FakeParts.make(lambda _: spoken("x"))
    body = {**CHAT, "model_path": "/etc/passwd", "n_gpu_layers": 99, "runtime_flags": ["--mlock"]}
    await answer_of(await post(client_over(parts), "/v1/chat/completions", body))
    plain = FakeParts.make(lambda _: spoken("x"))
    await answer_of(await post(client_over(plain), "/v1/chat/completions", CHAT))
    [asked], [asked_plainly] = parts.scheduler.workers[0].requests, plain.scheduler.workers[0].requests
    assert asked.prompt == asked_plainly.prompt
    assert asked.sampling == asked_plainly.sampling


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model": "a", "messages": [], "temperature": NaN}', "temperature"),
        (b'{"model": "a", "model": "b"}', "model"),
        (b'{"model": "a", "messages": [{"role": "user", "content": "\\ud800"}]}', "messages[0].content"),
        (b'{"model": "a", "messages": [{"role": "user", "content": "\xff"}]}', "messages[0].content"),
        (b"{", "body"),
        (b"[" * 100_000, "body"),
        (b'{"messages":' + b"[" * 3000 + b"]" * 3000 + b"}", "body"),
    ],
)
async def test_N10_N11_what_is_no_strict_json_is_answered_with_400_and_its_field(
    body: bytes, param: str
) -> None:
    response = await post(client_over(FakeParts.make()), "/v1/chat/completions", body)
    error = await error_of(response)
    assert (response.status_code, error["param"]) == (400, param)


async def test_a_large_body_is_parsed_off_the_event_loop_with_the_same_result() -> None:
    parts = FakeParts.make(lambda _: spoken("x"))
    text = "why, " * 100_000
    body = {**CHAT, "messages": [{"role": "user", "content": text}]}
    await answer_of(await post(client_over(parts), "/v1/chat/completions", body))
    assert parts.scheduler.workers[0].requests[0].prompt.messages[0].content == text  # type: ignore[union-attr]


@pytest.mark.parametrize("path", ["/v1/models/ai/absent", "/engines/v1/models/ai/absent:tag"])
async def test_an_unknown_model_is_not_found(path: str) -> None:
    response = await client_over(FakeParts.make()).get(path)
    assert (response.status_code, (await error_of(response))["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_for_an_unknown_model_is_not_found(stream: bool) -> None:
    response = await post(
        client_over(FakeParts.make()), "/v1/chat/completions", {**CHAT, "model": "ai/x", "stream": stream}
    )
    assert (response.status_code, (await error_of(response))["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    "name",
    ["ai/..", "a//b", "%2e%2e", "%252e%252e", "ai%5Cx", "-x", "a%00b", "x" * 256, "%c3%a9"],
)
async def test_N19_names_in_paths_are_decoded_once_and_then_held_to_the_grammar(name: str) -> None:
    response = await client_over(FakeParts.make()).get(f"/v1/models/{name}")
    assert (response.status_code, (await error_of(response))["code"]) == (400, "invalid_reference")
    assert not any("\r" in value or "\n" in value for value in response.headers.values())


async def test_N20_a_line_break_in_a_path_matches_no_route() -> None:
    response = await client_over(FakeParts.make()).get("/v1/models/a%0d%0aset-cookie:x")
    assert (response.status_code, (await error_of(response))["code"]) == (404, "not_found")
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    "name", [f"docker.io/{MODEL}", "ai/smollm2%3A135M-Q4_1", "smollm2:135M-Q4_1", "AI/SmolLM2:135M-Q4_1"]
)
async def test_a_model_is_found_under_every_form_of_its_name(name: str) -> None:
    assert (await client_over(FakeParts.make()).get(f"/v1/models/{name}")).status_code == 200


async def test_a_model_is_found_by_its_digest() -> None:
    assert (await client_over(FakeParts.make()).get(f"/v1/models/{fake_model().id}")).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("backend", ["vllm", "mlx", "v1", "x" * 500])
async def test_a_backend_that_is_not_ours_is_not_found(method: str, backend: str) -> None:
    client = client_over(FakeParts.make())
    response = await client.open(f"/engines/{backend}/v1/chat/completions", method=method)
    assert (response.status_code, (await error_of(response))["code"]) == (404, "not_found")


async def test_a_wrong_method_is_told_so() -> None:
    response = await client_over(FakeParts.make()).get("/v1/chat/completions")
    assert (response.status_code, (await error_of(response))["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (QueueFull("64 requests wait", retry_after_s=2.5), 429, "queue_full"),
        (
            InsufficientMemory(model="m", needed_bytes=3, free_bytes=1, reserved_bytes=2, retry_after_s=2.5),
            503,
            "insufficient_memory",
        ),
    ],
)
async def test_what_the_scheduler_refuses_has_its_status_and_time_to_retry(
    stream: bool, refusal: Any, status: int, code: str
) -> None:
    parts = FakeParts.make()
    parts.scheduler.refusal = refusal
    response = await post(client_over(parts), "/v1/chat/completions", {**CHAT, "stream": stream})
    assert (response.status_code, (await error_of(response))["code"]) == (status, code)
    assert response.headers["Retry-After"] == "3"


@pytest.mark.parametrize("stream", [True, False])
async def test_G11_a_prompt_that_does_not_fit_is_refused_with_both_numbers(stream: bool) -> None:
    failed = Failed(code="context_length_exceeded", message="", prompt_tokens=9000, context_size=8192)
    parts = FakeParts.make(lambda _: [failed])
    response = await post(client_over(parts), "/v1/chat/completions", {**CHAT, "stream": stream})
    error = await error_of(response)
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "9000" in error["message"]
    assert "8192" in error["message"]
    assert parts.scheduler.outstanding == 0


def dead_worker() -> FakeWorker:
    worker = FakeWorker(lambda _: [])
    open_stream = worker.open_stream

    def open_and_die(request: Any) -> Any:
        stream = open_stream(request)
        worker.die()
        return stream

    worker.open_stream = open_and_die  # type: ignore[method-assign]
    return worker


@pytest.mark.parametrize("stream", [True, False])
async def test_L01_two_deaths_before_the_first_byte_are_a_502_and_one_is_not_seen(stream: bool) -> None:
    parts = FakeParts.make()
    parts.scheduler.workers = [dead_worker(), FakeWorker(lambda _: spoken("fine"))]
    client = client_over(parts)
    response = await post(client, "/v1/chat/completions", {**CHAT, "stream": stream})
    assert response.status_code == 200
    assert b"fine" in await response.get_data(as_text=False)
    parts.scheduler.workers = [dead_worker(), dead_worker(), FakeWorker(lambda _: spoken("fine"))]
    response = await post(client, "/v1/chat/completions", {**CHAT, "stream": stream})
    assert (response.status_code, (await error_of(response))["code"]) == (502, "worker_crashed")
    assert parts.scheduler.outstanding == 0


async def test_L01_a_death_in_mid_stream_is_an_error_event_without_an_end_marker() -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1), TextDelta("Be", 1)])
    body = orjson.dumps({**CHAT, "stream": True})
    async with client_over(parts).request("/v1/chat/completions", method="POST") as connection:
        await connection.send(body)
        await connection.send_complete()
        received = await connection.receive()
        while b"Be" not in received:
            received += await connection.receive()
        parts.scheduler.workers[0].die()
    received += bytes(connection.response_data)  # type: ignore[attr-defined]
    *chunks, last = events_in(received)
    assert chunks[-1]["choices"][0]["delta"] == {"content": "Be"}
    assert last["error"]["code"] == "worker_crashed"
    assert b"[DONE]" not in received
    assert parts.scheduler.outstanding == 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("gated", [True, False])
async def test_N23_a_client_that_goes_away_ends_everything_it_started(
    stream: bool, gated: bool, caplog: pytest.LogCaptureFixture
) -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=1), TextDelta("Be", 1)])
    parts.scheduler.gate = trio.Event() if gated else None
    with trio.fail_after(5):
        async with client_over(parts).request("/v1/chat/completions", method="POST") as connection:
            await connection.send(orjson.dumps({**CHAT, "stream": stream}))
            await connection.send_complete()
            while not (parts.scheduler.acquired if gated else parts.scheduler.workers[0].streams):
                await trio.lowlevel.checkpoint()
            if stream and not gated:
                await connection.receive()
            await leave(connection)
    assert parts.scheduler.outstanding == 0
    assert parts.scheduler.cancelled_acquires == int(gated)
    assert len(parts.scheduler.workers[0].cancelled) == int(not gated)
    assert caplog.records == []


async def test_N06_reading_methods_change_nothing_on_any_route() -> None:
    parts = FakeParts.make(lambda _: spoken("x"))
    app = app_over(parts)
    client = app.test_client()
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<[^>]*name>", MODEL, rule.rule)
        path = re.sub(r"<[^>]*>", "x", path)
        for method in ("GET", "HEAD", "OPTIONS"):
            response = await client.open(path, method=method)
            assert response.status_code < 500, (method, path)
    assert parts.scheduler.acquired == []
    assert parts.scheduler.calls == []
    assert parts.store.changes == []
    assert parts.puller.packaged == []
    assert parts.daemon.shutdowns == 0


async def test_N21_an_error_of_ours_tells_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    parts = FakeParts.make()

    async def explode(_: object) -> None:
        raise RuntimeError("/home/user/secret")

    parts.store = SimpleNamespace(resolve=explode)  # type: ignore[assignment]  # a store that is broken
    for stream in (True, False):
        response = await post(client_over(parts), "/v1/chat/completions", {**CHAT, "stream": stream})
        assert (response.status_code, (await error_of(response))["code"]) == (500, "internal_error")
        assert b"secret" not in await response.get_data(as_text=False)
    assert "secret" in caplog.text  # but the log has it
