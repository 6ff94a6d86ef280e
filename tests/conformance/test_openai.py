"""Recorded exchanges of the OpenAI dialect: we answer as recorded, and the `openai` client reads that."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.exchanges import CONFORMANCE, answer, exchanges, load

MODEL = "ai/smollm2:135M-Q4_1"
TURNS: Any = [{"role": "user", "content": "Why?"}]
SAID = "Rayleigh scattering.\n„So“ ☀"

# the HTTP library that this version of the client is built on
_http = importlib.import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])


@pytest.mark.anyio
@pytest.mark.parametrize("path", exchanges("openai"), ids=lambda path: path.stem)
async def test_the_application_answers_as_recorded(path: Path) -> None:
    exchange = load(path)
    assert await answer(exchange) == exchange["response"]


@contextmanager
def replayed(name: str) -> Iterator[openai.OpenAI]:
    """The real client, which gets the recorded answer to the recorded request and to nothing else."""
    exchange = load(CONFORMANCE / "openai" / f"{name}.json")
    request, response = exchange["request"], exchange["response"]

    def replay(asked: Any) -> Any:
        assert (asked.method, asked.url.path) == (request["method"], request["path"])
        return _http.Response(
            response["status"], headers=response["headers"], content="\n".join(response["body"]).encode()
        )

    base = request["path"].partition("/v1/")[0]
    with (
        _http.Client(transport=_http.MockTransport(replay)) as transport,
        openai.OpenAI(
            base_url=f"http://localhost{base}/v1", api_key="none", http_client=transport, max_retries=0
        ) as client,
    ):
        yield client


def test_a_chat_completion_is_read() -> None:
    with replayed("chat") as client:
        completion = client.chat.completions.create(model=MODEL, messages=TURNS)
    [choice] = completion.choices
    assert (choice.message.role, choice.message.content) == ("assistant", SAID)
    assert (choice.finish_reason, choice.index, choice.logprobs) == ("stop", 0, None)
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.total_tokens) == (7, 11)
    assert completion.usage.prompt_tokens_details is not None
    assert completion.usage.prompt_tokens_details.cached_tokens == 0
    assert completion.system_fingerprint == "fp_b4dd741706"
    assert completion.model_extra is not None
    assert completion.model_extra["timings"]["predicted_n"] == 4


def test_a_completion_that_was_cut_says_so() -> None:
    with replayed("chat_length") as client:
        completion = client.chat.completions.create(model=MODEL, messages=TURNS)
    assert completion.choices[0].finish_reason == "length"


def test_a_stream_is_read_to_its_end() -> None:
    with replayed("chat_stream") as client:
        chunks = list(client.chat.completions.create(model=MODEL, messages=TURNS, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SAID
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 5 + ["stop"]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_reasoning_is_read_beside_the_answer() -> None:
    with replayed("chat_reasoning") as client:
        completion = client.chat.completions.create(model=MODEL, messages=TURNS)
    [choice] = completion.choices
    assert (choice.message.content, choice.finish_reason) == (SAID, "stop")
    assert choice.message.model_extra == {"reasoning_content": "Light scatters."}
    assert completion.usage is not None
    assert completion.usage.completion_tokens_details is not None
    assert completion.usage.completion_tokens_details.reasoning_tokens == 4


def test_a_limit_within_reasoning_leaves_the_content_empty() -> None:
    with replayed("chat_reasoning_cut") as client:
        completion = client.chat.completions.create(model=MODEL, messages=TURNS)
    [choice] = completion.choices
    assert (choice.message.content, choice.finish_reason) == ("", "length")
    assert choice.message.model_extra == {"reasoning_content": "Light"}


def test_reasoning_streams_before_the_answer() -> None:
    with replayed("chat_stream_reasoning") as client:
        chunks = list(client.chat.completions.create(model=MODEL, messages=TURNS, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    thoughts = [(delta.model_extra or {}).get("reasoning_content") for delta in deltas]
    assert thoughts == [None, "Light", " scatters.", None, None, None, None]
    assert [delta.content for delta in deltas[1:3]] == [None, None]
    assert "".join(delta.content or "" for delta in deltas) == SAID
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens_details is not None
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 4


def test_the_usage_of_a_stream_is_read() -> None:
    with replayed("chat_stream_usage") as client:
        chunks = list(
            client.chat.completions.create(
                model=MODEL, messages=TURNS, stream=True, stream_options={"include_usage": True}
            )
        )
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * 6
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


def test_the_clients_own_accumulation_of_a_stream_works() -> None:
    with (
        replayed("chat_stream_usage") as client,
        client.chat.completions.stream(
            model=MODEL, messages=TURNS, stream_options={"include_usage": True}
        ) as stream,
    ):
        final = stream.get_final_completion()
    assert final.choices[0].message.content == SAID
    assert final.usage is not None


def test_L01_a_crash_in_mid_stream_is_an_error_of_the_client_after_the_text() -> None:
    texts = []
    with replayed("chat_stream_crash") as client, pytest.raises(openai.APIError) as caught:
        for chunk in client.chat.completions.create(model=MODEL, messages=TURNS, stream=True):
            texts.append(chunk.choices[0].delta.content)
    assert texts == ["", "Ray", "leigh"]
    assert caught.value.code == "worker_crashed"


def test_text_completions_are_read() -> None:
    with replayed("completion") as client:
        completion = client.completions.create(model=MODEL, prompt="The sky is")
    assert (completion.choices[0].text, completion.choices[0].finish_reason) == (SAID, "stop")
    with replayed("completion_stream") as client:
        chunks = list(client.completions.create(model=MODEL, prompt="The sky is", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == SAID
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_models_are_read() -> None:
    with replayed("models") as client:
        [model] = client.models.list()
    assert (model.id, model.owned_by, model.created) == (f"docker.io/{MODEL}", "docker", 1745777589)
    assert model.model_extra is not None
    assert model.model_extra["dmr"]["context_window"] == 8192
    with replayed("model") as client:  # which escapes the slash of the name
        assert client.models.retrieve(MODEL) == model


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("error_fields", openai.BadRequestError, "invalid_parameter"),
        ("error_unsupported", openai.BadRequestError, "unsupported_parameter"),
        ("error_too_long", openai.BadRequestError, "context_length_exceeded"),
        ("error_queue_full", openai.RateLimitError, "queue_full"),
        ("error_memory", openai.InternalServerError, "insufficient_memory"),
    ],
)
def test_errors_become_the_clients_own_classes(
    name: str, kind: type[openai.APIStatusError], code: str
) -> None:
    with replayed(name) as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=MODEL, messages=TURNS)
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert caught.value.type in ("invalid_request_error", "rate_limit_error", "server_error")


def test_a_missing_model_is_the_clients_not_found() -> None:
    with replayed("error_model_missing") as client, pytest.raises(openai.NotFoundError) as caught:
        client.get("/models/ai/absent", cast_to=object)
    assert caught.value.code == "model_not_found"


def test_every_recorded_exchange_is_read_by_one_of_these_tests() -> None:
    told = Path(__file__).read_text(encoding="utf-8")
    for path in exchanges("openai"):
        assert f'"{path.stem}"' in told, path.stem
