"""What we say of architectures, held against the library's own functions."""

from __future__ import annotations

import ctypes
from typing import Any

from llama_cpp import llama_cpp as lib

from runner.domain.model import ENCODERS, RECURRENT

_SOME_MORE = 400
"""Numbers that are tried as architectures; the library has 150."""


def _function(name: str, result: type, argument: type) -> Any:
    """By the name that compilers of the Itanium ABI give it."""
    function = lib._lib[name]
    function.restype, function.argtypes = result, (argument,)
    return function


def test_the_library_takes_the_same_architectures_for_recurrent() -> None:
    name_of = _function("_Z13llm_arch_name8llm_arch", ctypes.c_char_p, ctypes.c_int)
    tests = [
        _function(f"_Z{len(name)}{name}RK8llm_arch", ctypes.c_bool, ctypes.POINTER(ctypes.c_int))
        for name in ("llm_arch_is_recurrent", "llm_arch_is_hybrid")
    ]
    numbers = [number for number in range(_SOME_MORE) if name_of(number) != b"unknown"]
    found = {
        name_of(number).decode() for number in numbers if any(test(ctypes.c_int(number)) for test in tests)
    }
    assert found == RECURRENT


def test_no_encoder_is_recurrent() -> None:
    assert not ENCODERS & RECURRENT
