"""The openai Python client against the real engine: what its users call, and the errors they catch."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.e2e.conftest import MODEL
from tests.support.daemon import RunningDaemon

pytestmark = pytest.mark.real_model


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def _ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_chat_completion_answers_and_counts(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=_ask("Why is the sky blue?"), temperature=0, max_tokens=24
    )
    assert "sky" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 10
    assert 0 < answer.usage.completion_tokens <= 24


def test_the_same_seed_gives_the_same_answer(client: openai.OpenAI) -> None:
    texts = [
        client.chat.completions.create(
            model=MODEL, messages=_ask("Name a colour."), temperature=1.5, seed=7, max_tokens=12
        )
        .choices[0]
        .message.content
        for _ in range(2)
    ]
    assert texts[0] == texts[1]


def test_a_stream_arrives_in_pieces_and_ends_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=_ask("Count from one to ten in words."),
        temperature=0,
        max_tokens=32,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert sum(bool(text) for text in texts) > 3
    assert chunks[-1].usage is not None
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")


def test_max_tokens_and_ignore_eos_give_exactly_so_many(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=_ask("Say hi."), max_tokens=40, extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 40
    assert answer.choices[0].finish_reason == "length"


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="1, 2, 3, 4, 5, 6,", temperature=0, max_tokens=30, stop=[" 9"]
    )
    assert "8" in answer.choices[0].text
    assert "9" not in answer.choices[0].text
    assert answer.choices[0].finish_reason == "stop"


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    assert f"docker.io/{MODEL}" in {model.id for model in client.models.list().data}
    assert client.models.retrieve(MODEL).id == f"docker.io/{MODEL}"


def test_errors_are_the_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="ai/nowhere", messages=_ask("x"))  # type: ignore[arg-type]
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages=_ask("x"), temperature=3)  # type: ignore[arg-type]
    assert "temperature" in wrong.value.message
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(model=MODEL, messages=_ask("x"), verbosity="high")  # type: ignore[arg-type]
    assert unsupported.value.code == "unsupported_parameter"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=_ask("word " * 9000))  # type: ignore[arg-type]
    assert long.value.code == "context_length_exceeded"


def test_eight_requests_at_once_are_all_answered(client: openai.OpenAI) -> None:
    def ask(number: int) -> int:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=_ask(f"Tell me about the number {number}."),  # type: ignore[arg-type]
            max_tokens=16,
            extra_body={"ignore_eos": True},
        )
        assert answer.usage is not None
        return answer.usage.completion_tokens

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [16] * 8


def test_curl_streams(daemon: RunningDaemon) -> None:
    body = json.dumps({"model": MODEL, "stream": True, "max_tokens": 8, "messages": _ask("Hi")})
    done = subprocess.run(
        [
            "curl",
            "-sN",
            f"{daemon.url}/v1/chat/completions",
            "-H",
            "Content-Type: application/json",
            "-d",
            body,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    events = [line for line in done.stdout.splitlines() if line]
    assert all(line.startswith("data: ") for line in events)
    assert events[-1] == "data: [DONE]"


def test_runner_run_answers(daemon: RunningDaemon) -> None:
    done = daemon.runner("run", MODEL, "Why is the sky blue?", "--max-tokens", "12", "--verbose")
    assert done.stdout.strip()
    assert "answer tokens" in done.stderr


def test_an_answer_parses_as_the_schema_that_was_asked_for(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 30},
            "inhabitants": {"type": "integer", "minimum": 0, "maximum": 99999999},
        },
        "required": ["city", "inhabitants"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=_ask("Name the capital of France and how many people live there."),
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "strict": True, "schema": schema},
        },
        temperature=0,
        max_tokens=100,
    )
    parsed = json.loads(answer.choices[0].message.content or "")
    assert list(parsed) == ["city", "inhabitants"]
    assert type(parsed["inhabitants"]) is int


CITY: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "city",
        "schema": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CAPITAL = "What is the capital of France?"


def _reasoning_of(said: Any) -> str:
    return (said.model_extra or {}).get("reasoning_content") or ""


def test_a_model_reasons_before_it_answers_in_a_form(client: openai.OpenAI, reasoning_model: str) -> None:
    answer = client.chat.completions.create(
        model=reasoning_model,
        messages=_ask(CAPITAL),
        response_format=CITY,
        temperature=0,
        max_tokens=200,
        logprobs=True,
    )
    [choice] = answer.choices
    assert choice.finish_reason == "stop"
    assert list(json.loads(choice.message.content or "")) == ["city"]
    assert "capital of France" in _reasoning_of(choice.message)
    assert choice.logprobs is not None
    assert "".join(one.token for one in choice.logprobs.content or []) == choice.message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert 0 < (answer.usage.completion_tokens_details.reasoning_tokens or 0) < answer.usage.completion_tokens


def test_reasoning_streams_apart_from_the_answer(client: openai.OpenAI, reasoning_model: str) -> None:
    stream = client.chat.completions.create(
        model=reasoning_model,
        messages=_ask(CAPITAL),
        response_format=CITY,
        temperature=0,
        max_tokens=200,
        stream=True,
    )
    deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    reasoning = "".join(map(_reasoning_of, deltas))
    content = "".join(delta.content or "" for delta in deltas)
    assert "capital of France" in reasoning
    assert "think>" not in reasoning + content
    assert list(json.loads(content)) == ["city"]


def test_reasoning_can_stay_in_the_answer_or_be_left_out(client: openai.OpenAI, reasoning_model: str) -> None:
    def ask(**more: Any) -> Any:
        answer = client.chat.completions.create(
            model=reasoning_model,
            messages=_ask(CAPITAL),
            response_format=CITY,
            temperature=0,
            max_tokens=200,
            extra_body=more,
        )
        assert _reasoning_of(answer.choices[0].message) == ""
        return answer.choices[0].message.content

    thought, _, said = ask(reasoning_format="none").partition("</think>")
    assert "capital of France" in thought
    assert list(json.loads(said)) == ["city"]
    for left_out in ({"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}):
        assert list(json.loads(ask(**left_out))) == ["city"]
    with pytest.raises(openai.BadRequestError) as refused:
        ask(reasoning_effort="high")
    assert "reasoning_effort" in refused.value.message


def test_runner_run_prints_what_a_model_thinks_first(daemon: RunningDaemon, reasoning_model: str) -> None:
    done = daemon.runner("run", reasoning_model, CAPITAL, "--temperature", "0", "--max-tokens", "20")
    assert done.stdout.startswith("Thinking:\n")
    assert "capital of France" in done.stdout


def test_several_answers_come_with_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=_ask("Hello"), n=2, logprobs=True, top_logprobs=3, max_tokens=4, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None
        tokens = choice.logprobs.content or []
        assert "".join(token.token for token in tokens) == choice.message.content
        assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)


def test_a_streamed_completion_echoes_its_prompt_with_logprobs(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model=MODEL, prompt="Once upon a", echo=True, logprobs=1, max_tokens=2, temperature=0, stream=True
    )
    choices = [chunk.choices[0] for chunk in stream if chunk.choices]
    assert "".join(choice.text for choice in choices).startswith("Once upon a time")
    told = [
        logprob for choice in choices if choice.logprobs for logprob in choice.logprobs.token_logprobs or []
    ]
    assert told[0] is None
    assert len(told) >= 5
