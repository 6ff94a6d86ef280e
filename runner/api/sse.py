"""Event-stream framing: values in, bytes out, no I/O.

Whatever text goes in, a reader parses exactly the events that were written: a line break in data becomes a
second `data:` line, and a line break anywhere else is an error of the caller. Imports nothing of ours.
Format: WHATWG HTML, "Server-sent events", section "Interpreting an event stream".
"""

from __future__ import annotations

import re

CONTENT_TYPE = "text/event-stream"

_LINE_BREAK = re.compile(rb"\r\n|\r|\n")


def encode_data(data: bytes) -> bytes:
    """One event of type `message`. A carriage return in `data` reads back as a newline.

    JSON holds no raw line break, so the usual case is one copy.
    """
    if b"\n" in data or b"\r" in data:
        data = _LINE_BREAK.sub(b"\ndata: ", data)
    return b"data: %b\n\n" % data


def encode_event(event: str, data: bytes) -> bytes:
    """One event with a type, for dialects that name theirs. ValueError for a line break in the name."""
    if "\n" in event or "\r" in event:
        raise ValueError("the name of an event holds a line break")
    return b"event: %b\n%b" % (event.encode(), encode_data(data))


def encode_comment(text: str = "") -> bytes:
    """A line that readers skip; keeps a connection alive through proxies. A line break starts another."""
    return b": %b\n\n" % _LINE_BREAK.sub(b"\n: ", text.encode())
