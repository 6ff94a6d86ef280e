"""Our tables against those of the `gguf` package, which others maintain."""

from __future__ import annotations

import struct

import gguf

from runner.gguf.format import (
    FILE_TYPE_NAMES,
    GUESSED_FILE_TYPES,
    LIMITS,
    SCALAR_CODES,
    TENSOR_TYPES,
    HeaderLimits,
    ValueType,
)

_BETWEEN_OPERATIONS = {9: "Q8_1", 15: "Q8_K"}
_NEWER_THAN_THE_PACKAGE = {42: "Q2_0"}
_NEWER_FILE_TYPES = {41: "MOSTLY_Q2_0"}


def test_tensor_types_have_the_names_and_block_sizes_of_the_gguf_package() -> None:
    theirs = {
        int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind])
        for kind in gguf.GGMLQuantizationType
        if int(kind) not in _BETWEEN_OPERATIONS
    }
    ours = {
        number: (kind.name, kind.block_elements, kind.block_bytes)
        for number, kind in TENSOR_TYPES.items()
        if number not in _NEWER_THAN_THE_PACKAGE
    }
    assert ours == theirs


def test_file_types_have_the_names_of_the_gguf_package_but_two_that_model_configs_write_otherwise() -> None:
    theirs = {int(kind): kind.name for kind in gguf.LlamaFileType if kind is not gguf.LlamaFileType.GUESSED}
    otherwise = {0: "MOSTLY_F32", 38: "MOSTLY_MXFP4"}
    assert {**theirs, **_NEWER_FILE_TYPES, **otherwise} == FILE_TYPE_NAMES


def test_value_types_have_the_numbers_of_the_gguf_package() -> None:
    assert {kind.name: int(kind) for kind in ValueType} == {
        kind.name: int(kind) for kind in gguf.GGUFValueType
    }


def test_scalars_have_the_sizes_their_names_say() -> None:
    sizes = {kind: struct.calcsize(f"<{code}") for kind, code in SCALAR_CODES.items()}
    assert sizes.pop(ValueType.BOOL) == 1
    assert all(kind.name.endswith(str(8 * size)) for kind, size in sizes.items())


def test_guesses_name_file_types_that_exist() -> None:
    assert set(GUESSED_FILE_TYPES.values()) <= set(FILE_TYPE_NAMES.values())


def test_default_limits_are_the_documented_ones() -> None:
    assert HeaderLimits() == LIMITS
    assert LIMITS.header_bytes <= 64 * 1024**2
