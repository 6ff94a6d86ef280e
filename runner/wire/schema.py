"""Messages as arrays of plain fields, and back: which tag, which fields, which types and limits.

    [tag, field…]      fields by position, exactly those of `runner.wire.messages`; no maps

Each direction has its own table of tags, so that a worker cannot send what only the daemon may say. Numbers,
lengths and types are checked before a value is built: to the daemon a worker is a stranger (THREATS W07).
`Hello` keeps its form in every version, so that a worker of another version can be told apart.

Imports the domain's values and the messages. Used by `runner.wire.codec` alone.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping
from typing import Any, Final

from runner.domain.events import Accepted, Failed, Finished, FinishReason, TextDelta, Timings, Usage
from runner.domain.generation import (
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from runner.domain.sampling import SamplingParams
from runner.wire.messages import (
    Cancel,
    EngineOptions,
    FromWorker,
    Generate,
    Hello,
    Loaded,
    LoadFailed,
    LoadModel,
    LoadProgress,
    Shutdown,
    Step,
    StepEvent,
    ToWorker,
)

REQUEST_ID_LIMIT: Final = 128
"""Characters of a request id."""
ERROR_TEXT_LIMIT: Final = 4096
"""Characters of an error message; longer ones are cut when they are encoded."""
EVENTS_LIMIT: Final = 4096
"""Events in one step. Also bounds the arrays that a hostile frame makes the decoder allocate."""
ITEMS_LIMIT: Final = 65_536
"""Items of any array to the worker; a request has at most 4096 messages (THREATS N12)."""

_NAME_LIMIT: Final = 256
_COUNT_MAX: Final = 2**63 - 1

PART: Final = 0
_LOAD_MODEL, _GENERATE, _CANCEL, _SHUTDOWN = 1, 2, 3, 4
_HELLO, _LOAD_PROGRESS, _LOADED, _LOAD_FAILED, _STEP = 16, 17, 18, 19, 20

_ACCEPTED, _DELTA, _FINISHED, _FAILED = 0, 1, 2, 3
_CHAT, _TEXT, _TOKENS = 0, 1, 2
_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool"})

Fields = tuple[Any, ...]


class Malformed(Exception):
    """Fields that are no message of ours: a reason, without any of the bytes that gave it."""


def to_fields(message: ToWorker | FromWorker) -> list[Any]:
    """What msgpack encodes; a list of plain values, with arrays for what is nested."""
    return _ENCODERS[type(message)](message)


def _encode_load_model(message: LoadModel) -> list[Any]:
    options = message.options
    sizes = [
        options.context_size,
        options.n_cells,
        options.max_sequences,
        options.prefill_chunk,
        options.n_threads,
    ]
    # A path need not be text: bytes keep one that is no UTF-8.
    path = message.weights_path.encode("utf-8", "surrogateescape")
    return [_LOAD_MODEL, message.engine, path, sizes, message.chat_template]


def _encode_generate(message: Generate) -> list[Any]:
    request = message.request
    sampling = request.sampling
    return [
        _GENERATE,
        request.request_id,
        _encode_prompt(request.prompt),
        [
            float(sampling.temperature),
            float(sampling.top_p),
            sampling.top_k,
            float(sampling.min_p),
            sampling.seed,
        ],
        request.max_tokens,
        request.stop,
        request.ignore_eos,
    ]


def _encode_prompt(prompt: Prompt) -> list[Any]:
    match prompt:
        case ChatPrompt():
            turns = [(turn.role, turn.content, turn.name) for turn in prompt.messages]
            return [_CHAT, turns, list(prompt.template_options.items())]
        case TextPrompt():
            return [_TEXT, prompt.text]
        case TokenPrompt():
            # Eight bytes each, native order: both ends are one machine, and no array of millions is decoded.
            return [_TOKENS, array("q", prompt.token_ids).tobytes()]


def _encode_cancel(message: Cancel) -> list[Any]:
    return [_CANCEL, message.request_id]


def _encode_shutdown(message: Shutdown) -> list[Any]:
    return [_SHUTDOWN]


def _encode_hello(message: Hello) -> list[Any]:
    return [_HELLO, message.protocol_version, message.pid]


def _encode_load_progress(message: LoadProgress) -> list[Any]:
    return [_LOAD_PROGRESS, float(message.fraction)]


def _encode_loaded(message: Loaded) -> list[Any]:
    return [
        _LOADED,
        message.engine_version,
        message.context_size,
        message.trained_context_size,
        message.n_vocab,
        message.n_cells,
        message.max_sequences,
        float(message.load_s),
        message.weights_bytes,
        message.kv_cache_bytes,
        message.compute_bytes,
    ]


def _encode_load_failed(message: LoadFailed) -> list[Any]:
    return [_LOAD_FAILED, message.code, _cut(message.message)]


def _encode_step(message: Step) -> list[Any]:
    return [
        _STEP,
        message.step_index,
        message.prefill_tokens,
        message.decode_tokens,
        message.running,
        message.waiting,
        message.cells_used,
        [_encode_event(request_id, event) for request_id, event in message.events],
    ]


def _encode_event(request_id: str, event: StepEvent) -> Fields:
    match event:
        case TextDelta():
            return request_id, _DELTA, event.text, event.n_tokens
        case Accepted():
            return request_id, _ACCEPTED, event.prompt_tokens
        case Finished():
            usage, timings = event.usage, event.timings
            counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
            seconds = (float(timings.queued_s), float(timings.prefill_s), float(timings.decode_s))
            return request_id, _FINISHED, event.reason.value, counts, seconds
        case Failed():
            return (
                request_id,
                _FAILED,
                event.code,
                _cut(event.message),
                event.prompt_tokens,
                event.context_size,
            )


def _cut(text: str) -> str:
    return text if len(text) <= ERROR_TEXT_LIMIT else text[: ERROR_TEXT_LIMIT - 1] + "…"


_ENCODERS: Final[Mapping[type, Callable[[Any], list[Any]]]] = {
    LoadModel: _encode_load_model,
    Generate: _encode_generate,
    Cancel: _encode_cancel,
    Shutdown: _encode_shutdown,
    Hello: _encode_hello,
    LoadProgress: _encode_load_progress,
    Loaded: _encode_loaded,
    LoadFailed: _encode_load_failed,
    Step: _encode_step,
}


def _read_load_model(fields: Fields) -> LoadModel:
    _, engine, path, sizes, chat_template = fields
    context_size, n_cells, max_sequences, prefill_chunk, n_threads = _array(sizes)
    return LoadModel(
        engine=_text(engine, _NAME_LIMIT),
        weights_path=_bytes(path).decode("utf-8", "surrogateescape"),
        options=EngineOptions(
            context_size=_positive(context_size),
            n_cells=_positive(n_cells),
            max_sequences=_positive(max_sequences),
            prefill_chunk=_positive(prefill_chunk),
            n_threads=_positive(n_threads),
        ),
        chat_template=None if chat_template is None else _text(chat_template),
    )


def _read_generate(fields: Fields) -> Generate:
    _, request_id, prompt, sampling, max_tokens, stop, ignore_eos = fields
    temperature, top_p, top_k, min_p, seed = _array(sampling)
    return Generate(
        GenerationRequest(
            request_id=_request_id(request_id),
            prompt=_read_prompt(_array(prompt)),
            sampling=SamplingParams(
                temperature=_real(temperature),
                top_p=_real(top_p),
                top_k=_count(top_k),
                min_p=_real(min_p),
                seed=None if seed is None else _integer(seed),
            ),
            max_tokens=None if max_tokens is None else _positive(max_tokens),
            stop=tuple(_nonempty(text) for text in _array(stop)),
            ignore_eos=_flag(ignore_eos),
        )
    )


def _read_prompt(fields: Fields) -> Prompt:
    kind = _integer(fields[0] if fields else None)
    if kind == _CHAT:
        _, turns, options = fields
        return ChatPrompt(
            messages=tuple(_read_turn(_array(turn)) for turn in _array(turns)),
            template_options=dict(_read_option(_array(option)) for option in _array(options)),
        )
    if kind == _TEXT:
        _, text = fields
        return TextPrompt(_text(text))
    if kind == _TOKENS:
        _, packed = fields
        token_ids = array("q")
        token_ids.frombytes(_bytes(packed))  # ValueError when it is no multiple of eight
        return TokenPrompt(tuple(token_ids))
    raise Malformed("unknown kind of prompt")


def _read_turn(fields: Fields) -> ChatMessage:
    role, content, name = fields
    if _text(role) not in _ROLES:
        raise Malformed("unknown role")
    return ChatMessage(role=role, content=_text(content), name=None if name is None else _text(name))


def _read_option(fields: Fields) -> tuple[str, str | int | float | bool]:
    key, value = fields
    if type(value) not in (str, int, float, bool):
        raise Malformed("a template option that is no scalar")
    return _text(key), value


def _read_cancel(fields: Fields) -> Cancel:
    _, request_id = fields
    return Cancel(_request_id(request_id))


def _read_shutdown(fields: Fields) -> Shutdown:
    (_,) = fields
    return Shutdown()


def _read_hello(fields: Fields) -> Hello:
    _, protocol_version, pid = fields
    return Hello(protocol_version=_count(protocol_version), pid=_positive(pid))


def _read_load_progress(fields: Fields) -> LoadProgress:
    _, fraction = fields
    if not 0.0 <= _real(fraction) <= 1.0:
        raise Malformed("a fraction outside 0 to 1")
    return LoadProgress(fraction)


def _read_loaded(fields: Fields) -> Loaded:
    _, engine_version, context, trained, n_vocab, n_cells, sequences, load_s, *sizes = fields
    weights, kv_cache, compute = sizes
    return Loaded(
        engine_version=_text(engine_version, _NAME_LIMIT),
        context_size=_positive(context),
        trained_context_size=_count(trained),
        n_vocab=_positive(n_vocab),
        n_cells=_positive(n_cells),
        max_sequences=_positive(sequences),
        load_s=_seconds(load_s),
        weights_bytes=_count(weights),
        kv_cache_bytes=_count(kv_cache),
        compute_bytes=_count(compute),
    )


def _read_load_failed(fields: Fields) -> LoadFailed:
    _, code, message = fields
    return LoadFailed(code=_code(code), message=_text(message, ERROR_TEXT_LIMIT))


def _read_step(fields: Fields) -> Step:
    _, step_index, prefill_tokens, decode_tokens, running, waiting, cells_used, events = fields
    return Step(
        step_index=_count(step_index),
        prefill_tokens=_count(prefill_tokens),
        decode_tokens=_count(decode_tokens),
        running=_count(running),
        waiting=_count(waiting),
        cells_used=_count(cells_used),
        events=tuple([_read_event(fields) for fields in _array(events)]),
    )


def _read_event(fields: Any) -> tuple[str, StepEvent]:
    """The hot path: deltas first, checks inline."""
    if type(fields) is not tuple or len(fields) < 3 or type(fields[1]) is not int:
        raise Malformed("an event of wrong shape")
    request_id = _request_id(fields[0])
    kind = fields[1]
    if kind == _DELTA:
        _, _, text, n_tokens = fields
        if type(text) is not str or type(n_tokens) is not int or not 0 <= n_tokens <= _COUNT_MAX:
            raise Malformed("a delta of wrong types")
        return request_id, TextDelta(text, n_tokens)
    if kind == _ACCEPTED:
        _, _, prompt_tokens = fields
        return request_id, Accepted(prompt_tokens=_count(prompt_tokens))
    if kind == _FINISHED:
        return request_id, _read_finished(fields)
    if kind == _FAILED:
        _, _, code, message, prompt_tokens, context_size = fields
        return request_id, Failed(
            code=_code(code),
            message=_text(message, ERROR_TEXT_LIMIT),
            prompt_tokens=None if prompt_tokens is None else _count(prompt_tokens),
            context_size=None if context_size is None else _count(context_size),
        )
    raise Malformed("unknown kind of event")


def _read_finished(fields: Fields) -> Finished:
    _, _, reason, counts, seconds = fields
    prompt_tokens, completion_tokens, cached_tokens = _array(counts)
    queued_s, prefill_s, decode_s = _array(seconds)
    return Finished(
        reason=FinishReason(_text(reason)),
        usage=Usage(
            prompt_tokens=_count(prompt_tokens),
            completion_tokens=_count(completion_tokens),
            cached_tokens=_count(cached_tokens),
        ),
        timings=Timings(
            queued_s=_seconds(queued_s), prefill_s=_seconds(prefill_s), decode_s=_seconds(decode_s)
        ),
    )


# `type(x) is`, not isinstance: a bool is no number here, and no subclass comes out of msgpack but ExtType.


def _array(value: Any) -> Fields:
    if type(value) is not tuple:
        raise Malformed("no array where one is due")
    return value


def _text(value: Any, limit: int | None = None) -> str:
    if type(value) is not str:
        raise Malformed("no text where it is due")
    if limit is not None and len(value) > limit:
        raise Malformed(f"text of more than {limit} characters")
    return value


def _nonempty(value: Any) -> str:
    if not _text(value):
        raise Malformed("empty text")
    return value  # type: ignore[no-any-return]  # _text() has checked it


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise Malformed("no bytes where they are due")
    return value


def _request_id(value: Any) -> str:
    if type(value) is not str or not 0 < len(value) <= REQUEST_ID_LIMIT:
        raise Malformed("not a request id")
    return value


def _code(value: Any) -> str:
    if not (0 < len(_text(value)) <= 64 and value.isascii() and value.replace("_", "a").isalnum()):
        raise Malformed("not an error code")
    return value  # type: ignore[no-any-return]  # _text() has checked it


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise Malformed("no boolean where one is due")
    return value


def _integer(value: Any) -> int:
    if type(value) is not int or not -_COUNT_MAX <= value <= _COUNT_MAX:
        raise Malformed("no integer where one is due")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _COUNT_MAX:
        raise Malformed("no count where one is due")
    return value


def _positive(value: Any) -> int:
    if _count(value) == 0:
        raise Malformed("zero where a positive number is due")
    return value  # type: ignore[no-any-return]  # _count() has checked it


def _real(value: Any) -> float:
    if type(value) is not float or not math.isfinite(value):
        raise Malformed("no finite number where one is due")
    return value


def _seconds(value: Any) -> float:
    if _real(value) < 0:
        raise Malformed("negative seconds")
    return value  # type: ignore[no-any-return]  # _real() has checked it


TO_WORKER: Final[Mapping[int, tuple[str, Callable[[Fields], ToWorker]]]] = {
    _LOAD_MODEL: ("LoadModel", _read_load_model),
    _GENERATE: ("Generate", _read_generate),
    _CANCEL: ("Cancel", _read_cancel),
    _SHUTDOWN: ("Shutdown", _read_shutdown),
}
FROM_WORKER: Final[Mapping[int, tuple[str, Callable[[Fields], FromWorker]]]] = {
    _HELLO: ("Hello", _read_hello),
    _LOAD_PROGRESS: ("LoadProgress", _read_load_progress),
    _LOADED: ("Loaded", _read_loaded),
    _LOAD_FAILED: ("LoadFailed", _read_load_failed),
    _STEP: ("Step", _read_step),
}
