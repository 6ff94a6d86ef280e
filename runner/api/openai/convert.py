"""Between OpenAI's shapes and ours, both ways; pure.

In: a checked request becomes a `GenerationRequest`. Out: events become the bytes of a reply or of the chunks
of a stream. A chunk's constant parts are built once for a stream, so that a token costs one `orjson.dumps`.
Shapes are those that the `openai` client reads; `timings` and `dmr` are additions that local servers share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import attrs
import orjson

from runner.api import errors, sse
from runner.api.inference import Completed, error_of
from runner.api.openai.schema import ChatRequest, CompletionRequest, GenerationFields
from runner.domain.events import Failed, Finished, GenerationEvent, TextDelta, Timings, Usage
from runner.domain.generation import ChatPrompt, GenerationRequest, Prompt
from runner.domain.model import Model
from runner.domain.sampling import RANGES, SamplingParams
from runner.domain.settings import ModelSettings, resolve
from runner.errors import RunnerError

DONE: Final = sse.encode_data(b"[DONE]")
_MARK: Final = "\0"  # stands for the text in a template; no text of a template holds it


@attrs.frozen(kw_only=True)
class Shape:
    """What tells the two endpoints' answers apart."""

    id_prefix: str
    reply_object: str
    chunk_object: str
    is_chat: bool


CHAT: Final = Shape(
    id_prefix="chatcmpl-", reply_object="chat.completion", chunk_object="chat.completion.chunk", is_chat=True
)
COMPLETION: Final = Shape(
    id_prefix="cmpl-", reply_object="text_completion", chunk_object="text_completion", is_chat=False
)


@attrs.frozen(kw_only=True)
class ReplyHead:
    """What every part of an answer repeats. `model` is the name the client used; `created_s` Unix time."""

    reply_id: str
    created_s: int
    model: str


# in


def generation_request(request: ChatRequest | CompletionRequest, request_id: str) -> GenerationRequest:
    """What a worker is asked. Fields that were not sent take the domain's defaults."""
    return GenerationRequest(
        request_id=request_id,
        prompt=_prompt(request),
        sampling=said_of(request).sampling(_lists(request)),
        max_tokens=_max_tokens(request),
        stop=(request.stop,) if isinstance(request.stop, str) else request.stop or (),
        ignore_eos=bool(request.ignore_eos),
        constraint=next(iter(request.constraints), None),
        cache_prompt=request.cache_prompt is not False,
    )


def said_of(request: GenerationFields) -> ModelSettings:
    """What was sent of what can be configured, so that only the rest is filled in."""
    said = {name: getattr(request, name) for name in RANGES}
    if request.repetition_penalty is not None:  # vLLM's name
        said["repeat_penalty"] = request.repetition_penalty
    return ModelSettings(keep_alive_s=request.keep_alive, **said)


def _lists(request: GenerationFields) -> SamplingParams:
    """What only a request says, and no configuration."""
    usual = SamplingParams()
    breakers, samplers = request.dry_sequence_breakers, request.samplers
    return SamplingParams(
        dry_sequence_breakers=usual.dry_sequence_breakers if breakers is None else breakers,
        logit_bias=request.logit_bias or (),
        samplers=usual.samplers if samplers is None else samplers,
    )


def wants_usage_chunk(request: GenerationFields) -> bool:
    return request.stream_options is not None and bool(request.stream_options.include_usage)


def _prompt(request: ChatRequest | CompletionRequest) -> Prompt:
    if isinstance(request, CompletionRequest):
        return request.prompt
    return ChatPrompt(messages=request.messages, template_options=request.chat_template_kwargs or {})


def _max_tokens(request: ChatRequest | CompletionRequest) -> int | None:
    """Both names mean an upper bound; when both are sent, both hold."""
    bounds = [request.max_tokens, getattr(request, "max_completion_tokens", None)]
    return min((bound for bound in bounds if bound is not None), default=None)


# out


def reply(shape: Shape, head: ReplyHead, completed: Completed) -> bytes:
    """The answer to a request that did not ask for a stream."""
    text, finished = completed.text, completed.finished
    content = {"message": {"role": "assistant", "content": text}} if shape.is_chat else {"text": text}
    choice = {"index": 0, **content, "logprobs": None, "finish_reason": finished.reason.value}
    return orjson.dumps(
        {
            **_common(shape.reply_object, head, completed.fingerprint),
            "choices": [choice],
            "usage": usage_object(finished.usage),
            "timings": timings_object(finished.usage, finished.timings),
        }
    )


class StreamEncoder:
    """The chunks of one streamed answer; an `Encoder` of `runner.api.generation_source`."""

    def __init__(self, shape: Shape, head: ReplyHead, *, has_usage_chunk: bool) -> None:
        self._shape = shape
        self._head = head
        self._has_usage_chunk = has_usage_chunk
        self._common: dict[str, Any] = {}
        self._before = self._after = b""

    def opening(self, fingerprint: str) -> bytes:
        """The chunk that tells the role; a text completion has none."""
        self._common = _common(self._shape.chunk_object, self._head, fingerprint)
        template = self._chunk({"content": _MARK} if self._shape.is_chat else _MARK)
        self._before, _, self._after = template.partition(orjson.dumps(_MARK))
        return self._chunk({"role": "assistant", "content": ""}) if self._shape.is_chat else b""

    def encode(self, events: Iterable[GenerationEvent]) -> bytes:
        """One event-stream event per delta, and the end when the generation has ended; maybe nothing."""
        before, after = self._before, self._after
        parts: list[bytes] = []
        for event in events:
            if type(event) is TextDelta:
                if event.text:
                    parts += (before, orjson.dumps(event.text), after)
            elif type(event) is Finished:
                parts += self._ending(event)
            elif type(event) is Failed:
                parts.append(self.error(error_of(event)))
        return b"".join(parts)

    def error(self, error: RunnerError) -> bytes:
        """An error in mid-stream. No end marker follows it (L01)."""
        return sse.encode_data(errors.encode(errors.refusal_of(error)))

    def idle(self) -> bytes:
        return sse.encode_comment("waiting")

    def _ending(self, finished: Finished) -> list[bytes]:
        """Finish reason, the usage chunk if it was asked for, the end marker; timings in the last chunk."""
        timings = {"timings": timings_object(finished.usage, finished.timings)}
        nothing: dict[str, str] | str = {} if self._shape.is_chat else ""
        if not self._has_usage_chunk:
            return [self._chunk(nothing, finished.reason.value, timings), DONE]
        usage = {**self._common, "choices": [], "usage": usage_object(finished.usage), **timings}
        return [self._chunk(nothing, finished.reason.value), sse.encode_data(orjson.dumps(usage)), DONE]

    def _chunk(
        self,
        content: dict[str, str] | str,
        finish_reason: str | None = None,
        more: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {
            "index": 0,
            "delta" if self._shape.is_chat else "text": content,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        usage = {"usage": None} if self._has_usage_chunk else {}
        return sse.encode_data(orjson.dumps({**self._common, "choices": [choice], **usage, **(more or {})}))


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def timings_object(usage: Usage, timings: Timings) -> dict[str, float]:
    """llama-server's names. `prompt_n` counts what was prefilled, not the `cache_n` that were reused."""
    prompt_n = usage.prompt_tokens - usage.cached_tokens
    return {
        "cache_n": usage.cached_tokens,
        "queued_ms": _ms(timings.queued_s),
        "prompt_n": prompt_n,
        "prompt_ms": _ms(timings.prefill_s),
        "prompt_per_token_ms": _quotient(timings.prefill_s * 1000, prompt_n),
        "prompt_per_second": _quotient(prompt_n, timings.prefill_s),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": _ms(timings.decode_s),
        "predicted_per_token_ms": _quotient(timings.decode_s * 1000, usage.completion_tokens),
        "predicted_per_second": _quotient(usage.completion_tokens, timings.decode_s),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _quotient(amount: float, divisor: float) -> float:
    """0 where nothing was done; JSON has no infinity."""
    return round(amount / divisor, 3) if divisor else 0.0


def _common(kind: str, head: ReplyHead, fingerprint: str) -> dict[str, Any]:
    return {
        "id": head.reply_id,
        "object": kind,
        "created": head.created_s,
        "model": head.model,
        "system_fingerprint": fingerprint,
    }


def model_object(model: Model, default_context_size: int) -> dict[str, Any]:
    """One entry of the model list; members of `dmr` that are unknown are left out."""
    facts = {
        "context_window": context_window(model, default_context_size),
        "architecture": model.architecture,
        "parameters": model.parameters,
        "quantization": model.quantization,
        "size": f"{model.size_bytes / 1024**2:.2f}MiB",
    }
    return {
        "id": str(model.tags[0]) if model.tags else str(model.id),
        "object": "model",
        "created": model.created_s,
        "owned_by": "docker",
        "dmr": {name: value for name, value in facts.items() if value},
    }


def model_list(models: Iterable[Model], default_context_size: int) -> dict[str, Any]:
    return {"object": "list", "data": [model_object(model, default_context_size) for model in models]}


def context_window(model: Model, default_context_size: int) -> int:
    """Tokens that one sequence may have: configured, packaged or the default, within what was trained.

    A load may still have to give it less where memory is short.
    """
    wished = resolve(*model.layers()).values.context_size or default_context_size
    return min(wished, model.trained_context_size or wished)
