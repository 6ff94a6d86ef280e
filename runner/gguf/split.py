"""A model in several files: the parts as llama.cpp's splitting tool writes them, read and checked as one.

The first part has all metadata; each tells its number, how many there are, and how many tensors all have
together. Which files are the parts, and in which order, is said by whoever has them (G04): the names that a
file would give are never looked at. Checked here is what the engine would stop the process for.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from typing import BinaryIO, Final

import attrs

from runner.errors import InvalidModelFile
from runner.gguf.format import LIMITS, HeaderLimits
from runner.gguf.metadata import GgufMetadata
from runner.gguf.reader import GgufHeader, TensorInfo, read_header

PARTS_MAX: Final = 512
"""The largest models that are shared have about 150 parts."""

_FURTHER_HEADER_BYTES: Final = 4 << 20  # 16,384 tensors take 2 MB
_FURTHER_KEYS: Final = 256
_FURTHER_TEXT_BYTES: Final = 64 << 10
_FURTHER_ELEMENTS: Final = 4096

NUMBER_KEY: Final = "split.no"
COUNT_KEY: Final = "split.count"
TENSORS_KEY: Final = "split.tensors.count"

_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.IGNORECASE)


@attrs.frozen
class PartName:
    """A file name that says which part of a split model it is: `big-00002-of-00005.gguf`. `number` starts
    at 1."""

    prefix: str
    number: int
    count: int

    @classmethod
    def parse(cls, name: str) -> PartName | None:
        """None for a name that says no such thing."""
        found = _NAME.fullmatch(name)
        if found is None or not 1 <= int(found["number"]) <= int(found["count"]):
            return None
        return cls(found["prefix"], int(found["number"]), int(found["count"]))

    def names(self) -> tuple[str, ...]:
        """The names of all parts, in order."""
        return tuple(f"{self.prefix}-{n:05}-of-{self.count:05}.gguf" for n in range(1, self.count + 1))


def read_parts(
    sources: Iterable[tuple[BinaryIO, int]], n_parts: int, limits: HeaderLimits = LIMITS
) -> GgufMetadata:
    """What the `n_parts` files of one model say together; one file is a model that was not split.

    `sources` give each file, open for reading, and its size in bytes; one is looked at after the other. A
    generator is closed whatever comes of it, and with it the file that it holds open.
    Raises InvalidModelFile, and OSError when a file cannot be read.
    """
    if n_parts > PARTS_MAX:
        raise InvalidModelFile(f"the model has {n_parts} parts; the limit is {PARTS_MAX}")
    headers = (
        read_header(file, size_bytes, limits if index == 0 else _limits_of_further(limits))
        for index, (file, size_bytes) in enumerate(sources)
    )
    try:
        return GgufMetadata.from_header(join(headers, n_parts, limits))
    finally:
        if isinstance(sources, Generator):
            sources.close()


def _limits_of_further(limits: HeaderLimits) -> HeaderLimits:
    """Further parts have tensors and a few numbers. With room for a vocabulary in each, reading the headers
    of 512 parts could take 512 times as long as that of a whole model (G01)."""
    return attrs.evolve(
        limits,
        header_bytes=min(limits.header_bytes, _FURTHER_HEADER_BYTES),
        keys=min(limits.keys, _FURTHER_KEYS),
        text_bytes=min(limits.text_bytes, _FURTHER_TEXT_BYTES),
        array_elements=min(limits.array_elements, _FURTHER_ELEMENTS),
        string_elements=min(limits.string_elements, _FURTHER_ELEMENTS),
    )


def join(headers: Iterable[GgufHeader], n_parts: int, limits: HeaderLimits = LIMITS) -> GgufHeader:
    """One header with the metadata of the first part and the tensors of all. Raises InvalidModelFile unless

    1. every part says that there are so many, and is the one that its place says;
    2. no tensor occurs twice, and there are as many as announced, within the limit for one file.
    """
    parts = iter(headers)
    first = next(parts)
    if n_parts == 1:
        _check_single(first)
        return first
    _check_place(first, 0, n_parts)
    tensors, names, file_bytes = list(first.tensors), {each.name for each in first.tensors}, first.file_bytes
    for index, part in enumerate(parts, start=1):
        _check_place(part, index, n_parts)  # 1
        _add(part.tensors, tensors, names, limits)
        file_bytes += part.file_bytes
    announced = first.metadata.get(TENSORS_KEY)
    if announced != len(tensors):  # 2
        raise InvalidModelFile(f"the parts hold {len(tensors)} tensors and {announced} are announced")
    return attrs.evolve(first, tensors=tuple(tensors), file_bytes=file_bytes)


def _add(
    more: tuple[TensorInfo, ...], tensors: list[TensorInfo], names: set[str], limits: HeaderLimits
) -> None:
    if len(tensors) + len(more) > limits.tensors:
        raise InvalidModelFile(f"the parts hold more than {limits.tensors} tensors")
    for tensor in more:
        if tensor.name in names:
            raise InvalidModelFile(f"tensor {tensor.name} occurs in two parts")
        names.add(tensor.name)
        tensors.append(tensor)


def _check_single(header: GgufHeader) -> None:
    count = header.metadata.get(COUNT_KEY, 1)
    if count not in (0, 1):
        raise InvalidModelFile(f"the file is one part of {count}, and the others are missing")


def _check_place(header: GgufHeader, index: int, n_parts: int) -> None:
    number, count = header.metadata.get(NUMBER_KEY), header.metadata.get(COUNT_KEY)
    if count != n_parts:
        said = "is no part of a split model" if count is None else f"says that there are {count} parts"
        raise InvalidModelFile(f"part {index + 1} of {n_parts} {said}")
    if number != index:
        said = "does not say which it is" if number is None else f"is number {number} of the split, from 0"
        raise InvalidModelFile(f"part {index + 1} of {n_parts} {said}")
