"""The tail of a process's output: bounded, whole lines, nothing a terminal would obey."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.output import LINE_LIMIT, TAIL_LIMIT_BYTES, OutputTail, clean_text


@pytest.mark.parametrize("size", [TAIL_LIMIT_BYTES - 1, TAIL_LIMIT_BYTES])
def test_W11_output_within_the_limit_is_kept_whole(size: int) -> None:
    tail = OutputTail()
    lines = b"first\n" + b"line\n" * ((size - 6) // 5)
    tail.feed(lines)
    assert tail.text().startswith("first\n")
    assert tail.text().encode() == lines.rstrip(b"\n")


def test_W11_beyond_the_limit_the_oldest_lines_go_and_a_beheaded_one_with_them() -> None:
    tail = OutputTail(limit_bytes=12)
    tail.feed(b"first\nsecond\nthird\n")
    assert len(tail) == 12
    assert tail.text() == "third"


def test_one_line_longer_than_the_limit_is_shown_from_where_it_is_known() -> None:
    tail = OutputTail(limit_bytes=10)
    tail.feed(b"0123456789abcdef")
    assert tail.text() == "6789abcdef"


def test_a_long_line_is_shortened() -> None:
    tail = OutputTail()
    tail.feed(b"x" * (LINE_LIMIT + 1) + b"\nnext")
    assert tail.text() == "x" * LINE_LIMIT + "\nnext"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bcreset", "reset"),
        ("\x1bM up", " up"),
        ("bell\x07 nul\x00 back\x08 del\x7f c1\x9b31m", "bell nul back del c131m"),
        ("user\u202egnp.exe\u2066", "usergnp.exe"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("grüße 你好", "grüße 你好"),
    ],
)
def test_W11_what_a_terminal_would_obey_is_taken_out(raw: str, shown: str) -> None:
    assert clean_text(raw) == shown


def test_a_progress_bar_that_returns_the_carriage_becomes_lines() -> None:
    tail = OutputTail()
    tail.feed(b"10%\r20%\r30%\n")
    assert tail.text() == "10%\n20%\n30%"


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(1, 60))
def test_W11_O08_any_bytes_in_any_pieces_stay_bounded_and_plain(
    pieces: list[bytes], limit_bytes: int
) -> None:
    tail = OutputTail(limit_bytes)
    for piece in pieces:
        tail.feed(piece)
        assert len(tail) <= limit_bytes
    whole = OutputTail(limit_bytes)
    whole.feed(b"".join(pieces))
    assert tail.text() == whole.text()
    assert len(tail.text().encode()) <= limit_bytes
    assert not any(ord(c) < 32 and c not in "\t\n" for c in tail.text())
    assert repr(tail)
