"""The vocabulary of a llama.cpp model as llguidance reads it.

Imports `llama_cpp`, its low-level bindings only, and llguidance. The function that llguidance offers for this
asks for attributes in a way that the binding warns of, once for every token.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from llama_cpp import llama_cpp as lib

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_PIECE_BYTES = 4096  # the longest token of known vocabularies has 256
_CONTROL_MARK = b"\xff"  # no byte of UTF-8: a token that starts so is never part of a text


def new_constraint_tokenizer(vocab: Any, end_of_generation: frozenset[int]) -> LLTokenizer:
    """0.2 s at 49k vocabulary; half of it without letting other threads run. `vocab` must outlive its use."""
    from llguidance import LLTokenizer

    tokenize = ctypes.cast(lib._lib.llama_tokenize, ctypes.c_void_p).value
    made: LLTokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]  # left out of its types
        tokens=_pieces(vocab),
        vocab_ptr=vocab,
        tokenize_fptr=tokenize,
        eos_token=sorted(end_of_generation),
        slices=LLTokenizer.json_slices(),
    )
    return made


def _pieces(vocab: Any) -> list[bytes]:
    """The bytes of every token, with a mark before control tokens and what was added in their form."""
    buffer = ctypes.create_string_buffer(_PIECE_BYTES)
    pieces = []
    for token_id in range(lib.llama_vocab_n_tokens(vocab)):
        length = lib.llama_token_to_piece(vocab, token_id, buffer, _PIECE_BYTES, 0, True)
        piece = buffer.raw[:length] if length >= 0 else b""
        attributes = lib.llama_vocab_get_attr(vocab, token_id)
        looks_like_control = piece.startswith(b"<") and piece.endswith(b">")
        if attributes & lib.LLAMA_TOKEN_ATTR_CONTROL or (
            attributes & lib.LLAMA_TOKEN_ATTR_USER_DEFINED and looks_like_control
        ):
            piece = _CONTROL_MARK + piece
        pieces.append(piece)
    return pieces
