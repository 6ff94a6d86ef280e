"""Stop strings: whatever the cut, the same text is shown, and never the beginning of a stop string."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.engine.stopping import StopMatcher

letters = st.text(alphabet="abc", max_size=30)
stop_sets = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=4).map(tuple)


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[list[str], bool]:
    """Everything shown, piece by piece with the flush last, and whether a stop string was met."""
    matcher = StopMatcher(stops)
    shown = [matcher.push(piece) for piece in pieces]
    return [*shown, "" if matcher.is_stopped else matcher.finish()], matcher.is_stopped


def expected(stops: tuple[str, ...], text: str) -> tuple[str, bool]:
    """By definition: the first position where some stop string ends, the longest such one."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - len(max(ending, key=len))], True
    return text, False


@given(stop_sets, letters, st.lists(st.integers(0, 100), max_size=8))
def test_the_text_shown_does_not_depend_on_how_it_is_cut(
    stops: tuple[str, ...], text: str, places: list[int]
) -> None:
    shown, is_stopped = run(stops, cut(text, places))
    assert ("".join(shown), is_stopped) == expected(stops, text)


@given(stop_sets, letters, letters, st.lists(st.integers(0, 100), max_size=8))
def test_the_beginning_of_a_stop_string_is_never_shown(
    stops: tuple[str, ...], text: str, continuation: str, places: list[int]
) -> None:
    """What was shown after a part of the text is shown whatever follows."""
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in cut(text, places))
    assert expected(stops, text + continuation)[0].startswith(shown)


@given(stop_sets, letters)
def test_text_that_cannot_become_a_stop_string_is_shown_at_once(stops: tuple[str, ...], text: str) -> None:
    matcher = StopMatcher(stops)
    shown = matcher.push(text)
    if not matcher.is_stopped:
        held = text[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        (("END",), ["some", " E", "N", "D rest"], ["some", " ", "", ""]),
        (("END",), ["EN", "ENEND"], ["", "ENEN"]),
        (("abc", "b"), ["abc"], ["a"]),
        (("\n\n",), ["one\n", "two\n", "\n"], ["one", "\ntwo", ""]),
        (("é",), ["caf", "é", "!"], ["caf", "", ""]),
        (("x",), ["", "y"], ["", "y"]),
    ],
)
def test_examples(stops: tuple[str, ...], pieces: list[str], shown: list[str]) -> None:
    assert run(stops, pieces)[0][: len(shown)] == shown


def test_nothing_is_shown_after_a_stop() -> None:
    matcher = StopMatcher(("stop",))
    assert matcher.push("a stop b") == "a "
    assert matcher.push("more") == ""
    assert matcher.finish() == ""


def test_what_was_held_is_shown_when_nothing_follows() -> None:
    matcher = StopMatcher(("<end>",))
    assert matcher.push("a <en") == "a "
    assert matcher.finish() == "<en"
    assert matcher.finish() == ""
