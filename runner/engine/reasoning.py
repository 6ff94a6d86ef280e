"""Reasoning told apart from the answer, over text that arrives in pieces.

An answer begins with reasoning when the prompt has opened it, or when its first text is the start marker;
reasoning then goes to the first end marker, and everything behind that is the answer. How far the constraint
of an answer goes along with that is `deferring.py`'s.

Pure. Imports the standard library and attrs only. Which markers a model has is found in
`runner/chat/reasoning.py`, how its tokens spell them in `runner/worker/reasoning.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs


@attrs.frozen(kw_only=True)
class SpelledMarkers:
    """The markers of one model, ASCII texts, with its tokens.

    `start_tokens` and `end_tokens` have a token for each place in the marker: the longest one that the marker
    goes on with there. `names` are the markers that are control tokens, which have no text of their own.
    """

    start: str
    end: str
    start_tokens: tuple[int, ...]
    end_tokens: tuple[int, ...]
    names: Mapping[int, bytes] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Reasoning:
    """What one request is to know of it. `is_open`: the prompt has opened it. `is_separated`: it is told
    apart; otherwise it stays in the text of the answer, with its markers."""

    markers: SpelledMarkers
    is_open: bool = False
    is_separated: bool = True


class Phase(enum.Enum):
    UNDECIDED = "undecided"
    """What has come may be the beginning of the start marker."""
    REASONING = "reasoning"
    BETWEEN = "between"
    """The end marker has come, and white space at most."""
    ANSWERING = "answering"


class Splitter:
    """Cuts one text into reasoning and answer, neither with markers.

    The result does not depend on how the text is cut. White space around the reasoning belongs to neither,
    unless the answer `is_exact`: then it begins right behind the end marker, and the start marker stands at
    the very beginning.
    """

    def __init__(self, start: str, end: str, *, is_open: bool, is_exact: bool = False) -> None:
        self._start = start
        self._end = end
        self._is_exact = is_exact
        self._beginnings = frozenset(end[:length] for length in range(1, len(end)))
        self._held = ""
        self._has_shown = False
        self.has_reasoned = is_open
        self.phase = Phase.REASONING if is_open else Phase.UNDECIDED

    def push(self, text: str) -> tuple[str, str]:
        """What may be shown now of the reasoning and of the answer."""
        text = self._held + text
        self._held = ""
        reasoning = ""
        if self.phase is Phase.UNDECIDED:
            text = self._decided(text)
        if self.phase is Phase.REASONING:
            reasoning, text = self._reasoned(text)
        if self.phase is Phase.BETWEEN:
            text = text if self._is_exact else text.lstrip()
            if text:
                self.phase = Phase.ANSWERING
        return reasoning, text

    def finish(self, *, is_whole: bool) -> tuple[str, str]:
        """What was held back. Unless the text `is_whole`, it may have been cut within a marker, and what may
        be the beginning of one is left out."""
        held, self._held = self._held, ""
        if not is_whole:
            return "", ""
        return (held.rstrip(), "") if self.phase is Phase.REASONING else ("", held)

    def _decided(self, text: str) -> str:
        """What is left of `text` once it is known what begins; nothing while it is not."""
        candidate = text if self._is_exact else text.lstrip()
        if candidate.startswith(self._start):
            self.phase = Phase.REASONING
            self.has_reasoned = True
            return candidate[len(self._start) :]
        if self._start.startswith(candidate):
            self._held = text
            return ""
        self.phase = Phase.ANSWERING
        return text

    def _reasoned(self, text: str) -> tuple[str, str]:
        """Reasoning to be shown, and what is behind it."""
        end = text.find(self._end)
        if end >= 0:
            self.phase = Phase.BETWEEN
            shown, rest = text[:end].rstrip(), text[end + len(self._end) :]
        else:
            shown, rest = text[: len(text) - self._beginning_at_end(text)].rstrip(), ""
            self._held = text[len(shown) :]
        if not self._has_shown:
            shown = shown.lstrip()
            self._has_shown = bool(shown)
        return shown, rest

    def _beginning_at_end(self, text: str) -> int:
        """Length of the longest end of `text` that the end marker begins with."""
        for length in range(min(len(self._end) - 1, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0
