"""`/v1/embeddings`: what clients send, checked, and what they are answered.

The body's fields are OpenAI's; `truncate` and vLLM's `truncate_prompt_tokens` ask for what is too long to be
cut. Vectors have length 1. Imports the shared schema machinery and the domain; knows nothing of HTTP.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import attrs
import orjson
import trio

from runner.api import strict_json
from runner.api.collecting import Embeddings
from runner.api.keep_alive import KeepAlive
from runner.api.openai import unsupported
from runner.api.openai.sampling_fields import TOKEN_ID_MAX
from runner.api.structure import By, Fault, Faults, Schema, raise_faults
from runner.domain.generation import (
    EMBEDDING_INPUTS_MAX,
    EmbeddingPrompt,
    GenerationRequest,
    TextPrompt,
    TokenPrompt,
)
from runner.domain.sampling import Range
from runner.errors import RunnerError
from runner.oci.reference import ModelName

DIMENSIONS: Final = Range(1, 2**20)
TRUNCATED: Final = Range(-1, 2**27)
"""Tokens; -1 for as many as the model takes."""
WHOLE_BYTES_MAX: Final = 1024 * 1024
"""Vectors whose answer is sent with its length; more are written piece by piece."""
CHUNK_BYTES: Final = 64 * 1024
_SCHEMA: Final = Schema(forbid_unknown=False)
_NO_INPUT: Final = "must be a string, a list of strings, a list of token ids or a list of such lists"

Input = TextPrompt | TokenPrompt


def read_input(value: Any) -> tuple[Input, ...]:
    """1. A string.  2. Token ids, which are one input.  3. Up to `EMBEDDING_INPUTS_MAX` of either."""
    if type(value) is str:  # 1
        return (_text(value),)
    if type(value) is not list or not value:
        raise Fault(_NO_INPUT)
    if {int}.issuperset(map(type, value)):  # 2
        return (_tokens(value),)
    if len(value) > EMBEDDING_INPUTS_MAX:
        raise Fault(f"must have at most {EMBEDDING_INPUTS_MAX} members, and has {len(value)}")
    return _several(value)  # 3


def _several(values: list[Any]) -> tuple[Input, ...]:
    inputs: list[Input] = []
    faults: list[tuple[str, Fault]] = []
    for index, value in enumerate(values):
        try:
            inputs.append(_one(value))
        except Fault as fault:
            faults.append((f"[{index}]", fault))
            if len(faults) == strict_json.FAULTS_MAX:
                break
    if faults:
        raise Faults(faults)
    return tuple(inputs)


def _one(value: Any) -> Input:
    if type(value) is str:
        return _text(value)
    if type(value) is not list or not {int}.issuperset(map(type, value)):
        raise Fault("must be a string or a list of token ids")
    return _tokens(value)


def _text(value: str) -> TextPrompt:
    if not value:
        raise Fault("must not be empty")
    return TextPrompt(value)


def _tokens(token_ids: list[int]) -> TokenPrompt:
    if not token_ids:
        raise Fault("must not be empty")
    if min(token_ids) < 0 or max(token_ids) > TOKEN_ID_MAX:
        raise Fault("holds a token id outside every vocabulary")
    return TokenPrompt(tuple(token_ids))


@attrs.frozen(kw_only=True)
class EmbeddingsRequest:
    """Body of `/v1/embeddings`. None: not sent."""

    model: ModelName
    input: Annotated[tuple[Input, ...], By(read_input)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, DIMENSIONS] | None = None
    truncate: bool | None = None
    truncate_prompt_tokens: Annotated[int, TRUNCATED] | None = None
    keep_alive: KeepAlive | None = None


def parse_embeddings(body: bytes) -> EmbeddingsRequest:
    """Raises InvalidParameter, or UnsupportedParameter when that is all that is wrong."""
    document = strict_json.decode(body)
    value, faults = _SCHEMA.attempt(document, EmbeddingsRequest)
    if isinstance(document, dict):
        faults += unsupported.faults(document, unsupported.EMBEDDING, _SCHEMA)
    if value is not None and value.truncate_prompt_tokens is not None:
        faults += _truncation_faults(value)
    raise_faults(faults)
    request: EmbeddingsRequest = value
    return request


def _truncation_faults(request: EmbeddingsRequest) -> Iterator[tuple[str, Fault]]:
    if request.truncate_prompt_tokens == 0:
        yield "truncate_prompt_tokens", Fault("must be at least 1, or -1 for as many as the model takes")
    if request.truncate is False:
        yield "truncate", Fault("is false, and truncate_prompt_tokens asks for the opposite")


def embedding_request(request: EmbeddingsRequest, request_id: str) -> GenerationRequest:
    """What a worker is asked."""
    wished = request.truncate_prompt_tokens
    return GenerationRequest(
        request_id=request_id,
        prompt=EmbeddingPrompt(
            inputs=request.input,
            dimensions=request.dimensions,
            truncates=bool(request.truncate) or wished is not None,
            tokens_max=wished if wished is not None and wished > 0 else None,
        ),
    )


def reply_parts(request: EmbeddingsRequest, embeddings: Embeddings) -> Iterator[bytes]:
    """The answer as JSON, one vector after the other, so that others can be served in between."""
    write = _as_base64 if request.encoding_format == "base64" else _as_numbers
    yield b'{"object":"list","data":['
    for index, vector in enumerate(embeddings.vectors):
        entry = {"object": "embedding", "index": index, "embedding": write(vector)}
        yield (b"," if index else b"") + orjson.dumps(entry)
    n_tokens = embeddings.finished.usage.prompt_tokens
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    yield b'],"model":%b,"usage":%b}' % (orjson.dumps(request.model.text), orjson.dumps(usage))


class ReplySource:
    """The `ByteSource` of a large answer: as JSON, numbers take five times what their vectors do."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts

    async def next_chunk(self) -> bytes:
        """Others are served after each vector."""
        chunk = bytearray()
        for part in self._parts:
            chunk += part
            await trio.lowlevel.checkpoint()
            if len(chunk) >= CHUNK_BYTES:
                break
        return bytes(chunk)

    def abort(self, error: RunnerError) -> bytes:
        """There is no place for an error in it, and half of it must not be taken for the whole."""
        raise error

    def close(self) -> None:
        pass


def _as_base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def _as_numbers(vector: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(vector) // 4}f", vector)
