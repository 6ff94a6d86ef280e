"""Operations that can make much out of little, each with a ceiling on what it may make.

Texts end at `TEXT_MAX` characters, lists at `ITEMS_MAX` items, integers at `INTEGER_BITS_MAX` bits; the size
of a result is computed before the result is. Imports the standard library and jinja2's Namespace; used by
`sandbox.py` and `filters.py` only.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from string import Formatter
from typing import Any

from jinja2.utils import Namespace

TEXT_MAX = 4 * 1024 * 1024
"""Characters of any one text, the output included (G07)."""
ITEMS_MAX = 100_000
RANGE_MAX = 10_000
"""A request has at most 4096 messages; templates count over them."""
WIDTH_MAX = 10_000
"""Columns that padding may ask for."""
INTEGER_BITS_MAX = 4096
DIGITS_MAX = 1000
"""Digits of a text that becomes an integer, a step that takes quadratic time."""

_CONTAINERS = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)
_WIDE_FIELD = re.compile(r"%[^a-zA-Z%]*(?:\*|[0-9]{4})")
_WIDE_SPEC = re.compile(r"[0-9]{4}")


class TooMuch(Exception):
    """A template asked for more than a ceiling allows; the text says of what."""


def check_text(size: int) -> None:
    if size > TEXT_MAX:
        raise TooMuch(f"a text of more than {TEXT_MAX} characters")


def check_items(count: int) -> None:
    if count > ITEMS_MAX:
        raise TooMuch(f"a list of more than {ITEMS_MAX} items")


def check_width(width: int) -> None:
    if width > WIDTH_MAX:
        raise TooMuch(f"padding to more than {WIDTH_MAX} columns")


def text_of(value: Any) -> str:
    """`str(value)`, unless that would be too long.

    A list that holds one list twice, which holds another twice, and so on, prints as two to the power of its
    depth: containers are measured first.
    """
    if type(value) is str:
        return value
    if isinstance(value, (*_CONTAINERS, Namespace)):
        measure(value)
    return str(value)


def measure(value: Any) -> None:
    """Raise TooMuch when printing `value` (as text or JSON) would exceed the ceilings of a text or of a
    list."""
    n_items = n_characters = 0
    rest: list[Any] = [value]
    while rest:
        item = rest.pop()
        n_items += 1
        check_items(n_items)
        if isinstance(item, str):
            n_characters += len(item)
            check_text(n_characters)
        elif isinstance(item, dict):
            rest += item
            rest += item.values()
        elif isinstance(item, _CONTAINERS):
            rest += item
        elif isinstance(item, Namespace):
            raise TooMuch("a namespace printed as text")  # prints what it holds, which may be itself


def bounded_range(*arguments: int) -> range:
    numbers = range(*arguments)
    # Not len(): it raises OverflowError beyond 63 bits, which says less.
    if numbers and abs(numbers[-1] - numbers[0]) // abs(numbers.step) >= RANGE_MAX:
        raise TooMuch(f"a range of more than {RANGE_MAX} numbers")
    return numbers


def bounded_join(separator: str, pieces: Iterable[str]) -> str:
    parts: list[str] = []
    size = -len(separator)
    for piece in pieces:
        size += len(separator) + len(piece)
        check_text(size)
        parts.append(piece)
    return separator.join(parts)


# ---- operators


def add(left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        check_text(len(left) + len(right))
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        check_items(len(left) + len(right))
    return left + right


def multiply(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    elif isinstance(left, int):
        _check_repetition(right, left)
    elif isinstance(right, int):
        _check_repetition(left, right)
    return left * right


def power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(right, 0))
    return left**right


def modulo(left: Any, right: Any) -> Any:
    return percent_format(left, right) if isinstance(left, str) else left % right


def percent_format(template: str, arguments: Any) -> str:
    """`template % arguments` with fields of at most 999 columns, every field sized by the longest
    argument."""
    if _WIDE_FIELD.search(template):
        raise TooMuch("a format field of more than 999 columns")
    match arguments:
        case tuple():
            values: Iterable[Any] = arguments
        case dict():
            values = arguments.values()
        case _:
            values = (arguments,)
    longest = max((len(text_of(value)) for value in values), default=0)
    n_fields = template.count("%")
    check_text(len(template) + n_fields * longest)
    check_text(n_fields * 999)
    text: str = template % arguments
    return text


OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": add,
    "*": multiply,
    "**": power,
    "%": modulo,
    "-": operator.sub,
    "/": operator.truediv,
    "//": operator.floordiv,
}


def _check_bits(bits: int) -> None:
    if bits > INTEGER_BITS_MAX:
        raise TooMuch(f"a number of more than {INTEGER_BITS_MAX} bits")


def _check_repetition(repeated: Any, times: int) -> None:
    if isinstance(repeated, str):
        check_text(len(repeated) * max(times, 0))
    elif isinstance(repeated, (list, tuple)):
        check_items(len(repeated) * max(times, 0))


# ---- methods of text


def center(text: str, width: int, fill: str = " ") -> str:
    check_width(width)
    return text.center(width, fill)


def ljust(text: str, width: int, fill: str = " ") -> str:
    check_width(width)
    return text.ljust(width, fill)


def rjust(text: str, width: int, fill: str = " ") -> str:
    check_width(width)
    return text.rjust(width, fill)


def zfill(text: str, width: int) -> str:
    check_width(width)
    return text.zfill(width)


def expandtabs(text: str, tabsize: int = 8) -> str:
    check_text(len(text) + text.count("\t") * max(tabsize, 0))
    return text.expandtabs(tabsize)


def replace(text: str, old: str, new: str, count: int = -1) -> str:
    found = text.count(old)
    times = found if count < 0 else min(found, count)
    check_text(len(text) + times * max(len(new) - len(old), 0))
    return text.replace(old, new, count)


def join(text: str, pieces: Iterable[str]) -> str:
    return bounded_join(text, pieces)


TEXT_METHODS: Mapping[str, Callable[..., str]] = {
    "center": center,
    "expandtabs": expandtabs,
    "join": join,
    "ljust": ljust,
    "replace": replace,
    "rjust": rjust,
    "zfill": zfill,
}
"""Stand-ins for methods of str, called with the text as first argument."""


class BoundedFormatter(Formatter):
    """`str.format` with fields of at most 999 columns and a ceiling on the whole; one instance per call.

    `step_into` is how a field's dots and brackets are followed; it must be overridden.
    """

    def __init__(self) -> None:
        self._size = 0

    def step_into(self, value: Any, name: str | int, *, is_attribute: bool) -> Any:
        raise NotImplementedError

    def get_field(
        self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, str | int]:
        first, steps = _split_field(field_name)
        value = self.get_value(first, args, kwargs)
        for is_attribute, name in steps:
            value = self.step_into(value, name, is_attribute=is_attribute)
        return value, first

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        text_of(value)  # measures what `!r` would print
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        if _WIDE_SPEC.search(format_spec):
            raise TooMuch("a format field of more than 999 columns")
        text = format(text_of(value) if isinstance(value, _CONTAINERS) else value, format_spec)
        self._size += len(text)
        check_text(self._size)
        return text


def _split_field(field_name: str) -> tuple[int | str, Iterator[tuple[bool, str | int]]]:
    """`0.name[key]` -> 0, ((True, "name"), (False, "key")); the grammar of PEP 3101."""
    head = re.match(r"[^.\[]*", field_name)
    assert head is not None  # matches the empty text
    first = head[0]
    return int(first) if first.isdecimal() else first, _field_steps(field_name[head.end() :])


def _field_steps(rest: str) -> Iterator[tuple[bool, str | int]]:
    step = re.compile(r"\.([^.\[]+)|\[([^\]]+)\]")
    position = 0
    while position < len(rest):
        match = step.match(rest, position)
        if match is None:
            raise ValueError("malformed format field")
        position = match.end()
        if match[1] is not None:
            yield True, match[1]
        else:
            yield False, int(match[2]) if match[2].isdecimal() else match[2]
