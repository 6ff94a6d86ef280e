"""Messages of every kind with any content, for Hypothesis, and frames with any fields."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
from hypothesis import strategies as st

from runner.domain.constraints import Constraint, ConstraintKind
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
from runner.hardware.pinning import DEVICE_VARIABLES, DevicePin
from runner.wire.checks import REQUEST_ID_LIMIT
from runner.wire.messages import (
    AnnexClosed,
    Cancel,
    CloseAnnex,
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
    WantState,
)
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
    host_tokens=counts,
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
