"""Content of known size as it comes from a server: exactly the bytes that were asked for, or an error (S20).

Owns what counts as an answer to a range. Imports errors and the answers of `transport.py`. Both kinds of
servers use it: registries in `client.py`, hubs in `huggingface.py`. The bytes are not verified here: a range
has no digest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, Self, TypeAlias

from runner.errors import ContentMismatch, RangeRefused, RegistryError, RegistryUnavailable
from runner.registry.transport import Answer

Ask: TypeAlias = Callable[[Mapping[str, str]], Answer]
"""Send the request with these headers; the answer has status 200, 206 or 416."""

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


class BlobBody:
    """The bytes from `start` to before `end` on their way. Close it."""

    def __init__(self, answer: Answer, *, start: int, end: int) -> None:
        self._answer = answer
        self._left_bytes = end - start
        self.start = start
        self.end = end

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """At least one byte into the buffer; 0 once all have come, and not one more is there.

        Raises RegistryUnavailable when the server ends too early, breaks off or is too slow, ContentMismatch
        when it sends more, TransferAborted.
        """
        view = memoryview(buffer)
        if not self._left_bytes:
            self._raise_for_more()
            return 0
        read_bytes = self._answer.readinto(view[: self._left_bytes])
        if not read_bytes and len(view):
            raise RegistryUnavailable(
                self._answer.registry, f"it broke off {self._left_bytes} bytes before the end of the content"
            )
        self._left_bytes -= read_bytes
        return read_bytes

    def _raise_for_more(self) -> None:
        """A body without an announced length must be seen to end (S02)."""
        if self._answer.readinto(memoryview(bytearray(1))):
            self.close()
            raise ContentMismatch(
                f"{self._answer.registry} sent more than the {self.end - self.start} bytes of the content"
            )

    def close(self) -> None:
        """Break off when bytes are missing, else keep the connection. May be called twice."""
        self._answer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<BlobBody {self.start}-{self.end}, {self._left_bytes} bytes to come>"


def open_body(ask: Ask, *, size_bytes: int, start: int = 0, end: int | None = None) -> BlobBody:
    """Content of `size_bytes`, from `start` to before `end`; the whole of it without both.

    1. The whole: no range is asked for, and the answer announces that size or none; else ContentMismatch.
    2. A part: the answer is a 206 for exactly that range of exactly that size; else RangeRefused, and the
       caller starts again without a range.

    Raises what `ask` raises besides.
    """
    end = size_bytes if end is None else end
    if not (0 <= start < end <= size_bytes or start == end == size_bytes == 0):
        raise ValueError(f"no range of {size_bytes} bytes: {start} to {end}")
    if (start, end) == (0, size_bytes):
        return _whole(ask({}), size_bytes)
    answer = ask({"Range": f"bytes={start}-{end - 1}"})
    fault = _range_fault(answer, start, end, size_bytes)
    if fault is not None:
        answer.close()
        raise RangeRefused(answer.registry, f"asked for bytes {start} to {end - 1} of {size_bytes}, {fault}")
    return BlobBody(answer, start=start, end=end)


def _whole(answer: Answer, size_bytes: int) -> BlobBody:
    if answer.status != 200:
        answer.close()
        raise RegistryError(answer.registry, f"it answered {answer.status} where no range was asked for")
    announced_bytes = answer.content_length
    if announced_bytes not in (None, size_bytes):
        answer.close()
        raise ContentMismatch(
            f"{answer.registry} announced {announced_bytes} bytes for content that has {size_bytes}"
        )
    return BlobBody(answer, start=0, end=size_bytes)


def _range_fault(answer: Answer, start: int, end: int, size_bytes: int) -> str | None:
    if answer.status != 206:
        return f"it answered {answer.status}"
    told = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if told is None:
        return "it did not tell which bytes it sends"
    if tuple(int(number) for number in told.groups()) != (start, end - 1, size_bytes):
        return f"it sends bytes {told[1]} to {told[2]} of {told[3]}"
    if answer.content_length not in (None, end - start):
        return f"it announced {answer.content_length} bytes"
    return None
