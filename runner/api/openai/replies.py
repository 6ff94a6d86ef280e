"""From events to OpenAI's answers: a reply, or the chunks of a stream; pure.

A chunk's constant parts are built once for a stream, so that a token costs one `orjson.dumps`. Shapes are
those that the `openai` client reads; `timings` and `reasoning_content` are additions that local servers
share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import attrs
import orjson

from runner.api import errors, sse
from runner.api.collecting import Choice, Completed, error_of
from runner.api.openai.logprobs import CompletionLogprobs, chat_object, mean
from runner.domain.events import (
    ChoiceEnded,
    Failed,
    Finished,
    FinishReason,
    GenerationEvent,
    PromptText,
    TextDelta,
    Timings,
    TokenLogprob,
    Usage,
)
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


@attrs.frozen(kw_only=True)
class Wanted:
    """What of the answers is shown: `n` of each prompt's, the best if there are more.

    `echoed` are the texts of the prompts, "" where it is not known here, None when they are not to be shown.
    """

    n: int = 1
    n_prompts: int = 1
    has_logprobs: bool = False
    echoed: tuple[str, ...] | None = None

    @property
    def n_choices(self) -> int:
        return self.n * self.n_prompts

    def echo_of(self, index: int) -> str:
        """What is known here of the prompt of this choice and is to be shown."""
        return "" if self.echoed is None else self.echoed[index // self.n]


def reply(shape: Shape, head: ReplyHead, completed: Completed, wanted: Wanted = Wanted()) -> bytes:
    """The answer to a request that did not ask for a stream."""
    finished = completed.finished
    choices = [
        _choice(shape, index, choice, wanted)
        for index, choice in enumerate(_best_of_each(completed.choices, wanted))
    ]
    return orjson.dumps(
        {
            **_common(shape.reply_object, head, completed.fingerprint),
            "choices": choices,
            "usage": usage_object(finished.usage),
            "timings": timings_object(finished.usage, finished.timings),
        }
    )


def _best_of_each(choices: Sequence[Choice], wanted: Wanted) -> Iterator[Choice]:
    """Prompt by prompt."""
    size = len(choices) // wanted.n_prompts
    for start in range(0, len(choices), size):
        yield from _best(choices[start : start + size], wanted.n)


def _best(choices: Sequence[Choice], n: int) -> Sequence[Choice]:
    """Those whose tokens were likeliest on average, the best first; all in their order when none is too
    many."""
    if len(choices) <= n:
        return choices
    return sorted(choices, key=lambda choice: -mean(choice.logprobs))[:n]


def _choice(shape: Shape, index: int, choice: Choice, wanted: Wanted) -> dict[str, Any]:
    known = wanted.echo_of(index)
    echoed = "" if wanted.echoed is None else known or choice.prompt_text
    content = {"message": _message(choice)} if shape.is_chat else {"text": echoed + choice.text}
    logprobs: dict[str, Any] | None = None
    if wanted.has_logprobs and shape.is_chat:
        logprobs = chat_object(choice.logprobs)
    elif wanted.has_logprobs:
        all_logprobs = (*choice.prompt_logprobs, *choice.logprobs)
        logprobs = CompletionLogprobs(known or None).object(all_logprobs)
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": choice.reason.value}


def _message(choice: Choice) -> dict[str, str]:
    reasoned = {"reasoning_content": choice.reasoning} if choice.reasoning else {}
    return {"role": "assistant", **reasoned, "content": choice.text}


class StreamEncoder:
    """The chunks of one streamed answer; an `Encoder` of `runner.api.generation_source`."""

    def __init__(
        self, shape: Shape, head: ReplyHead, *, has_usage_chunk: bool, wanted: Wanted = Wanted()
    ) -> None:
        self._shape = shape
        self._head = head
        self._has_usage_chunk = has_usage_chunk
        self._wanted = wanted
        self._common: dict[str, Any] = {}
        self._before = self._after = b""
        self._lists = [CompletionLogprobs(wanted.echo_of(index) or None) for index in range(wanted.n_choices)]

    def opening(self, fingerprint: str) -> bytes:
        """Of each answer, the chunk that tells the role, or the prompt where its text is known."""
        self._common = _common(self._shape.chunk_object, self._head, fingerprint)
        template = self._chunk({"content": _MARK} if self._shape.is_chat else _MARK)
        self._before, _, self._after = template.partition(orjson.dumps(_MARK))
        wanted = self._wanted
        if self._shape.is_chat:
            role = {"role": "assistant", "content": ""}
            return b"".join(self._chunk(role, index=index) for index in range(wanted.n))
        known = ((index, wanted.echo_of(index)) for index in range(wanted.n_choices))
        return b"".join(self._chunk(text, index=index) for index, text in known if text)

    def encode(self, events: Iterable[GenerationEvent]) -> bytes:
        """One event-stream event per delta, and the end when the generation has ended; maybe nothing."""
        before, after = self._before, self._after
        parts: list[bytes] = []
        for event in events:
            if type(event) is TextDelta:
                if event.is_reasoning:
                    parts.append(self._chunk({"reasoning_content": event.text}, index=event.choice_index))
                elif event.choice_index or event.logprobs:
                    parts.append(self._delta(event.text, event.choice_index, event.logprobs))
                elif event.text:
                    parts += (before, orjson.dumps(event.text), after)
            elif type(event) is Finished:
                parts += self._ending(event)
            elif type(event) is ChoiceEnded:
                parts.append(self._chunk(self._nothing, event.reason, index=event.choice_index))
            elif type(event) is PromptText:
                parts += self._prompt(event)
            elif type(event) is Failed:
                parts.append(self.error(error_of(event)))
        return b"".join(parts)

    def error(self, error: RunnerError) -> bytes:
        """An error in mid-stream. No end marker follows it (L01)."""
        return sse.encode_data(errors.encode(errors.refusal_of(error)))

    def idle(self) -> bytes:
        return sse.encode_comment("waiting")

    @property
    def _nothing(self) -> dict[str, str] | str:
        return {} if self._shape.is_chat else ""

    def _delta(self, text: str, index: int, logprobs: Sequence[TokenLogprob]) -> bytes:
        content: dict[str, str] | str = {"content": text} if self._shape.is_chat else text
        told: dict[str, Any] | None = None
        if self._wanted.has_logprobs and logprobs:
            told = chat_object(logprobs) if self._shape.is_chat else self._lists[index].object(logprobs)
        return self._chunk(content, index=index, logprobs=told)

    def _prompt(self, event: PromptText) -> list[bytes]:
        """The same for every answer to it; its text only when it has not been shown at the opening."""
        first = event.prompt_index * self._wanted.n
        text = "" if self._wanted.echo_of(first) else event.text
        return [self._delta(text, first + choice, event.logprobs) for choice in range(self._wanted.n)]

    def _ending(self, finished: Finished) -> list[bytes]:
        """Finish reason, the usage chunk if it was asked for, the end marker; timings in the last chunk."""
        timings = {"timings": timings_object(finished.usage, finished.timings)}
        index = finished.choice_index
        if not self._has_usage_chunk:
            return [self._chunk(self._nothing, finished.reason, timings, index=index), DONE]
        usage = {**self._common, "choices": [], "usage": usage_object(finished.usage), **timings}
        ended = self._chunk(self._nothing, finished.reason, index=index)
        return [ended, sse.encode_data(orjson.dumps(usage)), DONE]

    def _chunk(
        self,
        content: dict[str, str] | str,
        reason: FinishReason | None = None,
        more: dict[str, Any] | None = None,
        *,
        index: int = 0,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "delta" if self._shape.is_chat else "text": content,
            "logprobs": logprobs,
            "finish_reason": None if reason is None else reason.value,
        }
        usage = {"usage": None} if self._has_usage_chunk else {}
        return sse.encode_data(orjson.dumps({**self._common, "choices": [choice], **usage, **(more or {})}))


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
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
