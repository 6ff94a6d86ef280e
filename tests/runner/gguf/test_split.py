"""A model in several files: what fits together is read as one, everything else is refused."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import InvalidModelFile
from runner.gguf.format import HeaderLimits, ValueType
from runner.gguf.metadata import GgufMetadata, read_metadata
from runner.gguf.split import PARTS_MAX, PartName, read_parts
from scripts.tiny_gguf import TinyModel, write_tiny_gguf, write_tiny_split
from tests.support.gguf_writer import (
    Raw,
    Tensor,
    gguf_bytes,
    model_keys,
    numbers,
    scalar,
    strings,
    text,
    u32,
)


def part(number: int, count: int, tensors: Iterable[str], **changes: Raw | None) -> bytes:
    """Part `number` (from 0) of `count`, of a model with 3 tensors."""
    split: dict[str, Raw | None] = {
        "split.no": scalar(ValueType.UINT16, number),
        "split.count": scalar(ValueType.UINT16, count),
        "split.tensors.count": scalar(ValueType.INT32, 3),
        **{name.replace("_", "."): value for name, value in changes.items()},
    }
    keys: Mapping[str, Raw] = model_keys(split) if number == 0 else {k: v for k, v in split.items() if v}
    return gguf_bytes(keys, [Tensor(name, (64, 4)) for name in tensors])


FIRST, SECOND = part(0, 2, ["token_embd.weight"]), part(1, 2, ["output_norm.weight", "output.weight"])


def read(*parts: bytes, limits: HeaderLimits | None = None) -> GgufMetadata:
    sources = [(io.BytesIO(content), len(content)) for content in parts]
    return read_parts(sources, len(parts), limits or HeaderLimits())


def test_parts_are_read_as_the_whole_that_was_split(tmp_path: Path) -> None:
    model = TinyModel(n_layers=3)
    whole = read_metadata(write_tiny_gguf(tmp_path / "whole.gguf", model))
    paths = write_tiny_split(tmp_path / "split.gguf", model, tensors_per_part=9)
    assert [path.name for path in paths] == [f"split-0000{n}-of-00004.gguf" for n in (1, 2, 3, 4)]
    found = read(*(path.read_bytes() for path in paths))
    assert (found.parameters, found.size, found.quantization) == (
        whole.parameters,
        whole.size,
        whole.quantization,
    )
    assert found.kv_bytes_per_cell() == whole.kv_bytes_per_cell()
    assert found.text_map.items() - whole.text_map.items() == {
        ("split.no", "0"),
        ("split.count", "4"),
        ("split.tensors.count", "29"),
    }


def test_one_file_is_a_model_that_was_not_split() -> None:
    whole = gguf_bytes(model_keys(), [Tensor()])
    assert read(whole) == read_metadata(io.BytesIO(whole))
    assert read(part(0, 1, ["a", "b", "c"])).n_parameters == 3 * 256


def test_a_first_part_may_have_the_metadata_alone(tmp_path: Path) -> None:
    model = TinyModel(n_layers=3)
    paths = write_tiny_split(tmp_path / "split.gguf", model, tensors_per_part=20, small_first=True)
    found = read(*(path.read_bytes() for path in paths))
    assert len(paths) == 3
    assert found.parameters == read_metadata(write_tiny_gguf(tmp_path / "whole.gguf", model)).parameters


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", strings(["x"] * 4097)),
        ("numbers", numbers(ValueType.UINT8, [0] * 4097)),
        ("text", text("x" * ((64 << 10) + 1))),
    ],
)
def test_G01_a_further_part_has_no_room_for_a_vocabulary(key: str, value: Raw) -> None:
    more = part(1, 2, ["b", "c"], **{key: value})
    with pytest.raises(InvalidModelFile, match=key if key != "text" else "bytes of text"):
        read(FIRST, more)
    assert read(gguf_bytes({**model_keys(), key: value}, [Tensor()])).n_parameters > 0


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((FIRST,), "one part of 2, and the others are missing"),
        ((SECOND, FIRST), "part 1 of 2 is number 1"),
        ((FIRST, FIRST), "part 2 of 2 is number 0"),
        ((FIRST, SECOND, SECOND), "part 1 of 3 says that there are 2"),
        ((FIRST, part(1, 3, ["b", "c"])), "part 2 of 2 says that there are 3"),
        ((FIRST, part(1, 2, ["b", "c"], split_no=None)), "does not say which it is"),
        ((FIRST, gguf_bytes(model_keys(), [Tensor("b")])), "part 2 of 2 is no part of a split model"),
        ((FIRST, part(1, 2, ["token_embd.weight", "b"])), "token_embd.weight occurs in two parts"),
        ((FIRST, part(1, 2, ["b"])), "hold 2 tensors and 3 are announced"),
        ((FIRST, part(1, 2, ["b", "c", "d"])), "hold 4 tensors and 3 are announced"),
        (
            (part(0, 2, ["a"], split_tensors_count=None), SECOND),
            "hold 3 tensors and None are announced",
        ),
        ((FIRST, part(1, 2, ["b", "c"], split_no=u32(1))), "split.no is not a 16-bit unsigned number"),
        ((FIRST, part(1, 2, ["b", "c"], split_count=u32(2))), "split.count is not a 16-bit"),
        ((part(0, 2, ["a"], split_tensors_count=u32(3)), SECOND), "split.tensors.count is not a 32-bit"),
        ((FIRST, SECOND[:-200]), "lies outside of the file"),
        ((FIRST, b"GGUF"), "ends within its header"),
    ],
)  # fmt: skip
def test_G04_parts_that_do_not_fit_together_are_refused(parts: tuple[bytes, ...], reason: str) -> None:
    with pytest.raises(InvalidModelFile, match=reason):
        read(*parts)


def test_G04_all_parts_together_are_held_to_the_limit_for_one_file() -> None:
    assert read(FIRST, SECOND, limits=HeaderLimits(tensors=3)).n_parameters == 3 * 256
    with pytest.raises(InvalidModelFile, match="more than 2 tensors"):
        read(FIRST, SECOND, limits=HeaderLimits(tensors=2))


def test_G04_more_parts_than_the_limit_are_refused_before_one_is_looked_at() -> None:
    unreadable = [(io.BytesIO(), 0)]
    with pytest.raises(InvalidModelFile, match=f"{PARTS_MAX + 1} parts"):
        read_parts(unreadable, PARTS_MAX + 1)
    with pytest.raises(InvalidModelFile, match="not a GGUF file"):
        read_parts(unreadable, PARTS_MAX)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("big-00002-of-00005.gguf", PartName("big", 2, 5)),
        ("a-00001-of-00002-00001-of-00003.gguf", PartName("a-00001-of-00002", 1, 3)),
        ("BIG-Q4_K_M-00005-of-00005.GGUF", PartName("BIG-Q4_K_M", 5, 5)),
        ("big-00000-of-00005.gguf", None),
        ("big-00006-of-00005.gguf", None),
        ("big-0001-of-0005.gguf", None),
        ("-00001-of-00002.gguf", None),
        ("big.gguf", None),
    ],
)
def test_names_say_which_part_a_file_is(name: str, found: PartName | None) -> None:
    assert PartName.parse(name) == found


@given(st.integers(1, 300), st.data())
def test_the_names_of_all_parts_are_in_order(count: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, count))
    names = PartName("big", number, count).names()
    assert [PartName.parse(name) for name in names] == [
        PartName("big", n, count) for n in range(1, count + 1)
    ]
