"""A constraint that begins to hold where reasoning ends.

Rejected: a grammar around the constraint, with reasoning and answer or the answer alone. Where an answer may
begin as the marker does, both its ways are open, and what it takes for reasoning need not be what is cut
off as such. So the phases are followed here, by the rule of `reasoning.py`, and the matcher sees the answer
alone.

Imports `constraints.py` and `reasoning.py`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from runner.engine.constraints import CompiledConstraint, Matcher
from runner.engine.reasoning import Phase, Reasoning


class Vocabulary(Protocol):
    """Of a backend."""

    def token_piece(self, token_id: int) -> bytes: ...

    def is_end_of_generation(self, token_id: int) -> bool: ...


def new_matcher(
    constraint: CompiledConstraint | None, reasoning: Reasoning | None, vocabulary: Vocabulary
) -> Matcher | DeferredMatcher | None:
    """For one answer; None where any text may be answered."""
    if constraint is None:
        return None
    return constraint.start() if reasoning is None else DeferredMatcher(constraint, reasoning, vocabulary)


class DeferredMatcher:
    """Follows one answer as `Matcher` does, by a constraint that starts behind the reasoning.

    1. Undecided: a token that goes on with the start marker is taken, by the constraint too where it can;
       every other has to be allowed by the constraint, which then holds.
    2. Reasoning: every token is taken but one that ends the turn, or that has text behind the end marker.
       When the model wants such a one, the end marker is written for it: the answer is still to come.
    3. Answering: as the constraint says.
    """

    def __init__(self, constraint: CompiledConstraint, reasoning: Reasoning, vocabulary: Vocabulary) -> None:
        self._constraint = constraint
        self._markers = reasoning.markers
        self._start = reasoning.markers.start.encode()
        self._end = reasoning.markers.end.encode()
        self._vocabulary = vocabulary
        self._phase = Phase.REASONING if reasoning.is_open else Phase.UNDECIDED
        self._matcher = None if reasoning.is_open else constraint.start()
        """None: it allows nothing of what has come so far, or does not hold yet."""
        self._n_started = 0
        """Bytes of the start marker that have come, while undecided."""
        self._tail = b""
        """The end of the reasoning so far that the end marker begins with."""
        self._is_ending = False
        """The end marker is being written for the model."""

    def __repr__(self) -> str:
        return f"<DeferredMatcher: {self._phase.value}, {self._matcher!r}>"

    def take(self, token_id: int) -> bool:
        """Whether the answer may go on with this token; it then has."""
        if self._phase is Phase.ANSWERING:
            assert self._matcher is not None
            return self._matcher.take(token_id)
        piece = self._vocabulary.token_piece(token_id) or self._markers.names.get(token_id, b"")
        if self._phase is Phase.UNDECIDED:
            return self._take_undecided(token_id, piece)
        return self._take_reasoning(token_id, piece)

    def forced(self) -> int | None:
        """The next token, where there is no choice."""
        if self._phase is Phase.REASONING:
            return self._markers.end_tokens[len(self._tail)] if self._is_ending else None
        if self._matcher is None:
            return self._markers.start_tokens[self._n_started]
        return self._matcher.forced()

    def rule_out(self, logits: npt.NDArray[np.float32]) -> None:
        """Set the logits of all tokens that are not allowed to minus infinity, in place; only where nothing
        is forced."""
        assert self._matcher is not None, "something is forced"
        self._matcher.rule_out(logits)

    @property
    def is_complete(self) -> bool:
        """The answer matches and nothing can follow it."""
        return self._matcher is not None and self._matcher.is_complete

    def _take_undecided(self, token_id: int, piece: bytes) -> bool:
        expected = self._start[self._n_started :]
        if piece.startswith(expected):
            rest = piece[len(expected) :]
            return self._end not in rest and self._take_reasoning(token_id, rest)
        if piece and expected.startswith(piece):
            self._n_started += len(piece)
            if self._matcher is not None and not self._matcher.take(token_id):
                self._matcher = None
            return True
        if self._matcher is None or not self._matcher.take(token_id):
            return False
        self._phase = Phase.ANSWERING
        return True

    def _take_reasoning(self, token_id: int, piece: bytes) -> bool:
        if self._is_ending and token_id != self.forced():
            return False
        text = self._tail + piece
        _, marker, rest = text.partition(self._end)
        if rest or self._vocabulary.is_end_of_generation(token_id):
            self._is_ending = True
            return False
        if marker:
            self._phase = Phase.ANSWERING
            self._matcher = self._constraint.start()
            return True
        self._phase = Phase.REASONING
        self._matcher = None
        self._tail = self._beginning_at_end(text)
        return True

    def _beginning_at_end(self, text: bytes) -> bytes:
        """The longest end of `text` that the end marker begins with."""
        for length in range(min(len(self._end) - 1, len(text)), 0, -1):
            if self._end.startswith(text[-length:]):
                return text[-length:]
        return b""
