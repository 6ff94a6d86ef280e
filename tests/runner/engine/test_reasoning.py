"""Reasoning cut off from the answer, however the text arrives."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.engine.reasoning import Splitter

START, END = "<think>", "</think>"


def split(
    pieces: list[str], *, is_open: bool = False, is_exact: bool = False, is_whole: bool = True
) -> tuple[str, str]:
    """Reasoning and answer."""
    splitter = Splitter(START, END, is_open=is_open, is_exact=is_exact)
    shown = [splitter.push(piece) for piece in pieces] + [splitter.finish(is_whole=is_whole)]
    reasoning, answer = zip(*shown, strict=True)
    return "".join(reasoning), "".join(answer)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>\nWell.\n\nSo.\n</think>\n\nYes.\n", ("Well.\n\nSo.", "Yes.\n")),
        ("<think></think>Yes", ("", "Yes")),
        ("<think>\n\n</think>\n\nYes", ("", "Yes")),
        ("\n <think>a</think>b", ("a", "b")),
        ("Yes", ("", "Yes")),
        (" Yes ", ("", " Yes ")),
        ("", ("", "")),
        ("Yes <think>no</think>", ("", "Yes <think>no</think>")),
        ("<thing>", ("", "<thing>")),
        ("<think", ("", "<think")),
        ("<think>a <think> b</think>c</think>d", ("a <think> b", "c</think>d")),
        ("<think>1 < 2 </ 3 </thin </</think>x", ("1 < 2 </ 3 </thin </", "x")),
        ("<think>never ends ", ("never ends", "")),
        ("<think>ends in </th", ("ends in </th", "")),
        ("<think>a</think> \n", ("a", "")),
        ("</think>x", ("", "</think>x")),
    ],
)
def test_what_stands_between_the_markers_at_the_beginning_is_reasoning(
    text: str, parts: tuple[str, str]
) -> None:
    assert split([text]) == parts
    assert split(list(text)) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("\nWell.\n</think>\n\nYes", ("Well.", "Yes")),
        ("</think>Yes", ("", "Yes")),
        ("Well", ("Well", "")),
        ("<think>Well</think>Yes", ("<think>Well", "Yes")),
        ("", ("", "")),
    ],
)
def test_a_prompt_that_opened_it_has_the_reasoning_begin_at_once(text: str, parts: tuple[str, str]) -> None:
    assert split([text], is_open=True) == parts
    assert split(list(text), is_open=True) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>\na\n</think>\n{}", ("a", "\n{}")),
        ("<think>a</think>{}", ("a", "{}")),
        ("\n<think>a</think>{}", ("", "\n<think>a</think>{}")),
        ("{}", ("", "{}")),
    ],
)
def test_of_an_exact_answer_no_character_is_left_out(text: str, parts: tuple[str, str]) -> None:
    assert split([text], is_exact=True) == parts
    assert split(list(text), is_exact=True) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<thi", ("", "")),
        ("\n", ("", "")),
        ("<think>a\n</thi", ("a", "")),
        ("<think>a\n", ("a", "")),
        ("<think>a</think>b", ("a", "b")),
        ("b<thi", ("", "b<thi")),
    ],
)
def test_what_may_be_part_of_a_marker_is_left_out_where_a_limit_cut_it(
    text: str, parts: tuple[str, str]
) -> None:
    assert split(list(text), is_whole=False) == parts


texts = st.lists(
    st.sampled_from([START, END, "<", "</", "think", ">", " ", "\n", "a", "é", "☀", START[:3], END[:5]]),
    max_size=12,
).map("".join)


@given(texts, st.lists(st.integers(0, 60), max_size=8), st.booleans(), st.booleans(), st.booleans())
def test_any_cuts_give_the_same_parts(
    text: str, cuts: list[int], is_open: bool, is_exact: bool, is_whole: bool
) -> None:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(bounds)]
    ways = {"is_open": is_open, "is_exact": is_exact, "is_whole": is_whole}
    assert split(pieces, **ways) == split([text], **ways)


@given(texts, st.integers(0, 60), st.booleans())
def test_what_is_shown_is_reasoning_even_if_the_end_marker_completes_next(
    text: str, cut: int, is_open: bool
) -> None:
    splitter = Splitter(START, END, is_open=is_open)
    shown, _ = splitter.push(text[:cut])
    for length in range(len(END)):
        reasoning, _ = split([text[:cut] + END[length:]], is_open=is_open)
        assert reasoning.startswith(shown)


@given(texts)
def test_all_text_of_an_exact_answer_is_kept_but_the_markers_and_space_around_reasoning(text: str) -> None:
    reasoning, answer = split([text], is_exact=True)
    if not text.startswith(START):
        assert (reasoning, answer) == ("", text)
    elif END not in text[len(START) :]:
        assert (reasoning, answer) == (text[len(START) :].strip(), "")
    else:
        thought, _, said = text[len(START) :].partition(END)
        assert (reasoning, answer) == (thought.strip(), said)
