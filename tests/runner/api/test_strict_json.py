"""Strict JSON: equal to the standard library on what is valid, and a path for everything that is not."""

from __future__ import annotations

import json
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.api import strict_json
from runner.errors import InvalidParameter

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"))
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)


def faults_of(body: bytes) -> list[tuple[str, str]]:
    with pytest.raises(InvalidParameter) as caught:
        strict_json.decode(body)
    assert caught.value.faults
    orjson.dumps(str(caught.value))  # an error message can always be sent
    return [(fault.path, fault.message) for fault in caught.value.faults]


@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 1]))
def test_valid_documents_decode_as_the_standard_library_decodes_them(
    document: object, ensure_ascii: bool, indent: int | None
) -> None:
    body = json.dumps(document, ensure_ascii=ensure_ascii, indent=indent).encode()
    assert strict_json.decode(body) == json.loads(body)


@given(st.binary(max_size=60) | st.text('{}[]",:\\u d8001eE+-.NaIfty', max_size=30).map(str.encode))
def test_whatever_is_sent_the_answer_is_a_value_or_the_one_error(body: bytes) -> None:
    try:
        value = strict_json.decode(body)
    except InvalidParameter as error:
        assert error.faults
        orjson.dumps(str(error))
    else:
        assert value == json.loads(body)


@given(DOCUMENTS, DOCUMENTS, st.text(st.characters(codec="utf-8")))
def test_N11_a_key_that_appears_twice_is_always_found(first: object, second: object, key: str) -> None:
    pairs = ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for value in (first, second))
    [(path, message)] = faults_of(f'[{{"outer":{{{pairs}}}}}]'.encode())
    assert path.startswith("[0].outer.")
    assert message == "appears more than once"


@pytest.mark.parametrize(
    ("body", "path", "message"),
    [
        (b'{"temperature": NaN}', "temperature", "NaN is not a number of JSON"),
        (b'{"a": [1, -Infinity]}', "a[1]", "-Infinity is not a number of JSON"),
        (b'{"temperature": 1e999}', "temperature", "is a number too large to represent"),
        (b'{"seed": 18446744073709551616}', "seed", "is an integer beyond 64 bits"),
        (b'{"seed": -9223372036854775809}', "seed", "is an integer beyond 64 bits"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "seed", "is an integer beyond 64 bits"),
        (b'{"model": "a", "model": "b"}', "model", "appears more than once"),
        (b'{"messages": [{"role": "\xff"}]}', "messages[0].role", "is not valid UTF-8"),
        (b'{"messages": [{"role": "\xed\xa0\x80"}]}', "messages[0].role", "is not valid UTF-8"),
        (b'{"messages": [{"role": "\\ud800"}]}', "messages[0].role", "holds a lone surrogate"),
        (b'{"a": {"\\udfff": 1}}', "a.?", "its name holds a lone surrogate"),
        (b'"\\ud800"', "body", "holds a lone surrogate"),
    ],
)
def test_N11_what_other_decoders_let_pass_is_refused_with_its_path(
    body: bytes, path: str, message: str
) -> None:
    assert faults_of(body) == [(path, message)]


def test_N11_every_fault_is_reported_at_once() -> None:
    body = b'{"a": NaN, "b": [1e999], "c": "\\ud800", "d": 1, "d": 2}'
    assert [path for path, _ in faults_of(body)] == ["a", "b[0]", "c", "d"]


def test_a_hostile_number_of_faults_is_cut() -> None:
    assert len(faults_of(b"[" + b",".join([b"NaN"] * 1000) + b"]")) == strict_json.FAULTS_MAX


@pytest.mark.parametrize("number", ["18446744073709551615", "-9223372036854775808", "0", "-0"])
def test_N11_integers_within_64_bits_stay_exact(number: str) -> None:
    assert strict_json.decode(f'{{"seed":{number}}}'.encode()) == {"seed": int(number)}


@pytest.mark.parametrize("number", ["1e30", "-1e300", "1.8446744073709552e19"])
def test_large_numbers_written_as_floats_are_floats(number: str) -> None:
    assert strict_json.decode(f"[{number}]".encode()) == [float(number)]


@pytest.mark.parametrize(
    "body", [b"", b" ", b"{", b'{"a":}', b"\xef\xbb\xbf{}", b"{} x", b"01", b'"\x01"', b"'a'"]
)
def test_what_is_not_json_is_refused_as_a_whole(body: bytes) -> None:
    [(path, message)] = faults_of(body)
    assert path == "body"
    assert message.startswith("is not valid JSON: ")


def nested(depth: int) -> dict[str, bytes]:
    return {
        "arrays": b"[" * depth + b"]" * depth,
        "objects": b'{"a":' * depth + b"1" + b"}" * depth,
        "in a message": b'{"messages":[{"content":' + b"[" * (depth - 3) + b"]" * (depth - 3) + b"}]}",
        "behind text": b'{"a":"[[\\"[[\\\\","b":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}",
    }


@pytest.mark.parametrize("shape", nested(8))
@pytest.mark.parametrize("depth", [63, 64])
def test_N10_nesting_up_to_the_limit_is_read(shape: str, depth: int) -> None:
    body = nested(depth)[shape]
    assert strict_json.decode(body) == json.loads(body)


@pytest.mark.parametrize("shape", nested(8))
@pytest.mark.parametrize("depth", [65, 3000, 200_000])
def test_N10_deeper_nesting_is_refused_in_under_100_ms(shape: str, depth: int) -> None:
    body = nested(depth)[shape]
    started_s = time.process_time()
    assert faults_of(body) == [("body", "is nested deeper than 64 levels")]
    assert time.process_time() - started_s < 0.1


def test_N10_brackets_that_never_close_are_refused_in_under_100_ms() -> None:
    started_s = time.process_time()
    assert faults_of(b"[" * 1_000_000) == [("body", "is nested deeper than 64 levels")]
    assert time.process_time() - started_s < 0.1


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_number_of_values_is_limited_before_they_are_built(extra: int) -> None:
    n_commas = strict_json.VALUES_MAX - 1 + extra  # one bracket counts as well
    body = b"[" + b"1," * n_commas + b"1]"
    if extra > 0:
        assert faults_of(body) == [("body", "holds more than 1000000 values")]
    else:
        assert len(strict_json.decode(body)) == n_commas + 1  # type: ignore[arg-type]  # it is a list


def test_commas_and_brackets_within_text_do_not_count_as_values() -> None:
    text = ",[{" * 500_000
    assert strict_json.decode(json.dumps([text]).encode()) == [text]


def test_quotes_without_end_are_refused_in_linear_time() -> None:
    started_s = time.process_time()
    faults_of(b'"' + b'\\"' * 400_000)
    faults_of(b'"' * 2_500_000 + b"," * 1_000_001)
    assert time.process_time() - started_s < 0.5
