"""Chunks of sequences as the rows of one forward pass.

Imports the arrays of backends, the chunks and the sequences. Used by `engine.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

from runner.engine.backend import BatchArrays
from runner.engine.batcher import Chunk
from runner.engine.sequence import Sequence


def scores_prompt(sequence: Sequence) -> bool:
    """Whether it wants the logits of every row of its prompt."""
    return sequence.echo is not None and sequence.echo.is_scored


def fill_batch(batch: BatchArrays, chunks: Iterable[Chunk[Sequence]]) -> int:
    """The number of rows, in the order of `chunks`."""
    row = 0
    for chunk in chunks:
        sequence, start, count = chunk.sequence, chunk.start, chunk.count
        if count == 1:
            batch.tokens[row] = sequence.tokens[start]
            batch.positions[row] = start
            batch.sequence_ids[row] = sequence.slot
            batch.wants_logits[row] = chunk.is_last or scores_prompt(sequence)
        else:
            rows = slice(row, row + count)
            batch.tokens[rows] = sequence.tokens[start : start + count]
            batch.positions[rows] = range(start, start + count)
            batch.sequence_ids[rows] = sequence.slot
            batch.wants_logits[rows] = scores_prompt(sequence)
            batch.wants_logits[row + count - 1] = chunk.is_last or scores_prompt(sequence)
        row += count
    return row
