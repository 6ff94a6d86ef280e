"""From a file and options to a model and a context of llama.cpp, real or simulated.

Owns the library's log, and every parameter that decides what memory a load takes, so that a simulated load
(`llama_memory.py`) is given the very options of a real one (`llama.py`). Imports `llama_cpp`, its low-level
bindings only.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import NewType

# The package's own __init__ imports its whole server side (0.1 s); there is no supported way around it.
from llama_cpp import __version__ as _binding_version
from llama_cpp import llama_cpp as lib

from runner.domain.engine import CacheType, EngineOptions, FlashAttention
from runner.domain.generation import EMBEDDED_MAX
from runner.domain.model import ENCODERS
from runner.engine.backend import GROUP_ROWS, EmbeddingFacts, Pooling, ProgressReport
from runner.engine.buffer_log import BufferLog
from runner.errors import LoadingFailed

Model = NewType("Model", int)
Context = NewType("Context", int)

_INFO, _WARN, _CONT = 2, 3, 5  # ggml.h, enum ggml_log_level
_MISLEADING = (
    b"possible training context overflow",  # the pool is rounded up, and no sequence is longer than a context
    b"model default pooling_type is",  # we pool ourselves
)
_CACHE_TYPES = {
    CacheType.F16: lib.GGML_TYPE_F16,
    CacheType.Q8_0: lib.GGML_TYPE_Q8_0,
    CacheType.Q4_0: lib.GGML_TYPE_Q4_0,
}
_FLASH_ATTENTION = {
    FlashAttention.AUTO: lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    FlashAttention.ON: lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    FlashAttention.OFF: lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


_POOLINGS = {"1": Pooling.MEAN, "2": Pooling.FIRST, "3": Pooling.LAST}
"""`llama_pooling_type`. 0 and none said: the mean, as most take it. Others rank texts."""
_META_BYTES = 256
ENCODER_SEQUENCES, SECOND_SEQUENCES = 64, 8
SECOND_ROWS = 64
"""Of a forward pass in that second context, since the library keeps room for the logits of each."""
GROUP_OUTPUT_BYTES = 64 * 1024**2
"""What the outputs of short inputs that share a pass may take: see `embedding_output_bytes`."""


def load_model(
    path: Path,
    progress: ProgressReport,
    *,
    further_parts: tuple[Path, ...] = (),
    is_simulated: bool = False,
) -> Model:
    """Load a file, or all parts of a split one in their order. Raises LoadingFailed, and whatever `progress`
    raises.

    Parts are named here, so that the library takes no name of a further one from the first (G04).

    Simulated, the file's metadata is read and nothing is allocated for its tensors. It then cannot be mapped
    either: the library asserts that.
    """
    params = lib.llama_model_default_params()
    params.no_alloc = is_simulated
    params.load_mode = lib.LLAMA_LOAD_MODE_NONE if is_simulated else lib.LLAMA_LOAD_MODE_MMAP
    raised: list[BaseException] = []

    def report(fraction: float, _: object) -> bool:
        try:
            return progress(fraction)
        except BaseException as error:  # must not unwind through C
            raised.append(error)
            return False

    params.progress_callback = callback = lib.llama_progress_callback(report)
    model = _load((path, *further_parts), params)
    del callback  # it had to live until here
    if raised:
        raise raised[0]
    if model is None:
        raise LoadingFailed("the engine could not load the model file; the worker's log tells why")
    return Model(model)


def _load(paths: tuple[Path, ...], params: lib.llama_model_params) -> int | None:
    """For one path the usual call: the other one holds that the file be a part of several."""
    model: int | None
    if len(paths) == 1:
        model = lib.llama_model_load_from_file(os.fsencode(paths[0]), params)
    else:
        names = (ctypes.c_char_p * len(paths))(*map(os.fsencode, paths))
        model = lib.llama_model_load_from_splits(names, len(paths), params)
    return model


def rows_of(options: EngineOptions) -> int:
    """Rows of one forward pass: steps decode or prefill."""
    return max(options.max_sequences, options.prefill_chunk)


def shares_cells(model: Model) -> bool:
    """Not where a state per sequence sums up its past, be it of some layers only."""
    return not (lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))


def needs_guards(model: Model, options: EngineOptions) -> bool:
    """Some layers see the last tokens only, and more may be wanted again: see `llama_cells.py`."""
    return shares_cells(model) and options.max_retained > 0 and lib.llama_model_n_swa(model) > 0


def ids_of(model: Model, options: EngineOptions) -> int:
    """Sequence ids that the engine uses. Where they need guards, the library is told of twice as many."""
    return options.max_sequences + (options.max_retained if shares_cells(model) else 0)


def outputs_of(model: Model, options: EngineOptions) -> int:
    """Rows of one forward pass that logits are kept of; as many as the library has ids, or it aborts."""
    return ids_of(model, options) * (2 if needs_guards(model, options) else 1)


def meta_text(model: Model, key: str) -> str:
    """A value of the file's metadata; "" where there is none."""
    buffer = ctypes.create_string_buffer(_META_BYTES)
    length = lib.llama_model_meta_val_str(model, key.encode(), buffer, _META_BYTES)
    return buffer.value.decode("utf-8", "replace") if length >= 0 else ""


def architecture_of(model: Model) -> str:
    return meta_text(model, "general.architecture")


def is_encoder(model: Model) -> bool:
    """Made for embeddings: each token attends to all others, so that none can be the next one."""
    architecture = architecture_of(model)
    is_two_way = architecture in ENCODERS or meta_text(model, f"{architecture}.attention.causal") == "false"
    return is_two_way and not lib.llama_model_has_encoder(model) and not lib.llama_model_is_diffusion(model)


def embedding_facts(model: Model, options: EngineOptions) -> EmbeddingFacts | None:
    """None for what ranks texts."""
    told = meta_text(model, f"{architecture_of(model)}.pooling_type")
    pooling = _POOLINGS.get(told) if told not in ("", "0") else Pooling.MEAN
    if pooling is None:
        return None
    is_whole = is_encoder(model)
    longest: int = lib.llama_model_n_ctx_train(model) if is_whole else EMBEDDED_MAX  # places are learned
    return EmbeddingFacts(
        n_dimensions=lib.llama_model_n_embd_out(model),
        input_max=min(options.context_size, longest),
        pooling=pooling,
        is_whole=is_whole,
        max_sequences=ENCODER_SEQUENCES if is_whole else SECOND_SEQUENCES,
        group_rows=max(1, min(GROUP_ROWS, GROUP_OUTPUT_BYTES // _output_row_bytes(model))),
    )


def embedding_output_bytes(model: Model, n_rows: int) -> int:
    """What the library keeps for the outputs of so many rows, once they were computed: room for logits too,
    although embeddings have none (`output_reserve` of llama-context.cpp)."""
    return n_rows * _output_row_bytes(model)


def _output_row_bytes(model: Model) -> int:
    n_vocab: int = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    n_dimensions: int = lib.llama_model_n_embd_out(model)
    return 4 * (n_vocab + n_dimensions)


def embedding_rows(facts: EmbeddingFacts, options: EngineOptions) -> int:
    """Rows of one forward pass: of what takes inputs as a whole, a longest one."""
    return facts.input_max if facts.is_whole else min(facts.input_max, options.prefill_chunk, SECOND_ROWS)


def new_embedding_context(model: Model, options: EngineOptions, facts: EmbeddingFacts) -> Context:
    """An encoder's only context, or a second one over the same weights. Raises LoadingFailed.

    Rows are told as they are and pooled by us: the library pools within a pass alone, and an input may take
    several.
    """
    params = lib.llama_context_default_params()
    n_rows = embedding_rows(facts, options)
    params.n_ctx = facts.input_max
    params.n_batch = params.n_ubatch = params.n_outputs_max = n_rows
    params.n_seq_max = facts.max_sequences
    params.n_threads = params.n_threads_batch = options.n_threads
    params.flash_attn_type = _FLASH_ATTENTION[options.flash_attention]
    params.embeddings = True
    params.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
    params.kv_unified = True
    params.swa_full = True
    params.no_perf = True
    context = lib.llama_init_from_model(model, params)
    if context is None:
        raise LoadingFailed("the engine could not make a context for embeddings; its log tells why")
    return Context(context)


def new_context(model: Model, options: EngineOptions) -> Context:
    """The context that a load makes. Raises LoadingFailed, also for models of no use here (diffusion)."""
    if is_encoder(model):
        facts = embedding_facts(model, options)
        if facts is None:
            raise LoadingFailed("this kind of model ranks texts, which is not implemented")
        return new_embedding_context(model, options, facts)
    if lib.llama_model_has_encoder(model) or lib.llama_model_is_diffusion(model):
        raise LoadingFailed("this kind of model does not generate text token by token")
    params = lib.llama_context_default_params()
    n_rows = rows_of(options)
    params.n_ctx = max(options.n_cells, n_rows)  # the library silently cuts n_batch down to n_ctx
    params.n_batch = params.n_ubatch = n_rows
    params.n_seq_max = params.n_outputs_max = outputs_of(model, options)
    params.n_threads = params.n_threads_batch = options.n_threads
    params.type_k = _CACHE_TYPES[options.key_type]
    params.type_v = _CACHE_TYPES[options.value_type]
    params.flash_attn_type = _FLASH_ATTENTION[options.flash_attention]
    params.kv_unified = True
    params.swa_full = True
    params.no_perf = True
    context = lib.llama_init_from_model(model, params)
    if context is None:
        raise LoadingFailed("the engine could not make a context with these options; its log tells why")
    if lib.llama_get_memory(context) is None or not lib.llama_get_causal_attn(context):
        lib.llama_free(context)
        raise LoadingFailed("this kind of model does not generate text token by token")
    return Context(context)


def engine_version() -> str:
    """`llama.cpp 0.5.0 (llama-cpp-python 0.3.36)`."""
    return f"llama.cpp {bytes(lib.llama_version()).decode()} (llama-cpp-python {_binding_version})"


class EngineLog:
    """Where the library's log goes: warnings and errors to stderr; of the rest, buffer sizes are noted."""

    def __init__(self) -> None:
        self.buffers = BufferLog()
        self._level = _INFO
        self._callback = lib.llama_log_callback(self._receive)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, _: object) -> None:
        if level != _CONT:  # which continues the line before
            self._level = level
        if self._level >= _WARN:
            if not any(told in text for told in _MISLEADING):
                os.write(2, text)
        else:
            self.buffers.feed(text)


@functools.cache
def engine_log() -> EngineLog:
    """One per process, as the library's log and its back ends are."""
    log = EngineLog()
    lib.llama_backend_init()
    return log
