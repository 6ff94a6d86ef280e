"""The rows of a forward pass as llama.cpp takes them.

Imports numpy and `llama_cpp`, its low-level bindings only.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as lib

from runner.engine.backend import BatchArrays


class CBatch:
    """A `llama_batch` whose arrays are ours: filling the numpy views fills it. A row has one sequence id."""

    def __init__(self, batch: BatchArrays) -> None:
        n_rows = batch.size
        self._counts = np.ones(n_rows, np.int32)
        self._id_pointers = batch.sequence_ids.ctypes.data + np.arange(n_rows, dtype=np.uintp) * np.uintp(
            batch.sequence_ids.itemsize
        )
        self._batch = batch  # keeps the arrays alive
        struct = lib.llama_batch()
        struct.token = _pointer(batch.tokens, lib.llama_token)
        struct.pos = _pointer(batch.positions, lib.llama_pos)
        struct.n_seq_id = _pointer(self._counts, ctypes.c_int32)
        struct.seq_id = _pointer(self._id_pointers, ctypes.POINTER(lib.llama_seq_id))
        struct.logits = _pointer(batch.wants_logits, ctypes.c_int8)
        self.struct = struct


def _pointer(array: npt.NDArray[Any], element: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(element))
