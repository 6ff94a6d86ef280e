"""Content of known size as it comes from a server: exactly the bytes that were asked for, or an error (S20).

Owns what counts as an answer to a range. Imports errors and the answers of `transport.py`. Both kinds of
servers use it: registries in `client.py`, hubs in `huggingface.py`. The bytes are not verified here: a range
has no digest.
"""

from __future__ import annotations

import re
from typing import Final, Self

from runner.errors import ContentMismatch, RangeRefused, RegistryUnavailable
from runner.registry.transport import Answer

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


class BlobBody:
    """The bytes from `start` to before `end` of `what` on their way. Close it."""

    def __init__(self, answer: Answer, *, what: str, start: int, end: int) -> None:
        self._answer = answer
        self._what = what
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
                self._answer.registry, f"it broke off {self._left_bytes} bytes before the end of {self._what}"
            )
        self._left_bytes -= read_bytes
        return read_bytes

    def _raise_for_more(self) -> None:
        """A body without an announced length must be seen to end (S02)."""
        if self._answer.readinto(memoryview(bytearray(1))):
            self.close()
            raise ContentMismatch(
                f"{self._answer.registry} sent more than the {self.end - self.start} bytes of {self._what}"
            )

    def close(self) -> None:
        """Break off when bytes are missing, else keep the connection. May be called twice."""
        self._answer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<BlobBody {self._what} {self.start}-{self.end}, {self._left_bytes} bytes to come>"


def checked_range(answer: Answer, *, start: int, end: int, size_bytes: int) -> None:
    """Raises RangeRefused, closing the answer, unless it is a 206 of just these bytes of this total (S20)."""
    fault = _range_fault(answer, start, end, size_bytes)
    if fault is not None:
        answer.close()
        raise RangeRefused(answer.registry, f"asked for bytes {start} to {end - 1} of {size_bytes}, {fault}")


def checked_whole(answer: Answer, *, size_bytes: int, what: str) -> None:
    """Raises ContentMismatch, closing the answer, when it announces another length; none is fine."""
    announced_bytes = answer.content_length
    if announced_bytes not in (None, size_bytes):
        answer.close()
        raise ContentMismatch(
            f"{answer.registry} announced {announced_bytes} bytes for {what}, which has {size_bytes}"
        )


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
