"""What a load would take, measured without loading: llama.cpp with `no_alloc`, asked for its own sums.

A simulated load plans the same buffers as a real one and allocates hardly any. Its log tells the compute and
output buffers, but says 0 for weights and KV cache, and not what is repacked. The library does know: it keeps
a breakdown per buffer type (`llama_get_memory_breakdown` of llama-ext.h, with which its own tools fit models
into memory) and a list of tensors. Both are exported, but as C++, so that their results are read here by the
layouts of GCC's standard library, which have not changed since its version 5. What is read so must agree with
the log and with the C interface. Where it does not, or is not there (another version, another compiler), the
log alone counts, which lacks only what is repacked.

Two things differ between a simulated and a real load, and are put right:

- A real load maps the file. Its buffer then reaches from the first to the last tensor that is used in place,
  including those between that are used as repacked copies.
- The process grows by more than buffers: vocabulary, graphs, states of samplers. The growth of this process
  is measured for it, so `measure` belongs in a process that does nothing else.

Imports `llama_cpp` and what loads a model here. Used by `runner/worker/probe.py`.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
from llama_cpp import llama_cpp as lib

from runner.domain.engine import DeviceBuffers, EngineOptions, EngineSizes
from runner.engine.buffer_log import HOST, ROUNDING_BYTES, BufferLog, device_of, in_order, is_repacked
from runner.engine.llama_loading import (
    Context,
    Model,
    embedding_facts,
    embedding_output_bytes,
    embedding_rows,
    engine_log,
    is_encoder,
    load_model,
    new_context,
    new_embedding_context,
)
from runner.errors import LoadingFailed
from runner.hardware.resident import anonymous_bytes

_CANDIDATE_BYTES: Final = 12
"""`llama_token_data`: what a sampler chain keeps per token of the vocabulary, for each sequence."""
_TENSORS_MAX: Final = 1 << 20
_BUFFER_TYPES_MAX: Final = 256


def measure(path: Path, options: EngineOptions, *, further_parts: tuple[Path, ...] = ()) -> EngineSizes:
    """Sizes of a load of these files with `options`. Raises LoadingFailed where that load would."""
    log = engine_log().buffers
    log.clear()
    before_bytes = anonymous_bytes() or 0
    model = load_model(path, lambda fraction: True, further_parts=further_parts, is_simulated=True)
    try:
        context = new_context(model, options)
        try:
            grown_bytes = (anonymous_bytes() or 0) - before_bytes - _really_allocated_bytes(log)
            devices = _by_library(model, context, log, (path, *further_parts)) or _by_log(model, log)
            return EngineSizes(
                devices=devices,
                process_bytes=max(0, grown_bytes)
                + _samplers_bytes(model, options)
                + _encoder_bytes(model, options),
                annex=_annex(model, options, log),
            )
        finally:
            lib.llama_free(context)
    finally:
        lib.llama_model_free(model)


def _really_allocated_bytes(log: BufferLog) -> int:
    """Also in a simulation: outputs, and the states of recurrent layers, which the log calls a cache."""
    return log.allocated_bytes("output_bytes") + log.allocated_bytes("kv_cache_bytes")


def _encoder_bytes(model: Model, options: EngineOptions) -> int:
    """What an encoder takes beside its load once it has computed: room for outputs, which its log never
    tells."""
    facts = embedding_facts(model, options)
    if facts is None or not is_encoder(model):
        return 0
    n_rows = embedding_rows(facts, options)
    return embedding_output_bytes(model, max(0, n_rows - facts.max_sequences))  # of these a load has some


def _annex(model: Model, options: EngineOptions, log: BufferLog) -> tuple[DeviceBuffers, ...]:
    """What a second context for embeddings takes on each device; nothing where there will be none."""
    facts = embedding_facts(model, options)
    if facts is None or is_encoder(model):
        return ()
    log.clear()
    try:
        context = new_embedding_context(model, options, facts)
    except LoadingFailed:  # then a request will fail likewise
        return ()
    try:
        told = _annex_by_library(context, log) or _annex_by_log(log)
    finally:
        lib.llama_free(context)
    outputs = embedding_output_bytes(model, max(embedding_rows(facts, options), facts.max_sequences))
    return tuple(
        attrs.evolve(one, output_bytes=outputs if one.device == HOST else 0) for one in in_order(told)
    )


def _annex_by_library(context: Context, log: BufferLog) -> list[DeviceBuffers] | None:
    if not _is_layout_known():
        return None
    try:
        shares = tuple(_read_shares(context))
    except (AttributeError, _Unreadable):
        return None
    if not _agrees_on_context(shares, log):
        return None
    devices = dict.fromkeys([HOST, *(device_of(share.buffer_type) for share in shares)])
    return [
        attrs.evolve(_device_buffers(one, shares, 0, 0), weights_bytes=0, repacked_bytes=0) for one in devices
    ]


def _annex_by_log(log: BufferLog) -> list[DeviceBuffers]:
    """For host memory alone, as `_by_log`, which has refused the rest before."""
    compute_bytes = log.allocated_bytes("compute_bytes")
    return [DeviceBuffers(device=HOST, kv_cache_bytes=log.cache_bytes, compute_bytes=compute_bytes)]


def _samplers_bytes(model: Model, options: EngineOptions) -> int:
    n_vocab: int = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    return options.max_sequences * n_vocab * _CANDIDATE_BYTES


# by the log


def _by_log(model: Model, log: BufferLog) -> tuple[DeviceBuffers, ...]:
    """For host memory alone: of several devices the log does not say which has how much of the KV cache."""
    logged = log.devices()
    if [buffers.device for buffers in logged] != [HOST]:
        raise LoadingFailed("this build of the engine does not tell sizes per device")
    weights_bytes: int = lib.llama_model_size(model)
    return (
        attrs.evolve(
            logged[0], weights_bytes=weights_bytes, repacked_bytes=0, kv_cache_bytes=log.cache_bytes
        ),
    )


# by the library's own sums


@attrs.frozen
class _Share:
    """One buffer type's part of a load, in bytes."""

    buffer_type: str
    model_bytes: int
    context_bytes: int
    compute_bytes: int


@attrs.frozen
class _Tensor:
    name: bytes
    buffer: str
    size_bytes: int

    @property
    def is_mapped(self) -> bool:
        """Used in place when the file is mapped. Of a device's host memory nothing is used then."""
        return device_of(self.buffer) == HOST and not is_repacked(self.buffer)


def _by_library(
    model: Model, context: Context, log: BufferLog, paths: tuple[Path, ...]
) -> tuple[DeviceBuffers, ...] | None:
    """None when it cannot be had or does not agree with what the library says otherwise."""
    if not _is_layout_known():
        return None
    try:
        shares = tuple(_read_shares(context))
        tensors = tuple(_read_tensors(model))
        mapped = [tensor for tensor in tensors if tensor.is_mapped]
        mapped_bytes = sum(_reach(mapped, _tensor_offsets(path, mapped)) for path in paths)
    except (AttributeError, _Unreadable):  # no such symbol, or not what it was
        return None
    if not _agree(shares, tensors, log):
        return None
    devices = {device_of(share.buffer_type) for share in shares}
    outputs = {buffers.device: buffers.output_bytes for buffers in log.devices()}
    return in_order(
        _device_buffers(device, shares, mapped_bytes, outputs.get(device, 0)) for device in devices | {HOST}
    )


def _agree(shares: tuple[_Share, ...], tensors: tuple[_Tensor, ...], log: BufferLog) -> bool:
    """Buffers are padded per tensor, so what they hold may be a little less than they are."""
    model_bytes = sum(share.model_bytes for share in shares)
    return _agrees_on_context(shares, log) and _is_about(
        model_bytes, sum(tensor.size_bytes for tensor in tensors)
    )


def _agrees_on_context(shares: tuple[_Share, ...], log: BufferLog) -> bool:
    context_bytes = sum(share.context_bytes for share in shares)
    compute_bytes = sum(share.compute_bytes for share in shares)
    return _is_about(compute_bytes, log.allocated_bytes("compute_bytes")) and (
        log.n_caches == 0 or _is_about(context_bytes, log.cache_bytes)
    )


def _is_about(size_bytes: int, told_bytes: int) -> bool:
    return abs(size_bytes - told_bytes) <= 64 * ROUNDING_BYTES + told_bytes // 64


def _device_buffers(
    device: str, shares: tuple[_Share, ...], mapped_bytes: int, output_bytes: int
) -> DeviceBuffers:
    own = [share for share in shares if device_of(share.buffer_type) == device]
    return DeviceBuffers(
        device=device,
        weights_bytes=mapped_bytes if device == HOST else sum(share.model_bytes for share in own),
        repacked_bytes=sum(share.model_bytes for share in own if is_repacked(share.buffer_type)),
        kv_cache_bytes=sum(share.context_bytes for share in own),
        compute_bytes=sum(share.compute_bytes for share in own),
        output_bytes=output_bytes,
    )


def _reach(tensors: Iterable[_Tensor], offsets: dict[bytes, int]) -> int:
    """Bytes of one file from the first to the last tensor that is used in place (`get_mapping_range` of the
    loader)."""
    spans = [(offsets[tensor.name], tensor.size_bytes) for tensor in tensors if tensor.name in offsets]
    if not spans:
        return 0
    return max(offset + size for offset, size in spans) - min(offset for offset, _ in spans)


# the library's memory


def _is_layout_known() -> bool:
    return sys.platform == "linux" and ctypes.sizeof(ctypes.c_void_p) == 8


class _Unreadable(Exception):
    """Not the layout that was expected."""


class _Map(ctypes.Structure):
    """`std::map` of libstdc++: comparator, then the header node (colour, root, first, last), then the count.

    As the type of a result it is returned in memory, as C++ does it for a class that has a destructor. The
    nodes are never freed: the process ends soon.
    """

    _fields_ = (
        ("comparator", ctypes.c_uint64),
        ("colour", ctypes.c_uint64),
        ("root", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("last", ctypes.c_void_p),
        ("n_nodes", ctypes.c_size_t),
    )


class _Node(ctypes.Structure):
    """A node of that map, with the buffer type as key and `llama_memory_breakdown_data` as value."""

    _fields_ = (
        ("colour", ctypes.c_uint64),
        ("parent", ctypes.c_void_p),
        ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
        ("buffer_type", ctypes.c_void_p),
        ("model_bytes", ctypes.c_size_t),
        ("context_bytes", ctypes.c_size_t),
        ("compute_bytes", ctypes.c_size_t),
    )


class _Vector(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("capacity", ctypes.c_void_p))


class _NamedTensor(ctypes.Structure):
    """`std::pair<std::string, ggml_tensor *>`; the string's 32 bytes are not looked at."""

    _fields_ = (("name", ctypes.c_uint64 * 4), ("tensor", ctypes.c_void_p))


class _TensorHead(ctypes.Structure):
    """How `ggml_tensor` begins (ggml.h)."""

    _fields_ = (("type", ctypes.c_int), ("buffer", ctypes.c_void_p))


def _function(name: str, result: Any, *arguments: Any) -> Any:
    """From libllama or what it is linked to, ggml. AttributeError when there is none."""
    function = lib._lib[name]
    function.restype = result
    function.argtypes = arguments
    return function


def _read_shares(context: Context) -> Iterator[_Share]:
    breakdown = _function("_Z26llama_get_memory_breakdownPK13llama_context", _Map, ctypes.c_void_p)
    name_of = _function("ggml_backend_buft_name", ctypes.c_char_p, ctypes.c_void_p)
    found: _Map = breakdown(context)
    if not 0 < found.n_nodes <= _BUFFER_TYPES_MAX:
        raise _Unreadable
    waiting, n_read = [found.root], 0
    while waiting:
        address = waiting.pop()
        if address is None:
            continue
        n_read += 1
        if n_read > found.n_nodes:
            raise _Unreadable
        node = _Node.from_address(address)
        waiting += [node.left, node.right]
        yield _Share(
            buffer_type=name_of(node.buffer_type).decode("ascii", "replace"),
            model_bytes=node.model_bytes,
            context_bytes=node.context_bytes,
            compute_bytes=node.compute_bytes,
        )


def _read_tensors(model: Model) -> Iterator[_Tensor]:
    tensor_map = _function(
        "_Z29llama_internal_get_tensor_mapB5cxx11PK11llama_model", ctypes.POINTER(_Vector), ctypes.c_void_p
    )
    name_of = _function("ggml_get_name", ctypes.c_char_p, ctypes.c_void_p)
    size_of = _function("ggml_nbytes", ctypes.c_size_t, ctypes.c_void_p)
    buffer_name = _function("ggml_backend_buffer_name", ctypes.c_char_p, ctypes.c_void_p)
    vector: _Vector = tensor_map(model).contents
    n_tensors, rest = divmod((vector.end or 0) - (vector.begin or 0), ctypes.sizeof(_NamedTensor))
    if rest or not 0 < n_tensors <= _TENSORS_MAX:
        raise _Unreadable
    for entry in (_NamedTensor * n_tensors).from_address(vector.begin):
        head = _TensorHead.from_address(entry.tensor)
        yield _Tensor(
            name=name_of(entry.tensor),
            buffer=buffer_name(head.buffer).decode("ascii", "replace"),
            size_bytes=size_of(entry.tensor),
        )


class _GgufParams(ctypes.Structure):
    """`gguf_init_params` (gguf.h): no data, and no context for it."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


def _tensor_offsets(path: Path, tensors: Iterable[_Tensor]) -> dict[bytes, int]:
    """Where those of the tensors that are in this file begin, counted from the first one's place in it."""
    open_file = _function("gguf_init_from_file", ctypes.c_void_p, ctypes.c_char_p, _GgufParams)
    find = _function("gguf_find_tensor", ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p)
    offset_of = _function("gguf_get_tensor_offset", ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64)
    free = _function("gguf_free", None, ctypes.c_void_p)
    file = open_file(os.fsencode(path), _GgufParams(no_alloc=True, context=None))
    if file is None:
        raise _Unreadable
    try:
        indices = {tensor.name: find(file, tensor.name) for tensor in tensors}
        return {name: offset_of(file, index) for name, index in indices.items() if index >= 0}
    finally:
        free(file)
