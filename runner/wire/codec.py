"""Messages between daemon and worker as frames, and back. Pure: bytes in, values out.

    stream  = frame*
    frame   = length, payload                  length: 4 bytes, big-endian, 1 to 1 MiB, of the payload alone
    payload = msgpack array [tag, field…]      what `schema.py` and `probe_schema.py` say

A message to the worker that is larger than a frame travels as parts, `[PART, is_last, bytes]`, with nothing
in between; their bytes joined are its payload, at most 32 MiB. From the worker there are no parts. There are
no maps, no extension types, and nothing that runs on decoding (W07).

Imports the schema and the messages. Read on in `actors/worker.py` and `runner/worker/channel.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar

import msgpack

from runner.errors import ProtocolFault, TooLarge
from runner.wire import probe_schema, schema
from runner.wire.checks import Fields, Malformed
from runner.wire.messages import (
    FromProbe,
    FromWorker,
    Generate,
    LoadModel,
    OfferStates,
    Probed,
    ProbeModel,
    ToProbe,
    ToWorker,
)
from runner.wire.probe_schema import FROM_PROBE, TO_PROBE
from runner.wire.schema import EVENTS_LIMIT, FROM_WORKER, ITEMS_LIMIT, PART, TO_WORKER
from runner.wire.sizes import DEVICES_LIMIT

FRAME_LIMIT_BYTES: Final = 1024 * 1024
MESSAGE_LIMIT_BYTES: Final = 32 * 1024 * 1024

_PART_ROOM: Final = 16  # what the array around a part's bytes takes: 1 + 1 + 1 + 5, rounded up
_LENGTH: Final = struct.Struct(">I")

M = TypeVar("M")


def encode(message: ToWorker | FromWorker | ToProbe | FromProbe) -> bytes:
    """One frame, or several for a large message to the worker; write them in one go and in this order.

    Raises `TooLarge` when a message to the worker has more than 32 MiB, and `ProtocolFault` when one from the
    worker does not fit a frame (send the events of such a step in several).
    """
    payload: bytes = msgpack.packb(_to_fields(message))
    if len(payload) <= FRAME_LIMIT_BYTES:
        return _LENGTH.pack(len(payload)) + payload
    if not isinstance(message, LoadModel | Generate | OfferStates):
        raise ProtocolFault(f"a {type(message).__name__} of {len(payload)} bytes does not fit a frame")
    if len(payload) > MESSAGE_LIMIT_BYTES:
        raise TooLarge("the request", MESSAGE_LIMIT_BYTES)
    return b"".join(_parts(payload))


def _to_fields(message: ToWorker | FromWorker | ToProbe | FromProbe) -> list[Any]:
    if isinstance(message, ProbeModel | Probed):
        return probe_schema.to_fields(message)
    return schema.to_fields(message)


def _parts(payload: bytes) -> list[bytes]:
    size = FRAME_LIMIT_BYTES - _PART_ROOM
    frames = []
    for start in range(0, len(payload), size):
        is_last = start + size >= len(payload)
        part: bytes = msgpack.packb([PART, is_last, payload[start : start + size]])
        frames += [_LENGTH.pack(len(part)), part]
    return frames


class Decoder(Generic[M]):
    """Bytes as they arrive, whole messages as they come complete. Use one of the subclasses.

    Holds at most one frame and what was fed last, or the parts of one message.
    """

    _readers: Mapping[int, tuple[str, Callable[[Fields], M]]]
    _items_limit: int

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fault: str | None = None

    @property
    def is_between_messages(self) -> bool:
        """Nothing is left over: an end of the stream here cuts no message."""
        return not self._buffer

    def feed(self, data: bytes | bytearray | memoryview) -> list[M]:
        """The messages that `data` completed, in order.

        Raises `ProtocolFault` at the first byte that cannot belong to a valid message, with the messages
        before it in `preceding`, and again at every later call.
        """
        if self._fault is not None:
            raise ProtocolFault(self._fault)
        self._buffer += data
        messages: list[M] = []
        try:
            while (payload := self._next_payload()) is not None:
                self._take(self._unpack(payload), messages)
        except Malformed as fault:
            self._fault = str(fault)
            self._buffer.clear()
            raise ProtocolFault(self._fault, preceding=tuple(messages)) from None
        return messages

    def _next_payload(self) -> bytes | None:
        """One frame's payload out of the buffer; its length is judged before its bytes have arrived."""
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        (size,) = _LENGTH.unpack_from(buffer)
        if not 0 < size <= FRAME_LIMIT_BYTES:
            raise Malformed(f"a frame of {size} bytes")
        end = 4 + size
        if len(buffer) < end:
            return None
        payload = bytes(buffer[4:end])
        del buffer[:end]
        return payload

    def _unpack(self, payload: bytes) -> Fields:
        size = len(payload)
        try:
            fields = msgpack.unpackb(
                payload,
                use_list=False,
                max_str_len=size,
                max_bin_len=size,
                max_array_len=self._items_limit,
                max_map_len=0,
                max_ext_len=0,
            )
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            raise Malformed(f"undecodable payload ({type(error).__name__})") from None
        if type(fields) is not tuple or not fields or type(fields[0]) is not int:
            raise Malformed("a payload that is no message")
        return fields

    def _take(self, fields: Fields, messages: list[M]) -> None:
        messages.append(self._read(fields))

    def _read(self, fields: Fields) -> M:
        entry = self._readers.get(fields[0])
        if entry is None:
            raise Malformed(f"unknown tag {fields[0]}")
        name, reader = entry
        try:
            return reader(fields)
        except Malformed as fault:
            raise Malformed(f"{name}: {fault}") from None
        except (ValueError, TypeError):  # a wrong number of fields, or no array where one is due
            raise Malformed(f"{name}: wrong shape") from None


class FromWorkerDecoder(Decoder[FromWorker]):
    """The daemon's end. Nothing it is fed is trusted."""

    _items_limit = EVENTS_LIMIT

    def __init__(self) -> None:
        super().__init__()
        self._readers = FROM_WORKER


class ToWorkerDecoder(Decoder[ToWorker]):
    """The worker's end: also joins parts."""

    _items_limit = ITEMS_LIMIT

    def __init__(self) -> None:
        super().__init__()
        self._readers = TO_WORKER
        self._parts = bytearray()

    @property
    def is_between_messages(self) -> bool:
        return super().is_between_messages and not self._parts

    def _take(self, fields: Fields, messages: list[ToWorker]) -> None:
        if fields[0] != PART:
            if self._parts:
                raise Malformed("another message among the parts of one")
            super()._take(fields, messages)
            return
        if len(fields) != 3 or type(fields[1]) is not bool or type(fields[2]) is not bytes or not fields[2]:
            raise Malformed("a part of wrong shape")
        if len(self._parts) + len(fields[2]) > MESSAGE_LIMIT_BYTES:
            raise Malformed(f"a message of more than {MESSAGE_LIMIT_BYTES} bytes")
        self._parts += fields[2]
        if fields[1]:
            payload = bytes(self._parts)
            self._parts.clear()
            super()._take(self._unpack(payload), messages)


class FromProbeDecoder(Decoder[FromProbe]):
    """The daemon's end. Nothing it is fed is trusted."""

    _items_limit = DEVICES_LIMIT

    def __init__(self) -> None:
        super().__init__()
        self._readers = FROM_PROBE


class ToProbeDecoder(Decoder[ToProbe]):
    """The probe's end."""

    _items_limit = DEVICES_LIMIT

    def __init__(self) -> None:
        super().__init__()
        self._readers = TO_PROBE
