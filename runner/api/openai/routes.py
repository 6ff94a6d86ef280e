"""The OpenAI dialect over HTTP: models, chat completions, text completions, embeddings.

The same routes stand under each of `PREFIXES`. Nothing is decided here: bodies go through `schema` and
`convert`, answers through `replies`, generations through `inference`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import orjson
from quart import Blueprint
from quart_trio.wrappers import TrioResponse

from runner.api.bodies import parsed_body
from runner.api.generation_source import GenerationSource, hold_head
from runner.api.inference import Demand, Inference
from runner.api.middleware import request_id
from runner.api.openai import convert, replies
from runner.api.openai.embeddings import (
    WHOLE_BYTES_MAX,
    EmbeddingsRequest,
    ReplySource,
    embedding_request,
    parse_embeddings,
    reply_parts,
)
from runner.api.openai.replies import ReplyHead, Shape, StreamEncoder
from runner.api.openai.schema import ChatRequest, CompletionRequest, parse_chat, parse_completion
from runner.api.streaming import EventStream, request_nursery
from runner.domain.settings import ModelSettings
from runner.errors import NotFound
from runner.oci.reference import ModelName

if TYPE_CHECKING:
    from runner.api.context import AppContext

PREFIXES: Final = ("/v1", "/engines/v1", "/engines/llama.cpp/v1")
_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def blueprint(context: AppContext) -> Blueprint:
    """Every OpenAI route."""
    routes = Blueprint("openai", __name__)
    inference = Inference(context.store, context.scheduler)
    default = context.default_context_size

    async def list_models() -> TrioResponse:
        return _json(orjson.dumps(convert.model_list(await context.store.list(), default)))

    async def show_model(name: str) -> TrioResponse:
        model = await context.store.resolve(ModelName.parse(name))
        return _json(orjson.dumps(convert.model_object(model, default)))

    async def chat_completions() -> TrioResponse:
        return await _generate(inference, replies.CHAT, await parsed_body(parse_chat))

    async def completions() -> TrioResponse:
        return await _generate(inference, replies.COMPLETION, await parsed_body(parse_completion))

    async def embeddings() -> TrioResponse:
        return await _embed(inference, await parsed_body(parse_embeddings))

    async def unknown_backend(backend: str, path: str) -> TrioResponse:
        raise NotFound(f"there is no backend {backend[:64]!r}; it is llama.cpp")

    for prefix in PREFIXES:
        _add(routes, f"{prefix}/models", list_models, ["GET"])
        _add(routes, f"{prefix}/models/<path:name>", show_model, ["GET"])
        _add(routes, f"{prefix}/chat/completions", chat_completions, ["POST"])
        _add(routes, f"{prefix}/completions", completions, ["POST"])
        _add(routes, f"{prefix}/embeddings", embeddings, ["POST"])
    _add(routes, "/engines/<backend>/v1/<path:path>", unknown_backend, _METHODS)
    return routes


def _add(
    routes: Blueprint, path: str, view: Callable[..., Awaitable[TrioResponse]], methods: list[str]
) -> None:
    # Endpoint names hold no dots.
    endpoint = f"{view.__name__} {path}".replace(".", "_")
    routes.add_url_rule(path, endpoint, view, methods=methods)


async def _generate(
    inference: Inference, shape: Shape, request: ChatRequest | CompletionRequest
) -> TrioResponse:
    reply_id = shape.id_prefix + secrets.token_hex(12)
    head = ReplyHead(reply_id=reply_id, created_s=int(time.time()), model=request.model.text)
    demand = Demand(
        name=request.model,
        request=convert.generation_request(request, reply_id),
        more_prompts=convert.more_prompts(request),
        said=convert.said_of(request),
        keep_alive_s=request.keep_alive,
        label=request_id(),
    )
    if not request.stream:
        return _json(replies.reply(shape, head, await inference.complete(demand), convert.wanted(request)))
    opening = inference.begin_soon(demand, request_nursery())
    await hold_head(opening)
    encoder = StreamEncoder(
        shape,
        head,
        has_usage_chunk=convert.wants_usage_chunk(request),
        wanted=convert.wanted(request),
    )
    return EventStream(GenerationSource(opening, encoder))


async def _embed(inference: Inference, request: EmbeddingsRequest) -> TrioResponse:
    demand = Demand(
        name=request.model,
        request=embedding_request(request, f"embd-{secrets.token_hex(12)}"),
        said=ModelSettings(keep_alive_s=request.keep_alive),
        keep_alive_s=request.keep_alive,
        label=request_id(),
    )
    embeddings = await inference.embed(demand)
    source = ReplySource(reply_parts(request, embeddings))
    if embeddings.size_bytes > WHOLE_BYTES_MAX:
        return EventStream(source, "application/json")
    content = bytearray()
    while chunk := await source.next_chunk():
        content += chunk
    return _json(bytes(content))


def _json(content: bytes) -> TrioResponse:
    return TrioResponse(content, content_type="application/json")
