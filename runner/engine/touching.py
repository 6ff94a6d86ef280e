"""Memory that is about to be zeroed, touched from its other end by a second thread. Linux; elsewhere nothing.

The library zeroes a KV cache when it makes it, in one thread. On most machines nearly all of that time goes
into page faults, which a second core can take half of: the helper finds the mapping that is being zeroed
and has the kernel populate it from its end on, until both meet.

Only what is being zeroed anyway is touched: a mapping whose beginning has come in, and not one that was only
reserved. Standard library only. Used by `llama_loading.py`.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

Span = tuple[int, int]
"""Addresses: the first, and the one behind the last."""

LEAST_BYTES: Final = 32 * 1024 * 1024
"""A smaller one is zeroed as soon as it is found."""
_SLICE_BYTES: Final = 16 * 1024 * 1024
"""Between two of them the interpreter may be somebody else's for 5 ms."""
_BEGUN_BYTES: Final = 1024 * 1024
_POLL_S: Final = 0.001
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14; older kernels answer EINVAL
_MAPS: Final = Path("/proc/self/maps")


@contextmanager
def touched_from_the_end() -> Iterator[None]:
    """While the block runs in this thread, help it with the large mappings that it makes and zeroes."""
    if sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2:
        yield
        return
    before = _mappings()
    is_over = threading.Event()
    helper = threading.Thread(target=_help, args=(before, is_over), name="touching", daemon=True)
    helper.start()
    try:
        yield
    finally:
        is_over.set()
        helper.join()


def _help(known: list[Span], is_over: threading.Event) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    reserved: list[Span] = []
    while not is_over.wait(_POLL_S):
        new = without(_mappings(), known)
        known += new
        reserved += [(start, end) for start, end in new if end - start >= LEAST_BYTES]
        for span in [span for span in reserved if _has_begun(libc, span[0])]:
            reserved.remove(span)
            if not _populate(libc, *span, is_over):
                return


def _mappings() -> list[Span]:
    """Private ones of no file that can be written."""
    found = []
    for line in _MAPS.read_bytes().splitlines():
        fields = line.split()
        if fields[1] == b"rw-p" and len(fields) == 5:
            start, _, end = fields[0].partition(b"-")
            found.append((int(start, 16), int(end, 16)))
    return found


def without(spans: Iterable[Span], known: Iterable[Span]) -> list[Span]:
    """What of `spans` is in none of `known`: the kernel tells of neighbours as one mapping, so that a new one
    can look like an old one that has grown."""
    left = list(spans)
    for start, end in known:
        parts = []
        for first, last in left:
            parts += [
                part for part in ((first, min(last, start)), (max(first, end), last)) if part[0] < part[1]
            ]
        left = parts
    return left


def _has_begun(libc: ctypes.CDLL, start: int) -> bool:
    """Whether the first pages are there."""
    page = os.sysconf("SC_PAGESIZE")
    here = (ctypes.c_ubyte * 1)()
    at = start + _BEGUN_BYTES
    return libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(page), here) == 0 and bool(here[0] & 1)


def _populate(libc: ctypes.CDLL, start: int, end: int, is_over: threading.Event) -> bool:
    """False when the kernel cannot, or the mapping is gone."""
    page = os.sysconf("SC_PAGESIZE")
    here = (ctypes.c_ubyte * 1)()
    while end > start and not is_over.is_set():
        begin = max(start, end - _SLICE_BYTES)
        if libc.mincore(ctypes.c_void_p(begin), ctypes.c_size_t(page), here) != 0 or here[0] & 1:
            return True  # they have met
        size = ctypes.c_size_t(end - begin)
        if libc.madvise(ctypes.c_void_p(begin), size, _MADV_POPULATE_WRITE) != 0:
            return False
        end = begin
    return True
