"""Numbers and the text people write for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.units import format_age, format_bytes, format_duration, parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("4GB", 4 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("512mib", 512 * 2**20),
        ("1k", 1000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1.2.3", "4XB", "inf", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1h30m", 5400), ("250ms", 0.25), ("-1", -1), ("1.5h", 5400), ("0", 0), ("2d", 172800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "1x", "5m!", "nan", "inf", "1m 2s", "--1"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def test_printed_forms() -> None:
    assert format_bytes(0) == "0 B"
    assert format_bytes(1023) == "1023 B"
    assert format_bytes(1024) == "1.0 KiB"
    assert format_bytes(98362432) == "93.8 MiB"
    assert format_duration(0.345) == "0.34s"
    assert format_duration(59.6) == "1m"
    assert format_duration(3661) == "1h1m"
    assert format_age(5) == "just now"
    assert format_age(7200) == "2 hours ago"
    assert format_age(86400) == "1 day ago"


@given(st.integers(min_value=0, max_value=10**15))
def test_a_printed_size_reads_back_within_its_precision(size: int) -> None:
    assert abs(parse_bytes(format_bytes(size)) - size) <= max(1, size * 0.05)
