"""Reading and refusing, for the tests of the GGUF reader."""

from __future__ import annotations

import io

import attrs
import pytest

from runner.errors import InvalidModelFile
from runner.gguf.format import LIMITS, HeaderLimits
from runner.gguf.reader import GgufHeader, read_header


def read(data: bytes, limits: HeaderLimits = LIMITS, size_bytes: int | None = None) -> GgufHeader:
    return read_header(io.BytesIO(data), size_bytes, limits)


def refusal(data: bytes, limits: HeaderLimits = LIMITS, size_bytes: int | None = None) -> str:
    with pytest.raises(InvalidModelFile) as caught:
        read(data, limits, size_bytes)
    return str(caught.value)


def accepts(data: bytes, limits: HeaderLimits = LIMITS) -> bool:
    try:
        read(data, limits)
    except InvalidModelFile:
        return False
    return True


def limited(**changes: int) -> HeaderLimits:
    return attrs.evolve(LIMITS, **changes)


def around(limit: int) -> tuple[tuple[int, bool], ...]:
    """A limit as test parameters: one below it and it itself are accepted, one above is not."""
    return ((limit - 1, True), (limit, True), (limit + 1, False))
