"""Sound models to begin with, and changes to what they say: the part of fuzzing that knows the format."""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs

from runner.gguf.format import ValueType
from scripts.tiny_gguf import MARKERS, MERGES, byte_letters
from tests.support.gguf_writer import (
    BYTE_TOKENS,
    Raw,
    Tensor,
    boolean,
    f32,
    gguf_bytes,
    i32,
    model_keys,
    numbers,
    strings,
    text,
    u32,
    u64,
)

_WIDTH = 32
_NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    16,
    32,
    33,
    64,
    256,
    511,
    512,
    513,
    1024,
    1025,
    65_535,
    65_536,
    2**27,
    2**31 - 1,
)
_WORDS = (
    "",
    "llama",
    "gpt2",
    "bert",
    "t5",
    "rwkv",
    "no_vocab",
    "plamo2",
    "default",
    "linear",
    "yarn",
    "x",
    "é",
)


@attrs.frozen
class Sound:
    """Keys and tensors of a file that the engine runs."""

    keys: dict[str, Raw]
    tensors: tuple[Tensor, ...]

    def written(self) -> bytes:
        return gguf_bytes(self.keys, self.tensors)


def byte_level_model() -> Sound:
    texts = (*byte_letters(), *(merge.replace(" ", "") for merge in MERGES), *MARKERS)
    types = [1] * (len(texts) - len(MARKERS)) + [3] * len(MARKERS)
    return _llama(
        len(texts),
        {
            "tokenizer.ggml.model": text("gpt2"),
            "tokenizer.ggml.pre": text("gpt-2"),
            "tokenizer.ggml.tokens": strings(texts),
            "tokenizer.ggml.token_type": numbers(ValueType.INT32, types),
            "tokenizer.ggml.scores": None,
            "tokenizer.ggml.merges": strings(MERGES),
            "tokenizer.ggml.eos_token_id": u32(len(texts) - 1),
        },
    )


def sentencepiece_model() -> Sound:
    return _llama(260, {})


def unigram_model() -> Sound:
    """T5's tokenizer. Its normaliser is a trie of 256 empty nodes and one replacement."""
    charsmap = [*(1024).to_bytes(4, "little"), *bytes(1024), ord("a"), 0]
    extra = {"tokenizer.ggml.precompiled_charsmap": numbers(ValueType.UINT8, charsmap)}
    return _llama(260, {"tokenizer.ggml.model": text("t5"), **extra})


def wordpiece_model() -> Sound:
    """BERT's tokenizer."""
    texts = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{letter}" for letter in byte_letters()))
    special = {"bos": 2, "eos": 3, "seperator": 3, "unknown": 1, "padding": 0, "mask": 4}
    return _llama(
        len(texts),
        {
            "tokenizer.ggml.model": text("bert"),
            "tokenizer.ggml.tokens": strings(texts),
            "tokenizer.ggml.token_type": numbers(ValueType.INT32, [1] * len(texts)),
            "tokenizer.ggml.scores": None,
            **{f"tokenizer.ggml.{name}_token_id": u32(index) for name, index in special.items()},
        },
    )


def sound_models() -> tuple[Sound, ...]:
    return byte_level_model(), sentencepiece_model(), unigram_model(), wordpiece_model()


def _llama(n_tokens: int, overrides: dict[str, Raw | None]) -> Sound:
    sizes = {
        "llama.context_length": u32(256),
        "llama.embedding_length": u32(_WIDTH),
        "llama.block_count": u32(1),
        "llama.feed_forward_length": u32(64),
        "llama.rope.dimension_count": u32(_WIDTH // 4),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
    }
    shapes = {
        "token_embd": (_WIDTH, n_tokens),
        "output_norm": (_WIDTH,),
        "blk.0.attn_norm": (_WIDTH,),
        "blk.0.attn_q": (_WIDTH, _WIDTH),
        "blk.0.attn_k": (_WIDTH, _WIDTH // 2),
        "blk.0.attn_v": (_WIDTH, _WIDTH // 2),
        "blk.0.attn_output": (_WIDTH, _WIDTH),
        "blk.0.ffn_norm": (_WIDTH,),
        "blk.0.ffn_gate": (_WIDTH, 64),
        "blk.0.ffn_up": (_WIDTH, 64),
        "blk.0.ffn_down": (64, _WIDTH),
    }
    tensors = tuple(Tensor(f"{name}.weight", shape) for name, shape in shapes.items())
    return Sound(model_keys({**sizes, **overrides}), tensors)


def change(chance: random.Random, sound: Sound) -> bytes:
    """The model with one to three statements changed."""
    keys, tensors = dict(sound.keys), list(sound.tensors)
    alignment = 32
    for _ in range(chance.choice((1, 1, 2, 3))):
        kind = chance.randrange(8)
        if kind < 5:
            keys[chance.choice((*keys, *_FURTHER_KEYS))] = _value(chance)
        elif kind == 5:
            keys.pop(chance.choice(tuple(keys)), None)
        elif kind == 6:
            _change_tensor(chance, tensors)
        else:
            alignment = chance.choice((8, 16, 32, 64, 4096))
            keys["general.alignment"] = u32(alignment)
    return gguf_bytes(keys, tensors, alignment=alignment)


def _value(chance: random.Random) -> Raw:
    n_tokens = chance.choice((0, 1, 2, 260, 266))
    makers: tuple[Callable[[], Raw], ...] = (
        lambda: u32(chance.choice(_NUMBERS)),
        lambda: u32(chance.choice(_NUMBERS)),
        lambda: u32(chance.choice(_NUMBERS)),
        lambda: i32(-chance.choice((1, 2, 2**31))),
        lambda: u64(chance.choice(_NUMBERS)),
        lambda: f32(chance.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))),
        lambda: boolean(chance.randrange(2)),
        lambda: text(chance.choice(_WORDS)),
        lambda: strings([chance.choice((*_WORDS, *BYTE_TOKENS)) for _ in range(chance.choice((1, 2, 4)))]),
        lambda: strings([*BYTE_TOKENS, "a", "b", "", "c d"]),
        lambda: numbers(ValueType.INT32, [chance.choice((0, 1, 3, 6, 7))] * n_tokens),
        lambda: numbers(ValueType.UINT32, [chance.choice(_NUMBERS)] * chance.choice((1, 2))),
        lambda: numbers(ValueType.FLOAT32, [chance.choice((0.0, float("nan")))] * n_tokens),
        lambda: numbers(ValueType.UINT8, [chance.choice((0, 1, 255))] * chance.choice((1, 4, 9))),
        lambda: numbers(ValueType.BOOL, [1] * chance.choice((1, 2))),
    )
    return chance.choice(makers)()


def _change_tensor(chance: random.Random, tensors: list[Tensor]) -> None:
    index = chance.randrange(len(tensors))
    tensor = tensors[index]
    match chance.randrange(5):
        case 0:
            tensors[index] = attrs.evolve(tensor, dimensions=tensor.dimensions[::-1])
        case 1:
            tensors[index] = attrs.evolve(tensor, type_number=chance.choice((1, 2, 8, 24, 26, 28, 30, 39)))
        case 2:
            del tensors[index]
        case 3:
            tensors[index] = attrs.evolve(tensor, dimensions=(*tensor.dimensions, 1)[:4])
        case _:
            tensors[index] = attrs.evolve(tensor, name=f"blk.{chance.choice((0, 1, 9))}.attn_q.bias")


_FURTHER_KEYS = (
    "general.type", "split.count", "split.no", "split.tensors.count", "general.quantization_version",
    "llama.vocab_size", "llama.expert_count", "llama.expert_used_count", "llama.expert_group_count",
    "llama.expert_group_used_count", "llama.nextn_predict_layers", "llama.rope.scaling.type",
    "llama.rope.scaling.factor", "llama.rope.freq_base", "llama.attention.key_length",
    "llama.attention.value_length", "llama.attention.key_length_swa", "llama.attention.sliding_window",
    "llama.attention.causal", "llama.pooling_type", "llama.attention.scale", "llama.embedding_length_out",
    "llama.rope.scaling.original_context_length", "llama.rope.dimension_count_swa",
    "tokenizer.ggml.bos_token_id", "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token",
    "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.precompiled_charsmap",
    "tokenizer.ggml.token_type_count", "tokenizer.ggml.suppress_tokens",
    "tokenizer.ggml.remove_extra_whitespaces", "llama.rope.scaling.attn_factor", "llama.logit_scale",
    "llama.attention.layer_norm_epsilon", "llama.leading_dense_block_count", "llama.residual_scale",
)  # fmt: skip
