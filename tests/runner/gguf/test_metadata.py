"""The typed view: names, sizes and texts as model configs carry them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from runner.errors import InvalidModelFile
from runner.gguf.format import ValueType
from runner.gguf.metadata import COUNT_UNITS, SIZE_UNITS, TEXT_MAP_MAX, GgufMetadata, read_metadata, scaled
from tests.support.gguf_writer import (
    Raw,
    Tensor,
    boolean,
    f32,
    gguf_bytes,
    i32,
    model_keys,
    numbers,
    scalar,
    strings,
    text,
    u32,
)


def describe(changes: dict[str, Raw | None], tensors: list[Tensor] | None = None) -> GgufMetadata:
    return read_metadata(io.BytesIO(gguf_bytes(model_keys(changes), tensors or [Tensor()])))


def test_a_model_is_described() -> None:
    metadata = describe({"llama.attention.sliding_window": u32(1024)}, [Tensor("w", (256, 1000), 12)])
    assert (metadata.architecture, metadata.name, metadata.kind) == ("llama", "Little", "model")
    assert (metadata.n_parameters, metadata.parameters) == (256_000, "256K")
    assert (metadata.tensor_bytes, metadata.size) == (144_000, "140.62KiB")
    assert metadata.quantization == "MOSTLY_Q4_1"
    assert (metadata.block_count, metadata.embedding_length, metadata.context_length) == (2, 64, 4096)
    assert (metadata.head_counts, metadata.head_counts_kv) == ((4, 4), (2, 2))
    assert metadata.sliding_window == 1024
    assert (metadata.vocab_size, metadata.tokenizer_model) == (260, "llama")
    assert metadata.chat_template == "{{ messages }}"


def test_what_a_file_need_not_tell_is_absent() -> None:
    absent = {"general.name": None, "tokenizer.chat_template": None, "general.file_type": None}
    metadata = describe({**absent, "llama.attention.sliding_window": u32(0)})
    assert (metadata.name, metadata.chat_template, metadata.sliding_window) == (None, None, None)


def test_the_vocabulary_size_is_counted_rather_than_believed() -> None:
    assert describe({"llama.vocab_size": u32(99)}).vocab_size == 260
    tokenless = {name: None for name in model_keys() if name.startswith("tokenizer.ggml.")}
    assert describe({**tokenless, "llama.vocab_size": u32(99)}).vocab_size == 99


@pytest.mark.parametrize(
    "architecture", [None, u32(1), text(""), text("LLaMA"), text("../x"), text("x" * 65)]
)
def test_the_architecture_is_a_plain_name(architecture: Raw | None) -> None:
    with pytest.raises(InvalidModelFile, match=r"general\.architecture"):
        describe({"general.architecture": architecture})


@pytest.mark.parametrize(
    "key", ["general.name", "tokenizer.chat_template", "tokenizer.ggml.model", "general.type"]
)
def test_texts_are_texts(key: str) -> None:
    with pytest.raises(InvalidModelFile, match=key):
        describe({key: u32(1)})


def test_a_projector_needs_no_layers_or_tokenizer() -> None:
    keys = {"general.architecture": text("clip"), "general.type": text("mmproj")}
    metadata = read_metadata(io.BytesIO(gguf_bytes(keys, [Tensor("v.patch_embd.bias", (16,), 1)])))
    assert (metadata.architecture, metadata.kind, metadata.block_count) == ("clip", "mmproj", None)
    assert not metadata.is_language_model
    assert metadata.kv_bytes_per_cell() == 0


def test_G03_no_other_kind_of_file_is_let_off() -> None:
    with pytest.raises(InvalidModelFile, match="block_count"):
        describe({"general.type": text("adapter"), "llama.block_count": None})


@pytest.mark.parametrize(
    ("declared", "name"),
    [
        (u32(0), "MOSTLY_F32"),
        (u32(1), "MOSTLY_F16"),
        (u32(15), "MOSTLY_Q4_K_M"),
        (u32(38), "MOSTLY_MXFP4"),
        (u32(4), "Unknown"),
        (u32(1024), "Unknown"),
        (i32(-1), "Unknown"),
        (text("Q4_K_M"), "Unknown"),
    ],
)
def test_the_quantization_is_the_name_of_the_file_type(declared: Raw, name: str) -> None:
    assert describe({"general.file_type": declared}).quantization == name


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        ([Tensor("a", (256,), 0)], "MOSTLY_F32"),
        ([Tensor("a", (256, 64), 12), Tensor("b", (256,), 0)], "MOSTLY_Q4_K_M"),
        ([Tensor("a", (32, 64), 8), Tensor("b", (256,), 0)], "MOSTLY_Q8_0"),
        ([Tensor("a", (32, 64), 27)], "Unknown"),
    ],
)
def test_without_a_file_type_the_prevailing_tensor_type_tells(tensors: list[Tensor], name: str) -> None:
    assert describe({"general.file_type": None}, tensors).quantization == name


@pytest.mark.parametrize(
    ("size_bytes", "size"),
    [
        (999, "999B"),
        (1000, "1KB"),  # in the gap between two powers: the first unit that is not larger
        (1023, "1.02KB"),
        (1024, "1KiB"),
        (98_114_432, "93.57MiB"),
        (1_050_000_000, "1.05GB"),
        (270_590_880, "258.06MiB"),
        (1 << 30, "1GiB"),
        (5 << 40, "5TiB"),
    ],
)
def test_sizes_are_written_with_the_largest_unit_that_fits(size_bytes: int, size: str) -> None:
    assert scaled(size_bytes, SIZE_UNITS) == size


@pytest.mark.parametrize(
    ("n_elements", "parameters"),
    [
        (1, "1"),
        (999, "999"),
        (1000, "1K"),
        (1500, "1.50K"),
        (134_515, "134.51K"),
        (7_000_000, "7M"),
        (7_620_000_000, "7.62B"),
        (1_004_000, "1M"),
        (1_005_001, "1.01M"),
    ],
)
def test_parameters_are_counted_in_thousands(n_elements: int, parameters: str) -> None:
    assert scaled(n_elements, COUNT_UNITS) == parameters


@pytest.mark.parametrize(
    ("n_bytes", "size"),
    [
        (999, "999B"),
        (1000, "1KB"),
        (1023, "1.02KB"),
        (1024, "1KiB"),
        (1_000_000, "1MB"),
        (1_050_000, "1MiB"),
        (1_048_576, "1MiB"),
        (1_572_864, "1.50MiB"),
    ],
)
def test_sizes_are_binary_but_for_the_gaps_between(n_bytes: int, size: str) -> None:
    assert describe({}, [Tensor("a", (n_bytes, 1), 24)]).size == size


def test_the_text_map_has_everything_but_the_tokenizer() -> None:
    metadata = describe(
        {
            "a.yes": boolean(1),
            "a.no": boolean(0),
            "a.float": f32(1e-5),
            "a.double": scalar(ValueType.FLOAT64, 2.5),
            "a.negative": i32(-7),
            "a.texts": strings(["en", "fr", b"\xff"]),
            "a.numbers": numbers(ValueType.INT16, [1, -2]),
            "a.floats": numbers(ValueType.FLOAT32, [0.5]),
            "a.flags": numbers(ValueType.BOOL, [1, 0]),
            "a.none": strings([]),
            "a.fifty": numbers(ValueType.UINT8, [1] * 50),
            "a.more": numbers(ValueType.UINT8, [1] * 51),
        }
    )
    assert metadata.as_text_map() == {
        "general.architecture": "llama",
        "general.name": "Little",
        "general.file_type": "3",
        "llama.context_length": "4096",
        "llama.embedding_length": "64",
        "llama.block_count": "2",
        "llama.attention.head_count": "4",
        "llama.attention.head_count_kv": "2",
        "tokenizer.ggml.model": "llama",
        "tokenizer.chat_template": "{{ messages }}",
        "a.yes": "true",
        "a.no": "false",
        "a.float": "0.000010",
        "a.double": "2.500000",
        "a.negative": "-7",
        "a.texts": "en, fr, �",
        "a.numbers": "1, -2",
        "a.floats": "0.500000",
        "a.flags": "true, false",
        "a.none": "",
        "a.fifty": ", ".join(["1"] * 50),
    }


@pytest.mark.parametrize(("extra", "is_accepted"), [(-1, True), (0, True), (1, False)])
def test_G01_the_text_map_is_no_longer_than_a_config_may_be(extra: int, is_accepted: bool) -> None:
    others = sum(len(value) for value in describe({}).as_text_map().values())
    for make in (text, lambda content: strings([content])):
        room = TEXT_MAP_MAX - others + extra
        changes = {"a": text("x" * 600_000), "b": make("x" * (room - 600_000))}
        if is_accepted and make is text:
            assert sum(map(len, describe(changes).as_text_map().values())) == TEXT_MAP_MAX + extra
        elif not is_accepted:
            with pytest.raises(InvalidModelFile, match="1048576 characters"):
                describe(changes)


def test_G01_numbers_of_many_digits_do_not_swell_the_text_map() -> None:
    numbers_of_300_digits = numbers(ValueType.FLOAT64, [1e300] * 50)
    with pytest.raises(InvalidModelFile, match="1048576 characters"):
        describe({f"a{index}": numbers_of_300_digits for index in range(100)})


def test_the_default_model_is_described(default_model_file: Path) -> None:
    metadata = read_metadata(default_model_file)
    assert (metadata.architecture, metadata.parameters, metadata.quantization) == (
        "llama",
        "134.52M",
        "MOSTLY_Q4_1",
    )
    assert (metadata.n_parameters, metadata.tensor_bytes, metadata.size) == (
        134_515_008,
        96_576_768,
        "92.10MiB",
    )
    assert (metadata.context_length, metadata.vocab_size, metadata.tokenizer_model) == (8192, 49_152, "gpt2")
    assert metadata.kv_bytes_per_cell() == 23_040  # what the engine allocates: 180 MiB for 8192 cells
    assert metadata.chat_template is not None
    assert "<|im_start|>" in metadata.chat_template
    assert metadata.as_text_map()["llama.rope.freq_base"] == "100000.000000"
    assert "tokenizer.ggml.tokens" not in metadata.as_text_map()
