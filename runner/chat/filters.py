"""The filters that chat templates have: Jinja's, as far as templates in the wild use them, with ceilings.

Left out on purpose: what makes Markup (`urlize`, `xmlattr`, `striptags`), what is random (`random`), what
walks attributes by computed names (`attr`), and what only a web page wants. `safe` and the escaping filters
give plain text, since nothing here is escaped behind a template's back. Imports jinja2 and `growth.py`.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from jinja2 import Environment, pass_environment
from jinja2.filters import FILTERS as _JINJA
from jinja2.filters import do_batch, do_indent, do_int, do_round, make_attrgetter, sync_do_slice

from runner.chat import growth
from runner.chat.growth import DIGITS_MAX, TooMuch, check_items, check_text, text_of

_JSON_INDENT_MAX = 16
_SEPARATOR_MAX = 16
_PRECISION_MAX = 100


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Python writes it: templates were written against that, not against Jinja's HTML-safe form."""
    if indent is not None and indent > _JSON_INDENT_MAX:
        raise TooMuch(f"an indentation of more than {_JSON_INDENT_MAX}")
    if separators is not None and any(len(part) > _SEPARATOR_MAX for part in separators):
        raise TooMuch(f"a separator of more than {_SEPARATOR_MAX} characters")
    growth.measure(value)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _escape(value: Any) -> str:
    text = text_of(value)
    check_text(6 * len(text))  # the longest entity
    return html.escape(text)


@pass_environment
def _join(
    environment: Environment, items: Iterable[Any], separator: Any = "", attribute: str | int | None = None
) -> str:
    if attribute is not None:
        items = map(make_attrgetter(environment, attribute), items)
    return growth.bounded_join(text_of(separator), map(text_of, items))


@pass_environment
def _sum(
    environment: Environment, items: Iterable[Any], attribute: str | int | None = None, start: Any = 0
) -> Any:
    if attribute is not None:
        items = map(make_attrgetter(environment, attribute), items)
    total = start
    for item in items:
        total = growth.add(total, item)
    return total


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    return growth.replace(text_of(value), text_of(old), text_of(new), -1 if count is None else count)


def _center(value: Any, width: int = 80) -> str:
    return growth.center(text_of(value), width)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise TypeError("format takes positional or keyword arguments, not both")
    return growth.percent_format(text_of(value), kwargs or args)


def _indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = text_of(value)
    n_lines = len(text.splitlines()) + 1
    check_text(len(text) + n_lines * (len(width) if isinstance(width, str) else max(width, 0)))
    return do_indent(text, width, first, blank)


def _batch(items: Iterable[Any], size: int, fill: Any = None) -> Iterator[list[Any]]:
    check_items(size)
    return do_batch(items, size, fill)


def _slice(items: Iterable[Any], slices: int, fill: Any = None) -> Iterator[list[Any]]:
    check_items(slices)
    return sync_do_slice(_list(items), slices, fill)


def _list(items: Iterable[Any]) -> list[Any]:
    gathered: list[Any] = []
    for item in items:
        gathered.append(item)  # one by one, so that the deadline can come in between
        check_items(len(gathered))
    return gathered


def _int(value: Any, default: int = 0, base: int = 10) -> int:
    if isinstance(value, str) and len(value) > DIGITS_MAX:
        raise TooMuch(f"a number of more than {DIGITS_MAX} digits")
    return do_int(value, default, base)


def _round(value: float, precision: int = 0, method: Literal["common", "ceil", "floor"] = "common") -> float:
    if abs(precision) > _PRECISION_MAX:
        raise TooMuch(f"a precision of more than {_PRECISION_MAX} digits")
    return do_round(value, precision, method)


def _on_text(name: str) -> Callable[..., Any]:
    """Jinja's filter of that name, which prints what it is given without measuring it."""
    original: Callable[..., Any] = _JINJA[name]
    return lambda value, *args, **kwargs: original(text_of(value), *args, **kwargs)


_ON_TEXT = ("capitalize", "lower", "title", "trim", "upper", "wordcount")
_AS_THEY_ARE = (
    *("abs", "count", "d", "default", "dictsort", "first", "float", "items", "last", "length", "map", "max"),
    *("min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "truncate", "unique"),
)

FILTERS: Mapping[str, Callable[..., Any]] = {
    **{name: _JINJA[name] for name in _AS_THEY_ARE},
    **{name: _on_text(name) for name in _ON_TEXT},
    "batch": _batch,
    "center": _center,
    "e": _escape,
    "escape": _escape,
    "forceescape": _escape,
    "format": _format,
    "indent": _indent,
    "int": _int,
    "join": _join,
    "list": _list,
    "replace": _replace,
    "round": _round,
    "safe": text_of,
    "slice": _slice,
    "string": text_of,
    "sum": _sum,
    "tojson": _tojson,
}
