"""What OpenAI clients send, checked: bodies in, typed requests or all their faults out.

Fields that no class or table here names are ignored (N13). Known fields that would change the result and are
not implemented are in `unsupported.py`. Ranges are N12's. Imports the shared schema machinery and the
domain; knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import attrs

from runner.api import strict_json
from runner.api.keep_alive import KeepAlive
from runner.api.openai import unsupported
from runner.api.openai.constraint_fields import READERS, reader_of
from runner.api.openai.sampling_fields import TOKEN_ID_MAX, read_logit_bias, read_samplers
from runner.api.structure import By, Fault, Faults, Length, Schema, Text, Unsupported, raise_faults
from runner.api.template_options import read_template_options
from runner.domain.constraints import Constraint
from runner.domain.generation import (
    REASONING_EFFORTS,
    ChatMessage,
    TextPrompt,
    TokenPrompt,
)
from runner.domain.sampling import (
    BREAKER_BYTES_MAX,
    BREAKERS_MAX,
    CHOICES,
    LOGPROBS,
    RANGES,
    STOP_BYTES_MAX,
    STOP_MAX,
    Range,
    Stage,
)
from runner.oci.reference import ModelName

MESSAGES_MAX: Final = 4096
TOKENS_MAX: Final = 2**63 - 1  # of max_tokens; what exceeds the context is clamped to it by the engine
ANSWERS_MAX: Final = 64
"""Of one request: prompts times answers to each, as many as a worker runs at once at the most."""
PART_JOINT: Final = "\n"  # between text parts of one message, as llama-server and vLLM join them

_OTHER_PARTS: Final = frozenset({"image_url", "input_audio", "audio_url", "video_url", "file", "refusal"})
_NO_PROMPT: Final = "must be a string, a list of strings, a list of token ids or a list of such lists"
_SCHEMA: Final = Schema(forbid_unknown=False)

Breaker = Annotated[str, Text(1, BREAKER_BYTES_MAX)]
StopText = Annotated[str, Text(1, STOP_BYTES_MAX)]
Message = Annotated[ChatMessage, By(lambda value: read_message(value))]
MaxTokens = Annotated[int, Range(1, TOKENS_MAX)]
T = TypeVar("T", bound="GenerationFields")


@attrs.frozen(kw_only=True)
class StreamOptions:
    include_usage: bool | None = None


def read_content(value: Any) -> str:
    """The text of a message: a string, or text parts; parts of other kinds are known and not implemented."""
    if type(value) is str:
        return value
    if type(value) is not list:
        raise Fault("must be a string or a list of text parts")
    texts: list[str] = []
    faults: list[tuple[str, Fault]] = []
    for index, part in enumerate(value):
        try:
            texts.append(_part_text(part))
        except Fault as fault:
            faults.append((f"[{index}]", fault))
    if faults:
        raise Faults(faults[: strict_json.FAULTS_MAX])
    return PART_JOINT.join(texts)


def _part_text(part: Any) -> str:
    if type(part) is not dict or type(part.get("type")) is not str:
        raise Fault("must be an object with a type")
    kind = part["type"]
    if kind in _OTHER_PARTS:
        raise Unsupported(f"content of type {kind} is not implemented")
    if kind != "text":
        raise Fault("its type must be text")
    if type(part.get("text")) is not str:
        raise Fault("its text must be a string")
    text: str = part["text"]
    return text


def read_prompts(value: Any) -> tuple[TextPrompt | TokenPrompt, ...]:
    """1. A string.  2. Token ids, which are one prompt.  3. Up to `ANSWERS_MAX` of either."""
    if type(value) is str:  # 1
        return (TextPrompt(value),)
    if type(value) is not list or not value:
        raise Fault(_NO_PROMPT)
    if {int}.issuperset(map(type, value)):  # 2
        return (_token_prompt(value),)
    if not {str, list}.issuperset(map(type, value)):
        raise Fault(_NO_PROMPT)
    if len(value) > ANSWERS_MAX:
        raise Fault(f"must have at most {ANSWERS_MAX} members, and has {len(value)}")
    return _several_prompts(value)  # 3


def _several_prompts(values: list[Any]) -> tuple[TextPrompt | TokenPrompt, ...]:
    prompts: list[TextPrompt | TokenPrompt] = []
    faults: list[tuple[str, Fault]] = []
    for index, value in enumerate(values):
        try:
            prompts.append(TextPrompt(value) if type(value) is str else _nested_token_prompt(value))
        except Fault as fault:
            faults.append((f"[{index}]", fault))
    if faults:
        raise Faults(faults[: strict_json.FAULTS_MAX])
    return tuple(prompts)


def _nested_token_prompt(value: list[Any]) -> TokenPrompt:
    if not value or not {int}.issuperset(map(type, value)):
        raise Fault("must be a string or a list of token ids")
    return _token_prompt(value)


def _token_prompt(token_ids: list[int]) -> TokenPrompt:
    if min(token_ids) < 0 or max(token_ids) > TOKEN_ID_MAX:
        raise Fault("holds a token id outside every vocabulary")
    return TokenPrompt(tuple(token_ids))


def read_effort(value: Any) -> str:
    if type(value) is not str:
        raise Fault("must be a string")
    if value not in REASONING_EFFORTS:
        raise Unsupported(f"must be {', '.join(REASONING_EFFORTS[:-1])} or {REASONING_EFFORTS[-1]}")
    return value


def _no_calls(value: Any) -> None:
    if value:
        raise Unsupported("tool calls are not implemented")


@attrs.frozen(kw_only=True)
class MessageFields:
    """One turn as it comes."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, By(read_content)]
    name: str | None = None
    tool_calls: Annotated[None, By(_no_calls)] = None
    function_call: Annotated[None, By(_no_calls)] = None


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if item is not None}


def read_message(value: Any) -> ChatMessage:
    if type(value) is dict and (value.get("tool_calls") or value.get("function_call")):
        value = {"content": "", **_without_nulls(value)}  # null beside a call is right; the call is refused
    fields: MessageFields = _SCHEMA.hook(MessageFields)(value, MessageFields)
    return ChatMessage(role=fields.role, content=fields.content, name=fields.name)


@attrs.frozen(kw_only=True)
class GenerationFields:
    """What both endpoints take. None: not sent."""

    model: ModelName
    temperature: Annotated[float, RANGES["temperature"]] | None = None
    top_p: Annotated[float, RANGES["top_p"]] | None = None
    top_k: Annotated[int, RANGES["top_k"]] | None = None
    min_p: Annotated[float, RANGES["min_p"]] | None = None
    seed: Annotated[int, RANGES["seed"]] | None = None
    typical_p: Annotated[float, RANGES["typical_p"]] | None = None
    top_n_sigma: Annotated[float, RANGES["top_n_sigma"]] | None = None
    dynatemp_range: Annotated[float, RANGES["dynatemp_range"]] | None = None
    dynatemp_exponent: Annotated[float, RANGES["dynatemp_exponent"]] | None = None
    repeat_penalty: Annotated[float, RANGES["repeat_penalty"]] | None = None
    repetition_penalty: Annotated[float, RANGES["repeat_penalty"]] | None = None
    repeat_last_n: Annotated[int, RANGES["repeat_last_n"]] | None = None
    frequency_penalty: Annotated[float, RANGES["frequency_penalty"]] | None = None
    presence_penalty: Annotated[float, RANGES["presence_penalty"]] | None = None
    dry_multiplier: Annotated[float, RANGES["dry_multiplier"]] | None = None
    dry_base: Annotated[float, RANGES["dry_base"]] | None = None
    dry_allowed_length: Annotated[int, RANGES["dry_allowed_length"]] | None = None
    dry_penalty_last_n: Annotated[int, RANGES["dry_penalty_last_n"]] | None = None
    dry_sequence_breakers: Annotated[tuple[Breaker, ...], Length(0, BREAKERS_MAX)] | None = None
    xtc_probability: Annotated[float, RANGES["xtc_probability"]] | None = None
    xtc_threshold: Annotated[float, RANGES["xtc_threshold"]] | None = None
    mirostat: Annotated[int, RANGES["mirostat"]] | None = None
    mirostat_tau: Annotated[float, RANGES["mirostat_tau"]] | None = None
    mirostat_eta: Annotated[float, RANGES["mirostat_eta"]] | None = None
    logit_bias: Annotated[tuple[tuple[int, float], ...], By(read_logit_bias)] | None = None
    samplers: Annotated[tuple[Stage, ...], By(read_samplers)] | None = None
    response_format: Annotated[Constraint, By(reader_of("response_format"))] | None = None
    grammar: Annotated[Constraint, By(reader_of("grammar"))] | None = None
    json_schema: Annotated[Constraint, By(reader_of("json_schema"))] | None = None
    guided_json: Annotated[Constraint, By(reader_of("guided_json"))] | None = None
    guided_regex: Annotated[Constraint, By(reader_of("guided_regex"))] | None = None
    guided_choice: Annotated[Constraint, By(reader_of("guided_choice"))] | None = None
    guided_grammar: Annotated[Constraint, By(reader_of("guided_grammar"))] | None = None
    structured_outputs: Annotated[Constraint, By(reader_of("structured_outputs"))] | None = None
    max_tokens: MaxTokens | None = None
    stop: StopText | Annotated[tuple[StopText, ...], Length(0, STOP_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None
    n: Annotated[int, CHOICES] | None = None
    keep_alive: KeepAlive | None = None

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """Those that were sent; more than one is a fault."""
        return tuple(found for name in READERS if (found := getattr(self, name)) is not None)


@attrs.frozen(kw_only=True)
class ChatRequest(GenerationFields):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[tuple[Message, ...], Length(1, MESSAGES_MAX)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, LOGPROBS] | None = None
    max_completion_tokens: MaxTokens | None = None
    reasoning_format: Literal["auto", "deepseek", "none"] | None = None
    reasoning_effort: Annotated[str, By(read_effort)] | None = None
    chat_template_kwargs: Annotated[Mapping[str, str | int | bool], By(read_template_options)] | None = None


@attrs.frozen(kw_only=True)
class CompletionRequest(GenerationFields):
    """Body of `/v1/completions`."""

    prompt: Annotated[tuple[TextPrompt | TokenPrompt, ...], By(read_prompts)]
    logprobs: Annotated[int, LOGPROBS] | None = None
    echo: bool | None = None
    best_of: Annotated[int, CHOICES] | None = None


def _constraint_faults(request: GenerationFields) -> list[tuple[str, Fault]]:
    """An answer has one form."""
    sent = request.constraints
    return [
        (other.path, Fault(f"cannot be together with {first.path}"))
        for first in sent[:1]
        for other in sent[1:]
    ]


def _choice_faults(request: GenerationFields) -> list[tuple[str, Fault]]:
    """What does not go together about several answers, and about logprobs."""
    if isinstance(request, ChatRequest):
        if request.top_logprobs and not request.logprobs:
            return [("top_logprobs", Fault("needs logprobs: true"))]
    elif isinstance(request, CompletionRequest):
        return list(_completion_choice_faults(request))
    return []


def _completion_choice_faults(request: CompletionRequest) -> Iterator[tuple[str, Fault]]:
    n = request.n or 1
    best_of = request.best_of or n
    if best_of < n:
        yield "best_of", Fault(f"must be at least n, which is {n}")
    elif best_of > n and request.stream:
        yield "best_of", Fault("cannot be streamed: which is best is known at the end")
    n_prompts = len(request.prompt)
    if n_prompts * best_of > ANSWERS_MAX:
        what = f"asks for {n_prompts} times {best_of} answers, and may ask for {ANSWERS_MAX}"
        yield "prompt", Fault(what)


def _alias_faults(document: dict[str, Any]) -> list[tuple[str, Fault]]:
    """Two names of one thing, and both are sent."""
    both = [document.get(name) is not None for name in ("repeat_penalty", "repetition_penalty")]
    return [("repetition_penalty", Fault("is repeat_penalty, which is sent too"))] if all(both) else []


def parse_chat(body: bytes) -> ChatRequest:
    """Raises InvalidParameter, or UnsupportedParameter when that is all that is wrong."""
    return _parse(body, ChatRequest, unsupported.CHAT)


def parse_completion(body: bytes) -> CompletionRequest:
    """Raises InvalidParameter, or UnsupportedParameter when that is all that is wrong."""
    return _parse(body, CompletionRequest, unsupported.COMPLETION)


def _parse(body: bytes, kind: type[T], table: Mapping[str, unsupported.Known]) -> T:
    document = strict_json.decode(body)
    request: T | None
    request, faults = _SCHEMA.attempt(document, kind)
    if type(document) is dict:
        faults += _alias_faults(document)
    if request is not None:
        faults += _constraint_faults(request) + _choice_faults(request)
    if type(document) is dict and not document.keys().isdisjoint(table):
        faults += unsupported.faults(document, table, _SCHEMA)
    raise_faults(faults)
    assert request is not None, "or there were faults"
    return request
