"""The choice of one sequence's next token: sampler, constraint and logprobs together.

Owns what outlives preemption of that choice. Imports the samplers' protocol, `constraints.py` and
`logprobs.py`.
"""

from __future__ import annotations

from runner.domain.events import TokenLogprob
from runner.engine.backend import Sampler
from runner.engine.constraints import ConstraintBroken, Matcher
from runner.engine.deferring import DeferredMatcher
from runner.engine.logprobs import Scorer
from runner.engine.sampler import LogitsOf


class Chooser:
    """Belongs to one sequence. `matcher` None: any token may follow; `scorer` None: logprobs are not told."""

    def __init__(
        self,
        sampler: Sampler,
        logits_of: LogitsOf,
        matcher: Matcher | DeferredMatcher | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self._sampler = sampler
        self._logits_of = logits_of
        self._matcher = matcher
        self.scorer = scorer
        self.logprob: TokenLogprob | None = None
        """Of the token that was chosen last."""

    def choose(self, row: int) -> int:
        """The token that follows row `row` of the last decode.

        Raises UnusableLogits, and ConstraintBroken where the constraint leaves nothing to choose.
        """
        if self.scorer is None:
            return self._choose(row)
        scores = self.scorer.look(row)  # before anything is ruled out in place
        token_id = self._choose(row)
        self.logprob = scores.of(token_id)
        return token_id

    def _choose(self, row: int) -> int:
        if self._matcher is None:
            return self._sampler.sample(row)
        token_id = self._choose_allowed(row, self._matcher)
        self._sampler.accept(token_id)
        return token_id

    def _choose_allowed(self, row: int, matcher: Matcher | DeferredMatcher) -> int:
        """1. What the sampler takes anyway, if it is allowed: most tokens of an answer under way are, and no
           mask is computed (the probabilities are those of a draw among the allowed ones: what is refused is
           drawn again among them).
        2. The only token there is.
        3. What the sampler takes among the allowed ones.
        """
        token_id = self._sampler.propose(row)  # 1
        if matcher.take(token_id):
            return token_id
        forced = matcher.forced()  # 2
        if forced is not None and matcher.take(forced):
            return forced
        matcher.rule_out(self._logits_of(row))  # 3
        token_id = self._sampler.propose(row)
        if not matcher.take(token_id):
            raise ConstraintBroken("nothing that it allows may be chosen")
        return token_id

    @property
    def is_complete(self) -> bool:
        """The constraint lets nothing follow."""
        return self._matcher is not None and self._matcher.is_complete

    def close(self) -> None:
        self._sampler.close()
