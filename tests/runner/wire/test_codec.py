"""Messages of every kind: both ends back to back, every split, and bytes that nobody of ours would send."""

from __future__ import annotations

import itertools
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.domain.events import TextDelta
from runner.errors import ProtocolFault
from runner.wire.codec import Decoder, FromWorkerDecoder, ToWorkerDecoder, encode
from runner.wire.messages import FromWorker, Hello, ToWorker
from tests.support.wire_messages import a_step, frame, from_worker, packed, to_worker


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
