"""Tables, JSON, progress, and outside text made harmless."""

from __future__ import annotations

import json
import threading
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cli import output
from tests.support.control import Terminal

DANGEROUS = [
    chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
]


@pytest.mark.parametrize("character", [c for c in DANGEROUS if c not in "\n\t\r"])
def test_K06_control_and_reordering_characters_become_visible(character: str) -> None:
    for shown in (output.harmless(f"a{character}b"), output.harmless_line(f"a{character}b")):
        assert shown == f"a\\x{ord(character):02x}b" or shown == f"a\\u{ord(character):04x}b"


@given(st.text())
def test_K06_nothing_that_moves_a_cursor_is_left(text: str) -> None:
    shown = output.harmless(text)
    assert not (set(DANGEROUS) - {"\n", "\t"}) & set(shown)
    line = output.harmless_line(text)
    assert not set(DANGEROUS) & set(line)
    assert all(unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") for character in line)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Cf"])))
def test_other_text_stays_as_it_is(text: str) -> None:
    assert output.harmless(text) == text


def test_prose_keeps_lines_tabs_and_the_marks_of_right_to_left_scripts() -> None:
    assert output.harmless("a\n\tb\r\nשלום\u200f!") == "a\n\tb\nשלום\u200f!"
    assert output.harmless_line("a\n\tb\u200f") == r"a\x0a\x09b\u200f"


def test_lone_surrogates_become_visible() -> None:
    assert output.harmless("\udcff") == r"\udcff"


def test_K06_json_is_harmless_and_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": "\x1b[31m\x9b\u202e ü 😀"}
    output.print_json(value)
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert "\x1b" not in shown
    assert json.loads(shown) == value


def test_a_table_has_aligned_columns_and_no_trailing_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("A", "LONGER"), [("xyz", ""), ("", "\x1b"), ("1", "2\n3")])
    assert capsys.readouterr().out == "A    LONGER\nxyz\n     \\x1b\n1    2\\x0a3\n"


def test_messages_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    output.message("said \x1b[1m")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "said \\x1b[1m\n")


def test_progress_without_a_terminal_is_a_line_at_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("m\x1b.gguf", 100) as shown:
        for _ in range(20):
            shown.advance(5)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"m\\x1b.gguf: {percent}%" for percent in range(10, 101, 10)]


def test_silent_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("m.gguf", 0, is_silent=True) as shown:
        shown.advance(5)
    assert capsys.readouterr().err == ""


def test_progress_of_nothing_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("empty", 0):
        pass
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    threads = set(threading.enumerate())
    with output.progress("[red]m\x1b.gguf", 2**21) as shown:
        shown.advance(2**21)
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)  # rich tells its thread to end, and does not wait for it
    assert "[red]m\\x1b.gguf" in terminal.getvalue()  # no markup
    assert "2.1/2.1 MB" in terminal.getvalue()
