"""GGUF files for tests, byte by byte, so that every wrong one can be written too.

    gguf_bytes(model_keys(), [Tensor("token_embd.weight", (64, 256))])

Values are made by `u32(5)`, `text("llama")`, `strings([...])` and so on. `write_with_gguf` writes through
the `gguf` package instead, so that reader and raw builder are both held against somebody else's idea of the
format.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs
import gguf
import numpy as np

from runner.gguf.format import SCALAR_CODES, TENSOR_TYPES, ValueType


@attrs.frozen
class Raw:
    """A value as it stands in a file: its type number and its bytes."""

    type_number: int
    payload: bytes


Keys = Mapping[str, Raw] | Sequence[tuple[str | bytes, Raw]]


def sized(content: str | bytes, *, length: int | None = None) -> bytes:
    """A string; `length` lies about it."""
    raw = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def scalar(value_type: ValueType, value: float) -> Raw:
    return Raw(value_type, struct.pack(f"<{SCALAR_CODES[value_type]}", value))


def u32(value: int) -> Raw:
    return scalar(ValueType.UINT32, value)


def u64(value: int) -> Raw:
    return scalar(ValueType.UINT64, value)


def i32(value: int) -> Raw:
    return scalar(ValueType.INT32, value)


def f32(value: float) -> Raw:
    return scalar(ValueType.FLOAT32, value)


def boolean(value: int) -> Raw:
    return scalar(ValueType.BOOL, value)


def text(content: str | bytes, *, length: int | None = None) -> Raw:
    return Raw(ValueType.STRING, sized(content, length=length))


def numbers(element_type: ValueType, values: Sequence[float], *, count: int | None = None) -> Raw:
    """An array of numbers; `count` lies about their number."""
    payload = struct.pack(f"<{len(values)}{SCALAR_CODES[element_type]}", *values)
    return array_of(element_type, len(values) if count is None else count, payload)


def strings(values: Iterable[str | bytes], *, count: int | None = None) -> Raw:
    """An array of strings; `count` lies about their number."""
    parts = [sized(value) for value in values]
    return array_of(ValueType.STRING, len(parts) if count is None else count, b"".join(parts))


def array_of(element_type: int, count: int, payload: bytes) -> Raw:
    return Raw(ValueType.ARRAY, struct.pack("<IQ", element_type, count) + payload)


@attrs.frozen
class Tensor:
    """One tensor; `offset` None places it behind the one before it, `type_number` may be unknown."""

    name: str | bytes = "token_embd.weight"
    dimensions: tuple[int, ...] = (32, 4)
    type_number: int = 0
    offset: int | None = None

    @property
    def size_bytes(self) -> int:
        kind = TENSOR_TYPES[self.type_number]
        return math.prod(self.dimensions) // kind.block_elements * kind.block_bytes

    def info(self, offset: int) -> bytes:
        n_dimensions = len(self.dimensions)
        shape = struct.pack(f"<I{n_dimensions}Q", n_dimensions, *self.dimensions)
        return sized(self.name) + shape + struct.pack("<IQ", self.type_number, offset)


def gguf_bytes(
    keys: Keys = (),
    tensors: Sequence[Tensor] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
    data_bytes: int | None = None,
) -> bytes:
    """A whole file. `n_keys`, `n_tensors` and `data_bytes` lie; `alignment` pads without declaring it."""
    pairs = list(keys.items()) if isinstance(keys, Mapping) else list(keys)
    parts = [
        magic,
        struct.pack("<I", version),
        struct.pack("<Q", len(tensors) if n_tensors is None else n_tensors),
        struct.pack("<Q", len(pairs) if n_keys is None else n_keys),
    ]
    parts += [sized(name) + struct.pack("<I", value.type_number) + value.payload for name, value in pairs]
    end = 0
    for tensor in tensors:
        offset = end if tensor.offset is None else tensor.offset
        parts.append(tensor.info(offset))
        if tensor.type_number in TENSOR_TYPES:
            end = -(-(offset + tensor.size_bytes) // alignment) * alignment
    header = b"".join(parts)
    if not tensors:
        return header
    padding = -len(header) % alignment
    return header + bytes(padding + (end if data_bytes is None else data_bytes))


BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""What every SentencePiece vocabulary has."""


def model_keys(overrides: Mapping[str, Raw | None] | None = None) -> dict[str, Raw]:
    """Metadata of a sound little language model; None in `overrides` takes a key out."""
    tokens = ("<unk>", "<s>", "</s>", *BYTE_TOKENS, "▁the")
    types = (2, 3, 3, *[6] * 256, 1)
    keys: dict[str, Raw | None] = {
        "general.architecture": text("llama"),
        "general.name": text("Little"),
        "general.file_type": u32(3),
        "llama.context_length": u32(4096),
        "llama.embedding_length": u32(64),
        "llama.block_count": u32(2),
        "llama.attention.head_count": u32(4),
        "llama.attention.head_count_kv": u32(2),
        "tokenizer.ggml.model": text("llama"),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.scores": numbers(ValueType.FLOAT32, [0.0] * len(tokens)),
        "tokenizer.ggml.token_type": numbers(ValueType.INT32, types),
        "tokenizer.chat_template": text("{{ messages }}"),
        **(overrides or {}),
    }
    return {name: value for name, value in keys.items() if value is not None}


def write_with_gguf(
    path: Path,
    keys: Mapping[str, int | float | bool | str | Sequence[object]],
    tensors: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """The same through the `gguf` package. `general.architecture` must be among `keys`."""
    writer = gguf.GGUFWriter(path, str(keys["general.architecture"]))
    for name, value in keys.items():
        if name != "general.architecture":
            _add(writer, name, value)
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, name: str, value: int | float | bool | str | Sequence[object]) -> None:
    match value:
        case bool():
            writer.add_bool(name, value)
        case int():
            writer.add_uint32(name, value)
        case float():
            writer.add_float32(name, value)
        case str():
            writer.add_string(name, value)
        case _:
            writer.add_array(name, value)
