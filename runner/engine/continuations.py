"""Which prompts go on from where an earlier sequence ended, as the turns of a conversation do.

What others have gone on from is worth a place on disk, and most prompts are never heard of again: a state of
a thousand tokens takes 23 MB of a small model and 128 MB of a larger one, and disks wear out. Only hashes are
kept, so that what was given up long ago is known too. Pure; used by `cells.py`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Final

LEAST_ENDED: Final = 32
"""Tokens. Shorter ones are beginnings that many have in common."""
_STRIDE: Final = 16
_ENDS_MAX: Final = 4096


class Continuations:
    """The ends of the last `_ENDS_MAX` sequences, to the last whole 16 tokens."""

    def __init__(self) -> None:
        self._ends: dict[int, None] = {}
        """Hashes of all tokens up to an end, oldest first."""

    def __repr__(self) -> str:
        return f"<Continuations: {len(self._ends)} ends>"

    def ended(self, tokens: Sequence[int], namespace: Hashable) -> None:
        """A sequence has ended with these tokens, from its first to its last."""
        if len(tokens) < LEAST_ENDED:
            return
        *_, end = _prefixes(tokens, namespace)
        self._ends.pop(end, None)
        self._ends[end] = None
        if len(self._ends) > _ENDS_MAX:
            del self._ends[next(iter(self._ends))]

    def is_one(self, prompt: Sequence[int], namespace: Hashable) -> bool:
        """Whether some sequence ended where this prompt goes on."""
        return any(prefix in self._ends for prefix in _prefixes(prompt, namespace))


def _prefixes(tokens: Sequence[int], namespace: Hashable) -> Iterator[int]:
    """Hashes of the first 16 tokens, the first 32, and so on."""
    prefix = hash(namespace)
    for start in range(0, len(tokens) - _STRIDE + 1, _STRIDE):
        prefix = hash((prefix, tuple(tokens[start : start + _STRIDE])))
        yield prefix
