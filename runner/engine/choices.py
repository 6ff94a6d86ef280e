"""The answers to one request: several sequences, of which the prompt is computed once, and one last event.

Imports the domain's events and `sequence.py`.
"""

from __future__ import annotations

import attrs

from runner.domain.events import ChoiceEnded, Finished, FinishReason, Timings, Usage
from runner.engine.sequence import Sequence


class Choices:
    """Of one request, in the order of their indices; one in most cases."""

    def __init__(self, sequences: list[Sequence]) -> None:
        self.alive = list(sequences)
        self._all = tuple(sequences)

    def __repr__(self) -> str:
        return f"<Choices: {len(self.alive)} of {len(self._all)} under way>"

    def ending(self, sequence: Sequence, reason: FinishReason) -> ChoiceEnded | Finished:
        """What is told of the end of `sequence`, which is still among `alive`."""
        if len(self.alive) > 1:
            return ChoiceEnded(sequence.choice_index, reason)
        if len(self._all) == 1:
            return sequence.finished(reason)
        ends = [one.finished(reason) for one in self._all]
        return Finished(
            reason=reason,
            usage=_summed([end.usage for end in ends]),
            timings=Timings.spanning([end.timings for end in ends]),
            choice_index=sequence.choice_index,
        )


def _summed(usages: list[Usage]) -> Usage:
    """The prompt counts once, as far as the first sequence found it in cells."""
    return attrs.evolve(
        usages[0],
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
    )
