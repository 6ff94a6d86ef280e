"""Saved states of the cache as fields, and back: offered, asked for, on their way in either direction.

Imports the messages and `checks.py`. Used by `schema.py`.
"""

from __future__ import annotations

from array import array
from typing import Any, Final

from runner.wire.checks import (
    NAME_LIMIT,
    Fields,
    Malformed,
    as_array,
    as_bytes,
    as_count,
    as_positive,
    as_text,
)
from runner.wire.messages import (
    MoreParts,
    OfferStates,
    SavedPart,
    SaveState,
    StateGone,
    StateKept,
    StateOffer,
    StatePart,
    WantState,
)

STATE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Of one state."""
STATE_PART_BYTES: Final = 512 * 1024
STATE_TOKENS_MAX: Final = 200_000
"""Of one state: what leaves room in a frame, at four bytes each."""
OFFERS_MAX: Final = 64
PARTS_MAX: Final = 64
"""That may be allowed at a time."""

OFFER_STATES, STATE_PART, STATE_GONE, MORE_PARTS, STATE_KEPT = 6, 7, 8, 9, 10
WANT_STATE, SAVE_STATE, SAVED_PART = 21, 22, 23


def encode_offer_states(message: OfferStates) -> list[Any]:
    offers = [(one.state_id, one.owner, _packed(one.tokens), one.size_bytes) for one in message.offers]
    return [OFFER_STATES, offers, message.room_bytes]


def encode_state_part(message: StatePart) -> list[Any]:
    return [STATE_PART, message.state_id, message.data]


def encode_state_gone(message: StateGone) -> list[Any]:
    return [STATE_GONE, message.state_id]


def encode_more_parts(message: MoreParts) -> list[Any]:
    return [MORE_PARTS, message.count]


def encode_state_kept(message: StateKept) -> list[Any]:
    return [STATE_KEPT, message.state_id, message.room_bytes]


def encode_want_state(message: WantState) -> list[Any]:
    return [WANT_STATE, message.state_id]


def encode_save_state(message: SaveState) -> list[Any]:
    return [SAVE_STATE, message.owner, _packed(message.tokens), message.size_bytes]


def encode_saved_part(message: SavedPart) -> list[Any]:
    return [SAVED_PART, message.data]


def read_offer_states(fields: Fields) -> OfferStates:
    _, offers, room_bytes = fields
    if len(as_array(offers)) > OFFERS_MAX:
        raise Malformed(f"more than {OFFERS_MAX} offers")
    return OfferStates(tuple(_read_offer(as_array(offer)) for offer in offers), as_count(room_bytes))


def _read_offer(fields: Fields) -> StateOffer:
    state_id, owner, tokens, size_bytes = fields
    return StateOffer(
        state_id=as_count(state_id),
        owner=as_text(owner, NAME_LIMIT),
        tokens=_as_tokens(tokens),
        size_bytes=_as_state_size(size_bytes),
    )


def read_state_part(fields: Fields) -> StatePart:
    _, state_id, data = fields
    return StatePart(as_count(state_id), _as_part(data))


def read_state_gone(fields: Fields) -> StateGone:
    _, state_id = fields
    return StateGone(as_count(state_id))


def read_more_parts(fields: Fields) -> MoreParts:
    _, count = fields
    if as_positive(count) > PARTS_MAX:
        raise Malformed(f"more than {PARTS_MAX} parts")
    return MoreParts(count)


def read_state_kept(fields: Fields) -> StateKept:
    _, state_id, room_bytes = fields
    return StateKept(None if state_id is None else as_count(state_id), as_count(room_bytes))


def read_want_state(fields: Fields) -> WantState:
    _, state_id = fields
    return WantState(as_count(state_id))


def read_save_state(fields: Fields) -> SaveState:
    _, owner, tokens, size_bytes = fields
    return SaveState(
        owner=as_text(owner, NAME_LIMIT), tokens=_as_tokens(tokens), size_bytes=_as_state_size(size_bytes)
    )


def read_saved_part(fields: Fields) -> SavedPart:
    _, data = fields
    return SavedPart(_as_part(data))


def _packed(tokens: tuple[int, ...]) -> bytes:
    """Four bytes each, native order, since both ends are one machine."""
    return array("i", tokens).tobytes()


def _as_tokens(value: Any) -> tuple[int, ...]:
    packed = as_bytes(value)
    if not 0 < len(packed) <= 4 * STATE_TOKENS_MAX:
        raise Malformed("not a number of tokens that a state may have")
    tokens = array("i")
    tokens.frombytes(packed)  # ValueError when it is no multiple of four
    if min(tokens) < 0:
        raise Malformed("a negative token")
    return tuple(tokens)


def _as_state_size(value: Any) -> int:
    if as_positive(value) > STATE_BYTES_MAX:
        raise Malformed(f"a state of more than {STATE_BYTES_MAX} bytes")
    return value  # type: ignore[no-any-return]  # as_positive() has checked it


def _as_part(value: Any) -> bytes:
    if not 0 < len(as_bytes(value)) <= STATE_PART_BYTES:
        raise Malformed("not a part of a state")
    return value  # type: ignore[no-any-return]  # as_bytes() has checked it
