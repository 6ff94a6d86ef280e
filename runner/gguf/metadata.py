"""What a header says about a model: a typed view whose numbers have been checked.

`GgufMetadata.from_header` is the door through which a file becomes a model: it has checked what the engine
trusts, layers and heads by `architecture.py` and the tokenizer by `vocabulary.py`, so a header whose metadata
could be built is fit to be loaded. Names and sizes are written as model configs carry them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import BinaryIO, Self

import attrs

from runner.errors import InvalidModelFile
from runner.gguf.architecture import (
    CONTEXT_MAX,
    WINDOW_MAX,
    Attention,
    Fields,
    check_architecture,
    check_tensor_types,
)
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
F16_BYTES = 2
TEXT_ARRAY_MAX = 50
"""Longer arrays are left out of the text map: they are the tokenizer."""
TEXT_MAP_MAX = 1024**2
"""Characters of the text map without its keys. No model config may be larger (S03)."""

COUNT_UNITS = (("Q", 1000**5), ("T", 1000**4), ("B", 1000**3), ("M", 1000**2), ("K", 1000), ("", 1))
SIZE_UNITS = (
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

    `is_language_model` is False for projectors alone, which have no layers and cannot be loaded by
    themselves; `kind` is what the file calls itself (`general.type`, "model" by default). `parameters`
    ("134.52M") and `size` ("92.10MiB") are written as in model configs; `quantization` is the long file-type
    name ("MOSTLY_Q4_1") or "Unknown". Head counts are per layer; `key_length` and `value_length` are elements
    of one head. Numbers that a file need not tell are None. `text_map` holds every key but long arrays, as
    text; nothing here keeps the header itself alive.
    """

    architecture: str
    is_language_model: bool
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
        fields = Fields(header.metadata)
        attention = Attention.read(fields)
        check_architecture(fields, attention.n_layers or 0)
        if fields.is_language_model:
            check_tensor_types(header.tensors)
        n_tokens = check_vocabulary(header.metadata)
        declared_vocabulary = fields.number("vocab_size", 0, TOKENS_MAX)
        n_parameters = sum(tensor.n_elements for tensor in header.tensors)
        tensor_bytes = sum(tensor.size_bytes for tensor in header.tensors)
        return cls(
            architecture=fields.architecture,
            is_language_model=fields.is_language_model,
            name=fields.text("general.name"),
            kind=fields.text("general.type") or "model",
            parameters=scaled(n_parameters, COUNT_UNITS),
            n_parameters=n_parameters,
            quantization=_quantization(header),
            size=scaled(tensor_bytes, SIZE_UNITS),
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


def scaled(value: int, units: tuple[tuple[str, int], ...]) -> str:
    """`134.52M`: the first unit that is not larger than the value, two decimals, `.00` dropped."""
    unit, base = next(((unit, base) for unit, base in units if base <= value), units[-1])
    return f"{value / base:.2f}".removesuffix(".00") + unit


def _text_map(values: Mapping[str, MetadataValue]) -> dict[str, str]:
    """Every key but long arrays. Raises InvalidModelFile before the text gets too long, since a few numbers
    with hundreds of digits, or letters that take four bytes, make more of it than the file has."""
    texts: dict[str, str] = {}
    left = TEXT_MAP_MAX
    for key, value in values.items():
        if isinstance(value, GgufArray):
            if value.count > TEXT_ARRAY_MAX:
                continue
            text = _array_text(value) if value.size_bytes <= left else None
        else:
            text = _text(value)
        if text is None or len(text) > left:
            raise InvalidModelFile(f"the metadata has more than {TEXT_MAP_MAX} characters")
        texts[key] = text
        left -= len(text)
    return texts


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
