"""What happens to generations as fields, and back: the part of a Step frame that is read for every token.

Imports the domain's values and `checks.py`. Used by `schema.py`.
"""

from __future__ import annotations

from typing import Any

from runner.domain.events import (
    Accepted,
    ChoiceEnded,
    Embedded,
    Examined,
    Failed,
    Finished,
    FinishReason,
    PromptText,
    RankedToken,
    TextDelta,
    Timings,
    TokenLogprob,
    Usage,
)
from runner.domain.sampling import CHOICES, LOGPROBS
from runner.wire.checks import (
    COUNT_MAX,
    ERROR_TEXT_LIMIT,
    Fields,
    Malformed,
    as_array,
    as_bytes,
    as_code,
    as_count,
    as_real,
    as_request_id,
    as_seconds,
    as_text,
    cut_text,
)
from runner.wire.messages import StepEvent

_ACCEPTED, _DELTA, _FINISHED, _FAILED, _CHOICE_DELTA, _CHOICE_ENDED = range(6)
_PROMPT_TEXT, _EXAMINED, _EMBEDDED, _REASONING = range(6, 10)


def event_fields(request_id: str, event: StepEvent) -> Fields:
    match event:
        case TextDelta(text, n_tokens, 0, (), False):
            return request_id, _DELTA, text, n_tokens
        case TextDelta(text, n_tokens, choice_index, _, True):
            return request_id, _REASONING, text, n_tokens, choice_index
        case TextDelta(text, n_tokens, choice_index, logprobs):
            return request_id, _CHOICE_DELTA, text, n_tokens, choice_index, _logprobs_fields(logprobs)
        case Accepted():
            return request_id, _ACCEPTED, event.prompt_tokens
        case PromptText(text, logprobs):
            return request_id, _PROMPT_TEXT, text, _logprobs_fields(logprobs)
        case ChoiceEnded(choice_index, reason):
            return request_id, _CHOICE_ENDED, choice_index, reason.value
        case Examined(n_tokens, data):
            return request_id, _EXAMINED, n_tokens, data
        case Embedded(input_index, vector):
            return request_id, _EMBEDDED, input_index, vector
        case Finished():
            usage, timings = event.usage, event.timings
            counts = (
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.cached_tokens,
                usage.reasoning_tokens,
            )
            seconds = (float(timings.queued_s), float(timings.prefill_s), float(timings.decode_s))
            return request_id, _FINISHED, event.reason.value, counts, seconds, event.choice_index
        case Failed():
            return (
                request_id,
                _FAILED,
                event.code,
                cut_text(event.message),
                event.prompt_tokens,
                event.context_size,
            )


def _logprobs_fields(logprobs: tuple[TokenLogprob, ...]) -> list[Fields]:
    return [
        (one.token_id, one.text, one.logprob, [(top.token_id, top.text, top.logprob) for top in one.top])
        for one in logprobs
    ]


def read_event(fields: Any) -> tuple[str, StepEvent]:
    """The hot path: deltas first, checks inline."""
    if type(fields) is not tuple or len(fields) < 3 or type(fields[1]) is not int:
        raise Malformed("an event of wrong shape")
    request_id = as_request_id(fields[0])
    kind = fields[1]
    if kind == _DELTA:
        _, _, text, n_tokens = fields
        if type(text) is not str or type(n_tokens) is not int or not 0 <= n_tokens <= COUNT_MAX:
            raise Malformed("a delta of wrong types")
        return request_id, TextDelta(text, n_tokens)
    if kind == _ACCEPTED:
        _, _, prompt_tokens = fields
        return request_id, Accepted(prompt_tokens=as_count(prompt_tokens))
    if kind == _FINISHED:
        return request_id, _read_finished(fields)
    if kind == _FAILED:
        _, _, code, message, prompt_tokens, context_size = fields
        return request_id, Failed(
            code=as_code(code),
            message=as_text(message, ERROR_TEXT_LIMIT),
            prompt_tokens=None if prompt_tokens is None else as_count(prompt_tokens),
            context_size=None if context_size is None else as_count(context_size),
        )
    return request_id, _read_rare_event(kind, fields)


def _read_rare_event(kind: int, fields: Fields) -> StepEvent:
    if kind == _REASONING:
        _, _, text, n_tokens, choice_index = fields
        return TextDelta(as_text(text), as_count(n_tokens), _as_choice(choice_index), is_reasoning=True)
    if kind == _CHOICE_DELTA:
        _, _, text, n_tokens, choice_index, logprobs = fields
        return TextDelta(
            as_text(text), as_count(n_tokens), _as_choice(choice_index), _read_logprobs(as_array(logprobs))
        )
    if kind == _CHOICE_ENDED:
        _, _, choice_index, reason = fields
        return ChoiceEnded(_as_choice(choice_index), FinishReason(as_text(reason)))
    if kind == _PROMPT_TEXT:
        _, _, text, logprobs = fields
        return PromptText(as_text(text), _read_logprobs(as_array(logprobs)))
    if kind == _EXAMINED:
        _, _, n_tokens, data = fields
        return Examined(as_count(n_tokens), as_bytes(data))
    if kind == _EMBEDDED:
        _, _, input_index, vector = fields
        return Embedded(as_count(input_index), as_bytes(vector))
    raise Malformed("unknown kind of event")


def _as_choice(value: Any) -> int:
    if as_count(value) >= CHOICES.high:
        raise Malformed("more answers than may be asked for")
    return value  # type: ignore[no-any-return]  # as_count() has checked it


def _read_logprobs(items: Fields) -> tuple[TokenLogprob, ...]:
    return tuple([_read_logprob(as_array(fields)) for fields in items])


def _read_logprob(fields: Fields) -> TokenLogprob:
    token_id, text, logprob, top = fields
    if len(as_array(top)) > LOGPROBS.high:
        raise Malformed("more likeliest tokens than may be asked for")
    return TokenLogprob(
        as_count(token_id),
        as_bytes(text),
        None if logprob is None else as_real(logprob),
        tuple([_read_ranked(as_array(one)) for one in top]),
    )


def _read_ranked(fields: Fields) -> RankedToken:
    token_id, text, logprob = fields
    return RankedToken(as_count(token_id), as_bytes(text), as_real(logprob))


def _read_finished(fields: Fields) -> Finished:
    _, _, reason, counts, seconds, choice_index = fields
    prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens = as_array(counts)
    queued_s, prefill_s, decode_s = as_array(seconds)
    return Finished(
        reason=FinishReason(as_text(reason)),
        usage=Usage(
            prompt_tokens=as_count(prompt_tokens),
            completion_tokens=as_count(completion_tokens),
            cached_tokens=as_count(cached_tokens),
            reasoning_tokens=as_count(reasoning_tokens),
        ),
        timings=Timings(
            queued_s=as_seconds(queued_s), prefill_s=as_seconds(prefill_s), decode_s=as_seconds(decode_s)
        ),
        choice_index=_as_choice(choice_index),
    )
