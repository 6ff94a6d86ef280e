"""No count of a GGUF header is believed, and time and memory are bounded (G01)."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import InvalidModelFile
from runner.gguf.format import LIMITS, SCALAR_CODES, ValueType
from runner.gguf.reader import GgufHeader, read_header
from tests.support.footprint import cost_of
from tests.support.gguf_reading import accepts, around, limited, read, refusal
from tests.support.gguf_writer import (
    Keys,
    Raw,
    Tensor,
    array_of,
    boolean,
    gguf_bytes,
    numbers,
    sized,
    strings,
    text,
    u32,
)

MIB = 1024**2


def test_G01_a_file_that_ends_early_is_refused() -> None:
    whole = gguf_bytes({"a": u32(1)})
    for length in range(len(whole)):
        assert refusal(whole[:length])


@given(st.data())
def test_G01_every_cut_of_a_sound_file_is_refused(data: st.DataObject) -> None:
    whole = gguf_bytes({"a": text("x" * 50), "b": strings(["y"] * 5)}, [Tensor("t", (32, 4), 8)])
    at = data.draw(st.integers(0, len(whole) - 25))  # what follows is padding of the last tensor
    assert refusal(whole[:at])


@given(st.binary(max_size=200))
def test_G01_any_bytes_give_a_header_or_the_one_error(data: bytes) -> None:
    for candidate in (data, b"GGUF\3\0\0\0" + data):
        try:
            assert isinstance(read(candidate), GgufHeader)
        except InvalidModelFile as error:
            assert str(error)


@given(position=st.integers(0, 400), number=st.integers(0, 2**64 - 1), width=st.sampled_from("BIQ"))
def test_G01_any_number_anywhere_gives_a_header_or_the_one_error(
    position: int, number: int, width: str
) -> None:
    data = bytearray(
        gguf_bytes(
            {"a": text("x" * 30), "b": strings(["y"] * 3), "general.alignment": u32(32), "c": boolean(1)},
            [Tensor("t", (32, 4), 8), Tensor("u", (32,), 0)],
        )
    )
    size = struct.calcsize(f"<{width}")
    data[position : position + size] = struct.pack(f"<{width}", number % 256**size)
    try:
        header = read(bytes(data))
    except InvalidModelFile as error:
        assert len(str(error)) < 2000
    else:
        assert all(header.data_offset + t.offset + t.size_bytes <= len(data) for t in header.tensors)


@pytest.mark.parametrize("count", [100, 10**8, 2**32, 2**63, 2**64 - 1])
def test_G01_an_announced_array_that_is_not_there_costs_nothing(count: int) -> None:
    for element_type in (*SCALAR_CODES, ValueType.STRING):
        data = gguf_bytes({"a": array_of(element_type, count, b"\0" * 40)})
        tracemalloc.start()
        try:
            assert refusal(data)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()


def test_G01_announced_keys_and_tensors_that_are_not_there_are_refused() -> None:
    for count in (1, 1000, 2**32, 2**63, 2**64 - 1):
        for data in (gguf_bytes({}, n_keys=count), gguf_bytes({}, n_tensors=count)):
            assert "announces" in refusal(data)


def test_G01_a_hundred_million_strings_in_a_sparse_file_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    path.write_bytes(gguf_bytes({"a": array_of(ValueType.STRING, 10**8, b"")}))
    with path.open("r+b") as file:
        file.truncate(2 * 10**9)
    began_s = time.perf_counter()
    with pytest.raises(InvalidModelFile, match="100000000 strings"):
        read_header(path)
    assert time.perf_counter() - began_s < 1.0


def _filled(kind: str) -> bytes:
    """A header at its limits, in one respect."""
    match kind:
        case "empty strings":
            keys: Keys = {
                "a": array_of(ValueType.STRING, LIMITS.string_elements, bytes(8 * LIMITS.string_elements))
            }
        case "short strings":
            count = LIMITS.header_bytes // 16 - 100
            keys = {"a": array_of(ValueType.STRING, count, sized("12345678") * count)}
        case "long strings":
            keys = {"a": strings([bytes(LIMITS.string_bytes)] * 31)}
        case "truth values":
            part = array_of(ValueType.BOOL, LIMITS.array_elements, bytes(LIMITS.array_elements))
            keys = [(f"a{index}", part) for index in range(7)]
        case "keys":
            keys = {f"a{index}": text(f"x{index}") for index in range(LIMITS.keys)}
        case _:
            tensors = [
                Tensor(f"blk.{index}.ffn_gate_up_exps.weight", (1,), 0) for index in range(LIMITS.tensors)
            ]
            return gguf_bytes({}, tensors)
    return gguf_bytes(keys)


@pytest.mark.parametrize(
    "kind", ["empty strings", "short strings", "long strings", "truth values", "keys", "tensors"]
)
def test_G01_a_header_at_its_limits_is_read_within_two_seconds_and_64_MiB(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "full.gguf"
    path.write_bytes(_filled(kind))
    assert path.stat().st_size <= LIMITS.header_bytes + LIMITS.tensors * 32
    cost = cost_of("runner.gguf.reader", "read_header", path)
    assert cost.cpu_s < 2.0
    assert cost.peak_growth_bytes < 64 * MIB


@pytest.mark.parametrize(("size", "is_accepted"), around(1000))
def test_G01_header_bytes_at_below_and_above_the_limit(size: int, is_accepted: bool) -> None:
    data = gguf_bytes({"a": text("x" * (size - 45))})
    assert len(data) == size
    assert accepts(data, limited(header_bytes=1000)) is is_accepted


@pytest.mark.parametrize(("count", "is_accepted"), around(20))
def test_G01_keys_at_below_and_above_the_limit(count: int, is_accepted: bool) -> None:
    data = gguf_bytes({f"a{index}": u32(1) for index in range(count)})
    assert accepts(data, limited(keys=20)) is is_accepted


@pytest.mark.parametrize(("count", "is_accepted"), around(20))
def test_G01_tensors_at_below_and_above_the_limit(count: int, is_accepted: bool) -> None:
    data = gguf_bytes({}, [Tensor(f"t{index}") for index in range(count)])
    assert accepts(data, limited(tensors=20)) is is_accepted


@pytest.mark.parametrize(("length", "is_accepted"), ((0, False), (1, True), *around(LIMITS.key_bytes)))
def test_G01_key_length_at_below_and_above_the_limit(length: int, is_accepted: bool) -> None:
    assert accepts(gguf_bytes({"k" * length: u32(1)})) is is_accepted


@pytest.mark.parametrize(("length", "is_accepted"), around(64))
def test_G01_string_length_at_below_and_above_the_limit(length: int, is_accepted: bool) -> None:
    limits = limited(string_bytes=64)
    assert accepts(gguf_bytes({"a": text("x" * length)}), limits) is is_accepted
    assert accepts(gguf_bytes({"a": strings(["", "x" * length])}), limits) is is_accepted


@pytest.mark.parametrize(("size", "is_accepted"), around(100))
def test_G01_text_of_all_keys_at_below_and_above_the_limit(size: int, is_accepted: bool) -> None:
    data = gguf_bytes({"a": text("x" * 60), "b": text("x" * (size - 60)), "c": strings(["x" * 500])})
    assert accepts(data, limited(text_bytes=100)) is is_accepted


@pytest.mark.parametrize(("count", "is_accepted"), around(64))
def test_G01_array_elements_at_below_and_above_the_limit(count: int, is_accepted: bool) -> None:
    data = gguf_bytes({"a": numbers(ValueType.UINT8, [0] * count)})
    assert accepts(data, limited(array_elements=64)) is is_accepted


@pytest.mark.parametrize(("count", "is_accepted"), around(64))
def test_G01_strings_of_all_arrays_at_below_and_above_the_limit(count: int, is_accepted: bool) -> None:
    data = gguf_bytes({"a": strings(["x"] * 40), "b": strings(["x"] * (count - 40))})
    assert accepts(data, limited(string_elements=64)) is is_accepted


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (text("x", length=2**64 - 1), "bytes; the limit is"),
        (text("x", length=5000), "ends within"),
        (strings(["x"] * 9, count=10), "ends within"),
        (strings(["x"] * 9, count=1000), "too short"),
        (array_of(ValueType.STRING, 1, sized("x", length=2**63)), "has a string of"),
        (array_of(ValueType.STRING, 2, sized("x", length=100_000) + sized("y")), "ends within"),
        (numbers(ValueType.FLOAT64, [0.5], count=2), "ends within"),
    ],
)
def test_G01_a_length_that_lies_is_found_out(lie: Raw, message: str) -> None:
    assert message in refusal(gguf_bytes({"a": lie}))


def test_G01_arrays_of_arrays_are_refused_without_descending() -> None:
    inner = struct.pack("<IQ", ValueType.ARRAY, 1) * 10_000
    assert "array of arrays" in refusal(gguf_bytes({"a": array_of(ValueType.ARRAY, 1, inner)}))


def test_G01_a_file_that_shrinks_while_it_is_read_is_refused() -> None:
    data = gguf_bytes({"a": text("x" * 100)})
    assert "shorter than it claims" in refusal(data[:60], size_bytes=len(data))
