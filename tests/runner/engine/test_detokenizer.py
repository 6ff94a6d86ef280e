"""Bytes to text: whole characters only, whatever the cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from runner.engine.detokenizer import Detokenizer


def pieces_of(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.text(), st.lists(st.integers(0, 1000)))
def test_valid_text_arrives_whole_however_it_is_cut(text: str, places: list[int]) -> None:
    detokenizer = Detokenizer()
    shown = [detokenizer.push(piece) for piece in pieces_of(text.encode(), places)]
    assert "".join(shown) == text
    assert detokenizer.finish() == ""


@given(st.binary(max_size=40), st.lists(st.integers(0, 1000)))
def test_invalid_bytes_become_the_replacement_character_however_they_are_cut(
    data: bytes, places: list[int]
) -> None:
    detokenizer = Detokenizer()
    shown = "".join(detokenizer.push(piece) for piece in pieces_of(data, places)) + detokenizer.finish()
    assert shown == data.decode("utf-8", "replace")
    shown.encode("utf-8")  # always valid UTF-8


@given(st.text(min_size=1))
def test_byte_by_byte_a_character_comes_with_its_last_byte(text: str) -> None:
    detokenizer = Detokenizer()
    for character in text:
        data = character.encode()
        assert [detokenizer.push(data[i : i + 1]) for i in range(len(data))] == [""] * (len(data) - 1) + [
            character
        ]


def test_an_unfinished_character_is_held_and_replaced_at_the_end() -> None:
    detokenizer = Detokenizer()
    assert detokenizer.push("€".encode()[:2]) == ""
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.finish() == ""
    assert detokenizer.push(b"a") == "a"
