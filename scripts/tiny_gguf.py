"""Writes a tiny llama-architecture GGUF with random weights, for tests that need a real file.

    python scripts/tiny_gguf.py OUT.gguf [--layers 2] [--context 512] [--seed 0] ...

The file is complete: the engine loads it, tokenises with a byte-level vocabulary (one token per byte, a few
merges, chat markers), renders its chat template and generates noise. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import attrs
import gguf
import numpy as np
import numpy.typing as npt

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MERGES = ("t h", "th e", "i n", "a n", "an d", "Ġ t", "Ġ a")
MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@attrs.frozen(kw_only=True)
class TinyModel:
    """Sizes of the model. `n_embedding` must be a multiple of twice `n_heads`, `n_heads` of `n_heads_kv`.

    `is_quantized`: the matrices are Q4_0, which back ends may repack; sizes must then be multiples of 32.
    """

    name: str = "Tiny"
    n_layers: int = 2
    n_embedding: int = 64
    n_feed_forward: int = 128
    n_heads: int = 4
    n_heads_kv: int = 2
    context_length: int = 512
    seed: int = 0
    chat_template: str | None = CHAT_TEMPLATE
    is_quantized: bool = False


def write_tiny_gguf(path: Path, model: TinyModel = TinyModel()) -> Path:
    """Write the file and return `path`."""
    return _write(gguf.GGUFWriter(path, "llama"), model)[0]


def write_tiny_split(
    path: Path, model: TinyModel = TinyModel(), *, tensors_per_part: int, small_first: bool = False
) -> list[Path]:
    """Write `path` in parts, `OUT-00001-of-00003.gguf` and so on, and return their paths in order. With
    `small_first` the first part has the metadata alone."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=tensors_per_part, small_first_shard=small_first)
    return _write(writer, model)


def _write(writer: gguf.GGUFWriter, model: TinyModel) -> list[Path]:
    _add_sizes(writer, model)
    n_tokens = _add_vocabulary(writer, model)
    for name, tensor in _tensors(model, n_tokens):
        if model.is_quantized and tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    paths = [Path(file.name) for file in writer.fout or ()]
    writer.close()
    return paths


def _add_sizes(writer: gguf.GGUFWriter, model: TinyModel) -> None:
    writer.add_type("model")
    writer.add_name(model.name)
    is_quantized = model.is_quantized
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0 if is_quantized else gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(model.n_layers)
    writer.add_context_length(model.context_length)
    writer.add_embedding_length(model.n_embedding)
    writer.add_feed_forward_length(model.n_feed_forward)
    writer.add_head_count(model.n_heads)
    writer.add_head_count_kv(model.n_heads_kv)
    writer.add_rope_dimension_count(model.n_embedding // model.n_heads)
    writer.add_layer_norm_rms_eps(1e-5)


def _add_vocabulary(writer: gguf.GGUFWriter, model: TinyModel) -> int:
    """A token for each byte, one for each merge, and the markers; returns their number."""
    texts = [*byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]
    types = [gguf.TokenType.NORMAL] * len(texts) + [gguf.TokenType.CONTROL] * len(MARKERS)
    end_of_text, start_of_turn, end_of_turn = range(len(texts), len(texts) + len(MARKERS))
    texts += MARKERS
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(start_of_turn)
    writer.add_eos_token_id(end_of_turn)
    writer.add_pad_token_id(end_of_text)
    writer.add_add_bos_token(False)
    writer.add_vocab_size(len(texts))
    if model.chat_template is not None:
        writer.add_chat_template(model.chat_template)
    return len(texts)


def byte_letters() -> list[str]:
    """How byte-level vocabularies write each byte: itself where it is a visible letter of Latin-1, else one
    of the letters from U+0100 on, in order. The mapping of GPT-2."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def _tensors(model: TinyModel, n_tokens: int) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Names and weights, rows last as numpy has them. The output matrix is the embedding's."""
    random = np.random.default_rng(model.seed)
    width, inner = model.n_embedding, model.n_feed_forward
    width_kv = width // model.n_heads * model.n_heads_kv

    def weights(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return random.normal(0.0, columns**-0.5, (rows, columns)).astype(np.float32)

    def ones() -> npt.NDArray[np.float32]:
        return np.ones(width, dtype=np.float32)

    yield "token_embd.weight", weights(n_tokens, width)
    yield "output_norm.weight", ones()
    for index in range(model.n_layers):
        block = f"blk.{index}"
        yield f"{block}.attn_norm.weight", ones()
        yield f"{block}.attn_q.weight", weights(width, width)
        yield f"{block}.attn_k.weight", weights(width_kv, width)
        yield f"{block}.attn_v.weight", weights(width_kv, width)
        yield f"{block}.attn_output.weight", weights(width, width)
        yield f"{block}.ffn_norm.weight", ones()
        yield f"{block}.ffn_gate.weight", weights(inner, width)
        yield f"{block}.ffn_up.weight", weights(inner, width)
        yield f"{block}.ffn_down.weight", weights(width, inner)


def main(arguments: list[str] | None = None) -> None:
    defaults = TinyModel()
    parser = argparse.ArgumentParser(description="Write a tiny GGUF with random weights.")
    parser.add_argument("path", type=Path, metavar="OUT.gguf")
    parser.add_argument("--name", default=defaults.name)
    parser.add_argument("--layers", type=int, default=defaults.n_layers)
    parser.add_argument("--embedding", type=int, default=defaults.n_embedding)
    parser.add_argument("--feed-forward", type=int, default=defaults.n_feed_forward)
    parser.add_argument("--heads", type=int, default=defaults.n_heads)
    parser.add_argument("--heads-kv", type=int, default=defaults.n_heads_kv)
    parser.add_argument("--context", type=int, default=defaults.context_length)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--quantized", action="store_true")
    given = parser.parse_args(arguments)
    model = TinyModel(
        name=given.name,
        n_layers=given.layers,
        n_embedding=given.embedding,
        n_feed_forward=given.feed_forward,
        n_heads=given.heads,
        n_heads_kv=given.heads_kv,
        context_length=given.context,
        seed=given.seed,
        is_quantized=given.quantized,
    )
    write_tiny_gguf(given.path, model)
    print(f"{given.path}: {given.path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
