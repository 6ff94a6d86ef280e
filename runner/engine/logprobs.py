"""What the model thought of tokens: log-probabilities from the raw logits of a row.

Raw means before penalties, filters, temperature and constraints, which is what OpenAI's fields are taken for.
Imports numpy, the domain's values and `sampler.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from runner.domain.events import LOGPROB_MIN, RankedToken, TokenLogprob
from runner.engine.sampler import LogitsOf, UnusableLogits

TokenText = Callable[[int], bytes]


class Scores:
    """Of one row: the likeliest tokens, and what every token's log-probability is counted from.

    Made before the row is changed in place. Of a token that nobody has ruled out, `of` may be asked later.
    """

    def __init__(self, logits: npt.NDArray[np.float32], n_top: int, token_text: TokenText) -> None:
        """Raises UnusableLogits for NaN. 0.2 ms at 49k vocabulary, 0.5 ms with the likeliest."""
        self._logits = logits
        self._token_text = token_text
        highest = float(logits.max())
        with np.errstate(invalid="ignore"):
            self._log_sum = highest + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
        if np.isnan(self._log_sum):
            raise UnusableLogits
        self._top = tuple(self._ranked(int(token_id)) for token_id in _best(logits, n_top))

    def of(self, token_id: int) -> TokenLogprob:
        ranked = self._ranked(token_id)
        return TokenLogprob(ranked.token_id, ranked.text, ranked.logprob, self._top)

    def _ranked(self, token_id: int) -> RankedToken:
        logprob = float(self._logits[token_id]) - self._log_sum
        return RankedToken(token_id, self._token_text(token_id), max(min(logprob, 0.0), LOGPROB_MIN))


def _best(logits: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    """Ids of the highest logits, highest first, the lower id first among equals."""
    if count == 0:
        return np.empty(0, np.intp)
    count = min(count, len(logits))
    found = np.argpartition(logits, len(logits) - count)[-count:]
    return found[np.lexsort((found, -logits[found]))]


class Scorer:
    """`n_top` likeliest tokens beside each."""

    def __init__(self, logits_of: LogitsOf, token_text: TokenText, n_top: int) -> None:
        self._logits_of = logits_of
        self._token_text = token_text
        self._n_top = n_top

    def look(self, row: int) -> Scores:
        """Of row `row` of the last decode."""
        return Scores(self._logits_of(row), self._n_top, self._token_text)

    def unscored(self, token_id: int) -> TokenLogprob:
        """A token that nothing came before."""
        return TokenLogprob(token_id, self._token_text(token_id), None)
