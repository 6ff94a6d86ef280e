"""all-MiniLM-L6-v2, or another BERT of sentence-transformers: as GGUF, and computed with numpy alone.

    python scripts/minilm.py DIRECTORY OUT.gguf

`DIRECTORY` holds `config.json`, `vocab.txt` and `model.safetensors`. What `embed` computes from the latter is
what an engine's embeddings are held against: nothing of llama.cpp takes part in it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

_OUTSIDE: Final[Mapping[str, str]] = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm": "token_embd_norm",
}
_LAYER: Final[Mapping[str, str]] = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


class Bert:
    """The weights of one model, by their names in the file, and its sizes."""

    def __init__(
        self, config: Mapping[str, Any], vocabulary: Sequence[str], tensors: Mapping[str, Array]
    ) -> None:
        self.config = config
        self.vocabulary = vocabulary
        self.tensors = tensors

    @classmethod
    def read(cls, directory: Path) -> Self:
        return cls(
            json.loads((directory / "config.json").read_text()),
            (directory / "vocab.txt").read_text("utf-8").splitlines(),
            {
                name.removeprefix("bert."): tensor
                for name, tensor in _read_safetensors(directory / "model.safetensors")
            },
        )

    def embed(self, token_ids: Sequence[int]) -> Array:
        """The mean over all tokens, of length 1. Shape (n_embedding,)."""
        hidden = self._norm(
            self.tensors["embeddings.word_embeddings.weight"][list(token_ids)]
            + self.tensors["embeddings.position_embeddings.weight"][: len(token_ids)]
            + self.tensors["embeddings.token_type_embeddings.weight"][0],
            "embeddings.LayerNorm",
        )
        for index in range(self.config["num_hidden_layers"]):
            hidden = self._layer(hidden, f"encoder.layer.{index}")
        pooled = hidden.mean(axis=0)
        return np.asarray(pooled / np.linalg.norm(pooled), np.float32)

    def _layer(self, hidden: Array, name: str) -> Array:
        attended = self._linear(
            self._attend(hidden, f"{name}.attention.self"), f"{name}.attention.output.dense"
        )
        hidden = self._norm(hidden + attended, f"{name}.attention.output.LayerNorm")
        inner = _gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        return self._norm(hidden + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _attend(self, hidden: Array, name: str) -> Array:
        n_tokens, n_heads = len(hidden), self.config["num_attention_heads"]
        queries, keys, values = (
            self._linear(hidden, f"{name}.{part}").reshape(n_tokens, n_heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = queries @ keys.transpose(0, 2, 1) / math.sqrt(queries.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (weights / weights.sum(axis=-1, keepdims=True)) @ values
        return np.asarray(mixed.transpose(1, 0, 2).reshape(n_tokens, -1), np.float32)

    def _linear(self, values: Array, name: str) -> Array:
        return np.asarray(
            values @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"], np.float32
        )

    def _norm(self, values: Array, name: str) -> Array:
        centred = values - values.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.config["layer_norm_eps"])
        return np.asarray(
            centred / spread * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"], np.float32
        )

    def write_gguf(self, path: Path) -> Path:
        config = self.config
        writer = gguf.GGUFWriter(path, "bert")
        writer.add_name("MiniLM")
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_layer_norm_eps(config["layer_norm_eps"])
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.MEAN)
        add_wordpieces(writer, self.vocabulary)
        for name, tensor in self.tensors.items():
            if (told := _gguf_name(name)) is not None:
                writer.add_tensor(told, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def add_wordpieces(writer: gguf.GGUFWriter, vocabulary: Sequence[str]) -> None:
    """A WordPiece vocabulary as llama.cpp reads it: beginnings of words are marked instead of their rest."""
    special = {name: vocabulary.index(f"[{name}]") for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    controls = set(special.values())
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(2)
    writer.add_token_list([_as_phantom_space(text) for text in vocabulary])
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL if index in controls else gguf.TokenType.NORMAL
            for index in range(len(vocabulary))
        ]
    )
    writer.add_bos_token_id(special["CLS"])
    writer.add_eos_token_id(special["SEP"])
    writer.add_sep_token_id(special["SEP"])
    writer.add_unk_token_id(special["UNK"])
    writer.add_pad_token_id(special["PAD"])
    writer.add_mask_token_id(special["MASK"])


def _as_phantom_space(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        return text
    return text[2:] if text.startswith("##") else "▁" + text


def _gguf_name(name: str) -> str | None:
    """None for what no embedding needs (`pooler`)."""
    for prefix, told in _OUTSIDE.items():
        if name.startswith(prefix):
            return told + name.removeprefix(prefix)
    if not name.startswith("encoder.layer."):
        return None
    index, _, rest = name.removeprefix("encoder.layer.").partition(".")
    part, _, kind = rest.rpartition(".")
    return f"blk.{index}.{_LAYER[part]}.{kind}"


def _gelu(values: Array) -> Array:
    """By the error function, as the model was trained with."""
    scaled = (values / math.sqrt(2)).astype(np.float64)
    return np.asarray(values * 0.5 * (1.0 + np.vectorize(math.erf)(scaled)), np.float32)


def _read_safetensors(path: Path) -> Iterator[tuple[str, Array]]:
    """The tensors of 32-bit floats, which are all of them but position numbers."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            values = np.frombuffer(data[start + begin : start + end], "<f4")
            yield name, values.reshape(entry["shape"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args()
    print(Bert.read(arguments.directory).write_gguf(arguments.path))


if __name__ == "__main__":
    main()
