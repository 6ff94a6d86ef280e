"""What the engine believes of a tokenizer without looking, checked first (G03).

The engine indexes scores and token types by token, aborts on a token that occurs twice, and takes two
characters of a byte token for its value, so all of that must hold before a file reaches it. The rules stand
against llama.cpp's src/llama-vocab.cpp (`load`, `token_to_byte`, `byte_to_token`).

Imports the reader's values only. Costs about a microsecond per token, once, when a file is packaged.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Mapping

import attrs

from runner.errors import InvalidModelFile
from runner.gguf.format import ValueType
from runner.gguf.reader import GgufArray, MetadataValue

TOKENS_MAX = 512 * 1024
"""The largest known vocabularies have 262,144 (Gemma) and 501,153 (LaBSE) tokens."""

TOKENS_KEY = "tokenizer.ggml.tokens"
SCORES_KEY = "tokenizer.ggml.scores"
TOKEN_TYPES_KEY = "tokenizer.ggml.token_type"  # noqa: S105  a key of the file format
MERGES_KEY = "tokenizer.ggml.merges"
MODEL_KEY = "tokenizer.ggml.model"
CHARSMAP_KEY = "tokenizer.ggml.precompiled_charsmap"

_TOKEN_TYPES = range(7)  # LLAMA_TOKEN_TYPE_UNDEFINED .. LLAMA_TOKEN_TYPE_BYTE
_BYTE_TYPE = 6
_BYTE_TOKENS_MAX = 22 * 22  # ways to write `<0xNN>`, in large and small letters
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_ESCAPED_BYTE = re.compile(r"\\x[0-9a-f]{2}")
_BYTE_TEXT_LENGTH_MAX = 6
_WORDPIECE = "bert"
_HASH_PARTS = 8  # an eighth of the hashes at a time keeps the peak of memory below that of the header


@attrs.frozen
class _Marker:
    """A token that the tokenizer may add by itself: the keys that say so, and what holds without them."""

    add_key: str
    id_key: str
    default_id: int | None
    is_added_by_default: bool


_BYTE_LEVEL_MARKERS = (
    _Marker("add_bos_token", "bos_token_id", 11, False),
    _Marker("add_eos_token", "eos_token_id", 11, False),
)
_MARKERS: Mapping[str, tuple[_Marker, ...]] = {
    "llama": (
        _Marker("add_bos_token", "bos_token_id", 1, True),
        _Marker("add_eos_token", "eos_token_id", 2, False),
    ),
    "gpt2": _BYTE_LEVEL_MARKERS,
    "hybriddna": _BYTE_LEVEL_MARKERS,
    "whitespace": _BYTE_LEVEL_MARKERS,
    "gemma4": (
        _Marker("add_bos_token", "bos_token_id", None, True),
        _Marker("add_eos_token", "eos_token_id", None, False),
    ),
    "bert": (
        _Marker("add_bos_token", "bos_token_id", 101, True),
        _Marker("add_sep_token", "seperator_token_id", 102, True),  # spelled so in the format
    ),
    "t5": (
        _Marker("add_bos_token", "bos_token_id", None, False),
        _Marker("add_eos_token", "eos_token_id", 1, True),
    ),
}


def check_vocabulary(metadata: Mapping[str, MetadataValue]) -> int:
    """Number of tokens, 0 when the file has no token list.

    Raises InvalidModelFile when lists differ in length or type, a score is no number, a marker is missing,
    or a token is no UTF-8, occurs twice, or stands for a byte and is not written `<0xNN>`.
    """
    tokens = _array(metadata, TOKENS_KEY, ValueType.STRING)
    _array(metadata, MERGES_KEY, ValueType.STRING)
    _check_charsmap(metadata)
    if tokens is None:
        return 0
    if not 1 <= tokens.count <= TOKENS_MAX:
        raise InvalidModelFile(f"{TOKENS_KEY} has {tokens.count} tokens; 1 to {TOKENS_MAX} are possible")
    _check_scores(metadata, tokens.count)
    _check_markers(metadata, tokens.count)
    byte_token_indices = _check_token_types(metadata, tokens.count)
    _check_texts(tokens, byte_token_indices, metadata.get(MODEL_KEY))
    return tokens.count


def _array(metadata: Mapping[str, MetadataValue], key: str, *types: ValueType) -> GgufArray | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, GgufArray) or value.element_type not in types:
        raise InvalidModelFile(f"{key} is no array of {' or '.join(kind.name.lower() for kind in types)}")
    return value


def _check_scores(metadata: Mapping[str, MetadataValue], n_tokens: int) -> None:
    scores = _array(metadata, SCORES_KEY, ValueType.FLOAT32, ValueType.INT32)
    if scores is None:
        return
    _check_count(SCORES_KEY, scores, n_tokens)
    if any(score != score for score in scores.numbers()):  # true of NaN alone
        raise InvalidModelFile(f"{SCORES_KEY} holds something that is not a number")


def _check_token_types(metadata: Mapping[str, MetadataValue], n_tokens: int) -> frozenset[int]:
    """Indices of the tokens that stand for one byte."""
    types = _array(metadata, TOKEN_TYPES_KEY, ValueType.INT32)
    if types is None:
        return frozenset()
    _check_count(TOKEN_TYPES_KEY, types, n_tokens)
    numbers = types.numbers()
    if min(numbers) not in _TOKEN_TYPES or max(numbers) not in _TOKEN_TYPES:
        raise InvalidModelFile(f"{TOKEN_TYPES_KEY} holds types outside of 0 to {_TOKEN_TYPES[-1]}")
    if numbers.count(_BYTE_TYPE) > _BYTE_TOKENS_MAX:
        raise InvalidModelFile(f"{TOKEN_TYPES_KEY} names more than {_BYTE_TOKENS_MAX} tokens for bytes")
    return frozenset(index for index, number in enumerate(numbers) if number == _BYTE_TYPE)


def _check_markers(metadata: Mapping[str, MetadataValue], n_tokens: int) -> None:
    """A marker that is put around every prompt exists: the engine asserts it when the first prompt comes."""
    tokenizer = metadata.get(MODEL_KEY)
    for marker in _MARKERS.get(tokenizer, ()) if isinstance(tokenizer, str) else ():
        declared = metadata.get(f"tokenizer.ggml.{marker.id_key}")
        is_named = isinstance(declared, int) and 0 <= declared < n_tokens
        has_default = marker.default_id is not None and marker.default_id < n_tokens
        is_added = metadata.get(f"tokenizer.ggml.{marker.add_key}", marker.is_added_by_default)
        if is_added and not (is_named or has_default):
            raise InvalidModelFile(f"{marker.add_key} is set and {marker.id_key} names no token")


def _check_count(key: str, values: GgufArray, n_tokens: int) -> None:
    if values.count != n_tokens:
        raise InvalidModelFile(f"{key} has {values.count} elements for {n_tokens} tokens")


def _check_texts(
    tokens: GgufArray, byte_token_indices: frozenset[int], tokenizer: MetadataValue | None
) -> None:
    _check_unique(tokens)
    if byte_token_indices and tokenizer == _WORDPIECE:
        raise InvalidModelFile("a vocabulary of word pieces has tokens that stand for bytes")
    read_byte = _BYTE_READERS.get(tokenizer) if isinstance(tokenizer, str) else None
    if not (byte_token_indices or read_byte):
        return
    missing_bytes: set[int | None] = set(range(256)) if read_byte else set()
    for index, text in enumerate(_token_texts(tokens)):
        if index in byte_token_indices and _BYTE_TOKEN.fullmatch(text) is None:
            raise InvalidModelFile(
                f"token {index} stands for a byte and is not written <0xNN>: {text[:40]!r}"
            )
        if read_byte is not None and len(text) <= _BYTE_TEXT_LENGTH_MAX:
            missing_bytes.discard(read_byte(text))
    if missing_bytes:
        raise InvalidModelFile(f"the vocabulary has no token for {len(missing_bytes)} of the 256 bytes")


def _hexadecimal_byte(text: str) -> int | None:
    """`<0x0A>`, in capitals as the engine looks it up; else a letter of ASCII for itself."""
    if len(text) == 1 and "\x01" <= text <= "\x7f":
        return ord(text)
    match = _BYTE_TOKEN.fullmatch(text)
    return int(text[3:5], 16) if match and text[3:5] == text[3:5].upper() else None


def _escaped_byte(text: str) -> int | None:
    """`a`, `\\n`, `\\'` or `\\x0a`, as RWKV vocabularies write one byte."""
    if len(text) == 1 and text.isascii() and text != "\\":
        return ord(text)
    if len(text) == 2 and text[0] == "\\" and text.isascii() and text[1] != "x":
        return ord({"t": "\t", "n": "\n", "r": "\r"}.get(text[1], text[1]))
    return int(text[2:], 16) if _ESCAPED_BYTE.fullmatch(text) else None


_BYTE_READERS: Mapping[str, Callable[[str], int | None]] = {
    "llama": _hexadecimal_byte,
    "plamo2": _hexadecimal_byte,
    "rwkv": _escaped_byte,
}
"""Tokenizers that spell what is not in their vocabulary in bytes. A missing one ends the engine's process,
or makes it loop for ever (RWKV). The others have a token for the unknown, or skip it."""


def _check_unique(tokens: GgufArray) -> None:
    """No two tokens are equal.

    Hashes first, a part at a time, since half a million strings in a set would take several times the memory
    of the header. Where hashes meet, texts are compared.
    """
    hashes = array("q", map(hash, _token_texts(tokens)))
    for part in range(_HASH_PARTS):
        members = [value for value in hashes if value % _HASH_PARTS == part]
        if len(set(members)) == len(members):
            continue
        seen: set[str] = set()
        for text in _token_texts(tokens):
            if hash(text) % _HASH_PARTS == part:
                if text in seen:
                    raise InvalidModelFile(f"token {text[:40]!r} occurs twice")
                seen.add(text)


def _token_texts(tokens: GgufArray) -> Iterator[str]:
    """Texts as the engine stores them: it gives an empty token a name. Raises InvalidModelFile."""
    for index, raw in enumerate(tokens.strings()):
        try:
            yield raw.decode("utf-8") or f"[EMPTY_{index}]"
        except UnicodeDecodeError:
            raise InvalidModelFile(f"token {index} is not valid UTF-8") from None


def _check_charsmap(metadata: Mapping[str, MetadataValue]) -> None:
    """The normaliser of Unigram tokenizers: the size of a trie (u32), the trie, then texts that end in NUL,
    which the engine reads up to that NUL."""
    charsmap = _array(metadata, CHARSMAP_KEY, ValueType.INT8, ValueType.UINT8)
    if charsmap is None:
        return
    raw = charsmap.numbers().tobytes()
    if len(raw) < 4 or int.from_bytes(raw[:4], "little") + 4 >= len(raw) or raw[-1] != 0:
        raise InvalidModelFile(f"{CHARSMAP_KEY} is cut off")
