"""A probe's question and answer, and everything a stranger might answer instead (W07)."""

from __future__ import annotations

import itertools
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.domain.engine import CacheType, DeviceBuffers, EngineOptions, EngineSizes, FlashAttention
from runner.errors import ProtocolFault
from runner.wire.codec import (
    FromProbeDecoder,
    FromWorkerDecoder,
    ToProbeDecoder,
    ToWorkerDecoder,
    encode,
)
from runner.wire.messages import Hello, LoadFailed, LoadModel, Probed, ProbeModel, Shutdown
from runner.wire.probe_schema import to_fields
from runner.wire.sizes import BYTES_MAX, DEVICE_NAME_LIMIT, DEVICES_LIMIT

OPTIONS = EngineOptions(
    context_size=8192,
    n_cells=16_384,
    host_cells=4096,
    max_sequences=3,
    prefill_chunk=17,
    n_threads=5,
    key_type=CacheType.Q8_0,
    value_type=CacheType.Q4_0,
    flash_attention=FlashAttention.ON,
)
HOST = DeviceBuffers(
    device="cpu", weights_bytes=1, repacked_bytes=2, kv_cache_bytes=3, compute_bytes=4, output_bytes=5
)
ANSWER = Probed(
    engine_version="llama.cpp 1",
    sizes=EngineSizes(devices=(HOST, DeviceBuffers(device="CUDA0")), process_bytes=6),
)


def frame(*fields: Any) -> bytes:
    payload: bytes = msgpack.packb(list(fields))
    return len(payload).to_bytes(4, "big") + payload


def test_question_and_answer_arrive_as_they_were_sent() -> None:
    path = b"/models/\xff.gguf".decode("utf-8", "surrogateescape")
    question = ProbeModel(weights_paths=(path,), options=OPTIONS)
    assert ToProbeDecoder().feed(encode(question)) == [question]
    assert FromProbeDecoder().feed(encode(ANSWER)) == [ANSWER]
    failed = LoadFailed(code="loading_failed", message="no")
    assert FromProbeDecoder().feed(encode(failed)) == [failed]


@given(st.lists(st.integers(0, 200), max_size=6))
def test_an_answer_may_arrive_in_any_pieces(cuts: list[int]) -> None:
    data = encode(ANSWER)
    decoder = FromProbeDecoder()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    messages = [m for begin, end in itertools.pairwise(edges) for m in decoder.feed(data[begin:end])]
    assert messages == [ANSWER]
    assert decoder.is_between_messages


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (FromProbeDecoder, Hello(protocol_version=1, pid=5)),
        (FromProbeDecoder, ProbeModel(weights_paths=("/x",), options=OPTIONS)),
        (FromWorkerDecoder, ANSWER),
        (ToWorkerDecoder, ProbeModel(weights_paths=("/x",), options=OPTIONS)),
        (ToProbeDecoder, LoadModel(engine="llama", weights_paths=("/x",), options=OPTIONS)),
        (ToProbeDecoder, Shutdown()),
    ],
)
def test_W07_each_end_takes_only_what_is_meant_for_it(decoder: Any, message: Any) -> None:
    with pytest.raises(ProtocolFault, match="unknown tag"):
        decoder().feed(encode(message))


def answer_with(*, devices: Any = None, process_bytes: Any = 6, version: Any = "x", annex: Any = ()) -> bytes:
    tag, _, listed, _, _ = to_fields(ANSWER)
    return frame(tag, version, listed if devices is None else devices, process_bytes, annex)


HOST_FIELDS = ["cpu", 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("devices", "is_taken"),
    [
        ([], True),
        ([HOST_FIELDS], True),
        ([["d" * DEVICE_NAME_LIMIT, 1, 2, 3, 4, 5]], True),
        ([["d" * (DEVICE_NAME_LIMIT + 1), 1, 2, 3, 4, 5]], False),
        ([[str(index), 1, 2, 3, 4, 5] for index in range(DEVICES_LIMIT)], True),
        ([[str(index), 1, 2, 3, 4, 5] for index in range(DEVICES_LIMIT + 1)], False),
        ([["cpu", BYTES_MAX, 2, 3, 4, 5]], True),
        ([["cpu", BYTES_MAX + 1, 2, 3, 4, 5]], False),
        ([HOST_FIELDS, HOST_FIELDS], False),
        ([["", 1, 2, 3, 4, 5]], False),
        ([["cpu\x1b[2J", 1, 2, 3, 4, 5]], False),
        ([["Gerät", 1, 2, 3, 4, 5]], False),
        ([[5, 1, 2, 3, 4, 5]], False),
        ([["cpu", -1, 2, 3, 4, 5]], False),
        ([["cpu", 1.0, 2, 3, 4, 5]], False),
        ([["cpu", True, 2, 3, 4, 5]], False),
        ([["cpu", None, 2, 3, 4, 5]], False),
        ([["cpu", 2**64 - 1, 2, 3, 4, 5]], False),
        ([["cpu", 1, 2, 3, 4]], False),
        ([["cpu", 1, 2, 3, 4, 5, 6]], False),
        (["cpu"], False),
        ("cpu", False),
        (5, False),
    ],
)
def test_W07_only_devices_within_their_limits_are_taken(devices: Any, is_taken: bool) -> None:
    answers = [answer_with(devices=devices), answer_with(annex=devices)]
    if is_taken:
        message, other = (FromProbeDecoder().feed(data)[0] for data in answers)
        assert isinstance(message, Probed)
        assert isinstance(other, Probed)
        assert len(message.sizes.devices) == len(other.sizes.annex) == len(devices)
    else:
        for data in answers:
            with pytest.raises(ProtocolFault):
                FromProbeDecoder().feed(data)


@pytest.mark.parametrize(
    "data",
    [
        answer_with(process_bytes=-1),
        answer_with(process_bytes=BYTES_MAX + 1),
        answer_with(process_bytes="6"),
        answer_with(version=5),
        answer_with(version="v" * 257),
        frame(48, "x", [], 6, 7),
        frame(48, "x", [], 6),
        frame(48, "x", [], 6, [], 7),
        frame(48, "x"),
        frame(48),
        frame("48", "x", [], 6, []),
        frame(19, "no such CODE", "text"),
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\0\0\0\1\xc1",
    ],
)
def test_W07_any_other_answer_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolFault):
        FromProbeDecoder().feed(data)


@given(st.binary(max_size=60))
def test_W07_no_answer_is_too_strange(payload: bytes) -> None:
    try:
        FromProbeDecoder().feed(len(payload).to_bytes(4, "big") + payload)
    except ProtocolFault:
        pass


def options_with(index: int, value: Any) -> bytes:
    fields: list[Any] = [8192, 16_384, 3, 17, 5, "q8_0", "q4_0", "on"]
    fields[index] = value
    return frame(32, b"/x", fields)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 0),
        (1, -1),
        (2, 2**63),
        (3, "64"),
        (4, 0),
        (5, "q5_0"),
        (6, 8),
        (7, True),
        (7, "maybe"),
        (7, "off"),
    ],
)
def test_W07_options_that_no_engine_can_be_given_are_refused(index: int, value: Any) -> None:
    with pytest.raises(ProtocolFault):
        ToProbeDecoder().feed(options_with(index, value))
