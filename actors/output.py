"""The last part of what a process printed, bounded and fit to be shown.

Pure: bytes in, text out. Used by `actors/process.py`.
"""

from __future__ import annotations

import re
from typing import Final

TAIL_LIMIT_BYTES: Final = 64 * 1024
LINE_LIMIT: Final = 2000
"""Characters of one line that are shown."""

_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor, erasing
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\|$)"  # OSC, DCS and the like: titles, clipboard, links
    r"|\x1b[@-~]?",
    re.MULTILINE,
)
# C0 without tab and newline, C1, and the characters that reorder or hide text on a terminal.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


class OutputTail:
    """The newest 64 KiB of a byte stream; older bytes are dropped as they are pushed out."""

    def __init__(self, limit_bytes: int = TAIL_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = bytearray()
        self._is_cut = False

    def feed(self, data: bytes) -> None:
        self._bytes += data[-self._limit_bytes :]
        surplus = len(self._bytes) - self._limit_bytes
        if surplus > 0 or len(data) > self._limit_bytes:
            del self._bytes[: max(surplus, 0)]
            self._is_cut = True

    def text(self) -> str:
        """Whole lines of plain text: no control bytes, no terminal sequences, each at most `LINE_LIMIT` long.

        Never longer than the limit in bytes; a line that lost its beginning is left out.
        """
        text = bytes(self._bytes).decode("utf-8", "ignore").replace("\r", "\n")
        lines = text.split("\n")
        if self._is_cut and len(lines) > 1:
            del lines[0]
        return "\n".join(clean_text(line)[:LINE_LIMIT] for line in lines).strip("\n")

    def __len__(self) -> int:
        return len(self._bytes)

    def __repr__(self) -> str:
        return f"<OutputTail {len(self._bytes)} bytes{', cut' if self._is_cut else ''}>"


def clean_text(text: str) -> str:
    """Text from a stranger without what a terminal would act upon; tabs and newlines stay."""
    return _CONTROLS.sub("", _SEQUENCES.sub("", text))
