"""Messages as arrays of plain fields, and back: which tag, which fields, which types and limits.

    [tag, field…]      fields by position, exactly those of `runner.wire.messages`; no maps

Each direction has its own table of tags, so that a worker cannot send what only the daemon may say. Numbers,
lengths and types are checked before a value is built: to the daemon a worker is a stranger (W07).
`Hello` keeps its form in every version, so that a worker of another version can be told apart.

Imports the domain's values, device pins, the messages and `checks.py`; events are in `event_schema.py`. Used
by `runner.wire.codec` alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any, Final

from runner.domain.engine import CacheMiss, EngineCounts
from runner.domain.generation import (
    REASONING_EFFORTS,
    ChatMessage,
    ChatPrompt,
    EmbeddingPrompt,
    Examination,
    GenerationRequest,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from runner.domain.sampling import CHOICES, LOGPROBS, Range
from runner.hardware.pinning import DevicePin
from runner.wire import state_schema
from runner.wire.checks import (
    ERROR_TEXT_LIMIT,
    NAME_LIMIT,
    Fields,
    Malformed,
    as_array,
    as_bytes,
    as_code,
    as_count,
    as_flag,
    as_integer,
    as_nonempty,
    as_paths,
    as_positive,
    as_real,
    as_request_id,
    as_seconds,
    as_text,
    cut_text,
    paths_fields,
)
from runner.wire.event_schema import event_fields, read_event
from runner.wire.messages import (
    AnnexClosed,
    Cancel,
    CloseAnnex,
    FromWorker,
    Generate,
    Hello,
    Loaded,
    LoadFailed,
    LoadModel,
    LoadProgress,
    MoreParts,
    OfferStates,
    SavedPart,
    SaveState,
    SetThreads,
    Shutdown,
    StateGone,
    StateKept,
    StatePart,
    Step,
    ToWorker,
    WantState,
)
from runner.wire.sampling_schema import constraint_fields, read_constraint, read_sampling, sampling_fields
from runner.wire.sizes import buffers_fields, options_fields, read_buffers, read_options

EVENTS_LIMIT: Final = 4096
"""Events in one step. Also bounds the arrays that a hostile frame makes the decoder allocate."""
ITEMS_LIMIT: Final = 65_536
"""Items of any array to the worker; a request has at most 4096 messages (N12)."""

PART: Final = 0
_LOAD_MODEL, _GENERATE, _CANCEL, _SHUTDOWN, _SET_THREADS = 1, 2, 3, 4, 5
_HELLO, _LOAD_PROGRESS, _LOADED, LOAD_FAILED, _STEP = 16, 17, 18, 19, 20
_CLOSE_ANNEX, _ANNEX_CLOSED = 30, 31

_CHAT, _TEXT, _TOKENS, _EMBEDDING = 0, 1, 2, 3
_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool"})


def to_fields(message: ToWorker | FromWorker) -> list[Any]:
    """What msgpack encodes; a list of plain values, with arrays for what is nested."""
    return _ENCODERS[type(message)](message)


def _encode_load_model(message: LoadModel) -> list[Any]:
    return [
        _LOAD_MODEL,
        message.engine,
        paths_fields(message.weights_paths),
        options_fields(message.options),
        message.chat_template,
        [(pin.variable, pin.value) for pin in message.pins],
    ]


def _encode_generate(message: Generate) -> list[Any]:
    request = message.request
    return [
        _GENERATE,
        request.request_id,
        _encode_prompt(request.prompt),
        sampling_fields(request.sampling),
        request.max_tokens,
        request.stop,
        request.ignore_eos,
        constraint_fields(request.constraint),
        (request.cache_prompt, request.cache_owner),
        _told_fields(request),
    ]


def _told_fields(request: GenerationRequest) -> Fields:
    examination = request.examination
    return (
        request.n,
        request.logprobs,
        request.echo,
        request.separates_reasoning,
        None if examination is None else examination.value,
    )


def _encode_prompt(prompt: Prompt | EmbeddingPrompt) -> list[Any]:
    match prompt:
        case ChatPrompt():
            turns = [(turn.role, turn.content, turn.name) for turn in prompt.messages]
            return [_CHAT, turns, list(prompt.template_options.items()), prompt.reasoning_effort]
        case TextPrompt():
            return [_TEXT, prompt.text]
        case TokenPrompt():
            # Eight bytes each, native order: both ends are one machine, and no array of millions is decoded.
            return [_TOKENS, array("q", prompt.token_ids).tobytes()]
        case EmbeddingPrompt():
            inputs = [_encode_prompt(one) for one in prompt.inputs]
            return [_EMBEDDING, inputs, prompt.dimensions, prompt.truncates, prompt.tokens_max]


def _encode_cancel(message: Cancel) -> list[Any]:
    return [_CANCEL, message.request_id]


def _encode_set_threads(message: SetThreads) -> list[Any]:
    return [_SET_THREADS, message.n_threads]


def _encode_shutdown(message: Shutdown) -> list[Any]:
    return [_SHUTDOWN, message.save_bytes, float(message.save_s)]


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
        [buffers_fields(buffers) for buffers in message.devices],
    ]


def encode_load_failed(message: LoadFailed) -> list[Any]:
    return [LOAD_FAILED, message.code, cut_text(message.message)]


def _encode_step(message: Step) -> list[Any]:
    return [
        _STEP,
        message.step_index,
        message.prefill_tokens,
        message.decode_tokens,
        message.running,
        message.waiting,
        message.cells_used,
        _encode_meters(message),
        [event_fields(request_id, event) for request_id, event in message.events],
    ]


def _encode_meters(message: Step) -> Fields:
    counts = message.counts
    return (
        message.cells_retained,
        message.host_tokens,
        float(message.step_s),
        float(message.computing_s),
        counts.preemptions,
        counts.reuse_hits,
        counts.reused_tokens,
        counts.saved_tokens,
        counts.restored_tokens,
        *counts.misses,
    )


_ENCODERS: Final[Mapping[type, Callable[[Any], list[Any]]]] = {
    LoadModel: _encode_load_model,
    Generate: _encode_generate,
    Cancel: _encode_cancel,
    SetThreads: _encode_set_threads,
    CloseAnnex: lambda message: [_CLOSE_ANNEX],
    AnnexClosed: lambda message: [_ANNEX_CLOSED],
    Shutdown: _encode_shutdown,
    Hello: _encode_hello,
    LoadProgress: _encode_load_progress,
    Loaded: _encode_loaded,
    LoadFailed: encode_load_failed,
    Step: _encode_step,
    OfferStates: state_schema.encode_offer_states,
    StatePart: state_schema.encode_state_part,
    StateGone: state_schema.encode_state_gone,
    MoreParts: state_schema.encode_more_parts,
    StateKept: state_schema.encode_state_kept,
    WantState: state_schema.encode_want_state,
    SaveState: state_schema.encode_save_state,
    SavedPart: state_schema.encode_saved_part,
}


def _read_load_model(fields: Fields) -> LoadModel:
    _, engine, paths, options, chat_template, pins = fields
    return LoadModel(
        engine=as_text(engine, NAME_LIMIT),
        weights_paths=as_paths(paths),
        options=read_options(as_array(options)),
        chat_template=None if chat_template is None else as_text(chat_template),
        pins=tuple(_read_pin(as_array(pin)) for pin in as_array(pins)),
    )


def _read_pin(fields: Fields) -> DevicePin:
    variable, value = fields
    return DevicePin(as_text(variable), as_text(value))


def _read_generate(fields: Fields) -> Generate:
    _, request_id, prompt, sampling, max_tokens, stop, ignore_eos, constraint, caching, told = fields
    cache_prompt, cache_owner = as_array(caching)
    n, logprobs, echo, separates_reasoning, examination = as_array(told)
    return Generate(
        GenerationRequest(
            request_id=as_request_id(request_id),
            prompt=_read_prompt(as_array(prompt)),
            sampling=read_sampling(as_array(sampling)),
            max_tokens=None if max_tokens is None else as_positive(max_tokens),
            stop=tuple(as_nonempty(text) for text in as_array(stop)),
            ignore_eos=as_flag(ignore_eos),
            constraint=read_constraint(constraint),
            cache_prompt=as_flag(cache_prompt),
            cache_owner=as_text(cache_owner, NAME_LIMIT),
            n=_as_integer_within(CHOICES, n),
            logprobs=None if logprobs is None else _as_integer_within(LOGPROBS, logprobs),
            echo=as_flag(echo),
            separates_reasoning=as_flag(separates_reasoning),
            examination=None if examination is None else Examination(as_text(examination)),
        )
    )


def _as_integer_within(bounds: Range, value: Any) -> int:
    if as_integer(value) not in bounds:
        raise Malformed("a number outside its range")
    return value  # type: ignore[no-any-return]  # as_integer() has checked it


def _read_prompt(fields: Fields) -> Prompt | EmbeddingPrompt:
    kind = as_integer(fields[0] if fields else None)
    if kind == _EMBEDDING:
        _, inputs, dimensions, truncates, tokens_max = fields
        return EmbeddingPrompt(
            inputs=tuple(_read_input(as_array(one)) for one in as_array(inputs)),
            dimensions=None if dimensions is None else as_positive(dimensions),
            truncates=as_flag(truncates),
            tokens_max=None if tokens_max is None else as_positive(tokens_max),
        )
    if kind == _CHAT:
        _, turns, options, effort = fields
        return ChatPrompt(
            messages=tuple(_read_turn(as_array(turn)) for turn in as_array(turns)),
            template_options=dict(_read_option(as_array(option)) for option in as_array(options)),
            reasoning_effort=None if effort is None else _read_effort(effort),
        )
    return _read_input(fields)


def _read_input(fields: Fields) -> TextPrompt | TokenPrompt:
    kind = as_integer(fields[0] if fields else None)
    if kind == _TEXT:
        _, text = fields
        return TextPrompt(as_text(text))
    if kind == _TOKENS:
        _, packed = fields
        token_ids = array("q")
        token_ids.frombytes(as_bytes(packed))  # ValueError when it is no multiple of eight
        return TokenPrompt(tuple(token_ids))
    raise Malformed("unknown kind of prompt")


def _read_turn(fields: Fields) -> ChatMessage:
    role, content, name = fields
    if as_text(role) not in _ROLES:
        raise Malformed("unknown role")
    return ChatMessage(role=role, content=as_text(content), name=None if name is None else as_text(name))


def _read_option(fields: Fields) -> tuple[str, str | int | float | bool]:
    key, value = fields
    if type(value) not in (str, int, float, bool):
        raise Malformed("a template option that is no scalar")
    return as_text(key), value


def _read_effort(value: Any) -> str:
    if as_text(value) not in REASONING_EFFORTS:
        raise Malformed("no effort that we know")
    return value  # type: ignore[no-any-return]  # as_text() has checked it


def _read_cancel(fields: Fields) -> Cancel:
    _, request_id = fields
    return Cancel(as_request_id(request_id))


def _read_close_annex(fields: Fields) -> CloseAnnex:
    (_,) = fields
    return CloseAnnex()


def _read_annex_closed(fields: Fields) -> AnnexClosed:
    (_,) = fields
    return AnnexClosed()


def _read_set_threads(fields: Fields) -> SetThreads:
    _, n_threads = fields
    return SetThreads(as_positive(n_threads))


def _read_shutdown(fields: Fields) -> Shutdown:
    _, save_bytes, save_s = fields
    return Shutdown(save_bytes=as_count(save_bytes), save_s=as_seconds(save_s))


def _read_hello(fields: Fields) -> Hello:
    _, protocol_version, pid = fields
    return Hello(protocol_version=as_count(protocol_version), pid=as_positive(pid))


def _read_load_progress(fields: Fields) -> LoadProgress:
    _, fraction = fields
    if not 0.0 <= as_real(fraction) <= 1.0:
        raise Malformed("a fraction outside 0 to 1")
    return LoadProgress(fraction)


def _read_loaded(fields: Fields) -> Loaded:
    _, engine_version, context, trained, n_vocab, n_cells, sequences, load_s, devices = fields
    return Loaded(
        engine_version=as_text(engine_version, NAME_LIMIT),
        context_size=as_positive(context),
        trained_context_size=as_count(trained),
        n_vocab=as_positive(n_vocab),
        n_cells=as_positive(n_cells),
        max_sequences=as_positive(sequences),
        load_s=as_seconds(load_s),
        devices=read_buffers(as_array(devices)),
    )


def read_load_failed(fields: Fields) -> LoadFailed:
    _, code, message = fields
    return LoadFailed(code=as_code(code), message=as_text(message, ERROR_TEXT_LIMIT))


def _read_step(fields: Fields) -> Step:
    _, step_index, prefill_tokens, decode_tokens, running, waiting, cells_used, meters, events = fields
    cells_retained, host_tokens, step_s, computing_s, *counts = as_array(meters)
    return Step(
        step_index=as_count(step_index),
        prefill_tokens=as_count(prefill_tokens),
        decode_tokens=as_count(decode_tokens),
        running=as_count(running),
        waiting=as_count(waiting),
        cells_used=as_count(cells_used),
        events=tuple([read_event(fields) for fields in as_array(events)]),
        cells_retained=as_count(cells_retained),
        host_tokens=as_count(host_tokens),
        step_s=as_seconds(step_s),
        computing_s=as_seconds(computing_s),
        counts=_read_counts(counts),
    )


def _read_counts(items: list[Any]) -> EngineCounts:
    preemptions, reuse_hits, reused_tokens, saved_tokens, restored_tokens, *misses = map(as_count, items)
    if len(misses) != len(CacheMiss):
        raise Malformed("not one count for each kind of miss")
    return EngineCounts(
        preemptions=preemptions,
        reuse_hits=reuse_hits,
        reused_tokens=reused_tokens,
        saved_tokens=saved_tokens,
        restored_tokens=restored_tokens,
        misses=tuple(misses),
    )


TO_WORKER: Final[Mapping[int, tuple[str, Callable[[Fields], ToWorker]]]] = {
    _LOAD_MODEL: ("LoadModel", _read_load_model),
    _GENERATE: ("Generate", _read_generate),
    _CANCEL: ("Cancel", _read_cancel),
    _SET_THREADS: ("SetThreads", _read_set_threads),
    _CLOSE_ANNEX: ("CloseAnnex", _read_close_annex),
    _SHUTDOWN: ("Shutdown", _read_shutdown),
    state_schema.OFFER_STATES: ("OfferStates", state_schema.read_offer_states),
    state_schema.STATE_PART: ("StatePart", state_schema.read_state_part),
    state_schema.STATE_GONE: ("StateGone", state_schema.read_state_gone),
    state_schema.MORE_PARTS: ("MoreParts", state_schema.read_more_parts),
    state_schema.STATE_KEPT: ("StateKept", state_schema.read_state_kept),
}
FROM_WORKER: Final[Mapping[int, tuple[str, Callable[[Fields], FromWorker]]]] = {
    _HELLO: ("Hello", _read_hello),
    _LOAD_PROGRESS: ("LoadProgress", _read_load_progress),
    _LOADED: ("Loaded", _read_loaded),
    LOAD_FAILED: ("LoadFailed", read_load_failed),
    _STEP: ("Step", _read_step),
    _ANNEX_CLOSED: ("AnnexClosed", _read_annex_closed),
    state_schema.WANT_STATE: ("WantState", state_schema.read_want_state),
    state_schema.SAVE_STATE: ("SaveState", state_schema.read_save_state),
    state_schema.SAVED_PART: ("SavedPart", state_schema.read_saved_part),
}
