"""How slowly a server may send before it has failed (S05). Pure: it is told times, and takes none.

Only time spent waiting for the server counts, so a slow disk of ours is no fault of the server's.
"""

from __future__ import annotations

from typing import Final

import attrs

FLOOR_BYTES_PER_S: Final = 1024
WINDOW_S: Final = 30.0
HEADERS_S: Final = 60.0
FRAMING_BYTES_MAX: Final = 4 << 20  # beside the content; heads are bounded to 6 MB by the library, at worst


class TooSlow(Exception):
    """The server is slower than it may be; the text says what it did not do in what time."""


class TooMuchFraming(Exception):
    """The server sends without end what is no content: interim answers, chunk extensions, trailers."""


@attrs.define
class Pace:
    """The pace of one answer: first its head within a time, then a least rate, judged window by window."""

    head_s: float = HEADERS_S
    total_s: float | None = None
    """A limit for head and body together, for small answers."""
    floor_bytes_per_s: int = FLOOR_BYTES_PER_S
    window_s: float = WINDOW_S
    _waited_s: float = 0.0
    _window_waited_s: float = 0.0
    _window_bytes: int = 0
    _framing_bytes: int = 0
    _is_in_body: bool = False

    def begin_body(self) -> None:
        """The head has come."""
        self._is_in_body = True
        self._window_waited_s = 0.0
        self._window_bytes = 0

    def note(self, size_bytes: int, waited_s: float) -> None:
        """So many bytes, content or framing, came after so long a wait. Raises TooSlow, TooMuchFraming.

        1. A head must be there after `head_s`.
        2. Everything must be there after `total_s`, where there is such a limit.
        3. Every `window_s` of waiting must bring `window_s` × `floor_bytes_per_s` of content.
        4. What comes beside the content is bounded, however fast it comes.
        """
        self._waited_s += waited_s
        self._framing_bytes += size_bytes
        if self._framing_bytes > FRAMING_BYTES_MAX:
            raise TooMuchFraming("it sends without end what is no content")
        if not self._is_in_body and self._waited_s > self.head_s:
            raise TooSlow(f"it sent no complete answer head within {self.head_s:.0f} s")
        if self.total_s is not None and self._waited_s > self.total_s:
            raise TooSlow(f"its answer was not complete within {self.total_s:.0f} s")
        if self._is_in_body:
            self._note_in_window(waited_s)

    def note_content(self, size_bytes: int) -> None:
        """So many of the bytes that came were content. Raises nothing."""
        self._framing_bytes -= 2 * size_bytes  # chunks may cost as much as they carry
        self._window_bytes += size_bytes

    def _note_in_window(self, waited_s: float) -> None:
        self._window_waited_s += waited_s
        if self._window_waited_s < self.window_s:
            return
        if self._window_bytes < self.floor_bytes_per_s * self._window_waited_s:
            raise TooSlow(
                f"it sent {self._window_bytes} bytes in {self._window_waited_s:.0f} s, "
                f"less than {self.floor_bytes_per_s} bytes/s"
            )
        self._window_waited_s = 0.0
        self._window_bytes = 0
