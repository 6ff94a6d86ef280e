"""From OpenAI's requests to ours, and from our models to theirs; pure.

Answers are in `replies.py`. `dmr` is an addition that local servers share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from runner.api.openai.replies import Wanted
from runner.api.openai.schema import ChatRequest, CompletionRequest, GenerationFields
from runner.domain.generation import ChatPrompt, GenerationRequest, Prompt, TextPrompt, TokenPrompt
from runner.domain.model import Model
from runner.domain.sampling import RANGES, SamplingParams
from runner.domain.settings import ModelSettings, resolve

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
        n=max(request.n or 1, _best_of(request)),
        logprobs=_logprobs(request),
        echo=isinstance(request, CompletionRequest) and _needs_echo(request),
        separates_reasoning=not isinstance(request, ChatRequest) or request.reasoning_format != "none",
        cache_prompt=request.cache_prompt is not False,
    )


def more_prompts(request: ChatRequest | CompletionRequest) -> tuple[Prompt, ...]:
    """Those beside the one of `generation_request`."""
    return request.prompt[1:] if isinstance(request, CompletionRequest) else ()


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


def wanted(request: ChatRequest | CompletionRequest) -> Wanted:
    """What of the answer is shown, and how."""
    usual = Wanted(n=request.n or 1, has_logprobs=_shows_logprobs(request))
    if isinstance(request, ChatRequest):
        return usual
    texts = tuple(prompt.text if isinstance(prompt, TextPrompt) else "" for prompt in request.prompt)
    return attrs.evolve(usual, n_prompts=len(request.prompt), echoed=texts if request.echo else None)


def _shows_logprobs(request: ChatRequest | CompletionRequest) -> bool:
    return request.logprobs is not None and request.logprobs is not False


def _logprobs(request: ChatRequest | CompletionRequest) -> int | None:
    """Those that are shown, or the chosen tokens' own, by which the best answers are found."""
    if isinstance(request, ChatRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    return 0 if request.logprobs is None and _best_of(request) > (request.n or 1) else request.logprobs


def _best_of(request: ChatRequest | CompletionRequest) -> int:
    return (request.best_of or 1) if isinstance(request, CompletionRequest) else 1


def _needs_echo(request: CompletionRequest) -> bool:
    """The text of a prompt is known here; the worker knows that of token ids, and logprobs."""
    is_unknown = any(isinstance(prompt, TokenPrompt) for prompt in request.prompt)
    return bool(request.echo) and (is_unknown or request.logprobs is not None)


def _prompt(request: ChatRequest | CompletionRequest) -> Prompt:
    if isinstance(request, CompletionRequest):
        return request.prompt[0]
    return ChatPrompt(
        messages=request.messages,
        template_options=request.chat_template_kwargs or {},
        reasoning_effort=request.reasoning_effort,
    )


def _max_tokens(request: ChatRequest | CompletionRequest) -> int | None:
    """Both names mean an upper bound; when both are sent, both hold."""
    bounds = [request.max_tokens, getattr(request, "max_completion_tokens", None)]
    return min((bound for bound in bounds if bound is not None), default=None)


# out


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
