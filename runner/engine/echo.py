"""The prompt told back, piece by piece as it is computed, with what the model thought of it.

Imports the domain's events, `detokenizer.py` and `logprobs.py`.
"""

from __future__ import annotations

from runner.domain.events import PromptText, TokenLogprob
from runner.engine.detokenizer import Detokenizer
from runner.engine.logprobs import Scorer, TokenText


class Echo:
    """Of one prompt. `scorer` None: without logprobs."""

    def __init__(self, prompt: tuple[int, ...], token_text: TokenText, scorer: Scorer | None) -> None:
        self._prompt = prompt
        self._token_text = token_text
        self._scorer = scorer
        self._detokenizer = Detokenizer()
        self._n_told = 0

    def __repr__(self) -> str:
        return f"<Echo: {self._n_told} of {len(self._prompt)} tokens told>"

    @property
    def is_over(self) -> bool:
        return self._n_told == len(self._prompt)

    @property
    def is_scored(self) -> bool:
        """It needs the logits of every row, as long as it is not over."""
        return self._scorer is not None and not self.is_over

    def advance(self, start: int, stop: int, first_row: int) -> PromptText | None:
        """The tokens `start` to `stop` have been computed, in rows from `first_row` on: what can be told now.

        That is one token more, since its probability is known too. None when all of it was told before, by a
        computation that had to be repeated. Raises UnusableLogits.
        """
        tellable = min(stop + 1, len(self._prompt))
        told = range(self._n_told, tellable)
        if not told:
            return None
        logprobs = (
            []
            if self._scorer is None
            else [self._logprob(self._scorer, index, first_row - start) for index in told]
        )
        self._n_told = tellable
        text = "".join(self._detokenizer.push(self._token_text(self._prompt[index])) for index in told)
        return PromptText(text + (self._detokenizer.finish() if self.is_over else ""), tuple(logprobs))

    def _logprob(self, scorer: Scorer, index: int, row_offset: int) -> TokenLogprob:
        if index == 0:
            return scorer.unscored(self._prompt[0])
        return scorer.look(row_offset + index - 1).of(self._prompt[index])
