"""The GGUF format as constants: value types, tensor types with their block sizes, file types, limits.

Layout of a file (version 2 and 3, little-endian; integers unsigned unless said otherwise):

    "GGUF"  version u32  n_tensors u64  n_keys u64
    n_keys    × key string, value type u32, value
    n_tensors × name string, n_dims u32, dims u64 × n_dims, tensor type u32, offset u64
    padding to the alignment, then the tensors, each padded to the alignment; offsets count from here

A string is its length (u64) and that many bytes; an array is its element type (u32), its count (u64) and the
elements. The numbers are those of ggml/include/gguf.h, ggml/include/ggml.h and include/llama.h of llama.cpp.
"""

from __future__ import annotations

import enum

import attrs

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""Version 1 had 32-bit counts and is refused by the engine as well."""

DEFAULT_ALIGNMENT = 32
ALIGNMENT_LEAST = 32
"""Tensors are used where the file is mapped; ggml aborts when they are less aligned (TENSOR_ALIGNMENT)."""

DIMENSIONS_MAX = 4  # GGML_MAX_DIMS
TENSOR_NAME_BYTES_MAX = 63  # GGML_MAX_NAME is 64 and counts the final NUL
ELEMENTS_MAX = 2**63 - 1  # ggml counts elements in int64


class ValueType(enum.IntEnum):
    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALAR_CODES = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "B",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
"""Format characters of `struct` and `array` for all types of fixed size."""

INTEGER_TYPES = frozenset(SCALAR_CODES) - {ValueType.FLOAT32, ValueType.FLOAT64, ValueType.BOOL}


@attrs.frozen
class TensorType:
    """How elements are stored: `block_elements` of a row together take `block_bytes`."""

    name: str
    block_elements: int
    block_bytes: int


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
    42: TensorType("Q2_0", 64, 18),
}
"""Types that a file may store. Q8_1 (9) and Q8_K (15) exist only between operations: as weights they would
send the engine to kernels that it does not have. The other gaps were removed from the format."""

FILE_TYPE_NAMES = {
    0: "MOSTLY_F32",
    1: "MOSTLY_F16",
    2: "MOSTLY_Q4_0",
    3: "MOSTLY_Q4_1",
    7: "MOSTLY_Q8_0",
    8: "MOSTLY_Q5_0",
    9: "MOSTLY_Q5_1",
    10: "MOSTLY_Q2_K",
    11: "MOSTLY_Q3_K_S",
    12: "MOSTLY_Q3_K_M",
    13: "MOSTLY_Q3_K_L",
    14: "MOSTLY_Q4_K_S",
    15: "MOSTLY_Q4_K_M",
    16: "MOSTLY_Q5_K_S",
    17: "MOSTLY_Q5_K_M",
    18: "MOSTLY_Q6_K",
    19: "MOSTLY_IQ2_XXS",
    20: "MOSTLY_IQ2_XS",
    21: "MOSTLY_Q2_K_S",
    22: "MOSTLY_IQ3_XS",
    23: "MOSTLY_IQ3_XXS",
    24: "MOSTLY_IQ1_S",
    25: "MOSTLY_IQ4_NL",
    26: "MOSTLY_IQ3_S",
    27: "MOSTLY_IQ3_M",
    28: "MOSTLY_IQ2_S",
    29: "MOSTLY_IQ2_M",
    30: "MOSTLY_IQ4_XS",
    31: "MOSTLY_IQ1_M",
    32: "MOSTLY_BF16",
    36: "MOSTLY_TQ1_0",
    37: "MOSTLY_TQ2_0",
    38: "MOSTLY_MXFP4",
    39: "MOSTLY_NVFP4",
    40: "MOSTLY_Q1_0",
    41: "MOSTLY_Q2_0",
}
"""`general.file_type` (`llama_ftype`) in the long form that model configs carry: the names of gguf-parser-go,
with which Docker Model Runner writes them, and which differ from llama.cpp's for F32 and MXFP4."""

GUESSED_FILE_TYPES = {
    "F32": "MOSTLY_F32",
    "Q3_K": "MOSTLY_Q3_K_M",
    "Q4_K": "MOSTLY_Q4_K_M",
    "Q5_K": "MOSTLY_Q5_K_M",
}
"""File type of a file that does not tell, by its prevailing tensor type, where it is not `MOSTLY_` + type."""


@attrs.frozen(kw_only=True)
class HeaderLimits:
    """What a header may hold. Defaults are some multiples of the largest known models.

    header_bytes: everything before the tensors; a 262k vocabulary with 515k merges takes 17 MB.
    keys, key_bytes: models carry 20 to 60 keys of at most 60 bytes.
    tensors: the largest single files have about 1,100.
    string_bytes: the longest real strings are chat templates of some 30 KB. text_bytes: all strings together
    but those of arrays, which are the ones that get decoded.
    array_elements: per array of numbers. string_elements: per file, over all arrays of strings, since each
    string is a step of the scan and so a part of the time.
    """

    header_bytes: int = 32 * 1024**2
    keys: int = 4096
    key_bytes: int = 1024
    tensors: int = 16_384
    string_bytes: int = 1024**2
    text_bytes: int = 2 * 1024**2
    array_elements: int = 4 * 1024**2
    string_elements: int = 2 * 1024**2


LIMITS = HeaderLimits()
