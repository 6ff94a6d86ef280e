"""Tokenize, detokenize, apply-template and count-tokens through the whole application, over fake workers."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from runner.domain.events import Examined, Failed, GenerationEvent
from runner.domain.generation import (
    ChatMessage,
    ChatPrompt,
    Examination,
    GenerationRequest,
    TextPrompt,
    TokenPrompt,
)
from tests.support.api import answer_of, client_over, error_of, post
from tests.support.fake_handles import FakeParts

pytestmark = pytest.mark.anyio

MODEL = "ai/smollm2:135M-Q4_1"
API = "/control/v1"
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = ChatPrompt(messages=(ChatMessage(role="user", content="hi"),))


def telling(*events: GenerationEvent) -> FakeParts:
    return FakeParts.make(lambda _: list(events))


async def ask(parts: FakeParts, path: str, **fields: Any) -> tuple[dict[str, Any], GenerationRequest]:
    """The answer, and what the worker was asked. Nothing stays leased."""
    answer = await answer_of(await post(client_over(parts), f"{API}/{path}", {"model": MODEL, **fields}))
    assert parts.scheduler.outstanding == 0
    [request] = parts.scheduler.workers[0].requests
    return answer, request


TOKENS = Examined(3, array("i", [1, 5, 9]).tobytes())


@pytest.mark.parametrize(
    ("fields", "prompt", "how"),
    [
        ({"prompt": "hi"}, TextPrompt("hi"), Examination.TOKENS),
        ({"prompt": ""}, TextPrompt(""), Examination.TOKENS),
        ({"prompt": "hi", "add_special": False}, TextPrompt("hi"), Examination.PLAIN_TOKENS),
        ({"messages": MESSAGES}, CHAT, Examination.TOKENS),
    ],
)
async def test_tokens_and_their_number(fields: dict[str, Any], prompt: object, how: Examination) -> None:
    answer, request = await ask(telling(TOKENS), "tokenize", **fields)
    assert answer == {"model": MODEL, "tokens": [1, 5, 9], "count": 3}
    assert (request.prompt, request.examination) == (prompt, how)


async def test_the_number_alone() -> None:
    answer, request = await ask(telling(Examined(7)), "count-tokens", messages=MESSAGES)
    assert answer == {"model": MODEL, "count": 7}
    assert (request.prompt, request.examination) == (CHAT, Examination.COUNT)


async def test_the_text_of_tokens() -> None:
    answer, request = await ask(telling(Examined(0, "hé".encode())), "detokenize", tokens=[1, 5])
    assert answer == {"model": MODEL, "text": "hé"}
    assert (request.prompt, request.examination) == (TokenPrompt((1, 5)), Examination.TEXT)


async def test_what_messages_become() -> None:
    options = {"enable_thinking": False}
    parts = telling(Examined(0, b"<|user|>hi"))
    answer, request = await ask(parts, "apply-template", messages=MESSAGES, chat_template_kwargs=options)
    assert answer == {"model": MODEL, "prompt": "<|user|>hi"}
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.template_options == options
    assert request.examination is Examination.TEXT


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("tokenize", {}, "prompt"),
        ("tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("tokenize", {"prompt": 5}, "prompt"),
        ("tokenize", {"prompt": "a", "extra": 1}, "extra"),
        ("count-tokens", {"messages": []}, "messages"),
        ("count-tokens", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ("detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("detokenize", {"tokens": [2**31]}, "tokens[0]"),
        ("detokenize", {"tokens": "x"}, "tokens"),
        ("apply-template", {}, "messages"),
        ("apply-template", {"messages": MESSAGES, "chat_template_kwargs": {"messages": 1}}, None),
    ],
)
async def test_N12_what_is_wrong_is_named_before_a_model_is_loaded(
    path: str, fields: dict[str, Any], param: str | None
) -> None:
    parts = telling(TOKENS)
    response = await post(client_over(parts), f"{API}/{path}", {"model": MODEL, **fields})
    error = await error_of(response)
    assert response.status_code == 400
    assert param is None or error["param"] == param
    assert parts.scheduler.acquired == []


async def test_a_worker_that_refuses_is_heard() -> None:
    parts = telling(Failed(code="invalid_parameter", message="prompt[0]: is outside the vocabulary"))
    response = await post(client_over(parts), f"{API}/detokenize", {"model": MODEL, "tokens": [5]})
    assert response.status_code == 400
    assert (await error_of(response))["param"] == "prompt[0]"
    assert parts.scheduler.outstanding == 0
