"""Inputs of embeddings, read to the end at once."""

from __future__ import annotations

from runner.domain.generation import EmbeddingPrompt
from runner.worker.embedding_inputs import InputReader


def read_all(reader: InputReader, prompt: EmbeddingPrompt) -> tuple[tuple[int, ...], ...]:
    steps = reader.reading(prompt)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            told: tuple[tuple[int, ...], ...] = end.value
            return told
