from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.api import sse


def parse(stream: bytes) -> list[tuple[str, str]]:
    """(type, data) of every event, by the rules of the format."""
    events = []
    kind, data = "message", []
    for line in re.split(r"\r\n|\r|\n", stream.decode()):
        if line == "":
            if data:
                events.append((kind, "\n".join(data)))
            kind, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            kind = value
    return events


def test_data_is_one_line() -> None:
    assert sse.encode_data(b'{"a":1}') == b'data: {"a":1}\n\n'


def test_an_event_has_a_name() -> None:
    assert sse.encode_event("ping", b"{}") == b"event: ping\ndata: {}\n\n"


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "\n"])
def test_N20_a_name_with_a_line_break_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        sse.encode_event(name, b"{}")


_texts = st.text(st.one_of(st.sampled_from("\n\r: "), st.characters(codec="utf-8")), max_size=20)
_hostile = st.one_of(
    _texts, st.sampled_from(["event: x", "data: y\n\n", "\n\nevent: done\n", "id: 1", ": ", ""])
)


def normalised(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(_hostile.map(lambda text: ("data", text)), _hostile.map(lambda text: ("comment", text)))
    )
)
def test_N20_a_reader_gets_exactly_the_events_that_were_written(parts: list[tuple[str, str]]) -> None:
    encoders = {"data": lambda text: sse.encode_data(text.encode()), "comment": sse.encode_comment}
    stream = b"".join(encoders[kind](text) for kind, text in parts)
    assert parse(stream) == [("message", normalised(text)) for kind, text in parts if kind == "data"]
