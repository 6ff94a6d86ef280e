"""Stop strings over text that arrives in pieces: what may be shown, and when it ends.

Pure. Imports the standard library only. Limits on the strings are the dialects' (`runner.domain.sampling`).
"""

from __future__ import annotations


class StopMatcher:
    """Shows text as early as possible, and never the beginning of a stop string that may still complete.

    The result does not depend on how the text is cut: of several stop strings the one whose last character
    comes first wins; of those that end there together, the one that starts first.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        """`stops` holds at least one string, none of them empty."""
        self._stops = stops
        self._beginnings = frozenset(stop[:length] for stop in stops for length in range(1, len(stop)))
        self._longest_beginning = max(map(len, stops)) - 1
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """What may be shown now. Once `is_stopped`, nothing more ever is."""
        if self.is_stopped or not text:
            return ""
        text = self._held + text
        start = self._first_stop(text)
        if start is not None:
            self.is_stopped = True
            self._held = ""
            return text[:start]
        shown = len(text) - self._beginning_at_end(text)
        self._held = text[shown:]
        return text[:shown]

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> int | None:
        """Where the winning stop string starts in `text`."""
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _beginning_at_end(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        for length in range(min(self._longest_beginning, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0
