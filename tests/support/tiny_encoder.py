"""A tiny BERT with random weights: the engine makes embeddings of it, and numpy makes the same.

model = tiny_bert()
model.write_gguf(path); model.embed(token_ids)
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from scripts.minilm import Array, Bert

N_LAYERS: Final = 2
WIDTH: Final = 64
INNER: Final = 128
LENGTH: Final = 128
"""Tokens of the longest input."""
VOCABULARY: Final = (
    *(f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")),
    *string.ascii_lowercase,
    *(f"##{letter}" for letter in string.ascii_lowercase),
    "the",
    "cat",
)
CLS, SEP = VOCABULARY.index("[CLS]"), VOCABULARY.index("[SEP]")


def tiny_bert(seed: int = 0) -> Bert:
    config: dict[str, Any] = {
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "max_position_embeddings": LENGTH,
        "layer_norm_eps": 1e-12,
    }
    return Bert(config, VOCABULARY, dict(_tensors(np.random.default_rng(seed))))


def _tensors(random: np.random.Generator) -> Iterator[tuple[str, Array]]:
    def matrix(rows: int, columns: int) -> Array:
        return random.normal(0.0, columns**-0.5, (rows, columns)).astype(np.float32)

    def dense(name: str, rows: int, columns: int) -> Iterator[tuple[str, Array]]:
        yield f"{name}.weight", matrix(rows, columns)
        yield f"{name}.bias", random.normal(0.0, 0.1, rows).astype(np.float32)

    def norm(name: str) -> Iterator[tuple[str, Array]]:
        yield f"{name}.weight", random.uniform(0.5, 1.5, WIDTH).astype(np.float32)
        yield f"{name}.bias", random.normal(0.0, 0.1, WIDTH).astype(np.float32)

    yield "embeddings.word_embeddings.weight", matrix(len(VOCABULARY), WIDTH)
    yield "embeddings.position_embeddings.weight", matrix(LENGTH, WIDTH)
    yield "embeddings.token_type_embeddings.weight", matrix(2, WIDTH)
    yield from norm("embeddings.LayerNorm")
    for index in range(N_LAYERS):
        layer = f"encoder.layer.{index}"
        for part in ("query", "key", "value"):
            yield from dense(f"{layer}.attention.self.{part}", WIDTH, WIDTH)
        yield from dense(f"{layer}.attention.output.dense", WIDTH, WIDTH)
        yield from norm(f"{layer}.attention.output.LayerNorm")
        yield from dense(f"{layer}.intermediate.dense", INNER, WIDTH)
        yield from dense(f"{layer}.output.dense", WIDTH, INNER)
        yield from norm(f"{layer}.output.LayerNorm")
