"""The structure of GGUF headers: what is read, and what is refused (G02)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from runner.gguf.format import TENSOR_TYPES, ValueType
from runner.gguf.reader import GgufArray, GgufHeader, read_header
from tests.support.gguf_reading import accepts, around, read, refusal
from tests.support.gguf_writer import (
    Raw,
    Tensor,
    array_of,
    boolean,
    f32,
    gguf_bytes,
    i32,
    numbers,
    scalar,
    strings,
    text,
    u32,
    u64,
    write_with_gguf,
)

# What is read


def test_every_kind_of_value_is_read() -> None:
    header = read(
        gguf_bytes(
            {
                "a.u8": scalar(ValueType.UINT8, 200),
                "a.i8": scalar(ValueType.INT8, -100),
                "a.u16": scalar(ValueType.UINT16, 60_000),
                "a.i16": scalar(ValueType.INT16, -30_000),
                "a.u32": u32(4_000_000_000),
                "a.i32": i32(-2_000_000_000),
                "a.f32": f32(0.5),
                "a.yes": boolean(1),
                "a.no": boolean(0),
                "a.text": text("héllo"),
                "a.u64": u64(2**64 - 1),
                "a.i64": scalar(ValueType.INT64, -(2**63)),
                "a.f64": scalar(ValueType.FLOAT64, 0.1),
            }
        )
    )
    assert dict(header.metadata) == {
        "a.u8": 200,
        "a.i8": -100,
        "a.u16": 60_000,
        "a.i16": -30_000,
        "a.u32": 4_000_000_000,
        "a.i32": -2_000_000_000,
        "a.f32": 0.5,
        "a.yes": True,
        "a.no": False,
        "a.text": "héllo",
        "a.u64": 2**64 - 1,
        "a.i64": -(2**63),
        "a.f64": 0.1,
    }


def _array(header: GgufHeader, key: str) -> GgufArray:
    value = header.metadata[key]
    assert isinstance(value, GgufArray)
    return value


def test_arrays_are_decoded_when_asked() -> None:
    header = read(
        gguf_bytes(
            {
                "a.texts": strings(["one", "", "dréi"]),
                "a.shorts": numbers(ValueType.INT16, [-1, 0, 1]),
                "a.floats": numbers(ValueType.FLOAT32, [0.5, -2.0]),
                "a.flags": numbers(ValueType.BOOL, [1, 0]),
                "a.none": strings([]),
            }
        )
    )
    assert list(_array(header, "a.texts").strings()) == [b"one", b"", "dréi".encode()]
    assert list(_array(header, "a.shorts").numbers()) == [-1, 0, 1]
    assert list(_array(header, "a.floats").numbers()) == [0.5, -2.0]
    assert list(_array(header, "a.flags").numbers()) == [1, 0]
    assert list(_array(header, "a.none").strings()) == []
    assert repr(_array(header, "a.texts")) == "<GgufArray of 3 string>"


def test_numbers_are_little_endian_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    values = _array(read(gguf_bytes({"a": numbers(ValueType.UINT16, [1, 0x0203])})), "a")
    monkeypatch.setattr("sys.byteorder", "big")
    assert list(values.numbers()) == [0x0100, 0x0302]  # swapped, since this machine is not what it says


def test_strings_are_stepped_over_while_the_file_is_still_being_read() -> None:
    texts = [bytes([byte]) * 700_000 for byte in b"abc"]  # the last one ends beyond what has been read
    header = read(gguf_bytes({"a": strings(texts), "b": u32(7)}))
    assert [text[:1] for text in _array(header, "a").strings()] == [b"a", b"b", b"c"]
    assert header.metadata["b"] == 7


def test_numbers_are_no_strings_and_strings_no_numbers() -> None:
    header = read(gguf_bytes({"a.texts": strings(["x"]), "a.numbers": numbers(ValueType.UINT8, [1])}))
    with pytest.raises(ValueError, match="no strings"):
        list(_array(header, "a.numbers").strings())
    with pytest.raises(ValueError, match="fixed size"):
        _array(header, "a.texts").numbers()


def test_tensors_are_read_with_their_sizes_and_places() -> None:
    header = read(gguf_bytes({}, [Tensor("a", (64, 3), 2), Tensor("b", (5,), 0), Tensor("c", (), 0)]))
    a, b, c = header.tensors
    assert (a.name, a.dimensions, a.type.name, a.n_elements, a.size_bytes) == ("a", (64, 3), "Q4_0", 192, 108)
    assert (b.offset, b.size_bytes) == (128, 20)
    assert (c.dimensions, c.n_elements, c.offset) == ((), 1, 160)
    assert header.data_offset % header.alignment == 0
    assert header.file_bytes == header.data_offset + 192


def test_the_last_tensor_needs_no_padding() -> None:
    data = gguf_bytes({}, [Tensor("a", (5,), 0)], data_bytes=20)
    assert read(data).tensors[0].size_bytes == 20
    assert "outside of the file" in refusal(data[:-1])


@pytest.mark.parametrize("version", [2, 3])
def test_both_living_versions_are_read(version: int) -> None:
    assert read(gguf_bytes({"a": u32(1)}, version=version)).version == version


def test_a_declared_alignment_is_followed() -> None:
    keys = {"general.alignment": u32(64)}
    header = read(gguf_bytes(keys, [Tensor("a", (5,)), Tensor("b", (5,))], alignment=64))
    assert (header.alignment, header.data_offset % 64, header.tensors[1].offset) == (64, 0, 64)


def test_a_path_is_as_good_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes({"a": u32(1)}, [Tensor()]))
    assert read_header(path).metadata == read_header(str(path)).metadata == {"a": 1}


def test_a_file_is_read_from_its_beginning_wherever_it_stands() -> None:
    file = io.BytesIO(gguf_bytes({"a": u32(1)}))
    file.seek(7)
    assert read_header(file).metadata == {"a": 1}


def test_what_the_gguf_package_writes_is_read_as_it_was_meant(tmp_path: Path) -> None:
    keys = {
        "general.architecture": "llama",
        "a.count": 7,
        "a.rate": 0.25,
        "a.flag": True,
        "a.text": "héllo",
        "a.list": [1, 2, 3],
        "a.texts": ["x", "y"],
    }
    weights = np.arange(96, dtype=np.float32).reshape(3, 32)
    path = write_with_gguf(tmp_path / "model.gguf", keys, {"w": weights, "h": weights.astype(np.float16)})
    header = read_header(path)
    assert {key: header.metadata[key] for key in ("a.count", "a.rate", "a.flag", "a.text")} == {
        "a.count": 7,
        "a.rate": 0.25,
        "a.flag": True,
        "a.text": "héllo",
    }
    assert list(_array(header, "a.list").numbers()) == [1, 2, 3]
    assert list(_array(header, "a.texts").strings()) == [b"x", b"y"]
    first = header.tensors[0]
    start = header.data_offset + first.offset
    assert path.read_bytes()[start : start + first.size_bytes] == weights.tobytes()
    assert [(t.dimensions, t.type.name) for t in header.tensors] == [((32, 3), "F32"), ((32, 3), "F16")]


def test_the_default_model_is_read(default_model_file: Path) -> None:
    header = read_header(default_model_file)  # the numbers are what gguf.GGUFReader finds, in a second or two
    assert (header.version, header.alignment, header.data_offset) == (3, 32, 1_785_664)
    assert (len(header.metadata), len(header.tensors)) == (33, 272)
    first, last = header.tensors[0], header.tensors[-1]
    assert (first.name, first.dimensions, first.type.name) == ("token_embd.weight", (576, 49_152), "Q8_0")
    assert header.data_offset + last.offset + last.size_bytes == default_model_file.stat().st_size
    assert _array(header, "tokenizer.ggml.merges").count == 48_900
    assert list(_array(header, "tokenizer.ggml.tokens").strings())[:3] == [
        b"<|endoftext|>",
        b"<|im_start|>",
        b"<|im_end|>",
    ]


# G02: the structure is sound


def test_G02_other_files_and_versions_are_refused() -> None:
    assert refusal(b"") == refusal(b"GG") == refusal(b"PK\x03\x04" + bytes(100)) == "this is not a GGUF file"
    assert "version 1 " in refusal(gguf_bytes({}, version=1))
    assert "version 4 " in refusal(gguf_bytes({}, version=4))
    assert "version 0 " in refusal(gguf_bytes({}, version=0))
    assert "big-endian" in refusal(gguf_bytes({}, version=0x03000000))


@pytest.mark.parametrize(
    ("alignment", "is_accepted"),
    [
        (0, False),
        (1, False),
        (16, False),
        (31, False),
        (32, True),
        (33, False),
        (48, False),
        (64, True),
        (2**31, True),
    ],
)
def test_G02_alignment_is_a_power_of_two_that_the_engine_can_map(alignment: int, is_accepted: bool) -> None:
    data = gguf_bytes({"general.alignment": u32(alignment)})
    assert accepts(data) is is_accepted


@pytest.mark.parametrize("value", [u64(32), i32(32), text("32"), boolean(1), numbers(ValueType.UINT32, [32])])
def test_G02_an_alignment_of_another_type_is_refused(value: Raw) -> None:
    assert "general.alignment" in refusal(gguf_bytes({"general.alignment": value}))


def test_G02_unknown_value_types_are_refused() -> None:
    for number in (13, 14, 255, 2**31, 2**32 - 1):
        assert "unknown value type" in refusal(gguf_bytes({"a": Raw(number, bytes(8))}))
        assert "unknown value type" in refusal(gguf_bytes({"a": array_of(number, 0, b"")}))


def test_G02_unknown_tensor_types_are_refused() -> None:
    for number in (4, 5, 9, 15, 31, 33, 36, 38, 43, 2**31, 2**32 - 1):
        assert "unknown type" in refusal(gguf_bytes({}, [Tensor("t", (256,), number)], data_bytes=4096))


def test_G02_rows_are_whole_blocks_of_every_type() -> None:
    for number, kind in TENSOR_TYPES.items():
        block = kind.block_elements
        assert read(gguf_bytes({}, [Tensor("t", (block, 2), number)])).tensors[0].n_elements == 2 * block
        if block > 1:
            assert "whole" in refusal(gguf_bytes({}, [Tensor("t", (block // 2, 4), number)], data_bytes=4096))


@pytest.mark.parametrize(
    ("n_dimensions", "is_accepted"), [(0, True), (1, True), (4, True), (5, False), (2**10, False)]
)
def test_G02_four_dimensions_at_most(n_dimensions: int, is_accepted: bool) -> None:
    assert accepts(gguf_bytes({}, [Tensor("t", (1,) * n_dimensions)])) is is_accepted


@pytest.mark.parametrize(
    "dimensions", [(2**63,), (2**64 - 1,), (2**32, 2**31), (2**31, 2**31, 2), (2**16, 2**16, 2**16, 2**16)]
)
def test_G02_a_product_beyond_what_can_be_counted_is_refused(dimensions: tuple[int, ...]) -> None:
    assert "more elements" in refusal(gguf_bytes({}, [Tensor("t", dimensions)], data_bytes=64))


def test_G02_the_largest_countable_product_is_merely_outside_of_the_file() -> None:
    assert "outside" in refusal(gguf_bytes({}, [Tensor("t", (2**63 - 1,), 24)], data_bytes=64))


@pytest.mark.parametrize("dimensions", [(0,), (32, 0), (32, 1, 1, 0)])
def test_G02_empty_dimensions_are_refused(dimensions: tuple[int, ...]) -> None:
    assert "empty dimension" in refusal(gguf_bytes({}, [Tensor("t", dimensions)]))


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (1, "aligned"),
        (16, "aligned"),
        (0, "overlaps"),
        (32, "overlaps"),
        (96, "gap"),
        (2**63, "gap"),
        (64, None),
    ],
)
def test_G02_tensors_lie_back_to_back(offset: int, message: str | None) -> None:
    data = gguf_bytes({}, [Tensor("a", (16,)), Tensor("b", (8,), offset=offset)], data_bytes=4096)
    if message is None:
        assert read(data).tensors[1].offset == 64
    else:
        assert message in refusal(data)


def test_G02_the_first_tensor_begins_the_data() -> None:
    assert "gap" in refusal(gguf_bytes({}, [Tensor("a", (8,), offset=32)], data_bytes=4096))


@pytest.mark.parametrize(("missing_bytes", "is_accepted"), [(0, True), (1, False), (64, False), (128, False)])
def test_G02_every_tensor_ends_within_the_file(missing_bytes: int, is_accepted: bool) -> None:
    data = gguf_bytes({}, [Tensor("a", (8,)), Tensor("b", (32,))])
    assert accepts(data[: len(data) - missing_bytes]) is is_accepted


def test_G02_duplicate_keys_and_tensor_names_are_refused() -> None:
    assert "key a.b occurs twice" in refusal(gguf_bytes([("a.b", u32(1)), ("a.b", u32(2))]))
    assert "tensor t occurs twice" in refusal(gguf_bytes({}, [Tensor("t"), Tensor("t")]))


def test_G02_names_are_printable_ASCII() -> None:
    for name in (b"", b"a b", b"a\0", b"a\n", b"\x1b[31m", b"\x7f", "é".encode(), b"\xff"):
        assert refusal(gguf_bytes([(name, u32(1))]))
        assert refusal(gguf_bytes({}, [Tensor(name)]))


@pytest.mark.parametrize(("length", "is_accepted"), ((0, False), (1, True), *around(63)))
def test_G02_tensor_names_fit_into_the_engine(length: int, is_accepted: bool) -> None:
    assert accepts(gguf_bytes({}, [Tensor("t" * length)])) is is_accepted


def test_G02_text_is_valid_UTF_8() -> None:
    assert "UTF-8" in refusal(gguf_bytes({"a": text(b"\xff\xfe")}))
    assert "UTF-8" in refusal(gguf_bytes({"a": text(b"\xed\xa0\x80")}))  # a lone surrogate


@pytest.mark.parametrize("value", [2, 127, 255])
def test_G02_truth_values_are_0_or_1(value: int) -> None:
    assert "truth value" in refusal(gguf_bytes({"a": boolean(value)}))
    assert "truth values" in refusal(gguf_bytes({"a": numbers(ValueType.BOOL, [0, 1, value, 1])}))
