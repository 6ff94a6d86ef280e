"""Token pieces to text: bytes in, whole characters out.

Pure. Imports the standard library only. What may be emitted of the text is `stopping.py`'s.
"""

from __future__ import annotations

import codecs

_new_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Incremental UTF-8. A character is given out when its last byte has come, bytes that cannot be part of
    one as U+FFFD each by the practice of the Unicode standard (section 3.9, maximal subparts)."""

    def __init__(self) -> None:
        self._decoder = _new_decoder(errors="replace")

    def push(self, piece: bytes) -> str:
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """U+FFFD when the bytes ended within a character, else nothing; starts afresh."""
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        return text

    @property
    def is_within_character(self) -> bool:
        return bool(self._decoder.getstate()[0])
