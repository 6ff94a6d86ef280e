"""`/v1/embeddings`: what is taken and refused, and what is answered, over handles in memory."""

from __future__ import annotations

import base64
import struct
from typing import Any

import attrs
import orjson
import pytest
import trio

from runner.api.openai import routes
from runner.api.openai.embeddings import CHUNK_BYTES, ReplySource, embedding_request, parse_embeddings
from runner.api.openai.routes import PREFIXES
from runner.domain.events import Accepted, Embedded, Failed
from runner.domain.generation import EMBEDDING_INPUTS_MAX, EmbeddingPrompt, TextPrompt, TokenPrompt
from runner.errors import Draining, InvalidParameter, UnsupportedParameter
from tests.support.api import answer_of, client_over, error_of, leave, post
from tests.support.fake_handles import FakeParts, finished

pytestmark = pytest.mark.anyio

MODEL = "ai/smollm2:135M-Q4_1"
BODY = {"model": MODEL, "input": ["a", "b"]}
FIRST, SECOND = struct.pack("<3f", 0.6, -0.8, 0.0), struct.pack("<3f", 0.0, 0.0, 1.0)


def prompt_of(**fields: Any) -> EmbeddingPrompt:
    body = orjson.dumps({"model": MODEL, "input": "a", **fields})
    prompt = embedding_request(parse_embeddings(body), "e1").prompt
    assert isinstance(prompt, EmbeddingPrompt)
    return prompt


def faults(**fields: Any) -> list[str]:
    """Paths of what is wrong."""
    with pytest.raises((InvalidParameter, UnsupportedParameter)) as caught:
        prompt_of(**fields)
    return [fault.path for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("sent", "inputs"),
    [
        ("a", (TextPrompt("a"),)),
        (["a", "b"], (TextPrompt("a"), TextPrompt("b"))),
        ([1, 2], (TokenPrompt((1, 2)),)),
        ([[1, 2], [3]], (TokenPrompt((1, 2)), TokenPrompt((3,)))),
        (["a", [3]], (TextPrompt("a"), TokenPrompt((3,)))),
    ],
)
def test_every_form_of_input(sent: Any, inputs: tuple[object, ...]) -> None:
    assert prompt_of(input=sent).inputs == inputs


@pytest.mark.parametrize(
    ("sent", "paths"),
    [
        ("", ["input"]),
        ([], ["input"]),
        (5, ["input"]),
        (None, ["input"]),
        ({"text": "a"}, ["input"]),
        (["a", "", 3.5, [], [1.5], [-1], [2**31]], [f"input[{index}]" for index in range(1, 7)]),
        ([True], ["input[0]"]),
        ([-1], ["input"]),
        (["a"] * (EMBEDDING_INPUTS_MAX + 1), ["input"]),
    ],
)
def test_N12_inputs_of_other_forms_are_named(sent: Any, paths: list[str]) -> None:
    assert faults(input=sent) == paths


@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({"dimensions": 0}, ["dimensions"]),
        ({"dimensions": 1.5}, ["dimensions"]),
        ({"encoding_format": "int8"}, ["encoding_format"]),
        ({"truncate": "yes"}, ["truncate"]),
        ({"truncate_prompt_tokens": 0}, ["truncate_prompt_tokens"]),
        ({"truncate_prompt_tokens": -2}, ["truncate_prompt_tokens"]),
        ({"truncate_prompt_tokens": 5, "truncate": False}, ["truncate"]),
        ({"dimensions": "3", "input": "", "normalize": False}, ["input", "dimensions", "normalize"]),
        ({"normalize": False}, ["normalize"]),
        ({"lora": [{"id": 1}]}, ["lora"]),
    ],
)
def test_N12_fields_out_of_range_are_named_together(fields: dict[str, Any], paths: list[str]) -> None:
    assert sorted(faults(**fields)) == sorted(paths)


def test_N13_what_is_unknown_or_changes_nothing_is_ignored() -> None:
    assert prompt_of(user="me", normalize=True, embd_normalize=2, whatever={}) == prompt_of()


@pytest.mark.parametrize(
    ("fields", "truncates", "tokens_max"),
    [
        ({}, False, None),
        ({"truncate": True}, True, None),
        ({"truncate": False}, False, None),
        ({"truncate_prompt_tokens": -1}, True, None),
        ({"truncate_prompt_tokens": 7}, True, 7),
        ({"truncate_prompt_tokens": 7, "truncate": True}, True, 7),
    ],
)
def test_what_is_too_long_is_cut_when_either_field_says_so(
    fields: dict[str, Any], truncates: bool, tokens_max: int | None
) -> None:
    prompt = prompt_of(**fields)
    assert (prompt.truncates, prompt.tokens_max) == (truncates, tokens_max)


def embedding() -> FakeParts:
    told = [Accepted(prompt_tokens=2), Embedded(1, SECOND), Embedded(0, FIRST), finished(prompt_tokens=3)]
    return FakeParts.make(lambda _: list(told))


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_numbers_under_every_prefix(prefix: str) -> None:
    parts = embedding()
    answer = await answer_of(await post(client_over(parts), f"{prefix}/embeddings", BODY))
    vectors = [one.pop("embedding") for one in answer["data"]]
    assert vectors == [pytest.approx([0.6, -0.8, 0.0]), pytest.approx([0.0, 0.0, 1.0])]
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0}, {"object": "embedding", "index": 1}],
        "model": MODEL,
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    assert parts.scheduler.outstanding == 0


async def test_base64_holds_little_endian_floats() -> None:
    body = {**BODY, "encoding_format": "base64"}
    answer = await answer_of(await post(client_over(embedding()), "/v1/embeddings", body))
    assert [base64.b64decode(one["embedding"]) for one in answer["data"]] == [FIRST, SECOND]


async def test_the_worker_is_asked_what_the_client_asked() -> None:
    parts = embedding()
    body = {**BODY, "dimensions": 3, "truncate": True, "keep_alive": 0}
    await answer_of(await post(client_over(parts), "/v1/embeddings", body))
    [request] = parts.scheduler.workers[0].requests
    assert request.prompt == EmbeddingPrompt(
        inputs=(TextPrompt("a"), TextPrompt("b")), dimensions=3, truncates=True
    )
    assert parts.scheduler.acquired == [(MODEL, 0.0)]


async def test_N12_faults_are_answered_before_any_model_is_loaded() -> None:
    parts = FakeParts.make()
    response = await post(client_over(parts), "/v1/embeddings", {"model": MODEL, "input": [""]})
    assert response.status_code == 400
    assert (await error_of(response))["param"] == "input[0]"
    assert parts.scheduler.acquired == []


async def test_what_the_worker_refuses_is_a_400_that_names_the_input() -> None:
    message = "input[1]: has 600 tokens, and the model takes 512, unless truncate asks to cut it"
    parts = FakeParts.make(lambda _: [Failed(code="invalid_parameter", message=message)])
    response = await post(client_over(parts), "/v1/embeddings", BODY)
    error = await error_of(response)
    assert (response.status_code, error["param"]) == (400, "input[1]")
    assert "600" in error["message"]
    assert "512" in error["message"]


async def test_a_client_that_leaves_ends_its_request() -> None:
    parts = FakeParts.make(lambda _: [Accepted(prompt_tokens=2)])
    worker = parts.scheduler.workers[0]
    with trio.fail_after(5):
        async with client_over(parts).request("/v1/embeddings", method="POST") as connection:
            await connection.send(orjson.dumps(BODY))
            await connection.send_complete()
            while not worker.requests:
                await trio.lowlevel.checkpoint()
            await leave(connection)
            while not worker.cancelled:
                await trio.lowlevel.checkpoint()
    assert parts.scheduler.outstanding == 0


def is_streamed(response: Any) -> bool:
    return "X-Accel-Buffering" in response.headers


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_a_large_answer_is_written_piece_by_piece_and_is_the_same(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    body = {**BODY, "encoding_format": encoding}
    whole = await post(client_over(embedding()), "/v1/embeddings", body)
    monkeypatch.setattr(routes, "WHOLE_BYTES_MAX", len(FIRST) + len(SECOND) - 1)
    parts = embedding()
    pieces = await post(client_over(parts), "/v1/embeddings", body)
    assert await pieces.get_data() == await whole.get_data()
    assert pieces.content_type == whole.content_type == "application/json"
    assert is_streamed(pieces) and not is_streamed(whole)
    assert parts.scheduler.outstanding == 0
    monkeypatch.setattr(routes, "WHOLE_BYTES_MAX", len(FIRST) + len(SECOND))
    again = await post(client_over(embedding()), "/v1/embeddings", body)
    assert not is_streamed(again)


async def test_pieces_are_of_a_bounded_size_and_cut_off_by_errors() -> None:
    source = ReplySource(iter([b"x" * (CHUNK_BYTES - 1), b"y", b"z"]))
    assert len(await source.next_chunk()) == CHUNK_BYTES
    assert await source.next_chunk() == b"z"
    assert await source.next_chunk() == b""
    with pytest.raises(Draining):
        source.abort(Draining())
    source.close()


@pytest.mark.parametrize(("architecture", "has_annex"), [("llama", True), ("bert", False)])
async def test_memory_beside_the_model_is_asked_for_where_it_generates(
    architecture: str, has_annex: bool
) -> None:
    parts = embedding()
    [model] = parts.store.models
    parts.store.models[:] = [attrs.evolve(model, architecture=architecture)]
    await answer_of(await post(client_over(parts), "/v1/embeddings", BODY))
    assert parts.scheduler.with_annex == [has_annex]
