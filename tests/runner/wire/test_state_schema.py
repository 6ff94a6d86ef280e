"""What travels of saved states, at, below and above its limits."""

from __future__ import annotations

import pytest

from runner.errors import ProtocolFault
from runner.wire.codec import FRAME_LIMIT_BYTES, FromWorkerDecoder, ToWorkerDecoder, encode
from runner.wire.messages import (
    MoreParts,
    OfferStates,
    SavedPart,
    SaveState,
    StateKept,
    StateOffer,
    StatePart,
)
from runner.wire.state_schema import (
    OFFERS_MAX,
    PARTS_MAX,
    STATE_BYTES_MAX,
    STATE_PART_BYTES,
    STATE_TOKENS_MAX,
)


def offer(**fields: object) -> StateOffer:
    kept: dict[str, object] = {"state_id": 1, "owner": "", "tokens": (1, 2), "size_bytes": 9}
    return StateOffer(**{**kept, **fields})  # type: ignore[arg-type]  # whatever a test wants to set


@pytest.mark.parametrize("n_tokens", [1, STATE_TOKENS_MAX - 1, STATE_TOKENS_MAX])
def test_W07_a_state_has_so_many_tokens_and_fits_a_frame(n_tokens: int) -> None:
    message = SaveState(owner="", tokens=tuple(range(n_tokens)), size_bytes=STATE_BYTES_MAX)
    assert len(encode(message)) <= FRAME_LIMIT_BYTES
    assert FromWorkerDecoder().feed(encode(message)) == [message]


@pytest.mark.parametrize(
    "message",
    [
        SaveState(owner="", tokens=(0,) * (STATE_TOKENS_MAX + 1), size_bytes=9),
        SaveState(owner="", tokens=(), size_bytes=9),
        SaveState(owner="", tokens=(3, -1), size_bytes=9),
        SaveState(owner="", tokens=(1,), size_bytes=STATE_BYTES_MAX + 1),
        SaveState(owner="", tokens=(1,), size_bytes=0),
        SaveState(owner="o" * 257, tokens=(1,), size_bytes=9),
        SavedPart(b""),
        SavedPart(bytes(STATE_PART_BYTES + 1)),
    ],
)
def test_W07_a_state_that_is_out_of_bounds_is_a_protocol_fault(message: SaveState | SavedPart) -> None:
    with pytest.raises(ProtocolFault):
        FromWorkerDecoder().feed(encode(message))


def test_a_part_of_the_largest_size_travels_both_ways() -> None:
    for size in (1, STATE_PART_BYTES - 1, STATE_PART_BYTES):
        part = bytes(size)
        assert FromWorkerDecoder().feed(encode(SavedPart(part))) == [SavedPart(part)]
        assert ToWorkerDecoder().feed(encode(StatePart(3, part))) == [StatePart(3, part)]


def test_so_many_offers_and_no_more_are_read() -> None:
    message = OfferStates(tuple(offer(state_id=index) for index in range(OFFERS_MAX)))
    assert ToWorkerDecoder().feed(encode(message)) == [message]
    with pytest.raises(ProtocolFault):
        ToWorkerDecoder().feed(encode(OfferStates((*message.offers, offer()))))


def test_offers_that_are_more_than_a_frame_travel_in_parts() -> None:
    message = OfferStates(tuple(offer(tokens=tuple(range(150_000)), state_id=index) for index in range(3)))
    assert ToWorkerDecoder().feed(encode(message)) == [message]


def test_so_many_parts_may_be_allowed_at_a_time() -> None:
    for count in (1, PARTS_MAX - 1, PARTS_MAX):
        assert ToWorkerDecoder().feed(encode(MoreParts(count))) == [MoreParts(count)]
    for count in (0, -1, PARTS_MAX + 1):
        with pytest.raises(ProtocolFault):
            ToWorkerDecoder().feed(encode(MoreParts(count)))


def test_what_became_of_a_state_is_told_with_the_room_for_the_next() -> None:
    for message in (StateKept(3, 9), StateKept(None, 0)):
        assert ToWorkerDecoder().feed(encode(message)) == [message]
    for broken in (StateKept(-1, 9), StateKept(3, -9)):
        with pytest.raises(ProtocolFault):
            ToWorkerDecoder().feed(encode(broken))


@pytest.mark.parametrize("message", [MoreParts(1), StateKept(1, 1)])
def test_W07_a_worker_cannot_say_what_only_the_daemon_may(message: MoreParts | StateKept) -> None:
    with pytest.raises(ProtocolFault):
        FromWorkerDecoder().feed(encode(message))
