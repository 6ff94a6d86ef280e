"""Ceilings: what is below them is as in Python, what is above is refused before it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.utils import Namespace

from runner.chat import growth
from runner.chat.growth import (
    DIGITS_MAX,
    INTEGER_BITS_MAX,
    ITEMS_MAX,
    RANGE_MAX,
    TEXT_MAX,
    WIDTH_MAX,
    TooMuch,
    bounded_join,
    bounded_range,
    text_of,
)

_short = st.text(max_size=20)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _short,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_short, inner, max_size=4) | st.tuples(inner),
    max_leaves=20,
)

LIMITS: list[tuple[str, Callable[[int], object], int]] = [
    ("text + text", lambda n: growth.add("x" * (n - 1), "y"), TEXT_MAX),
    ("list + list", lambda n: growth.add([0] * (n - 1), [1]), ITEMS_MAX),
    ("tuple + tuple", lambda n: growth.add((0,) * (n - 1), (1,)), ITEMS_MAX),
    ("text * number", lambda n: growth.multiply("x", n), TEXT_MAX),
    ("number * text", lambda n: growth.multiply(n, "x"), TEXT_MAX),
    ("list * number", lambda n: growth.multiply([0], n), ITEMS_MAX),
    ("number * number", lambda n: growth.multiply(1 << (n - 2), 1), INTEGER_BITS_MAX),
    ("number ** number", lambda n: growth.power(1, n), INTEGER_BITS_MAX),
    ("join", lambda n: bounded_join("", ["x"] * 2 + ["y" * (n - 2)]), TEXT_MAX),
    ("join by a separator", lambda n: bounded_join("--", ["a", "y" * (n - 3)]), TEXT_MAX),
    ("range", bounded_range, RANGE_MAX),
    ("range by steps", lambda n: bounded_range(5, 5 + 3 * n, 3), RANGE_MAX),
    ("range downwards", lambda n: bounded_range(n, 0, -1), RANGE_MAX),
    ("center", lambda n: growth.center("x", n), WIDTH_MAX),
    ("ljust", lambda n: growth.ljust("x", n), WIDTH_MAX),
    ("rjust", lambda n: growth.rjust("x", n), WIDTH_MAX),
    ("zfill", lambda n: growth.zfill("7", n), WIDTH_MAX),
    ("expandtabs", lambda n: growth.expandtabs("\t", n - 1), TEXT_MAX),
    ("replace", lambda n: growth.replace("abc", "b", "x" * (n - 2)), TEXT_MAX),
    ("replace nothing", lambda n: growth.replace("", "", "x" * n), TEXT_MAX),
    ("print a list", lambda n: text_of([0] * (n - 1)), ITEMS_MAX),
    ("print texts", lambda n: text_of(["x" * n]), TEXT_MAX),
    ("print a dictionary", lambda n: text_of({"k": "x" * (n - 1)}), TEXT_MAX),
]


@pytest.mark.parametrize(
    ("operation", "limit"), [case[1:] for case in LIMITS], ids=[case[0] for case in LIMITS]
)
def test_G07_a_ceiling_lets_through_what_is_below_and_at_it_and_nothing_above(
    operation: Callable[[int], object], limit: int
) -> None:
    operation(limit - 1)
    operation(limit)
    with pytest.raises(TooMuch):
        operation(limit + 1)


@settings(deadline=None)
@given(_values, _values)
def test_small_operations_are_as_in_python(left: Any, right: Any) -> None:
    for sign, plain in (
        ("+", lambda: left + right),
        ("%", lambda: left % right),
    ):
        try:
            expected = plain()
        except Exception as error:
            with pytest.raises((type(error), TooMuch)):
                growth.OPERATORS[sign](left, right)
        else:
            assert growth.OPERATORS[sign](left, right) == expected


@settings(deadline=None)
@given(
    st.integers(-50, 50) | st.floats(-9, 9),
    st.integers(-50, 50) | _short | st.lists(st.integers(), max_size=3),
)
def test_small_products_are_as_in_python(left: Any, right: Any) -> None:
    try:
        expected = left * right
    except TypeError:
        with pytest.raises(TypeError):
            growth.multiply(left, right)
    else:
        assert growth.multiply(left, right) == expected


@settings(deadline=None)
@given(st.integers(-40, 40), st.integers(0, 40))
def test_small_powers_are_as_in_python(left: int, right: int) -> None:
    assert growth.power(left, right) == left**right


@settings(deadline=None)
@given(_values)
def test_printing_is_as_in_python(value: Any) -> None:
    assert text_of(value) == str(value)


@settings(deadline=None)
@given(_short, st.lists(_short, max_size=5), _short, _short, st.integers(-1, 5))
def test_methods_of_text_are_as_in_python(
    text: str, pieces: list[str], old: str, new: str, count: int
) -> None:
    assert growth.join(text, pieces) == text.join(pieces)
    assert growth.replace(text, old, new, count) == text.replace(old, new, count)
    assert growth.center(text, 30) == text.center(30)
    assert growth.ljust(text, 30, "-") == text.ljust(30, "-")
    assert growth.rjust(text, 30) == text.rjust(30)
    assert growth.zfill(text, 30) == text.zfill(30)
    assert growth.expandtabs(text, 3) == text.expandtabs(3)


@settings(deadline=None)
@given(st.integers(-99, 99), st.integers(-99, 99), st.integers(-9, 9).filter(bool))
def test_small_ranges_are_as_in_python(start: int, stop: int, step: int) -> None:
    assert bounded_range(start, stop, step) == range(start, stop, step)


def test_a_namespace_is_not_printed() -> None:
    with pytest.raises(TooMuch):
        text_of([Namespace(a=1)])


@pytest.mark.parametrize("width", ["999", "1000"])
def test_G07_format_fields_have_at_most_999_columns(width: str) -> None:
    def both() -> tuple[str, str]:
        return growth.percent_format(f"%{width}d", 1), growth.BoundedFormatter().format(f"{{0:{width}}}", 1)

    if width == "999":
        assert [len(text) for text in both()] == [999, 999]
    else:
        with pytest.raises(TooMuch):
            both()


@pytest.mark.parametrize("field", ["{0.}", "{0[}", "{0[]}", "{0]}", "{0.a[b}", "{"])
def test_a_malformed_field_is_an_error(field: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        growth.BoundedFormatter().format(field, 1)


def test_digits_have_a_limit_below_that_of_python() -> None:
    assert DIGITS_MAX < 4300  # sys.int_info.default_max_str_digits
