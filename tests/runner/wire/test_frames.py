"""Frames, and parts of what is larger than one, at, below and above their limits."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest

from runner.domain.events import TextDelta
from runner.domain.generation import GenerationRequest, TextPrompt
from runner.errors import ProtocolFault, TooLarge
from runner.wire.codec import (
    FRAME_LIMIT_BYTES,
    MESSAGE_LIMIT_BYTES,
    Decoder,
    FromWorkerDecoder,
    ToWorkerDecoder,
    encode,
)
from runner.wire.messages import Generate, Shutdown, Step
from runner.wire.schema import to_fields
from tests.support.wire_messages import a_step, packed


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
