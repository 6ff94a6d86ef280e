"""What a tokenizer must look like before the engine sees it (G03)."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import InvalidModelFile
from runner.gguf.format import LIMITS, ValueType
from runner.gguf.reader import read_header
from runner.gguf.vocabulary import TOKENS_MAX, check_vocabulary
from tests.support.footprint import cost_of
from tests.support.gguf_writer import (
    BYTE_TOKENS,
    Raw,
    Tensor,
    array_of,
    boolean,
    gguf_bytes,
    i32,
    model_keys,
    numbers,
    strings,
    text,
    u32,
)

TOKENS = "tokenizer.ggml.tokens"
SCORES = "tokenizer.ggml.scores"
TYPES = "tokenizer.ggml.token_type"
MODEL = "tokenizer.ggml.model"
CHARSMAP = "tokenizer.ggml.precompiled_charsmap"


def check(keys: dict[str, Raw]) -> int:
    return check_vocabulary(read_header(io.BytesIO(gguf_bytes(keys))).metadata)


def refusal(keys: dict[str, Raw]) -> str:
    with pytest.raises(InvalidModelFile) as caught:
        check(keys)
    return str(caught.value)


def byte_level(*texts: str | bytes, **overrides: Raw) -> dict[str, Raw]:
    """A vocabulary without further lists, of a tokenizer that needs no byte tokens."""
    return {MODEL: text("gpt2"), TOKENS: strings(texts), **overrides}


def sentencepiece(**overrides: Raw | None) -> dict[str, Raw]:
    return model_keys({f"tokenizer.ggml.{name}": value for name, value in overrides.items()})


def test_a_sound_vocabulary_is_counted() -> None:
    assert check(model_keys()) == 260
    assert check(byte_level("a", "b")) == 2
    assert check({"general.name": text("no tokenizer at all")}) == 0


@pytest.mark.parametrize(
    ("value", "is_sound"),
    [
        (strings(["a", "b"]), True),
        (strings([]), False),
        (text("a b"), False),
        (u32(2), False),
        (numbers(ValueType.UINT8, [97, 98]), False),
    ],
)
def test_G03_the_token_list_is_a_list_of_strings(value: Raw, is_sound: bool) -> None:
    keys = {MODEL: text("gpt2"), TOKENS: value}
    assert (check(keys) == 2) if is_sound else refusal(keys)


@pytest.mark.parametrize(("n_scores", "is_sound"), [(0, False), (2, False), (3, True), (4, False)])
def test_G03_there_are_as_many_scores_and_types_as_tokens(n_scores: int, is_sound: bool) -> None:
    floats = numbers(ValueType.FLOAT32, [0.5] * n_scores)
    whole = numbers(ValueType.INT32, [1] * n_scores)
    for keys in ({SCORES: floats}, {SCORES: whole}, {TYPES: whole}):
        vocabulary = byte_level("a", "b", "c", **keys)
        assert (check(vocabulary) == 3) if is_sound else f"{n_scores} elements for 3" in refusal(vocabulary)


@pytest.mark.parametrize(
    "element_type", set(ValueType) - {ValueType.STRING, ValueType.ARRAY, ValueType.INT32}
)
def test_G03_token_types_and_scores_are_of_the_type_that_the_engine_reads(element_type: ValueType) -> None:
    values = numbers(element_type, [1, 1])
    assert "token_type is no array of int32" in refusal(byte_level("a", "b", **{TYPES: values}))
    if element_type is not ValueType.FLOAT32:
        assert "scores is no array of float32 or int32" in refusal(byte_level("a", "b", **{SCORES: values}))


@pytest.mark.parametrize("value", [strings(["x", "y"]), text("1"), i32(1)])
def test_G03_scores_types_and_merges_that_are_no_such_lists_are_refused(value: Raw) -> None:
    assert refusal(byte_level("a", "b", **{SCORES: value}))
    assert refusal(byte_level("a", "b", **{TYPES: value}))
    assert value.type_number == ValueType.ARRAY or refusal(
        byte_level("a", **{"tokenizer.ggml.merges": value})
    )


def test_G03_scores_are_numbers() -> None:
    nan = numbers(ValueType.FLOAT32, [0.0, float("nan")])
    assert "not a number" in refusal(byte_level("a", "b", **{SCORES: nan}))
    assert check(byte_level("a", "b", **{SCORES: numbers(ValueType.FLOAT32, [float("-inf"), 1e30])})) == 2


@pytest.mark.parametrize(
    ("kind", "is_sound"), [(-1, False), (0, True), (1, True), (5, True), (7, False), (99, False)]
)
def test_G03_token_types_are_within_their_range(kind: int, is_sound: bool) -> None:
    keys = byte_level("a", "b", **{TYPES: numbers(ValueType.INT32, [1, kind])})
    assert (check(keys) == 2) if is_sound else "outside of 0 to 6" in refusal(keys)


@pytest.mark.parametrize(
    ("token", "is_sound"),
    [
        ("<0x00>", True),
        ("<0xFF>", True),
        ("<0xfe>", True),
        ("<0xF>", False),
        ("<0xFFF>", False),
        ("<0xGG>", False),
        ("<0x٣٤>", False),
        ("0xFF", False),
        ("<", False),
        ("<0xFF>\n", False),
        ("", False),
    ],
)
def test_G03_a_token_that_stands_for_a_byte_is_written_so(token: str, is_sound: bool) -> None:
    keys = byte_level("a", token, **{TYPES: numbers(ValueType.INT32, [1, 6])})
    assert (check(keys) == 2) if is_sound else "not written <0xNN>" in refusal(keys)


@pytest.mark.parametrize(("n_tokens", "message"), [(484, "not written"), (485, "more than 484")])
def test_G03_there_are_no_more_byte_tokens_than_ways_to_write_them(n_tokens: int, message: str) -> None:
    texts = [f"t{index}" for index in range(n_tokens)]
    assert message in refusal(byte_level(*texts, **{TYPES: numbers(ValueType.INT32, [6] * n_tokens)}))


def test_G03_word_pieces_never_stand_for_bytes() -> None:
    texts = [f"w{index}" for index in range(103)]
    keys = {MODEL: text("bert"), TOKENS: strings([*texts, "<0x0A>"])}
    assert check(keys) == 104
    assert "word pieces" in refusal({**keys, TYPES: numbers(ValueType.INT32, [1] * 103 + [6])})


@pytest.mark.parametrize("byte", [0x00, 0x0A, 0x41, 0x7F, 0x80, 0xFF])
def test_G03_a_tokenizer_that_spells_in_bytes_has_all_of_them(byte: int) -> None:
    without = [token for token in BYTE_TOKENS if token != f"<0x{byte:02X}>"]
    for tokenizer in ("llama", "plamo2"):
        assert check({MODEL: text(tokenizer), TOKENS: strings(BYTE_TOKENS)}) == 256
        assert "1 of the 256 bytes" in refusal({MODEL: text(tokenizer), TOKENS: strings(without)})
    assert check({MODEL: text("gpt2"), TOKENS: strings(without)}) == 255


def test_G03_a_letter_may_stand_for_its_byte_and_a_small_hexadecimal_digit_not() -> None:
    others = [token for token in BYTE_TOKENS if token not in ("<0x41>", "<0x0A>")]
    assert check({MODEL: text("llama"), TOKENS: strings([*others, "A", "\n"])}) == 256
    assert "1 of the 256" in refusal({MODEL: text("llama"), TOKENS: strings([*others, "A", "<0x0a>"])})


def _escaped(byte: int) -> str:
    return repr(bytes([byte]))[2:-1]


def test_G03_an_RWKV_vocabulary_has_all_bytes_in_its_own_writing() -> None:
    texts = [_escaped(byte) for byte in range(256)]
    assert check({MODEL: text("rwkv"), TOKENS: strings([*texts, "the"])}) == 257
    for byte in (0x00, 0x09, 0x27, 0x41, 0x5C, 0xFF):
        fewer = [token for token in texts if token != _escaped(byte)]
        assert "1 of the 256 bytes" in refusal({MODEL: text("rwkv"), TOKENS: strings(fewer)})


def test_G03_a_token_occurs_once() -> None:
    assert "'b' occurs twice" in refusal(byte_level("a", "b", "c", "b"))
    assert check(byte_level("a", "A", "á", "a\u0301", "a ")) == 5


def test_G03_an_empty_token_has_the_name_that_the_engine_gives_it() -> None:
    assert check(byte_level("a", "", "b", "")) == 4
    assert "'[EMPTY_1]' occurs twice" in refusal(byte_level("[EMPTY_1]", ""))
    assert check(byte_level("[EMPTY_0]", "")) == 2


@pytest.mark.parametrize("token", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"a\x80"])
def test_G03_tokens_are_valid_UTF_8(token: bytes) -> None:
    assert "token 1 is not valid UTF-8" in refusal(byte_level("a", token))


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=3), min_size=1, max_size=60))
def test_G03_duplicates_are_found_exactly(texts: list[str]) -> None:
    named = [token or f"[EMPTY_{index}]" for index, token in enumerate(texts)]
    if len(set(named)) == len(named):
        assert check(byte_level(*texts)) == len(texts)
    else:
        assert "occurs twice" in refusal(byte_level(*texts))


def test_G03_duplicates_are_found_though_all_hashes_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.gguf.vocabulary.hash", lambda text: 0, raising=False)
    assert check(byte_level("a", "b", "c")) == 3
    assert "'b' occurs twice" in refusal(byte_level("a", "b", "b"))


@pytest.mark.parametrize(
    ("tokenizer", "changes", "is_sound"),
    [
        ("gpt2", {}, True),
        ("gpt2", {"add_bos_token": boolean(1)}, False),
        ("gpt2", {"add_bos_token": boolean(1), "bos_token_id": u32(1)}, True),
        ("gpt2", {"add_bos_token": boolean(1), "bos_token_id": u32(2)}, False),
        ("gpt2", {"add_eos_token": boolean(1), "eos_token_id": text("1")}, False),
        ("gemma4", {}, False),
        ("gemma4", {"bos_token_id": u32(0)}, True),
        ("t5", {}, True),
        ("t5", {"add_bos_token": boolean(1)}, False),
        ("bert", {}, False),
        ("bert", {"bos_token_id": u32(0)}, False),
        ("bert", {"bos_token_id": u32(0), "seperator_token_id": u32(1)}, True),
        ("bert", {"add_bos_token": boolean(0), "add_sep_token": boolean(0)}, True),
        ("none", {"add_bos_token": boolean(1)}, True),
    ],
)
def test_G03_markers_that_are_added_to_prompts_exist(
    tokenizer: str, changes: dict[str, Raw], is_sound: bool
) -> None:
    keys = {MODEL: text(tokenizer), TOKENS: strings(["a", "b"])}
    keys |= {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    assert (check(keys) == 2) if is_sound else "names no token" in refusal(keys)


def test_G03_sentencepiece_markers_have_defaults_that_exist() -> None:
    assert check(sentencepiece(add_eos_token=boolean(1))) == 260
    assert check(sentencepiece(add_bos_token=boolean(1), bos_token_id=u32(9_999))) == 260


@pytest.mark.parametrize(
    ("raw", "is_sound"),
    [
        ([8, 0, 0, 0, *bytes(8), 97, 0], True),
        ([8, 0, 0, 0, *bytes(8), 97], False),
        ([8, 0, 0, 0, *bytes(8)], False),
        ([9, 0, 0, 0, *bytes(8)], False),
        ([255, 255, 255, 255, 0], False),
        ([1, 0], False),
        ([], False),
    ],
)
def test_G03_a_normaliser_is_whole_and_ends_its_last_text(raw: list[int], is_sound: bool) -> None:
    keys = byte_level("a", **{CHARSMAP: numbers(ValueType.UINT8, raw)})
    assert (check(keys) == 1) if is_sound else "cut off" in refusal(keys)


def _large(n_tokens: int) -> dict[str, Raw]:
    """A vocabulary like Gemma's: bytes, words with scores and types."""
    words = (f"▁word{index:07d}" for index in range(n_tokens - 256))
    types = array_of(ValueType.INT32, n_tokens, b"\6\0\0\0" * 256 + b"\1\0\0\0" * (n_tokens - 256))
    return {
        MODEL: text("llama"),
        TOKENS: strings([*BYTE_TOKENS, *words]),
        SCORES: array_of(ValueType.FLOAT32, n_tokens, bytes(4 * n_tokens)),
        TYPES: types,
    }


@pytest.mark.parametrize(("n_tokens", "limit_s"), [(262_144, 1.0), (TOKENS_MAX, 2.0)])
def test_G01_vocabularies_of_Gemma_and_at_the_limit_are_checked_in_time_and_64_MiB(
    n_tokens: int, limit_s: float, tmp_path: Path
) -> None:
    path = tmp_path / "large.gguf"
    path.write_bytes(gguf_bytes({**model_keys(), **_large(n_tokens)}))
    cost = cost_of("runner.gguf.metadata", "read_metadata", path)
    assert cost.cpu_s < limit_s
    assert cost.peak_growth_bytes < 64 * 1024**2


def test_G01_everything_at_its_limit_at_once_is_within_two_seconds_and_64_MiB(tmp_path: Path) -> None:
    keys = {**model_keys(), **_large(TOKENS_MAX)}
    keys["a.emoji"] = text("\U0001f600" + "x" * 900_000)
    keys |= {f"b{index}": u32(index) for index in range(LIMITS.keys - len(keys) - 1)}
    tensors = [Tensor(f"blk.{index:05d}.{'x' * 45}.weight", (1,), 0) for index in range(LIMITS.tensors)]
    largest = sum(len(name) + 12 + len(value.payload) for name, value in keys.items()) + 110 * len(tensors)
    strings_left = LIMITS.string_elements - TOKENS_MAX
    filler = (LIMITS.header_bytes - largest) // strings_left - 8
    merges = strings([b"x" * filler]).payload[12:] * strings_left
    keys["tokenizer.ggml.merges"] = array_of(ValueType.STRING, strings_left, merges)
    path = tmp_path / "all.gguf"
    path.write_bytes(gguf_bytes(keys, tensors))
    cost = cost_of("runner.gguf.metadata", "read_metadata", path)
    assert cost.cpu_s < 2.0
    assert cost.peak_growth_bytes < 64 * 1024**2


def test_G03_a_token_more_than_the_limit_is_refused() -> None:
    count = TOKENS_MAX + 1
    keys = {MODEL: text("gpt2"), TOKENS: array_of(ValueType.STRING, count, bytes(8 * count))}
    assert f"has {count} tokens" in refusal(keys)
