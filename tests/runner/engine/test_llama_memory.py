"""Sizes of a simulated load against those of the real one; what is told when the library cannot be read."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from runner.domain.engine import DeviceBuffers, EngineOptions, FlashAttention
from runner.engine import llama_memory
from runner.engine.backend import DecodeResult, load_backend
from runner.engine.llama_loading import engine_log
from runner.engine.llama_memory import measure
from runner.errors import LoadingFailed
from scripts.tiny_gguf import TinyModel, write_tiny_gguf, write_tiny_split
from tests.support.tiny_encoder import tiny_bert

pytestmark = pytest.mark.real_model

MIB = 2**20
SMALL = EngineOptions(context_size=256, n_cells=512)


def logged_by_a_load(path: Path, options: EngineOptions, *further_parts: Path) -> tuple[DeviceBuffers, ...]:
    backend = load_backend("llama", path, options, lambda fraction: True, further_parts=further_parts)
    try:
        return backend.facts.devices
    finally:
        backend.close()


def as_logged(devices: tuple[DeviceBuffers, ...]) -> dict[str, list[str]]:
    """Per device the sizes in the digits in which the engine prints them."""
    return {
        buffers.device: [f"{size_bytes / MIB:.2f}" for size_bytes in attrs.astuple(buffers)[1:]]
        for buffers in devices
    }


@pytest.mark.parametrize("context_size", [2048, 8192])
def test_O01_the_estimate_equals_what_the_real_load_logs(default_model_file: Path, context_size: int) -> None:
    options = EngineOptions(context_size=context_size, n_cells=2 * context_size)
    told = measure(default_model_file, options)
    assert as_logged(told.devices) == as_logged(logged_by_a_load(default_model_file, options))
    (host,) = told.devices
    assert host.kv_cache_bytes == 2 * context_size * 30 * 3 * 64 * 2 * 2
    assert host.output_bytes == (options.max_sequences + options.max_retained) * 49_152 * 4


@pytest.mark.parametrize(
    "changes",
    [
        {"key_type": "q8_0", "value_type": "q4_0"},
        {"key_type": "q4_0", "flash_attention": "off"},
        {"flash_attention": "off"},
        {"max_sequences": 1, "prefill_chunk": 512},
        {"n_cells": 777},
    ],
)
def test_O01_it_does_with_any_options(default_model_file: Path, changes: dict[str, Any]) -> None:
    options = attrs.evolve(SMALL, **changes)
    told = measure(default_model_file, options)
    assert as_logged(told.devices) == as_logged(logged_by_a_load(default_model_file, options))


@pytest.mark.parametrize("is_quantized", [False, True])
def test_O01_it_does_where_weights_are_repacked(tmp_path: Path, is_quantized: bool) -> None:
    """Q4_0 is repacked on processors with the instructions for it; of the file then only a part is mapped."""
    model = TinyModel(n_layers=3, n_embedding=512, n_feed_forward=1024, is_quantized=is_quantized)
    path = write_tiny_gguf(tmp_path / "tiny.gguf", model)
    told = measure(path, SMALL)
    logged = logged_by_a_load(path, SMALL)
    assert as_logged(told.devices) == as_logged(logged)
    assert told.devices[0].weights_bytes < path.stat().st_size


@pytest.mark.parametrize("is_quantized", [False, True])
@pytest.mark.parametrize("small_first", [False, True])
def test_O01_it_does_for_a_split_model(tmp_path: Path, is_quantized: bool, small_first: bool) -> None:
    model = TinyModel(n_layers=3, n_embedding=512, n_feed_forward=1024, is_quantized=is_quantized)
    path, *further_parts = write_tiny_split(
        tmp_path / "tiny.gguf", model, tensors_per_part=7, small_first=small_first
    )
    assert len(further_parts) == 4 + small_first
    told = measure(path, SMALL, further_parts=tuple(further_parts))
    logged = logged_by_a_load(path, SMALL, *further_parts)
    assert as_logged(told.devices).keys() == as_logged(logged).keys()
    for told_bytes, logged_bytes in zip(
        attrs.astuple(told.devices[0])[1:], attrs.astuple(logged[0])[1:], strict=True
    ):  # each file that is mapped is logged in digits of its own
        assert abs(told_bytes - logged_bytes) <= 5 * MIB // 100


def test_O01_what_embeddings_take_more_equals_what_their_context_logs(default_model_file: Path) -> None:
    options = EngineOptions(context_size=2048, n_cells=4096)
    (told,) = measure(default_model_file, options).annex
    log = engine_log().buffers
    backend = load_backend("llama", default_model_file, options, lambda fraction: True)
    try:
        log.clear()
        context = backend.open_embedding()
        context.batch.positions[:64] = range(64)
        context.batch.wants_logits[:64] = 1
        assert context.decode(64) is DecodeResult.DONE
        logged = log.devices()
        context.close()
    finally:
        backend.close()
    sizes = as_logged((told,))["cpu"]
    assert sizes[:4] == as_logged(logged)["cpu"][:4]
    assert told.kv_cache_bytes == 2048 * 30 * 3 * 64 * 2 * 2
    assert told.output_bytes == 64 * 4 * (49_152 + 576)


@pytest.mark.parametrize("replaced", ["_read_shares", "_is_layout_known"])
def test_O01_the_log_tells_the_same_of_them(
    default_model_file: Path, monkeypatch: pytest.MonkeyPatch, replaced: str
) -> None:
    told = measure(default_model_file, SMALL).annex
    monkeypatch.setattr(llama_memory, replaced, _no_shares if replaced == "_read_shares" else lambda: False)
    assert as_logged(measure(default_model_file, SMALL).annex) == as_logged(told)


def test_an_encoder_takes_nothing_more_for_embeddings(tmp_path: Path) -> None:
    told = measure(tiny_bert().write_gguf(tmp_path / "tiny.gguf"), SMALL)
    assert told.annex == ()


def test_types_of_the_cache_make_it_smaller(default_model_file: Path) -> None:
    def cache_bytes(**changes: Any) -> int:
        (host,) = measure(default_model_file, attrs.evolve(SMALL, **changes)).devices
        return host.kv_cache_bytes

    plain = cache_bytes()
    assert cache_bytes(key_type="q8_0", value_type="q8_0") == plain * 17 // 32
    assert cache_bytes(key_type="q4_0", value_type="q4_0") == plain * 9 // 32
    assert cache_bytes(key_type="q8_0") == plain * 49 // 64


@pytest.mark.parametrize(("grown", "counted"), [(0, 0), (20 * MIB, 20 * MIB), (-5 * MIB, 0)])
def test_the_process_counts_with_its_growth_and_the_samplers_of_all_sequences(
    default_model_file: Path, monkeypatch: pytest.MonkeyPatch, grown: int, counted: int
) -> None:
    (host,) = measure(default_model_file, SMALL).devices
    output_bytes = round(host.output_bytes / MIB, 2) * MIB  # which a simulated load really allocates
    monkeypatch.setattr(llama_memory, "_encoder_bytes", lambda *_: 7)
    looks = iter([100 * MIB, 100 * MIB + grown + round(output_bytes)])
    monkeypatch.setattr(llama_memory, "anonymous_bytes", lambda: next(looks))
    told = measure(default_model_file, SMALL)
    assert told.process_bytes == counted + SMALL.max_sequences * 49_152 * 12 + 7


def test_what_cannot_be_loaded_cannot_be_measured(tmp_path: Path, default_model_file: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(default_model_file.read_bytes()[:100_000])
    with pytest.raises(LoadingFailed):
        measure(cut, SMALL)


def test_a_cache_type_that_does_not_divide_the_heads_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", TinyModel(n_embedding=64, n_heads=4))
    with pytest.raises(LoadingFailed, match="with these options"):
        measure(path, attrs.evolve(SMALL, key_type="q8_0"))


# when the library's own sums cannot be had


def _missing(name: str, result: Any, *arguments: Any) -> Any:
    raise AttributeError(name)


def _wrong_shares(context: Any) -> Any:
    yield llama_memory._Share("CPU", 5, 5, 5)


def _wrong_tensors(model: Any) -> Any:
    yield llama_memory._Tensor(b"x", "CPU", 5)


def _no_shares(context: Any) -> Any:
    raise llama_memory._Unreadable
    yield


@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        ("_function", _missing),
        ("_read_shares", _wrong_shares),
        ("_read_shares", _no_shares),
        ("_read_tensors", _wrong_tensors),
    ],
)
def test_the_log_counts_when_the_library_cannot_be_read_or_disagrees(
    default_model_file: Path, monkeypatch: pytest.MonkeyPatch, name: str, replacement: Callable[..., Any]
) -> None:
    monkeypatch.setattr(llama_memory, name, replacement)
    told = measure(default_model_file, SMALL)
    assert as_logged(told.devices) == as_logged(logged_by_a_load(default_model_file, SMALL))


def test_the_log_counts_on_other_systems(default_model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.engine.llama_memory.sys.platform", "darwin")
    monkeypatch.setattr(llama_memory, "_read_shares", _no_shares)
    (host,) = measure(default_model_file, attrs.evolve(SMALL, flash_attention=FlashAttention.ON)).devices
    assert host.weights_bytes == 96_576_768


@pytest.mark.parametrize("n_nodes", [0, 257, 2**40])
def test_a_result_of_another_layout_is_not_followed(monkeypatch: pytest.MonkeyPatch, n_nodes: int) -> None:
    found = llama_memory._Map(n_nodes=n_nodes, root=8)
    monkeypatch.setattr(llama_memory, "_function", lambda *about: lambda *arguments: found)
    with pytest.raises(llama_memory._Unreadable):
        list(llama_memory._read_shares(llama_memory.Context(0)))


@pytest.mark.parametrize(("begin", "end"), [(0, 0), (64, 65), (64, 24), (64, 2**40)])
def test_a_list_of_another_layout_is_not_followed(
    monkeypatch: pytest.MonkeyPatch, begin: int, end: int
) -> None:
    vector = ctypes.pointer(llama_memory._Vector(begin=begin, end=end))
    monkeypatch.setattr(llama_memory, "_function", lambda *about: lambda *arguments: vector)
    with pytest.raises(llama_memory._Unreadable):
        list(llama_memory._read_tensors(llama_memory.Model(0)))


def test_several_devices_need_the_library() -> None:
    log = llama_memory.BufferLog()
    log.feed(b"sched_reserve:      CUDA0 compute buffer size =   300.75 MiB\n")
    with pytest.raises(LoadingFailed, match="per device"):
        llama_memory._by_log(llama_memory.Model(0), log)


def test_devices_share_a_load_by_what_their_memory_holds() -> None:
    shares = (
        llama_memory._Share("CPU", 1000, 0, 50),
        llama_memory._Share("CPU_REPACK", 300, 0, 0),
        llama_memory._Share("CUDA0", 5000, 700, 80),
        llama_memory._Share("CUDA_Host", 0, 0, 9),
    )
    host = llama_memory._device_buffers("cpu", shares, 1100, 11)
    gpu = llama_memory._device_buffers("CUDA0", shares, 1100, 0)
    assert host == DeviceBuffers(
        device="cpu", weights_bytes=1100, repacked_bytes=300, compute_bytes=59, output_bytes=11
    )
    assert gpu == DeviceBuffers(device="CUDA0", weights_bytes=5000, kv_cache_bytes=700, compute_bytes=80)
