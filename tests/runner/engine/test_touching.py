"""Memory that is being zeroed and comes in from both ends, on this machine's own mappings."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.engine.touching import LEAST_BYTES, Span, touched_from_the_end, without

PATIENCE_S = 30.0
PAGE = os.sysconf("SC_PAGESIZE")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="does nothing elsewhere")


class Mapping:
    """Private memory of no file, as an allocator makes it."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._map = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._first = ctypes.c_char.from_buffer(self._map)
        self.start = ctypes.addressof(self._first)

    def touch(self, size_bytes: int) -> None:
        ctypes.memset(self.start, 0, size_bytes)

    def fence(self) -> None:
        """So that the next one below is not taken for a part of it."""
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(self.start), PAGE, mmap.PROT_READ) == 0

    def has(self, offset: int) -> bool:
        here = (ctypes.c_ubyte * 1)()
        assert (
            ctypes.CDLL(None).mincore(ctypes.c_void_p(self.start + offset), ctypes.c_size_t(PAGE), here) == 0
        )
        return bool(here[0] & 1)

    def close(self) -> None:
        del self._first
        self._map.close()


@pytest.fixture
def mappings() -> Iterator[list[Mapping]]:
    found: list[Mapping] = []
    yield found
    for one in found:
        one.close()


def wait_until_in(mapping: Mapping, offset: int) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not mapping.has(offset):
        assert time.monotonic() < deadline_s, "nobody touched it"
        threading.Event().wait(0.001)


@needs_linux
def test_what_is_being_zeroed_comes_in_from_its_end(mappings: list[Mapping]) -> None:
    with touched_from_the_end():
        begun = Mapping(2 * LEAST_BYTES)
        mappings.append(begun)
        begun.touch(2 * 1024 * 1024)
        wait_until_in(begun, begun.size_bytes - PAGE)


@needs_linux
def test_what_is_only_reserved_is_left_alone(mappings: list[Mapping]) -> None:
    with touched_from_the_end():
        reserved = Mapping(2 * LEAST_BYTES)
        reserved.fence()
        begun = Mapping(2 * LEAST_BYTES)
        mappings += [reserved, begun]
        begun.touch(2 * 1024 * 1024)
        wait_until_in(begun, begun.size_bytes - PAGE)
    assert not reserved.has(reserved.size_bytes - PAGE)
    assert not reserved.has(0)


@needs_linux
def test_what_was_there_before_is_left_alone(mappings: list[Mapping]) -> None:
    old = Mapping(2 * LEAST_BYTES)
    mappings.append(old)
    old.touch(2 * 1024 * 1024)
    old.fence()
    with touched_from_the_end():
        begun = Mapping(2 * LEAST_BYTES)
        mappings.append(begun)
        begun.touch(2 * 1024 * 1024)
        wait_until_in(begun, begun.size_bytes - PAGE)
    assert not old.has(old.size_bytes - PAGE)


@needs_linux
def test_the_helper_ends_with_the_block(mappings: list[Mapping]) -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="inside"), touched_from_the_end():
        raise ValueError("inside")
    assert threading.active_count() == before


spans = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 30)).map(lambda pair: (pair[0], sum(pair))), max_size=6
)


@given(spans, spans)
def test_of_spans_what_is_known_is_left_out(found: list[Span], known: list[Span]) -> None:
    left = without(found, known)
    covered = {address for start, end in known for address in range(start, end)}
    assert {address for start, end in left for address in range(start, end)} == {
        address for start, end in found for address in range(start, end)
    } - covered
