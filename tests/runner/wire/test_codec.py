"""Frames and messages back to back: every split, every limit, and bytes that nobody of ours would send."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.domain.constraints import (
    PATH_CHARACTERS_MAX,
    SOURCE_BYTES_MAX,
    Constraint,
    ConstraintKind,
)
from runner.domain.engine import (
    CacheMiss,
    CacheType,
    DeviceBuffers,
    EngineCounts,
    EngineOptions,
    FlashAttention,
)
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
from runner.domain.generation import (
    REASONING_EFFORTS,
    ChatMessage,
    ChatPrompt,
    EmbeddingPrompt,
    Examination,
    GenerationRequest,
    TextPrompt,
    TokenPrompt,
)
from runner.domain.sampling import INTEGERS, RANGES, SamplingParams, Stage
from runner.errors import ProtocolFault, TooLarge
from runner.hardware.pinning import DEVICE_VARIABLES, DevicePin
from runner.wire.checks import ERROR_TEXT_LIMIT, REQUEST_ID_LIMIT
from runner.wire.codec import (
    FRAME_LIMIT_BYTES,
    MESSAGE_LIMIT_BYTES,
    Decoder,
    FromWorkerDecoder,
    ToWorkerDecoder,
    encode,
)
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
    StateOffer,
    StatePart,
    Step,
    ToWorker,
    WantState,
)
from runner.wire.schema import EVENTS_LIMIT, ITEMS_LIMIT, to_fields
from runner.wire.sizes import BYTES_MAX
from runner.wire.state_schema import PARTS_MAX, STATE_BYTES_MAX

texts = st.text(max_size=30)
counts = st.integers(0, 2**63 - 1)
positives = st.integers(1, 2**63 - 1)
reals = st.floats(allow_nan=False, allow_infinity=False)
seconds = st.floats(0, 1e9)
request_ids = st.text(min_size=1, max_size=REQUEST_ID_LIMIT)
codes = st.sampled_from(["loading_failed", "context_length_exceeded", "x1"])

sizes_in_bytes = st.integers(0, BYTES_MAX)
device_lists = st.lists(
    st.builds(
        DeviceBuffers,
        device=st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=9),
        weights_bytes=sizes_in_bytes,
        repacked_bytes=sizes_in_bytes,
        kv_cache_bytes=sizes_in_bytes,
        compute_bytes=sizes_in_bytes,
        output_bytes=sizes_in_bytes,
    ),
    max_size=4,
    unique_by=lambda buffers: buffers.device,
).map(tuple)
engine_options = st.builds(
    EngineOptions,
    context_size=positives,
    n_cells=positives,
    host_cells=counts,
    max_sequences=positives,
    prefill_chunk=positives,
    n_threads=positives,
    key_type=st.sampled_from(CacheType),
    value_type=st.sampled_from(CacheType),
    flash_attention=st.sampled_from([FlashAttention.AUTO, FlashAttention.ON]),
)

hellos = st.builds(Hello, protocol_version=counts, pid=positives)
loaded_messages = st.builds(
    Loaded,
    engine_version=texts,
    context_size=positives,
    trained_context_size=counts,
    n_vocab=positives,
    n_cells=positives,
    max_sequences=positives,
    load_s=seconds,
    devices=device_lists,
)
choice_indices = st.integers(0, 7)
ranked_tokens = st.builds(RankedToken, counts, st.binary(max_size=5), reals)
logprobs = st.lists(
    st.builds(
        TokenLogprob,
        counts,
        st.binary(max_size=5),
        st.none() | reals,
        st.lists(ranked_tokens, max_size=3).map(tuple),
    ),
    max_size=3,
).map(tuple)
events = st.one_of(
    st.builds(TextDelta, texts, counts),
    st.builds(TextDelta, texts, counts, choice_indices, logprobs),
    st.builds(TextDelta, texts, counts, choice_indices, is_reasoning=st.just(True)),
    st.builds(PromptText, texts, logprobs),
    st.builds(ChoiceEnded, choice_indices, st.sampled_from(FinishReason)),
    st.builds(Examined, counts, st.binary(max_size=9)),
    st.builds(Embedded, counts, st.binary(max_size=9)),
    st.builds(Accepted, prompt_tokens=counts),
    st.builds(
        Finished,
        reason=st.sampled_from(FinishReason),
        usage=st.builds(
            Usage,
            prompt_tokens=counts,
            completion_tokens=counts,
            cached_tokens=counts,
            reasoning_tokens=counts,
        ),
        timings=st.builds(Timings, queued_s=seconds, prefill_s=seconds, decode_s=seconds),
        choice_index=choice_indices,
    ),
    st.builds(
        Failed,
        code=codes,
        message=texts,
        prompt_tokens=st.none() | counts,
        context_size=st.none() | counts,
    ),
)
steps = st.builds(
    Step,
    step_index=counts,
    prefill_tokens=counts,
    decode_tokens=counts,
    running=counts,
    waiting=counts,
    cells_used=counts,
    events=st.lists(st.tuples(request_ids, events), max_size=6).map(tuple),
    cells_retained=counts,
    step_s=seconds,
    computing_s=seconds,
    counts=st.builds(
        EngineCounts,
        preemptions=counts,
        reuse_hits=counts,
        reused_tokens=counts,
        saved_tokens=counts,
        restored_tokens=counts,
        misses=st.tuples(*[counts for _ in CacheMiss]),
    ),
)
state_tokens = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9).map(tuple)
state_sizes = st.integers(1, STATE_BYTES_MAX)
from_worker = st.one_of(
    hellos,
    st.builds(LoadProgress, st.floats(0, 1)),
    loaded_messages,
    st.builds(LoadFailed, code=codes, message=texts),
    steps,
    st.builds(WantState, counts),
    st.builds(SaveState, owner=texts, tokens=state_tokens, size_bytes=state_sizes),
    st.builds(SavedPart, st.binary(min_size=1, max_size=9)),
    st.just(AnnexClosed()),
)

chat_prompts = st.builds(
    ChatPrompt,
    messages=st.lists(
        st.builds(
            ChatMessage,
            role=st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
            content=texts,
            name=st.none() | texts,
        ),
        max_size=4,
    ).map(tuple),
    template_options=st.dictionaries(texts, st.one_of(texts, st.booleans(), counts, reals), max_size=3),
    reasoning_effort=st.none() | st.sampled_from(REASONING_EFFORTS),
)
token_prompts = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9).map(
    lambda ids: TokenPrompt(tuple(ids))
)
embedding_prompts = st.builds(
    EmbeddingPrompt,
    inputs=st.lists(st.builds(TextPrompt, texts) | token_prompts, max_size=3).map(tuple),
    dimensions=st.none() | positives,
    truncates=st.booleans(),
    tokens_max=st.none() | positives,
)
sampling_params = st.builds(
    SamplingParams,
    **{
        name: st.integers(int(bounds.low), int(bounds.high))
        if name in INTEGERS
        else st.floats(bounds.low, bounds.high)
        for name, bounds in RANGES.items()
        if name != "seed"
    },
    seed=st.none() | st.integers(-(2**63) + 1, 2**63 - 1),
    dry_sequence_breakers=st.lists(texts, max_size=3).map(tuple),
    logit_bias=st.lists(st.tuples(counts, st.floats(-100, 100)), max_size=3).map(tuple),
    samplers=st.lists(st.sampled_from(Stage), unique=True).map(tuple),
)
requests = st.builds(
    GenerationRequest,
    request_id=request_ids,
    prompt=st.one_of(chat_prompts, st.builds(TextPrompt, texts), token_prompts, embedding_prompts),
    sampling=sampling_params,
    max_tokens=st.none() | positives,
    stop=st.lists(st.text(min_size=1, max_size=9), max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    n=st.integers(1, 8),
    logprobs=st.none() | st.integers(0, 20),
    echo=st.booleans(),
    separates_reasoning=st.booleans(),
    examination=st.none() | st.sampled_from(Examination),
    constraint=st.none()
    | st.builds(Constraint, kind=st.sampled_from(ConstraintKind), source=texts, path=texts),
    cache_prompt=st.booleans(),
    cache_owner=texts,
)
pins = st.builds(
    DevicePin, st.sampled_from(sorted(DEVICE_VARIABLES)), st.sampled_from(["", "0", "0,1", "GPU-8c2a-11"])
)
to_worker = st.one_of(
    st.builds(
        LoadModel,
        engine=texts,
        weights_paths=st.lists(texts, min_size=1, max_size=3).map(tuple),
        options=engine_options,
        chat_template=st.none() | texts,
        pins=st.lists(pins, max_size=3).map(tuple),
    ),
    st.builds(Generate, requests),
    st.builds(Cancel, request_ids),
    st.builds(SetThreads, positives),
    st.just(CloseAnnex()),
    st.lists(
        st.builds(StateOffer, state_id=counts, owner=texts, tokens=state_tokens, size_bytes=state_sizes),
        max_size=3,
    ).flatmap(lambda offers: st.builds(OfferStates, st.just(tuple(offers)), counts)),
    st.builds(StatePart, counts, st.binary(min_size=1, max_size=9)),
    st.builds(StateGone, counts),
    st.builds(MoreParts, st.integers(1, PARTS_MAX)),
    st.builds(StateKept, st.none() | counts, counts),
    st.builds(Shutdown, save_bytes=counts, save_s=seconds),
)


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


def packed(*fields: Any) -> bytes:
    return frame(msgpack.packb(fields))


def a_step(*named_events: tuple[str, Any]) -> Step:
    return Step(
        step_index=7,
        prefill_tokens=3,
        decode_tokens=2,
        running=2,
        waiting=1,
        cells_used=40,
        events=tuple(named_events),
    )


def feed_split(decoder: Decoder[Any], data: bytes, cuts: list[int]) -> tuple[list[Any], ProtocolFault | None]:
    """All messages and the fault, if any, of `data` fed in pieces."""
    messages: list[Any] = []
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(bounds):
        try:
            messages += decoder.feed(data[start:end])
        except ProtocolFault as fault:
            return [*messages, *fault.preceding], fault
    return messages, None


# ---- both ends back to back


@given(st.lists(from_worker, max_size=4), st.lists(st.integers(0, 10_000), max_size=6))
def test_what_a_worker_encodes_the_daemon_decodes_however_it_is_split(
    messages: list[FromWorker], cuts: list[int]
) -> None:
    decoder = FromWorkerDecoder()
    data = b"".join(encode(message) for message in messages)
    assert feed_split(decoder, data, cuts) == (messages, None)
    assert decoder.is_between_messages


@given(st.lists(to_worker, max_size=4), st.lists(st.integers(0, 10_000), max_size=6))
def test_what_the_daemon_encodes_a_worker_decodes_however_it_is_split(
    messages: list[ToWorker], cuts: list[int]
) -> None:
    decoder = ToWorkerDecoder()
    data = b"".join(encode(message) for message in messages)
    assert feed_split(decoder, data, cuts) == (messages, None)
    assert decoder.is_between_messages


def test_bytes_may_come_one_at_a_time() -> None:
    decoder = FromWorkerDecoder()
    message = a_step(("r1", TextDelta("héllo", 1)))
    data = encode(message)
    for index in range(len(data) - 1):
        assert decoder.feed(data[index : index + 1]) == []
        assert not decoder.is_between_messages
    assert decoder.feed(data[-1:]) == [message]


def test_a_path_that_is_no_text_arrives_as_it_was() -> None:
    path = b"/models/\xff\xfe.gguf".decode("utf-8", "surrogateescape")
    message = LoadModel(
        engine="llama", weights_paths=(path,), options=EngineOptions(context_size=1, n_cells=1)
    )
    assert ToWorkerDecoder().feed(encode(message)) == [message]


def test_text_that_is_no_unicode_is_refused_by_the_sender() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode(a_step(("r1", TextDelta("\ud800", 1))))


@pytest.mark.parametrize("length", [ERROR_TEXT_LIMIT - 1, ERROR_TEXT_LIMIT, ERROR_TEXT_LIMIT + 1, 2_000_000])
def test_a_long_error_message_is_cut_by_the_sender_instead_of_failing_the_receiver(length: int) -> None:
    failed = Failed(code="template_failed", message="x" * length)
    (step,) = FromWorkerDecoder().feed(encode(a_step(("r1", failed))))
    assert isinstance(step, Step)
    event = step.events[0][1]
    assert isinstance(event, Failed)
    assert len(event.message) == min(length, ERROR_TEXT_LIMIT)
    assert event.message.endswith("…") == (length > ERROR_TEXT_LIMIT)


# ---- limits of frames and messages


@pytest.mark.parametrize("size", [1, FRAME_LIMIT_BYTES - 1, FRAME_LIMIT_BYTES])
def test_W07_a_frame_within_its_limit_is_awaited(size: int) -> None:
    assert FromWorkerDecoder().feed(struct.pack(">I", size)) == []


@pytest.mark.parametrize("size", [0, FRAME_LIMIT_BYTES + 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("make_decoder", [FromWorkerDecoder, ToWorkerDecoder])
def test_W07_a_frame_outside_its_limit_is_refused_before_it_arrives(
    size: int, make_decoder: type[Decoder[Any]]
) -> None:
    with pytest.raises(ProtocolFault, match=f"frame of {size} bytes"):
        make_decoder().feed(struct.pack(">I", size))


def _step_of_payload_size(size: int) -> Step:
    overhead = len(encode(a_step(("r1", TextDelta("x" * 100_000, 1))))) - 4 - 100_000
    return a_step(("r1", TextDelta("x" * (size - overhead), 1)))


def test_W07_a_step_may_fill_a_frame_and_not_more() -> None:
    at_limit = _step_of_payload_size(FRAME_LIMIT_BYTES)
    data = encode(at_limit)
    assert len(data) == 4 + FRAME_LIMIT_BYTES
    assert FromWorkerDecoder().feed(data) == [at_limit]
    with pytest.raises(ProtocolFault, match="does not fit a frame"):
        encode(_step_of_payload_size(FRAME_LIMIT_BYTES + 1))


def _generate(text: str) -> Generate:
    return Generate(GenerationRequest(request_id="r1", prompt=TextPrompt(text)))


def _generate_of_payload_size(size: int) -> Generate:
    overhead = len(msgpack.packb(to_fields(_generate("x" * 100_000)))) - 100_000
    return _generate("x" * (size - overhead))


@pytest.mark.parametrize(
    "size",
    [
        FRAME_LIMIT_BYTES,
        FRAME_LIMIT_BYTES + 1,
        3 * FRAME_LIMIT_BYTES,
        MESSAGE_LIMIT_BYTES - 1,
        MESSAGE_LIMIT_BYTES,
    ],
)
def test_a_large_request_travels_in_parts(size: int) -> None:
    message = _generate_of_payload_size(size)
    data = encode(message)
    (first_size,) = struct.unpack(">I", data[:4])
    assert first_size <= FRAME_LIMIT_BYTES
    decoder = ToWorkerDecoder()
    step = 300_000
    messages = [got for at in range(0, len(data), step) for got in decoder.feed(data[at : at + step])]
    assert messages == [message]
    assert decoder.is_between_messages


def test_a_request_above_32_mib_is_refused_by_the_sender() -> None:
    with pytest.raises(TooLarge):
        encode(_generate_of_payload_size(MESSAGE_LIMIT_BYTES + 1))


def test_parts_beyond_32_mib_are_refused_by_the_receiver() -> None:
    decoder = ToWorkerDecoder()
    part = packed(0, False, b"x" * 1_000_000)
    for _ in range(MESSAGE_LIMIT_BYTES // 1_000_000):
        assert decoder.feed(part) == []
    with pytest.raises(ProtocolFault, match=f"more than {MESSAGE_LIMIT_BYTES} bytes"):
        decoder.feed(part)


def test_half_a_message_in_parts_is_not_between_messages() -> None:
    decoder = ToWorkerDecoder()
    decoder.feed(packed(0, False, b"x"))
    assert not decoder.is_between_messages


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (packed(0, False, b"x") + encode(Shutdown()), "another message among the parts"),
        (packed(0, True, b""), "part of wrong shape"),
        (packed(0, 1, b"x"), "part of wrong shape"),
        (packed(0, True, "x"), "part of wrong shape"),
        (packed(0, True), "part of wrong shape"),
        (packed(0, True, msgpack.packb([0, True, b"x"])), "unknown tag 0"),  # no parts of parts
        (packed(0, True, b"\xc1"), "undecodable"),
    ],
)
def test_parts_that_are_none_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolFault, match=reason):
        ToWorkerDecoder().feed(data)


def test_W07_parts_from_a_worker_are_refused() -> None:
    with pytest.raises(ProtocolFault, match="unknown tag 0"):
        FromWorkerDecoder().feed(packed(0, True, msgpack.packb([16, 1, 1])))


# ---- what nobody of ours would send


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
@settings(max_examples=300)
def test_W07_garbage_is_messages_or_a_fault_and_nothing_else(data: bytes, cuts: list[int]) -> None:
    whole = feed_split(FromWorkerDecoder(), data, [])
    split = feed_split(FromWorkerDecoder(), data, cuts)
    assert whole[0] == split[0]
    assert str(whole[1]) == str(split[1])


_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=20,
)


@given(st.sampled_from([1, 2, 3, 4, 5, 16, 17, 18, 19, 20]), st.lists(_plain, max_size=10))
@settings(max_examples=300)
@pytest.mark.parametrize("make_decoder", [FromWorkerDecoder, ToWorkerDecoder])
def test_W07_any_fields_under_any_tag_are_a_message_or_a_fault(
    make_decoder: type[Decoder[Any]], tag: int, fields: list[Any]
) -> None:
    try:
        make_decoder().feed(packed(tag, *fields))
    except ProtocolFault as fault:
        assert len(str(fault)) < 200  # names what was wrong, and quotes none of it


@given(from_worker, st.data())
@settings(max_examples=300)
def test_W07_a_message_with_one_byte_changed_is_a_message_or_a_fault(
    message: FromWorker, data: st.DataObject
) -> None:
    changed = bytearray(encode(message))
    position = data.draw(st.integers(0, len(changed) - 1))
    changed[position] = data.draw(st.integers(0, 255))
    feed_split(FromWorkerDecoder(), bytes(changed), [])


_METERS = (300, 0.25, 0.24, 1, 2, 340, 80, 170, 3, 0, 0, 0, 0)
_STEP = (20, 7, 0, 1, 1, 0, 9, _METERS)
_DELTA = ("r1", 1, "text", 1)
_FINISHED = ("r1", 2, "stop", (1, 2, 0, 1), (0.0, 0.1, 0.2), 0)
_FAILED = ("r1", 3, "template_failed", "no", None, None)


def test_the_frames_below_are_valid_before_they_are_damaged() -> None:
    data = packed(*_STEP, [_DELTA, _FINISHED, _FAILED, ("r1", 0, 5)])
    (step,) = FromWorkerDecoder().feed(data)
    assert isinstance(step, Step)
    assert len(step.events) == 4


@pytest.mark.parametrize(
    "payload",
    [
        msgpack.packb(5),
        msgpack.packb("text"),
        msgpack.packb([]),
        msgpack.packb([True, 1, 1]),  # True is 1 for a dict
        msgpack.packb([16.0, 1, 1]),
        msgpack.packb(["16", 1, 1]),
        msgpack.packb([[16], 1, 1]),
        msgpack.packb([21]),
        msgpack.packb([-1]),
        msgpack.packb([2**64 - 1]),
        msgpack.packb({16: 1}),
        msgpack.packb({}),
        msgpack.packb([16, 1, 1]) + b"\x00",  # something after the message
        msgpack.packb([16, 1, 1])[:-1],
        b"\xc1",  # never used by msgpack
        msgpack.packb(msgpack.ExtType(1, b"")),
        msgpack.packb([20, msgpack.ExtType(1, b"12345678")]),
        msgpack.packb([20, msgpack.Timestamp(1, 1)]),
        b"\x92\x12\xa1\xff",  # LoadFailed whose text is no UTF-8
        b"\x93\x13\xa1x\xa3\xed\xa0\x80",  # a lone surrogate
        b"\x91" * 100_000,  # nested
        b"\xdd\xff\xff\xff\xff",  # an array of 4 G items
        b"\xdb\xff\xff\xff\xff",  # a string of 4 GB
        b"\xc6\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdc\xff\xff" * 1000,  # arrays within arrays, each with room for 65535
    ],
)
@pytest.mark.parametrize("make_decoder", [FromWorkerDecoder, ToWorkerDecoder])
def test_W07_a_payload_that_is_no_message_is_refused(
    payload: bytes, make_decoder: type[Decoder[Any]]
) -> None:
    with pytest.raises(ProtocolFault):
        make_decoder().feed(frame(payload))


@pytest.mark.parametrize(
    "fields",
    [
        (16, 1),  # Hello
        (16, 1, 1, 1),
        (16, -1, 1),
        (16, 1, 0),
        (16, True, 1),
        (16, 1.0, 1),
        (16, 2**63, 1),
        (17, -0.1),  # LoadProgress
        (17, 1.1),
        (17, float("nan")),
        (17, 1),
        (17,),
        (18, "b1", 0, 1, 1, 1, 1, 0.1, 0, 0, 0),  # Loaded
        (18, "x" * 257, 1, 1, 1, 1, 1, 0.1, 0, 0, 0),
        (18, b"b1", 1, 1, 1, 1, 1, 0.1, 0, 0, 0),
        (18, "b1", 1, 1, 1, 1, 1, -0.1, 0, 0, 0),
        (18, "b1", 1, 1, 1, 1, 1, float("inf"), 0, 0, 0),
        (18, "b1", 1, 1, 1, 1, 1, 0.1, 0, 0),
        (18, "b1", 1, 1, 1, 1, 1, 0.1, 0, 0, 0, 0),
        (19, "loading failed", "m"),  # LoadFailed
        (19, "", "m"),
        (19, "x" * 65, "m"),
        (19, "é", "m"),
        (19, "loading_failed", "m" * (ERROR_TEXT_LIMIT + 1)),
        (*_STEP, None),  # Step
        (*_STEP, "events"),
        _STEP,
        (*_STEP, [], 0),
        (*_STEP[:-1], _METERS[:-1], []),
        (*_STEP[:-1], (*_METERS, 0), []),
        (*_STEP[:-1], _METERS[:2], []),
        (*_STEP[:-1], (300, 0.25, -0.1, *_METERS[3:]), []),
        (*_STEP[:-1], (300, 0.25, float("nan"), *_METERS[3:]), []),
        (*_STEP[:-1], (-1, *_METERS[1:]), []),
        (*_STEP[:-1], (*_METERS[:-1], None), []),
        (20, -1, 0, 1, 1, 0, 9, []),
        (20, 7, 0, 1, 1, 0, "9", []),
        (*_STEP, [5]),  # its events
        (*_STEP, [()]),
        (*_STEP, [("r1", 99, 1)]),
        (*_STEP, [("r1", True, "text", 1)]),
        (*_STEP, [("", 1, "text", 1)]),
        (*_STEP, [("r" * (REQUEST_ID_LIMIT + 1), 1, "text", 1)]),
        (*_STEP, [(5, 1, "text", 1)]),
        (*_STEP, [("r1", 1, b"text", 1)]),
        (*_STEP, [("r1", 1, "text", -1)]),
        (*_STEP, [("r1", 1, "text", True)]),
        (*_STEP, [("r1", 1, "text")]),
        (*_STEP, [(*_DELTA, 0)]),
        (*_STEP, [("r1", 0, "5")]),
        (*_STEP, [("r1", 2, "tool", (1, 2, 0, 1), (0.0, 0.1, 0.2), 0)]),
        (*_STEP, [("r1", 2, "stop", (1, 2, 0), (0.0, 0.1, 0.2), 0)]),
        (*_STEP, [("r1", 2, "stop", (1, 2, 0, 1), (0.0, 0.1, float("nan")), 0)]),
        (*_STEP, [("r1", 2, "stop", 5, (0.0, 0.1, 0.2), 0)]),
        (*_STEP, [("r1", 2, "stop", (1, 2, 0, 1), (0.0, 0.1, 0.2), 8)]),
        (*_STEP, [("r1", 4, "x", 1, 8, ())]),
        (*_STEP, [("r1", 4, "x", 1, -1, ())]),
        (*_STEP, [("r1", 4, "x", -1, 0, ())]),
        (*_STEP, [("r1", 4, "x", 1, 0, (5,))]),
        (*_STEP, [("r1", 4, "x", 1, 0, ((5, "text", -0.1, ()),))]),
        (*_STEP, [("r1", 4, "x", 1, 0, ((5, b"text", float("nan"), ()),))]),
        (*_STEP, [("r1", 4, "x", 1, 0, ((5, b"text", -0.1, ((5, b"t", -0.1),) * 21),))]),
        (*_STEP, [("r1", 5, 8, "stop")]),
        (*_STEP, [("r1", 5, 0, "tool")]),
        (*_STEP, [("r1", 6, b"text", ())]),
        (*_STEP, [("r1", 7, 0, "text")]),
        (*_STEP, [("r1", 7, -1, b"")]),
        (*_STEP, [("r1", 8, 0, 0)]),
        (*_STEP, [("r1", 9, "text", 1)]),
        (*_STEP, [("r1", 9, b"text", 1, 0)]),
        (*_STEP, [("r1", 9, "text", -1, 0)]),
        (*_STEP, [("r1", 9, "text", 1, 8)]),
        (*_STEP, [("r1", 3, "Template-Failed", "no", None, None)]),
        (*_STEP, [("r1", 3, "template_failed", None, None, None)]),
        (*_STEP, [("r1", 3, "template_failed", "no", "9", None)]),
        (1, "llama", b"/m", (1, 1, 1, 1, 1), None, ()),  # LoadModel and the rest are not the worker's to say
        (2,),
        (3, "r1"),
        (4,),
        (5, 1),
    ],
)
def test_W07_a_message_of_wrong_shape_is_refused(fields: tuple[Any, ...]) -> None:
    with pytest.raises(ProtocolFault):
        FromWorkerDecoder().feed(packed(*fields))


_NUMBERS = (
    *(0.8, 0.95, 40, 0.05, None, 1.0, -1.0, 0.0, 1.0),  # to dynatemp_exponent
    *(1.0, 64, 0.0, 0.0, 0.0, 1.75, 2, 64),  # penalties and DRY
    *(0.0, 0.1, 0, 5.0, 0.1),  # XTC and mirostat
)
_SAMPLING = (_NUMBERS, ("\n",), ((5, -100.0),), ("top_k", "temperature"))
_CONSTRAINT = ("json_schema", '{"type":"object"}', "response_format")
_REQUEST = (2, "r1", (1, "hi"), _SAMPLING, 16, (), False, _CONSTRAINT, (True, ""), (2, 5, True, True, None))


def _number_with(index: int, value: Any) -> tuple[Any, ...]:
    return ((*_NUMBERS[:index], value, *_NUMBERS[index + 1 :]), *_SAMPLING[1:])


def _request_with(index: int, value: Any) -> tuple[Any, ...]:
    return (*_REQUEST[:index], value, *_REQUEST[index + 1 :])


@pytest.mark.parametrize(
    "fields",
    [
        (*_REQUEST, 0),
        _REQUEST[:-1],
        _request_with(1, ""),
        _request_with(2, ()),
        _request_with(2, (9, "hi")),
        _request_with(2, (1, b"hi")),
        _request_with(2, (2, b"1234567")),  # no whole number of ids
        _request_with(2, (2, (1, 2))),
        _request_with(2, (0, (("robot", "hi", None),), (), None)),
        _request_with(2, (0, (("user", None, None),), (), None)),
        _request_with(2, (0, (("user", "hi"),), (), None)),
        _request_with(2, (0, (), (("a", None),), None)),
        _request_with(2, (0, (), (("a",),), None)),
        _request_with(2, (0, (), ())),
        _request_with(2, (0, (), (), "some")),
        _request_with(2, (0, (), (), 1)),
        _request_with(3, _SAMPLING[:-1]),
        _request_with(3, (_NUMBERS[:-1], *_SAMPLING[1:])),
        _request_with(3, _number_with(0, 1)),
        _request_with(3, _number_with(0, 2.1)),
        _request_with(3, _number_with(0, None)),
        _request_with(3, _number_with(2, -1)),
        _request_with(3, _number_with(2, 40.0)),
        _request_with(3, _number_with(4, 0.5)),
        _request_with(3, (_NUMBERS, (5,), (), ())),
        _request_with(3, (_NUMBERS, (), ((5,),), ())),
        _request_with(3, (_NUMBERS, (), ((-1, 1.0),), ())),
        _request_with(3, (_NUMBERS, (), ((5, 1),), ())),
        _request_with(3, (_NUMBERS, (), (), ("top_q",))),
        _request_with(4, 0),
        _request_with(5, ("",)),
        _request_with(5, (5,)),
        _request_with(6, 0),
        _request_with(7, 0),
        _request_with(7, _CONSTRAINT[:-1]),
        _request_with(7, ("yaml", *_CONSTRAINT[1:])),
        _request_with(7, (_CONSTRAINT[0], b"{}", "p")),
        _request_with(7, (_CONSTRAINT[0], "x" * (SOURCE_BYTES_MAX + 1), "p")),
        _request_with(7, (*_CONSTRAINT[:2], "p" * (PATH_CHARACTERS_MAX + 1))),
        _request_with(9, (0, 5, True, True, None)),
        _request_with(9, (9, 5, True, True, None)),
        _request_with(9, (2, -1, True, True, None)),
        _request_with(9, (2, 21, True, True, None)),
        _request_with(9, (2, 5, None, True, None)),
        _request_with(9, (2, 5, True, None)),
        _request_with(9, (2, 5, True, None, None)),
        _request_with(9, (2, 5, True, True, "everything")),
        _request_with(8, True),
        _request_with(8, (True,)),
        _request_with(8, (1, "")),
        _request_with(8, (True, None)),
        _request_with(8, (True, "x" * 257)),
        (1, "llama", "/m", (1, 1, 1, 1, 1), None),
        (1, "llama", b"/m", (1, 1, 1, 1), None),
        (1, "llama", b"/m", (1, 1, 1, 1, 0), None),
        (1, "x" * 257, b"/m", (1, 1, 1, 1, 1), None),
        (3, ""),
        (3,),
        (4, 1),
        (5,),
        (5, 0),
        (5, -1),
        (5, True),
        (5, 1, 1),
        (16, 1, 1),  # Hello is not the daemon's to say
    ],
)
def test_a_message_to_the_worker_of_wrong_shape_is_refused(fields: tuple[Any, ...]) -> None:
    assert ToWorkerDecoder().feed(packed(*_REQUEST))
    with pytest.raises(ProtocolFault):
        ToWorkerDecoder().feed(packed(*fields))


@pytest.mark.parametrize(
    "pins",
    [
        None,
        (5,),
        (("CUDA_VISIBLE_DEVICES",),),
        (("CUDA_VISIBLE_DEVICES", 0),),
        (("LD_PRELOAD", "0"),),
        (("CUDA_VISIBLE_DEVICES", "a b"),),
    ],
)
def test_W01_a_load_sets_variables_that_choose_devices_and_no_others(pins: object) -> None:
    message = LoadModel(
        engine="llama",
        weights_paths=("/m",),
        options=EngineOptions(context_size=1, n_cells=1),
        pins=(DevicePin("CUDA_VISIBLE_DEVICES", "1"),),
    )
    *fields, sent_pins = to_fields(message)
    assert ToWorkerDecoder().feed(packed(*fields, sent_pins)) == [message]
    with pytest.raises(ProtocolFault):
        ToWorkerDecoder().feed(packed(*fields, pins))


@pytest.mark.parametrize("n_events", [EVENTS_LIMIT - 1, EVENTS_LIMIT])
def test_W07_a_step_with_as_many_events_as_allowed_is_read(n_events: int) -> None:
    (step,) = FromWorkerDecoder().feed(packed(*_STEP, [_DELTA] * n_events))
    assert isinstance(step, Step)
    assert len(step.events) == n_events


def test_W07_a_step_with_more_events_than_allowed_is_refused() -> None:
    with pytest.raises(ProtocolFault, match="undecodable"):
        FromWorkerDecoder().feed(packed(*_STEP, [_DELTA] * (EVENTS_LIMIT + 1)))


def test_a_request_may_have_many_messages_but_not_any_number() -> None:
    def request(n_messages: int) -> bytes:
        message = ChatMessage(role="user", content="")
        return encode(
            Generate(GenerationRequest(request_id="r1", prompt=ChatPrompt(messages=(message,) * n_messages)))
        )

    assert ToWorkerDecoder().feed(request(ITEMS_LIMIT))
    with pytest.raises(ProtocolFault):
        ToWorkerDecoder().feed(request(ITEMS_LIMIT + 1))


@pytest.mark.parametrize("cuts", [[], [3], [30], [3, 30, 60], list(range(200))])
def test_W07_messages_before_a_fault_are_delivered_however_it_is_split(cuts: list[int]) -> None:
    good = [a_step(("r1", TextDelta("one", 1))), a_step(("r1", TextDelta("two", 1)))]
    data = b"".join(encode(message) for message in good) + packed(99) + encode(good[0])
    messages, fault = feed_split(FromWorkerDecoder(), data, cuts)
    assert messages == good
    assert str(fault) == "protocol fault: unknown tag 99"


def test_W07_after_a_fault_nothing_is_read_any_more() -> None:
    decoder = FromWorkerDecoder()
    with pytest.raises(ProtocolFault, match="unknown tag 99"):
        decoder.feed(packed(99))
    with pytest.raises(ProtocolFault, match="unknown tag 99"):
        decoder.feed(encode(Hello(protocol_version=1, pid=1)))
