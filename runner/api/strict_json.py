"""JSON from strangers: bytes in, plain values out, or every fault with its path.

Stricter than the usual decoders (N10, N11): no NaN or infinity, no number that overflows, no integer beyond
64 bits, no key twice, at most 64 levels, only valid UTF-8 without lone surrogates. orjson decodes; what it
lets pass is found by cheap counts over the decoded value; only a body that looks suspicious is read a second
time, slowly, to say what is wrong where. Pure; imports the error tree only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Final, NoReturn

import attrs
import orjson

from runner.errors import FieldFault, InvalidParameter

DEPTH_MAX: Final = 64  # N10: arrays and objects inside each other
VALUES_MAX: Final = 1_000_000  # commas and brackets; decoding that many takes about 50 ms
FAULTS_MAX: Final = 32  # enough to correct a request by; a hostile body could hold a million
BODY_PATH: Final = "body"  # the path of a fault that belongs to no field

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_SMALL_BYTES = VALUES_MAX  # a body this short cannot hold more values
_KEY_SHOWN_MAX = 64
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_SCALARS = frozenset((str, int, bool, type(None)))


def decode(body: bytes) -> object:
    """The value of a JSON document.

    Raises InvalidParameter with a fault per field (at most `FAULTS_MAX`); the path is `body` where no field
    can be named.
    """
    if len(body) > _SMALL_BYTES:
        _refuse_too_many_values(body)
    try:
        value: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        _refuse(body, str(error))
    try:
        n_keys = _count_keys(value, 1)
    except _Suspicious:
        n_keys = -1
    if n_keys != body.count(b":") and n_keys != _skeleton(body).count(b":"):
        faults = _faults(body)
        if faults:
            raise InvalidParameter(*faults)
    return value


class _Suspicious(Exception):
    """A value that needs the slow look: nested too deeply, or a float that may have been an integer."""


def _count_keys(value: object, depth: int) -> int:
    """Keys of all objects in `value`; fewer than the document has colons when a key appeared twice."""
    if type(value) is dict:
        if depth > DEPTH_MAX:
            raise _Suspicious
        n_keys = len(value)
        for item in value.values():
            kind = type(item)
            if kind not in _SCALARS:
                n_keys += _count_keys(item, depth + 1)
        return n_keys
    if type(value) is list:
        if depth > DEPTH_MAX:
            raise _Suspicious
        if _SCALARS.issuperset(map(type, value)):
            return 0
        return sum(_count_keys(item, depth + 1) for item in value if type(item) not in _SCALARS)
    if type(value) is float and not _INT_MIN < value < _INT_MAX:
        raise _Suspicious  # orjson turns longer integers into floats
    return 0


def _skeleton(body: bytes) -> bytes:
    """The document with every string emptied: linear, and in C, which a regular expression is not."""
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(unescaped.split(b'"')[::2])


def _refuse_too_many_values(body: bytes) -> None:
    """Before anything is built from them: a large body must hold its bytes in few values (text, images)."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") <= VALUES_MAX:
        return
    if body.count(b'"') <= VALUES_MAX * 2:  # else the skeleton itself would be too much work
        skeleton = _skeleton(body)
        if skeleton.count(b",") + skeleton.count(b"[") + skeleton.count(b"{") <= VALUES_MAX:
            return
    raise InvalidParameter(FieldFault(BODY_PATH, f"holds more than {VALUES_MAX} values"))


# the slow look


@attrs.frozen
class _Mark:
    """Stands in the tree where something is wrong."""

    message: str


def _refuse(body: bytes, reason: str) -> NoReturn:
    raise InvalidParameter(*(_faults(body) or [FieldFault(BODY_PATH, f"is not valid JSON: {reason}")]))


def _faults(body: bytes) -> list[FieldFault]:
    """What is wrong with a document that was refused or looks suspicious; empty when nothing is."""
    if _is_too_deep(body):
        return [FieldFault(BODY_PATH, f"is nested deeper than {DEPTH_MAX} levels")]
    text = body.decode("utf-8", "surrogateescape")
    try:
        tree = _MARKING_DECODER.decode(text)
    except json.JSONDecodeError as error:
        what = f"is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
        return [FieldFault(BODY_PATH, what)]
    bad_text = "holds a lone surrogate" if _is_utf8(body) else "is not valid UTF-8"
    return list(islice(_marks(tree, "", bad_text), FAULTS_MAX))


def _is_too_deep(body: bytes) -> bool:
    depth = 0
    for bracket in _skeleton(body).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > DEPTH_MAX:
            return True
    return False


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _marks(value: object, path: str, bad_text: str) -> Iterator[FieldFault]:
    match value:
        case _Mark(message):
            yield FieldFault(path or BODY_PATH, message)
        case str() if not _is_encodable(value):
            yield FieldFault(path or BODY_PATH, bad_text)
        case dict():
            for key, item in value.items():
                key_path = f"{path}.{_shown(key)}" if path else _shown(key)
                if not _is_encodable(key):
                    yield FieldFault(key_path, f"its name {bad_text}")
                yield from _marks(item, key_path, bad_text)
        case list():
            for index, item in enumerate(value):
                yield from _marks(item, f"{path}[{index}]", bad_text)
        case _:
            pass


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown(key: str) -> str:
    return key[:_KEY_SHOWN_MAX].encode("utf-8", "replace").decode("utf-8")


def _checked_int(text: str) -> int | _Mark:
    if len(text) <= 20:  # the longest is -9223372036854775808
        value = int(text)
        if _INT_MIN <= value <= _INT_MAX:
            return value
    return _Mark("is an integer beyond 64 bits")


def _checked_float(text: str) -> float | _Mark:
    value = float(text)
    return value if abs(value) != float("inf") else _Mark("is a number too large to represent")


def _checked_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        found[key] = _Mark("appears more than once") if key in found else value
    return found


_MARKING_DECODER = json.JSONDecoder(
    parse_int=_checked_int,
    parse_float=_checked_float,
    parse_constant=lambda name: _Mark(f"{name} is not a number of JSON"),
    object_pairs_hook=_checked_object,
)
