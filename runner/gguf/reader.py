"""A GGUF header from untrusted bytes: a value, or `InvalidModelFile`, in bounded time and memory.

Owns the structure only: counts, lengths, types, names, where tensors lie. What the keys mean is
`metadata.py`, what a tokenizer must look like is `vocabulary.py`; constants and limits are in `format.py`.

No count is believed. Before memory is taken or a loop starts, a number is compared with its limit and with
the bytes that are really left; there is no recursion (nested arrays are refused); strings of arrays are
stepped over and stay undecoded in the one buffer that holds the header. The rules follow ggml/src/gguf.cpp,
so that a file that passes here is read by the engine the same way: tensors lie back to back, in order.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import sys
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import attrs

from runner.errors import InvalidModelFile
from runner.gguf.format import (
    ALIGNMENT_LEAST,
    DEFAULT_ALIGNMENT,
    DIMENSIONS_MAX,
    ELEMENTS_MAX,
    LIMITS,
    MAGIC,
    SCALAR_CODES,
    TENSOR_NAME_BYTES_MAX,
    TENSOR_TYPES,
    VERSIONS,
    HeaderLimits,
    TensorType,
    ValueType,
)

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_READ_BYTES = 1024**2
_NAME = re.compile(rb"[\x21-\x7e]+")  # the engine takes names for C strings, and people see them on terminals
_KEY_BYTES_LEAST = 8 + 1 + 4 + 1
_TENSOR_BYTES_LEAST = 8 + 1 + 4 + 4 + 8
_ALIGNMENT_KEY = "general.alignment"
_TYPED_KEYS = {
    _ALIGNMENT_KEY: (ValueType.UINT32, "32-bit unsigned"),
    "split.no": (ValueType.UINT16, "16-bit unsigned"),
    "split.count": (ValueType.UINT16, "16-bit unsigned"),
    "split.tensors.count": (ValueType.INT32, "32-bit signed"),
}
"""Keys that the engine reads as this type without asking, and aborts when they are of another."""


@attrs.frozen(kw_only=True, eq=False, repr=False)
class GgufArray:
    """An array of the header, decoded when asked. Keeps the header's buffer alive."""

    element_type: ValueType
    count: int
    _buffer: bytearray
    _start: int
    _end: int

    @property
    def is_text(self) -> bool:
        return self.element_type is ValueType.STRING

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements in the file."""
        return self._end - self._start

    def numbers(self) -> array[Any]:
        """All elements as a typed array; booleans are 0 and 1. ValueError for an array of strings."""
        values = array(_scalar_code(self.element_type))
        values.frombytes(memoryview(self._buffer)[self._start : self._end])
        if sys.byteorder == "big":
            values.byteswap()
        return values

    def strings(self) -> Iterator[bytes]:
        """The elements as they stand in the file. ValueError for an array of numbers."""
        if not self.is_text:
            raise ValueError("an array of numbers has no strings")
        buffer, position, unpack = self._buffer, self._start, _U64.unpack_from
        for _ in range(self.count):
            (length,) = unpack(buffer, position)
            position += 8 + length
            yield bytes(buffer[position - length : position])

    def __repr__(self) -> str:
        return f"<GgufArray of {self.count} {self.element_type.name.lower()}>"


MetadataValue = int | float | bool | str | GgufArray


@attrs.frozen(kw_only=True)
class TensorInfo:
    """One tensor. `dimensions` are elements, fastest-running first; `offset` counts from `data_offset`."""

    name: str
    dimensions: tuple[int, ...]
    type: TensorType
    n_elements: int
    size_bytes: int
    offset: int


@attrs.frozen(kw_only=True, eq=False)
class GgufHeader:
    """A header that is sound in itself. `file_bytes` is the size of the file it was checked against."""

    version: int
    alignment: int
    metadata: Mapping[str, MetadataValue]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    file_bytes: int


def read_header(
    source: BinaryIO | str | os.PathLike[str], size_bytes: int | None = None, limits: HeaderLimits = LIMITS
) -> GgufHeader:
    """The header of a file, which is read from its beginning.

    `size_bytes` is the size of the whole file, measured when it is None. Raises InvalidModelFile for anything
    that is wrong with the content, and nothing else but the OSError of a file that cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        with Path(source).open("rb", buffering=0) as file:
            return read_header(file, size_bytes, limits)
    if size_bytes is None:
        size_bytes = source.seek(0, io.SEEK_END)
    source.seek(0)
    return _HeaderReader(_Window(source, size_bytes, limits.header_bytes), limits).read()


class _Window:
    """The bytes of the header read so far. `buffer` grows by reading on, never beyond file or limit."""

    def __init__(self, file: BinaryIO, size_bytes: int, limit_bytes: int) -> None:
        self.buffer = bytearray()
        self.position = 0
        self.size_bytes = size_bytes
        self._file = file
        self._limit_bytes = limit_bytes

    @property
    def left_bytes(self) -> int:
        """How much more there is, in the file and within the limit."""
        return min(self.size_bytes, self._limit_bytes) - self.position

    def take(self, n_bytes: int) -> int:
        """Step over the next bytes and return where they begin in `buffer`."""
        start = self.position
        if start + n_bytes > len(self.buffer):
            self.fill(start + n_bytes)
        self.position = start + n_bytes
        return start

    def fill(self, end: int) -> None:
        """Read on until `buffer` holds `end` bytes."""
        if end > self.size_bytes:
            raise InvalidModelFile("the file ends within its header")
        if end > self._limit_bytes:
            raise InvalidModelFile(f"the header is larger than {self._limit_bytes} bytes")
        most = min(self.size_bytes, self._limit_bytes)
        while (have := len(self.buffer)) < end:
            chunk = self._file.read(min(max(end - have, _READ_BYTES), most - have))
            if not chunk:
                raise InvalidModelFile("the file is shorter than it claims")
            self.buffer += chunk

    def u32(self) -> int:
        value: int = _U32.unpack_from(self.buffer, self.take(4))[0]
        return value

    def u64(self) -> int:
        value: int = _U64.unpack_from(self.buffer, self.take(8))[0]
        return value


class _HeaderReader:
    """Reads a header once, front to back."""

    def __init__(self, window: _Window, limits: HeaderLimits) -> None:
        self._window = window
        self._limits = limits
        self._strings_left = limits.string_elements
        self._text_left_bytes = limits.text_bytes

    def read(self) -> GgufHeader:
        version = self._read_version()
        n_tensors = self._read_count("tensors", self._limits.tensors, _TENSOR_BYTES_LEAST)
        n_keys = self._read_count("keys", self._limits.keys, _KEY_BYTES_LEAST)
        metadata = self._read_metadata(n_keys)
        alignment = _checked_alignment(metadata)
        tensors = self._read_tensors(n_tensors)
        data_offset = _round_up(self._window.position, alignment) if tensors else self._window.position
        _check_placement(tensors, alignment, data_offset, self._window.size_bytes)
        return GgufHeader(
            version=version,
            alignment=alignment,
            metadata=MappingProxyType(metadata),
            tensors=tuple(tensors),
            data_offset=data_offset,
            file_bytes=self._window.size_bytes,
        )

    def _read_version(self) -> int:
        if self._window.size_bytes < len(MAGIC) or self._read_bytes(len(MAGIC)) != MAGIC:
            raise InvalidModelFile("this is not a GGUF file")
        version = self._window.u32()
        if version not in VERSIONS:
            hint = " (big-endian files are not supported)" if version and not version & 0xFFFF else ""
            raise InvalidModelFile(f"GGUF version {version} is not supported{hint}")
        return version

    def _read_count(self, what: str, limit: int, bytes_least: int) -> int:
        count = self._window.u64()
        if count > limit:
            raise InvalidModelFile(f"the file announces {count} {what}; the limit is {limit}")
        if count * bytes_least > self._window.left_bytes:
            raise InvalidModelFile(f"the file announces {count} {what} and is too short for them")
        return count

    def _read_metadata(self, n_keys: int) -> dict[str, MetadataValue]:
        metadata: dict[str, MetadataValue] = {}
        for _ in range(n_keys):
            key = self._read_name("key", self._limits.key_bytes)
            if key in metadata:
                raise InvalidModelFile(f"key {key} occurs twice")
            value_type = _value_type(self._window.u32(), key)
            wanted, in_words = _TYPED_KEYS.get(key, (value_type, ""))
            if value_type is not wanted:
                raise InvalidModelFile(f"{key} is not a {in_words} number")
            metadata[key] = self._read_value(key, value_type)
        return metadata

    def _read_value(self, key: str, value_type: ValueType) -> MetadataValue:
        if value_type is ValueType.ARRAY:
            return self._read_array(key)
        if value_type is ValueType.STRING:
            return self._read_text(key)
        code = _scalar_code(value_type)
        start = self._window.take(struct.calcsize(f"<{code}"))
        value: int | float = struct.unpack_from(f"<{code}", self._window.buffer, start)[0]
        if value_type is ValueType.BOOL:
            if value not in (0, 1):
                raise InvalidModelFile(f"{key} is a truth value with the byte {value}")
            return bool(value)
        return value

    def _read_text(self, key: str) -> str:
        length = self._window.u64()
        if length > self._limits.string_bytes:
            raise InvalidModelFile(f"{key} has {length} bytes; the limit is {self._limits.string_bytes}")
        if length > self._text_left_bytes:
            raise InvalidModelFile(f"the header has more than {self._limits.text_bytes} bytes of text")
        self._text_left_bytes -= length
        try:
            return self._read_bytes(length).decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidModelFile(f"{key} is not valid UTF-8") from None

    def _read_array(self, key: str) -> GgufArray:
        element_type = _value_type(self._window.u32(), key)
        count = self._window.u64()
        if element_type is ValueType.ARRAY:
            raise InvalidModelFile(f"{key} is an array of arrays")
        start = self._window.position
        if element_type is ValueType.STRING:
            self._step_over_strings(key, count)
        else:
            self._step_over_numbers(key, element_type, count)
        return GgufArray(
            element_type=element_type,
            count=count,
            buffer=self._window.buffer,
            start=start,
            end=self._window.position,
        )

    def _step_over_numbers(self, key: str, element_type: ValueType, count: int) -> None:
        if count > self._limits.array_elements:
            raise InvalidModelFile(f"{key} has {count} elements; the limit is {self._limits.array_elements}")
        n_bytes = count * struct.calcsize(f"<{_scalar_code(element_type)}")
        start = self._window.take(n_bytes)
        if element_type is ValueType.BOOL and self._window.buffer[start : start + n_bytes].strip(b"\0\1"):
            raise InvalidModelFile(f"{key} holds truth values other than 0 and 1")

    def _step_over_strings(self, key: str, count: int) -> None:
        """One step per string. Written out flat, since vocabularies have hundreds of thousands."""
        if count > self._strings_left:
            raise InvalidModelFile(
                f"{key} has {count} strings; the limit is {self._limits.string_elements} in one file"
            )
        if count * 8 > self._window.left_bytes:
            raise InvalidModelFile(f"{key} announces {count} strings and the file is too short for them")
        self._strings_left -= count
        window, buffer, unpack = self._window, self._window.buffer, _U64.unpack_from
        longest, position = self._limits.string_bytes, self._window.position
        for _ in range(count):
            if position + 8 > len(buffer):
                window.fill(position + 8)
            (length,) = unpack(buffer, position)
            if length > longest:
                raise InvalidModelFile(f"{key} has a string of {length} bytes; the limit is {longest}")
            position += 8 + length
        if position > len(buffer):
            window.fill(position)
        window.position = position

    def _read_tensors(self, n_tensors: int) -> list[TensorInfo]:
        tensors = [self._read_tensor() for _ in range(n_tensors)]
        names: set[str] = set()
        for tensor in tensors:
            if tensor.name in names:
                raise InvalidModelFile(f"tensor {tensor.name} occurs twice")
            names.add(tensor.name)
        return tensors

    def _read_tensor(self) -> TensorInfo:
        name = self._read_name("tensor name", TENSOR_NAME_BYTES_MAX)
        n_dimensions = self._window.u32()
        if n_dimensions > DIMENSIONS_MAX:
            raise InvalidModelFile(
                f"tensor {name} has {n_dimensions} dimensions; at most {DIMENSIONS_MAX} are possible"
            )
        dimensions = tuple(self._window.u64() for _ in range(n_dimensions))
        type_number = self._window.u32()
        offset = self._window.u64()
        return _checked_tensor(name, dimensions, type_number, offset)

    def _read_name(self, what: str, longest: int) -> str:
        length = self._window.u64()
        if not 1 <= length <= longest:
            raise InvalidModelFile(f"a {what} has {length} bytes; 1 to {longest} are possible")
        raw = self._read_bytes(length)
        if _NAME.fullmatch(raw) is None:
            raise InvalidModelFile(f"a {what} holds other characters than printable ASCII: {raw[:80]!r}")
        return raw.decode("ascii")

    def _read_bytes(self, n_bytes: int) -> bytes:
        start = self._window.take(n_bytes)
        return bytes(self._window.buffer[start : start + n_bytes])


def _value_type(number: int, key: str) -> ValueType:
    try:
        return ValueType(number)
    except ValueError:
        raise InvalidModelFile(f"{key} has the unknown value type {number}") from None


def _scalar_code(value_type: ValueType) -> str:
    """Format character of a type of fixed size; ValueError for strings and arrays."""
    code = SCALAR_CODES.get(value_type)
    if code is None:
        raise ValueError(f"{value_type.name} has no fixed size")
    return code


def _checked_alignment(metadata: Mapping[str, MetadataValue]) -> int:
    alignment = metadata.get(_ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < ALIGNMENT_LEAST or alignment & (alignment - 1):
        raise InvalidModelFile(
            f"{_ALIGNMENT_KEY} is {alignment}; it must be a power of two and at least {ALIGNMENT_LEAST}"
        )
    return alignment


def _checked_tensor(name: str, dimensions: tuple[int, ...], type_number: int, offset: int) -> TensorInfo:
    tensor_type = TENSOR_TYPES.get(type_number)
    if tensor_type is None:
        raise InvalidModelFile(f"tensor {name} has the unknown type {type_number}")
    if not all(dimensions):
        raise InvalidModelFile(f"tensor {name} has an empty dimension")
    n_elements = math.prod(dimensions)
    if n_elements > ELEMENTS_MAX:
        raise InvalidModelFile(f"tensor {name} has more elements than can be counted")
    row = dimensions[0] if dimensions else 1
    if row % tensor_type.block_elements:
        raise InvalidModelFile(
            f"tensor {name} has rows of {row} elements, which are no whole {tensor_type.name} blocks"
        )
    return TensorInfo(
        name=name,
        dimensions=dimensions,
        type=tensor_type,
        n_elements=n_elements,
        size_bytes=n_elements // tensor_type.block_elements * tensor_type.block_bytes,
        offset=offset,
    )


def _check_placement(tensors: list[TensorInfo], alignment: int, data_offset: int, file_bytes: int) -> None:
    """Each tensor begins at the aligned end of the one before it, and ends within the file."""
    expected = 0
    for tensor in tensors:
        if tensor.offset % alignment:
            raise InvalidModelFile(f"tensor {tensor.name} is not aligned to {alignment} bytes")
        if tensor.offset < expected:
            raise InvalidModelFile(f"tensor {tensor.name} overlaps the tensor before it")
        if tensor.offset > expected:
            raise InvalidModelFile(f"tensor {tensor.name} leaves a gap behind the tensor before it")
        end = tensor.offset + tensor.size_bytes
        if data_offset + end > file_bytes:
            raise InvalidModelFile(f"tensor {tensor.name} lies outside of the file")
        expected = _round_up(end, alignment)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
