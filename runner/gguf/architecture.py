"""What the engine derives sizes from, checked first (G03): layers, heads, experts, tensor types.

Each limit here stands where llama.cpp asserts, divides or indexes without looking: src/llama-model.cpp
(`load_hparams`), src/llama-hparams.h, and the kernels of ggml-cpu for tensor types. Found by reading and by
`tests/fuzz/gguf_reader.py --engine`. Imports the reader's values only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Self

import attrs

from runner.errors import InvalidModelFile
from runner.gguf.format import ValueType
from runner.gguf.reader import GgufArray, MetadataValue, TensorInfo

LAYERS_MAX = 512  # LLAMA_MAX_LAYERS; the engine aborts above it
EXPERTS_MAX = 1024  # LLAMA_MAX_EXPERTS; the same
CONTEXT_MAX = 2**27  # the largest known model was trained on 10,485,760 tokens
EMBEDDING_MAX = 2**20
HEADS_MAX = 2**16
HEAD_LENGTH_MAX = 2**16
WINDOW_MAX = 2**31 - 1
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")

_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PROJECTOR = "clip"
"""The architecture of projectors, which have keys of their own kind; the engine refuses one for a model.
Nothing else is let off: `general.type` says more, but the engine does not read it."""

_EPSILONS = ("layer_norm_epsilon", "layer_norm_rms_epsilon", "group_norm_epsilon")
_NOT_FOR_ARITHMETIC = frozenset({"I8", "I16", "I32", "I64", "F64"})
_LOOKUP_TABLE = "tid2eid.weight"  # token to expert (DeepSeek V4), read by row and never multiplied


class Fields:
    """Typed access to keys, with ranges. All but texts are named without the prefix of the architecture."""

    def __init__(self, values: Mapping[str, MetadataValue]) -> None:
        self._values = values
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str) or _ARCHITECTURE.fullmatch(architecture) is None:
            raise InvalidModelFile("general.architecture is missing or no plain name")
        self.architecture = architecture
        self.is_language_model = architecture != _PROJECTOR

    def text(self, key: str) -> str | None:
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            raise InvalidModelFile(f"{key} is no text")
        return value

    def number(self, name: str, low: int, high: int, *, required: bool = False) -> int | None:
        """A whole number of the architecture within [low, high]."""
        key = f"{self.architecture}.{name}"
        value = self._values.get(key)
        if value is None and not required:
            return None
        return _checked_number(key, value, low, high)

    def real(self, name: str) -> float | None:
        key = f"{self.architecture}.{name}"
        value = self._values.get(key)
        if value is not None and not isinstance(value, float):
            raise InvalidModelFile(f"{key} is no fraction")
        return value

    def per_layer(self, name: str, n_layers: int, high: int) -> tuple[int, ...] | None:
        """One number per layer in [0, high]: an array of just that length, or one number for all."""
        key = f"{self.architecture}.{name}"
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, GgufArray):
            return (_checked_number(key, value, 0, high),) * n_layers
        if value.is_text or value.count != n_layers:
            raise InvalidModelFile(f"{key} is no list of {n_layers} numbers, one for each layer")
        return tuple(_checked_number(key, number, 0, high) for number in value.numbers())

    def flags(self, name: str, n_layers: int) -> tuple[bool, ...] | None:
        """One truth value per layer; None when the key is missing or something else."""
        value = self._values.get(f"{self.architecture}.{name}")
        if isinstance(value, GgufArray) and value.element_type is ValueType.BOOL and value.count == n_layers:
            return tuple(bool(flag) for flag in value.numbers())
        return None


@attrs.frozen(kw_only=True)
class Attention:
    """Layers and heads. `key_length` and `value_length` are elements of one head of full attention."""

    n_layers: int | None
    embedding_length: int | None
    heads: tuple[int, ...]
    heads_kv: tuple[int, ...]
    key_length: int
    value_length: int
    windowed_key_length: int
    windowed_value_length: int
    has_window: tuple[bool, ...]
    keeps_cells: tuple[bool, ...]
    keeps_values: bool

    @classmethod
    def read(cls, fields: Fields) -> Self:
        required = fields.is_language_model
        declared_layers = fields.number("block_count", 1, LAYERS_MAX, required=required)
        embedding_length = fields.number("embedding_length", 1, EMBEDDING_MAX, required=required)
        n_layers = declared_layers or 0
        heads = fields.per_layer("attention.head_count", n_layers, HEADS_MAX) or (0,) * n_layers
        heads_kv = fields.per_layer("attention.head_count_kv", n_layers, HEADS_MAX) or heads
        _check_heads(heads, heads_kv)
        first_heads = next((number for number in heads if number), 0)
        default_length = (embedding_length or 0) // first_heads if first_heads else 0
        key_length = _head_length(fields, "attention.key_length", default_length)
        value_length = _head_length(fields, "attention.value_length", default_length)
        return cls(
            n_layers=declared_layers,
            embedding_length=embedding_length,
            heads=heads,
            heads_kv=heads_kv,
            key_length=key_length,
            value_length=value_length,
            windowed_key_length=_head_length(fields, "attention.key_length_swa", key_length),
            windowed_value_length=_head_length(fields, "attention.value_length_swa", value_length),
            has_window=fields.flags("attention.sliding_window_pattern", n_layers) or (),
            keeps_cells=_layers_with_cells(fields, n_layers),
            keeps_values=not _is_latent(fields),
        )

    def kv_elements_per_cell(self) -> int:
        """Elements of keys and values of one token, as `llama_kv_cache` allocates them layer by layer."""
        total = 0
        for layer_index, (heads_kv, keeps) in enumerate(zip(self.heads_kv, self.keeps_cells, strict=True)):
            if keeps:
                key_length, value_length = self._lengths(layer_index)
                total += heads_kv * (key_length + (value_length if self.keeps_values else 0))
        return total

    def _lengths(self, layer_index: int) -> tuple[int, int]:
        """Lengths of a layer; the larger ones when the file does not say which layers have windows."""
        if not self.has_window:
            return (
                max(self.key_length, self.windowed_key_length),
                max(self.value_length, self.windowed_value_length),
            )
        if self.has_window[layer_index]:
            return self.windowed_key_length, self.windowed_value_length
        return self.key_length, self.value_length


def check_architecture(fields: Fields, n_layers: int) -> None:
    """What `Attention` does not read. Raises InvalidModelFile."""
    _check_experts(fields, n_layers)
    scaling = fields.text(f"{fields.architecture}.rope.scaling.type")
    if scaling is not None and scaling not in ROPE_SCALINGS:
        raise InvalidModelFile(
            f"rope.scaling.type is {scaling[:40]!r}; possible are {', '.join(ROPE_SCALINGS)}"
        )
    for name in _EPSILONS:
        epsilon = fields.real(f"attention.{name}")
        if epsilon is not None and not 0 <= epsilon < math.inf:
            raise InvalidModelFile(f"attention.{name} is {epsilon}; it must be a small positive number")


def check_tensor_types(tensors: tuple[TensorInfo, ...]) -> None:
    """Weights are of types that the engine computes with.

    1. Whole numbers and doubles have no kernels: a weight of theirs is a call through a null pointer.
    2. Norms and biases are added and multiplied as they stand, which works with F32 alone.
    """
    for tensor in tensors:
        is_weight = tensor.name.endswith((".weight", ".bias")) and not tensor.name.endswith(_LOOKUP_TABLE)
        if is_weight and tensor.type.name in _NOT_FOR_ARITHMETIC:  # 1
            raise InvalidModelFile(
                f"tensor {tensor.name} is of type {tensor.type.name}, which weights cannot be"
            )
        is_plain = len(tensor.dimensions) <= 1 or "_norm." in tensor.name
        if is_weight and is_plain and tensor.type.name != "F32":  # 2
            raise InvalidModelFile(f"tensor {tensor.name} is of type {tensor.type.name} instead of F32")


def _head_length(fields: Fields, name: str, default: int) -> int:
    length = fields.number(name, 1, HEAD_LENGTH_MAX)
    return default if length is None else length


def _layers_with_cells(fields: Fields, n_layers: int) -> tuple[bool, ...]:
    """Which layers keep keys and values.

    1. The last `shared_kv_layers` read those of earlier layers (Gemma 3n, Gemma 4).
    2. With `full_attention_interval` n, every n-th layer attends and the others are recurrent (Qwen3-Next),
       while layers that predict further tokens, behind the others, attend as well.
    """
    shared = fields.number("attention.shared_kv_layers", 0, n_layers) or 0
    interval = fields.number("full_attention_interval", 1, LAYERS_MAX) or 1
    further = fields.number("nextn_predict_layers", 0, n_layers) or 0
    return tuple(
        index < n_layers - shared and ((index + 1) % interval == 0 or index >= n_layers - further)
        for index in range(n_layers)
    )


def _is_latent(fields: Fields) -> bool:
    """Latent attention (DeepSeek) keeps one compressed vector per token, from which values are computed."""
    lengths = [fields.number(f"attention.{name}_length_mla", 0, HEAD_LENGTH_MAX) for name in ("key", "value")]
    return all(lengths)


def _check_heads(heads: tuple[int, ...], heads_kv: tuple[int, ...]) -> None:
    """Query heads are shared evenly among key-value heads; the engine divides one by the other."""
    for layer_index, (queries, pairs) in enumerate(zip(heads, heads_kv, strict=True)):
        if queries and pairs and queries % pairs:
            raise InvalidModelFile(f"layer {layer_index} has {queries} heads for {pairs} key-value heads")


def _check_experts(fields: Fields, n_layers: int) -> None:
    """Experts in use, and groups of experts, as `load_hparams` asserts them."""
    experts = fields.number("expert_count", 0, EXPERTS_MAX) or 0
    used = max(fields.per_layer("expert_used_count", n_layers, EXPERTS_MAX) or (0,), default=0)
    groups = fields.number("expert_group_count", 0, EXPERTS_MAX) or 0
    groups_used = fields.number("expert_group_used_count", 0, EXPERTS_MAX) or 0
    is_dense = experts == 0 or (experts == 1 and fields.architecture.startswith("hunyuan"))
    if is_dense and used <= experts and groups == 0:
        return
    if not 1 <= used <= experts:
        raise InvalidModelFile(f"the model uses {used} experts and has {experts}")
    if groups >= experts or (groups > 1 and (experts % groups or not 0 < groups_used < groups)):
        raise InvalidModelFile(
            f"{experts} experts cannot form {groups} groups of which {groups_used} are used"
        )


def _checked_number(key: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidModelFile(f"{key} is missing or no whole number")
    if not low <= value <= high:
        raise InvalidModelFile(f"{key} is {value}; {low} to {high} are possible")
    return value
