"""What a header says about a model: a typed view whose numbers have been checked.

`GgufMetadata.from_header` is the door through which a file becomes a model: it checks what the engine trusts
(THREATS G03: tokenizer lists here through `vocabulary.py`; layers, heads, context by `_Fields` below), so a
header whose metadata could be built is fit to be loaded. Names and sizes are written as model configs carry
them (spec/oci-artifact.md, section 3).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import BinaryIO, Self

import attrs

from runner.errors import InvalidModelFile
from runner.gguf.format import (
    FILE_TYPE_NAMES,
    GUESSED_FILE_TYPES,
    LIMITS,
    HeaderLimits,
    TensorType,
    ValueType,
)
from runner.gguf.reader import GgufArray, GgufHeader, MetadataValue, TensorInfo, read_header
from runner.gguf.vocabulary import MODEL_KEY, TOKENS_MAX, check_vocabulary

UNKNOWN = "Unknown"
TEXT_ARRAY_MAX = 50
"""Longer arrays are left out of the text map: they are the tokenizer."""

LAYERS_MAX = 512  # LLAMA_MAX_LAYERS; the engine aborts above it
EXPERTS_MAX = 1024  # LLAMA_MAX_EXPERTS; the same
CONTEXT_MAX = 2**27  # the largest known model was trained on 10,485,760 tokens
EMBEDDING_MAX = 2**20
HEADS_MAX = 2**16
HEAD_LENGTH_MAX = 2**16
WINDOW_MAX = 2**31 - 1
F16_BYTES = 2

_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PROJECTOR = "clip"  # carries keys of its own kind, and no layers or tokenizer of a language model
_COUNT_UNITS = (("Q", 1000**5), ("T", 1000**4), ("B", 1000**3), ("M", 1000**2), ("K", 1000), ("", 1))
_SIZE_UNITS = (
    ("PiB", 1024**5), ("PB", 1000**5),
    ("TiB", 1024**4), ("TB", 1000**4),
    ("GiB", 1024**3), ("GB", 1000**3),
    ("MiB", 1024**2), ("MB", 1000**2),
    ("KiB", 1024), ("KB", 1000),
    ("B", 1),
)  # fmt: skip


@attrs.frozen(kw_only=True)
class GgufMetadata:
    """A model as its header describes it.

    `parameters` ("134.52M") and `size` ("93.34MiB") are written as in model configs; `quantization` is the
    long file-type name ("MOSTLY_Q4_1") or "Unknown". Head counts are per layer. `key_length` and
    `value_length` are elements per head; `kv_layers` are the layers that keep keys and values of their own.
    Numbers that a file need not tell are None. `text_map` holds every key but long arrays, as text; nothing
    here keeps the header itself alive.
    """

    architecture: str
    name: str | None
    kind: str
    parameters: str
    n_parameters: int
    quantization: str
    size: str
    tensor_bytes: int
    block_count: int | None
    embedding_length: int | None
    context_length: int | None
    head_counts: tuple[int, ...]
    head_counts_kv: tuple[int, ...]
    key_length: int
    value_length: int
    sliding_window: int | None
    vocab_size: int
    tokenizer_model: str | None
    chat_template: str | None
    kv_elements_per_cell: int
    text_map: Mapping[str, str] = attrs.field(repr=False)

    @classmethod
    def from_header(cls, header: GgufHeader) -> Self:
        """Raises InvalidModelFile naming the first key that is missing, of the wrong type or out of range."""
        fields = _Fields(header.metadata)
        attention = _Attention.read(fields)
        n_tokens = check_vocabulary(header.metadata)
        declared_vocabulary = fields.number("vocab_size", 0, TOKENS_MAX)
        n_parameters = sum(tensor.n_elements for tensor in header.tensors)
        tensor_bytes = sum(tensor.size_bytes for tensor in header.tensors)
        return cls(
            architecture=fields.architecture,
            name=fields.text("general.name"),
            kind=fields.text("general.type") or "model",
            parameters=_scaled(n_parameters, _COUNT_UNITS),
            n_parameters=n_parameters,
            quantization=_quantization(header),
            size=_scaled(tensor_bytes, _SIZE_UNITS),
            tensor_bytes=tensor_bytes,
            block_count=attention.n_layers,
            embedding_length=attention.embedding_length,
            context_length=fields.number("context_length", 1, CONTEXT_MAX, required=fields.is_language_model),
            head_counts=attention.heads,
            head_counts_kv=attention.heads_kv,
            key_length=attention.key_length,
            value_length=attention.value_length,
            sliding_window=fields.number("attention.sliding_window", 0, WINDOW_MAX) or None,
            vocab_size=n_tokens or declared_vocabulary or 0,
            tokenizer_model=fields.text(MODEL_KEY),
            chat_template=fields.text("tokenizer.chat_template"),
            kv_elements_per_cell=attention.kv_elements_per_cell(),
            text_map=MappingProxyType(_text_map(header.metadata)),
        )

    def kv_bytes_per_cell(self) -> int:
        """Bytes of keys and values that one token takes over all layers, at f16.

        Layers with a sliding window count in full, as the engine is told to keep them (`swa_full`). What
        recurrent layers keep does not grow with tokens and is not counted, so that purely recurrent models
        have 0. Encoders that keep nothing are counted as if they did.
        """
        return self.kv_elements_per_cell * F16_BYTES

    def as_text_map(self) -> dict[str, str]:
        """The `gguf` map of a model config."""
        return dict(self.text_map)


def read_metadata(
    source: BinaryIO | str | os.PathLike[str], size_bytes: int | None = None, limits: HeaderLimits = LIMITS
) -> GgufMetadata:
    """Header and checks in one call. Raises InvalidModelFile; OSError when the file cannot be read."""
    return GgufMetadata.from_header(read_header(source, size_bytes, limits))


class _Fields:
    """Typed access to keys, with ranges. Names without a known prefix belong to the architecture."""

    def __init__(self, values: Mapping[str, MetadataValue]) -> None:
        self._values = values
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str) or _ARCHITECTURE.fullmatch(architecture) is None:
            raise InvalidModelFile("general.architecture is missing or no plain name")
        self.architecture = architecture
        self.is_language_model = architecture != _PROJECTOR and self.text("general.type") in (None, "model")

    def text(self, key: str) -> str | None:
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            raise InvalidModelFile(f"{key} is no text")
        return value

    def number(self, name: str, low: int, high: int, *, required: bool = False) -> int | None:
        """A whole number of the architecture within [low, high]."""
        key = f"{self.architecture}.{name}"
        value = self._values.get(key)
        if value is None and not required:
            return None
        return _checked_number(key, value, low, high)

    def per_layer(self, name: str, n_layers: int, high: int) -> tuple[int, ...] | None:
        """One number per layer in [0, high]: an array of just that length, or one number for all."""
        key = f"{self.architecture}.{name}"
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, GgufArray):
            return (_checked_number(key, value, 0, high),) * n_layers
        if value.is_text or value.count != n_layers:
            raise InvalidModelFile(f"{key} is no list of {n_layers} numbers, one for each layer")
        return tuple(_checked_number(key, number, 0, high) for number in value.numbers())

    def flags(self, name: str, n_layers: int) -> tuple[bool, ...] | None:
        """One truth value per layer; None when the key is missing or something else."""
        value = self._values.get(f"{self.architecture}.{name}")
        if isinstance(value, GgufArray) and value.element_type is ValueType.BOOL and value.count == n_layers:
            return tuple(bool(flag) for flag in value.numbers())
        return None


@attrs.frozen(kw_only=True)
class _Attention:
    """Layers and heads. `key_length` and `value_length` are elements of one head of full attention."""

    n_layers: int | None
    embedding_length: int | None
    heads: tuple[int, ...]
    heads_kv: tuple[int, ...]
    key_length: int
    value_length: int
    windowed_key_length: int
    windowed_value_length: int
    has_window: tuple[bool, ...]
    keeps_cells: tuple[bool, ...]
    keeps_values: bool

    @classmethod
    def read(cls, fields: _Fields) -> Self:
        required = fields.is_language_model
        declared_layers = fields.number("block_count", 1, LAYERS_MAX, required=required)
        embedding_length = fields.number("embedding_length", 1, EMBEDDING_MAX, required=required)
        n_layers = declared_layers or 0
        heads = fields.per_layer("attention.head_count", n_layers, HEADS_MAX) or (0,) * n_layers
        heads_kv = fields.per_layer("attention.head_count_kv", n_layers, HEADS_MAX) or heads
        _check_heads(heads, heads_kv)
        _check_experts(fields, n_layers)
        default_length = (embedding_length or 0) // (heads[0] if heads and heads[0] else 1)
        if not any(heads):
            default_length = 0
        key_length = _head_length(fields, "attention.key_length", default_length)
        value_length = _head_length(fields, "attention.value_length", default_length)
        return cls(
            n_layers=declared_layers,
            embedding_length=embedding_length,
            heads=heads,
            heads_kv=heads_kv,
            key_length=key_length,
            value_length=value_length,
            windowed_key_length=_head_length(fields, "attention.key_length_swa", key_length),
            windowed_value_length=_head_length(fields, "attention.value_length_swa", value_length),
            has_window=fields.flags("attention.sliding_window_pattern", n_layers) or (),
            keeps_cells=_layers_with_cells(fields, n_layers),
            keeps_values=not _is_latent(fields),
        )

    def kv_elements_per_cell(self) -> int:
        """Elements of keys and values of one token, as `llama_kv_cache` allocates them layer by layer."""
        total = 0
        for layer_index, (heads_kv, keeps) in enumerate(zip(self.heads_kv, self.keeps_cells, strict=True)):
            if keeps:
                key_length, value_length = self._lengths(layer_index)
                total += heads_kv * (key_length + (value_length if self.keeps_values else 0))
        return total

    def _lengths(self, layer_index: int) -> tuple[int, int]:
        """Lengths of a layer; the larger ones when the file does not say which layers have windows."""
        if not self.has_window:
            return (
                max(self.key_length, self.windowed_key_length),
                max(self.value_length, self.windowed_value_length),
            )
        if self.has_window[layer_index]:
            return self.windowed_key_length, self.windowed_value_length
        return self.key_length, self.value_length


def _head_length(fields: _Fields, name: str, default: int) -> int:
    length = fields.number(name, 1, HEAD_LENGTH_MAX)
    return default if length is None else length


def _layers_with_cells(fields: _Fields, n_layers: int) -> tuple[bool, ...]:
    """Which layers keep keys and values.

    1. The last `shared_kv_layers` read those of earlier layers (Gemma 3n, Gemma 4).
    2. With `full_attention_interval` n, every n-th layer attends and the others are recurrent (Qwen3-Next),
       while layers that predict further tokens, behind the others, attend as well.
    """
    shared = fields.number("attention.shared_kv_layers", 0, n_layers) or 0
    interval = fields.number("full_attention_interval", 1, LAYERS_MAX) or 1
    further = fields.number("nextn_predict_layers", 0, n_layers) or 0
    return tuple(
        index < n_layers - shared and ((index + 1) % interval == 0 or index >= n_layers - further)
        for index in range(n_layers)
    )


def _is_latent(fields: _Fields) -> bool:
    """Latent attention (DeepSeek) keeps one compressed vector per token, from which values are computed."""
    lengths = [fields.number(f"attention.{name}_length_mla", 0, HEAD_LENGTH_MAX) for name in ("key", "value")]
    return all(lengths)


def _check_heads(heads: tuple[int, ...], heads_kv: tuple[int, ...]) -> None:
    """Query heads are shared evenly among key-value heads; the engine divides one by the other."""
    for layer_index, (queries, pairs) in enumerate(zip(heads, heads_kv, strict=True)):
        if queries and pairs and queries % pairs:
            raise InvalidModelFile(f"layer {layer_index} has {queries} heads for {pairs} key-value heads")


def _check_experts(fields: _Fields, n_layers: int) -> None:
    experts = fields.number("expert_count", 0, EXPERTS_MAX) or 0
    used = fields.per_layer("expert_used_count", n_layers, EXPERTS_MAX) or ()
    if max(used, default=0) > experts:
        raise InvalidModelFile(f"the model uses {max(used)} experts and has {experts}")


def _checked_number(key: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidModelFile(f"{key} is missing or no whole number")
    if not low <= value <= high:
        raise InvalidModelFile(f"{key} is {value}; {low} to {high} are possible")
    return value


def _quantization(header: GgufHeader) -> str:
    """The name of the declared file type, else a guess from the type that most bytes are stored in."""
    declared = header.metadata.get("general.file_type")
    if declared is None:
        return _guessed_quantization(header.tensors)
    return FILE_TYPE_NAMES.get(declared, UNKNOWN) if isinstance(declared, int) else UNKNOWN


def _guessed_quantization(tensors: tuple[TensorInfo, ...]) -> str:
    bytes_by_type: Counter[TensorType] = Counter()
    for tensor in tensors:
        bytes_by_type[tensor.type] += tensor.size_bytes
    if not bytes_by_type:
        return UNKNOWN
    prevailing = bytes_by_type.most_common(1)[0][0].name
    guess = GUESSED_FILE_TYPES.get(prevailing, f"MOSTLY_{prevailing}")
    return guess if guess in FILE_TYPE_NAMES.values() else UNKNOWN


def _scaled(value: int, units: tuple[tuple[str, int], ...]) -> str:
    """`134.52M`: the first unit that is not larger than the value, two decimals, `.00` dropped."""
    unit, base = next(((unit, base) for unit, base in units if base <= value), units[-1])
    return f"{value / base:.2f}".removesuffix(".00") + unit


def _text_map(values: Mapping[str, MetadataValue]) -> dict[str, str]:
    return {
        key: _array_text(value) if isinstance(value, GgufArray) else _text(value)
        for key, value in values.items()
        if not isinstance(value, GgufArray) or value.count <= TEXT_ARRAY_MAX
    }


def _text(value: str | int | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _array_text(values: GgufArray) -> str:
    if values.is_text:
        return ", ".join(text.decode("utf-8", "replace") for text in values.strings())
    if values.element_type is ValueType.BOOL:
        return ", ".join(_text(bool(flag)) for flag in values.numbers())
    return ", ".join(_text(number) for number in values.numbers())
