"""What a model makes of prompts, without answering them: its tokens, their number, their text, its template.

A worker tells, so the model is loaded when it is not. Imports the shared schema machinery and the one path of
requests to workers.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import attrs
import orjson
from quart import Blueprint
from quart_trio.wrappers import TrioResponse

from runner.api import strict_json
from runner.api.bodies import parsed_body
from runner.api.inference import Demand, Inference
from runner.api.middleware import request_id
from runner.api.structure import By, Length, Schema
from runner.api.template_options import read_template_options
from runner.domain.generation import (
    ChatMessage,
    ChatPrompt,
    Examination,
    GenerationRequest,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from runner.domain.sampling import Range
from runner.errors import FieldFault, InvalidParameter
from runner.oci.reference import ModelName

if TYPE_CHECKING:
    from runner.api.context import AppContext

MESSAGES_MAX: Final = 4096
TOKENS_MAX: Final = 1_000_000
_TOKEN_IDS: Final = Range(0, 2**31 - 1)
_SCHEMA: Final = Schema(forbid_unknown=True)
T = TypeVar("T")


@attrs.frozen(kw_only=True)
class MessageFields:
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    name: str | None = None


Messages = Annotated[tuple[MessageFields, ...], Length(1, MESSAGES_MAX)]
TemplateOptions = Annotated[Mapping[str, str | int | bool], By(read_template_options)]


@attrs.frozen(kw_only=True)
class TokenizeRequest:
    """`prompt` or `messages`. `add_special` adds to a prompt what the model wants around it."""

    model: ModelName
    prompt: str | None = None
    messages: Messages | None = None
    chat_template_kwargs: TemplateOptions | None = None
    add_special: bool = True


@attrs.frozen(kw_only=True)
class DetokenizeRequest:
    model: ModelName
    tokens: Annotated[tuple[Annotated[int, _TOKEN_IDS], ...], Length(0, TOKENS_MAX)]


@attrs.frozen(kw_only=True)
class ApplyTemplateRequest:
    model: ModelName
    messages: Messages
    chat_template_kwargs: TemplateOptions | None = None


def parse_tokenize(body: bytes) -> TokenizeRequest:
    request = _parse(body, TokenizeRequest)
    if (request.prompt is None) == (request.messages is None):
        raise InvalidParameter(FieldFault("prompt", "send a prompt or messages, and not both"))
    return request


def parse_detokenize(body: bytes) -> DetokenizeRequest:
    return _parse(body, DetokenizeRequest)


def parse_apply_template(body: bytes) -> ApplyTemplateRequest:
    return _parse(body, ApplyTemplateRequest)


def _parse(body: bytes, kind: type[T]) -> T:
    return _SCHEMA.structure(strict_json.decode(body), kind)


def add_prompt_routes(routes: Blueprint, context: AppContext) -> None:
    inference = Inference(context.store, context.scheduler)

    async def tokenize() -> TrioResponse:
        asked = await parsed_body(parse_tokenize)
        how = Examination.TOKENS if asked.add_special else Examination.PLAIN_TOKENS
        examined = await inference.examine(_demand(asked.model, _prompt_of(asked), how))
        token_ids = array("i")
        token_ids.frombytes(examined.data)
        return _answer(asked.model, tokens=token_ids.tolist(), count=examined.n_tokens)

    async def count_tokens() -> TrioResponse:
        asked = await parsed_body(parse_tokenize)
        demand = _demand(asked.model, _prompt_of(asked), Examination.COUNT)
        return _answer(asked.model, count=(await inference.examine(demand)).n_tokens)

    async def detokenize() -> TrioResponse:
        asked = await parsed_body(parse_detokenize)
        demand = _demand(asked.model, TokenPrompt(asked.tokens), Examination.TEXT)
        return _answer(asked.model, text=(await inference.examine(demand)).data.decode())

    async def apply_template() -> TrioResponse:
        asked = await parsed_body(parse_apply_template)
        prompt = _chat(asked.messages, asked.chat_template_kwargs)
        demand = _demand(asked.model, prompt, Examination.TEXT)
        return _answer(asked.model, prompt=(await inference.examine(demand)).data.decode())

    views: Mapping[str, Callable[[], Awaitable[TrioResponse]]] = {
        "/tokenize": tokenize,
        "/count-tokens": count_tokens,
        "/detokenize": detokenize,
        "/apply-template": apply_template,
    }
    for path, view in views.items():
        routes.add_url_rule(path, view.__name__, view, methods=["POST"])


def _prompt_of(asked: TokenizeRequest) -> Prompt:
    if asked.messages is None:
        return TextPrompt(asked.prompt or "")
    return _chat(asked.messages, asked.chat_template_kwargs)


def _chat(messages: tuple[MessageFields, ...], options: Mapping[str, Any] | None) -> ChatPrompt:
    turns = tuple(ChatMessage(role=one.role, content=one.content, name=one.name) for one in messages)
    return ChatPrompt(messages=turns, template_options=options or {})


def _demand(model: ModelName, prompt: Prompt, examination: Examination) -> Demand:
    request = GenerationRequest(
        request_id=f"examine-{secrets.token_hex(12)}", prompt=prompt, examination=examination
    )
    return Demand(name=model, request=request, label=request_id())


def _answer(model: ModelName, **fields: Any) -> TrioResponse:
    return TrioResponse(orjson.dumps({"model": model.text, **fields}), content_type="application/json")
