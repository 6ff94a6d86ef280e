"""Embeddings of the scripted engine: each token has a vector that follows from it, so that tests know theirs.

A text with directives of `fake.py` (`[[slow 50]]`, `[[crash abort]]`, `[[fail]]`) has them happen in the pass
that has read them to their end. Imports the backend's protocol and numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from runner.engine.backend import BatchArrays, DecodeResult

DIMENSIONS: Final = 8
INPUT_MAX: Final = 2048


def vector_of(token_id: int) -> npt.NDArray[np.float32]:
    """1 at the place that the token's number leaves over from `DIMENSIONS`. Shape (DIMENSIONS,)."""
    vector = np.zeros(DIMENSIONS, np.float32)
    vector[token_id % DIMENSIONS] = 1.0
    return vector


class ScriptedEmbedding:
    """See `runner.engine.backend.EmbeddingContext`. `play` carries out what an input asks for."""

    def __init__(self, n_rows: int, *, play: Callable[[bytes], bool]) -> None:
        self._batch = BatchArrays.empty(n_rows)
        self._play = play
        self._texts: dict[int, list[int]] = {}
        self.n_threads = 0
        self.is_closed = False

    @property
    def batch(self) -> BatchArrays:
        return self._batch

    def set_threads(self, n_threads: int) -> None:
        self.n_threads = n_threads

    def decode(self, n_rows: int) -> DecodeResult:
        """Fails where a position does not continue its sequence, as llama.cpp does."""
        touched: set[int] = set()
        for row in range(n_rows):
            sequence_id = int(self._batch.sequence_ids[row])
            text = self._texts.setdefault(sequence_id, [])
            if self._batch.positions[row] != len(text):
                return DecodeResult.FAILED
            text.append(int(self._batch.tokens[row]))
            touched.add(sequence_id)
        questions = [bytes(one for one in self._texts[each] if one < 256) for each in sorted(touched)]
        results = [self._play(question) for question in questions if question.endswith(b"]]")]
        return DecodeResult.DONE if all(results) else DecodeResult.FAILED

    def vector(self, row: int) -> npt.NDArray[np.float32]:
        return vector_of(int(self._batch.tokens[row]))

    def forget(self) -> None:
        self._texts.clear()

    def close(self) -> None:
        self.is_closed = True
