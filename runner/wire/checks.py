"""What a field must be: type, range and length, one function each. Whatever is not so raises `Malformed`.

Imports nothing of ours. Used by the schemas of this package.
"""

from __future__ import annotations

import math
from typing import Any, Final

REQUEST_ID_LIMIT: Final = 128
"""Characters of a request id."""
ERROR_TEXT_LIMIT: Final = 4096
"""Characters of an error message; longer ones are cut when they are encoded."""
NAME_LIMIT: Final = 256
"""Characters of a name."""
COUNT_MAX: Final = 2**63 - 1

Fields = tuple[Any, ...]


class Malformed(Exception):
    """Fields that are no message of ours: a reason, without any of the bytes that gave it."""


def cut_text(text: str) -> str:
    """An error message as it may travel."""
    return text if len(text) <= ERROR_TEXT_LIMIT else text[: ERROR_TEXT_LIMIT - 1] + "…"


def paths_fields(paths: tuple[str, ...]) -> list[bytes]:
    """A path need not be text: bytes keep one that is no UTF-8."""
    return [path.encode("utf-8", "surrogateescape") for path in paths]


# `type(x) is`, not isinstance: a bool is no number here, and no subclass comes out of msgpack but ExtType.


def as_array(value: Any) -> Fields:
    if type(value) is not tuple:
        raise Malformed("no array where one is due")
    return value


def as_text(value: Any, limit: int | None = None) -> str:
    if type(value) is not str:
        raise Malformed("no text where it is due")
    if limit is not None and len(value) > limit:
        raise Malformed(f"text of more than {limit} characters")
    return value


def as_nonempty(value: Any) -> str:
    if not as_text(value):
        raise Malformed("empty text")
    return value  # type: ignore[no-any-return]  # as_text() has checked it


def as_bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise Malformed("no bytes where they are due")
    return value


def as_request_id(value: Any) -> str:
    if type(value) is not str or not 0 < len(value) <= REQUEST_ID_LIMIT:
        raise Malformed("not a request id")
    return value


def as_code(value: Any) -> str:
    if not (0 < len(as_text(value)) <= 64 and value.isascii() and value.replace("_", "a").isalnum()):
        raise Malformed("not an error code")
    return value  # type: ignore[no-any-return]  # as_text() has checked it


def as_flag(value: Any) -> bool:
    if type(value) is not bool:
        raise Malformed("no boolean where one is due")
    return value


def as_integer(value: Any) -> int:
    if type(value) is not int or not -COUNT_MAX <= value <= COUNT_MAX:
        raise Malformed("no integer where one is due")
    return value


def as_count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise Malformed("no count where one is due")
    return value


def as_positive(value: Any) -> int:
    if as_count(value) == 0:
        raise Malformed("zero where a positive number is due")
    return value  # type: ignore[no-any-return]  # as_count() has checked it


def as_real(value: Any) -> float:
    if type(value) is not float or not math.isfinite(value):
        raise Malformed("no finite number where one is due")
    return value


def as_seconds(value: Any) -> float:
    if as_real(value) < 0:
        raise Malformed("negative seconds")
    return value  # type: ignore[no-any-return]  # as_real() has checked it


def as_paths(value: Any) -> tuple[str, ...]:
    """At least one; how many there may be is bounded by the size of the frame."""
    paths = tuple(as_bytes(path).decode("utf-8", "surrogateescape") for path in as_array(value))
    if not paths:
        raise Malformed("no path where one is due")
    return paths
