"""A context of llama.cpp that makes embeddings: an encoder's only one, or a second one of other models.

Imports numpy and `llama_cpp`, its low-level bindings only. Opened by `llama.py`, which owns the weights.
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as lib

from runner.engine.backend import BatchArrays, DecodeResult
from runner.engine.llama_batch import CBatch
from runner.engine.llama_loading import Context


class LlamaEmbedding:
    """See `runner.engine.backend.EmbeddingContext`. `is_own`: the context is freed with this."""

    def __init__(self, context: Context, *, n_rows: int, n_dimensions: int, is_own: bool) -> None:
        self._context = context
        self._n_dimensions = n_dimensions
        self._is_own = is_own
        self._batch = BatchArrays.empty(n_rows)
        self._c_batch = CBatch(self._batch)

    @property
    def batch(self) -> BatchArrays:
        return self._batch

    def set_threads(self, n_threads: int) -> None:
        lib.llama_set_n_threads(self._context, n_threads, n_threads)

    def decode(self, n_rows: int) -> DecodeResult:
        self._c_batch.struct.n_tokens = n_rows
        status = lib.llama_decode(self._context, self._c_batch.struct)
        if status == 0:
            return DecodeResult.DONE
        return DecodeResult.NO_CELLS if status == 1 else DecodeResult.FAILED

    def vector(self, row: int) -> npt.NDArray[np.float32]:
        address = ctypes.addressof(lib.llama_get_embeddings_ith(self._context, row).contents)
        return np.ctypeslib.as_array((ctypes.c_float * self._n_dimensions).from_address(address))

    def forget(self) -> None:
        memory = lib.llama_get_memory(self._context)
        if memory is not None:  # encoders keep nothing
            lib.llama_memory_clear(memory, False)

    def close(self) -> None:
        if self._is_own:
            self._is_own = False
            lib.llama_free(self._context)
