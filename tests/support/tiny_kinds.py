"""Tiny models with random weights whose memory is not that of ordinary attention: no real model was run.

The engine loads them and generates noise, so they show how its memory behaves, not what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from scripts.tiny_gguf import TinyModel, _add_vocabulary

Tensors = Iterator[tuple[str, npt.NDArray[np.float32]]]

WIDTH, INNER, N_HEADS, HEAD = 64, 128, 4, 16
WINDOW = 96
N_LAYERS = 6
_STATE, _CONV, _RANK = 8, 4, 4


def write_windowed(path: Path) -> Path:
    """Gemma 3: five layers of six see the last `WINDOW` tokens only."""
    writer = _writer(path, "gemma3", n_heads_kv=2)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_sliding_window(WINDOW)
    return _finish(writer, path, _windowed_tensors)


def write_recurrent(path: Path) -> Path:
    """Mamba: a state per sequence instead of cells."""
    writer = _writer(path, "mamba", n_heads_kv=0)
    writer.add_ssm_conv_kernel(_CONV)
    writer.add_ssm_inner_size(2 * WIDTH)
    writer.add_ssm_state_size(_STATE)
    writer.add_ssm_time_step_rank(_RANK)
    return _finish(writer, path, _recurrent_tensors)


def write_hybrid(path: Path) -> Path:
    """LFM2: every second layer attends, the others keep a state."""
    writer = _writer(path, "lfm2", n_heads_kv=[0, 2] * (N_LAYERS // 2))
    writer.add_shortconv_l_cache(3)
    return _finish(writer, path, _hybrid_tensors)


def _writer(path: Path, architecture: str, *, n_heads_kv: int | list[int]) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(architecture)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER if architecture != "mamba" else 0)
    writer.add_head_count(N_HEADS if architecture != "mamba" else 0)
    writer.add_head_count_kv(n_heads_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    return writer


def _finish(writer: gguf.GGUFWriter, path: Path, tensors: Callable[[int], Tensors]) -> Path:
    n_tokens = _add_vocabulary(writer, TinyModel())
    for name, tensor in tensors(n_tokens):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class _Weights:
    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def matrix(self, rows: int, columns: int) -> npt.NDArray[np.float32]:
        return self._random.normal(0.0, columns**-0.5, (rows, columns)).astype(np.float32)

    def ones(self, size: int = WIDTH) -> npt.NDArray[np.float32]:
        return np.ones(size, np.float32)


def _attention(weights: _Weights, block: str) -> Tensors:
    yield f"{block}.attn_q.weight", weights.matrix(N_HEADS * HEAD, WIDTH)
    yield f"{block}.attn_k.weight", weights.matrix(2 * HEAD, WIDTH)
    yield f"{block}.attn_v.weight", weights.matrix(2 * HEAD, WIDTH)
    yield f"{block}.attn_output.weight", weights.matrix(WIDTH, N_HEADS * HEAD)
    yield f"{block}.attn_q_norm.weight", weights.ones(HEAD)
    yield f"{block}.attn_k_norm.weight", weights.ones(HEAD)


def _feed_forward(weights: _Weights, block: str) -> Tensors:
    yield f"{block}.ffn_norm.weight", weights.ones()
    yield f"{block}.ffn_gate.weight", weights.matrix(INNER, WIDTH)
    yield f"{block}.ffn_up.weight", weights.matrix(INNER, WIDTH)
    yield f"{block}.ffn_down.weight", weights.matrix(WIDTH, INNER)


def _windowed_tensors(n_tokens: int) -> Tensors:
    weights = _Weights(1)
    yield "token_embd.weight", weights.matrix(n_tokens, WIDTH)
    yield "output_norm.weight", weights.ones()
    for index in range(N_LAYERS):
        block = f"blk.{index}"
        yield f"{block}.attn_norm.weight", weights.ones()
        yield from _attention(weights, block)
        yield f"{block}.post_attention_norm.weight", weights.ones()
        yield from _feed_forward(weights, block)
        yield f"{block}.post_ffw_norm.weight", weights.ones()


def _recurrent_tensors(n_tokens: int) -> Tensors:
    weights, inner = _Weights(2), 2 * WIDTH
    yield "token_embd.weight", weights.matrix(n_tokens, WIDTH)
    yield "output_norm.weight", weights.ones()
    for index in range(N_LAYERS):
        block = f"blk.{index}"
        yield f"{block}.attn_norm.weight", weights.ones()
        yield f"{block}.ssm_in.weight", weights.matrix(2 * inner, WIDTH)
        yield f"{block}.ssm_conv1d.weight", weights.matrix(inner, _CONV)
        yield f"{block}.ssm_conv1d.bias", weights.ones(inner)
        yield f"{block}.ssm_x.weight", weights.matrix(_RANK + 2 * _STATE, inner)
        yield f"{block}.ssm_dt.weight", weights.matrix(inner, _RANK)
        yield f"{block}.ssm_dt.bias", weights.ones(inner)
        yield f"{block}.ssm_a", -np.abs(weights.matrix(inner, _STATE))
        yield f"{block}.ssm_d", weights.ones(inner)
        yield f"{block}.ssm_out.weight", weights.matrix(WIDTH, inner)


def _hybrid_tensors(n_tokens: int) -> Tensors:
    weights = _Weights(3)
    yield "token_embd.weight", weights.matrix(n_tokens, WIDTH)
    yield "token_embd_norm.weight", weights.ones()
    for index in range(N_LAYERS):
        block = f"blk.{index}"
        yield f"{block}.attn_norm.weight", weights.ones()
        if index % 2:
            yield from _attention(weights, block)
        else:
            yield f"{block}.shortconv.conv.weight", weights.matrix(WIDTH, 3)
            yield f"{block}.shortconv.in_proj.weight", weights.matrix(3 * WIDTH, WIDTH)
            yield f"{block}.shortconv.out_proj.weight", weights.matrix(WIDTH, WIDTH)
        yield from _feed_forward(weights, block)
