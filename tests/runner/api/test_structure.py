"""Schemas: nothing coerced, bounds at, below and above, every fault with its path."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import attrs
import pytest

from runner.api.keep_alive import KeepAlive
from runner.api.strict_json import FAULTS_MAX
from runner.api.structure import By, Fault, Faults, Length, Schema, Text, Unsupported
from runner.domain.sampling import Range
from runner.errors import InvalidParameter, UnsupportedParameter
from runner.oci.digest import Digest
from runner.oci.reference import ModelName, Reference


def read_even(value: Any) -> int:
    if type(value) is not int:
        raise Fault("must be an integer")
    if value % 2:
        raise Unsupported("odd numbers are not implemented")
    return value


def read_pairs(value: Any) -> Any:
    raise Faults([("[0].left", Fault("is wrong")), ("right", Fault("is wrong too"))])


@attrs.frozen(kw_only=True)
class Inner:
    kind: Literal["a", "b"]
    count: Annotated[int, Range(0, 2)] = 0


@attrs.frozen(kw_only=True)
class Outer:
    name: str
    inner: Inner | None = None
    many: Annotated[tuple[Inner, ...], Length(0, 2)] = ()
    ratio: Annotated[float, Range(0, 1)] | None = None
    flag: bool | None = None
    text: (
        Annotated[str, Text(1, 4)] | Annotated[tuple[Annotated[str, Text(1, 4)], ...], Length(0, 2)] | None
    ) = None
    any_object: dict[str, Any] | None = None
    even: Annotated[int, By(read_even)] | None = None
    pairs: Annotated[int, By(read_pairs)] | None = None
    model: ModelName | None = None
    target: Reference | None = None
    digest: Digest | None = None
    keep_alive: KeepAlive | None = None


OPEN, CLOSED = Schema(forbid_unknown=False), Schema(forbid_unknown=True)


def faults_of(document: object, schema: Schema = OPEN) -> dict[str, str]:
    with pytest.raises((InvalidParameter, UnsupportedParameter)) as caught:
        schema.structure(document, Outer)
    return {fault.path: fault.message for fault in caught.value.faults}


def test_a_document_becomes_values() -> None:
    document = {
        "name": "x",
        "inner": {"kind": "a"},
        "many": [{"kind": "b", "count": 2}],
        "ratio": 1,
        "flag": False,
        "text": ["one", "two"],
        "any_object": {"deep": [1]},
        "even": 4,
        "model": "ai/smollm2",
        "target": "acme/tiny:v1",
        "digest": "sha256:" + "0" * 64,
        "keep_alive": "5m",
    }
    outer = OPEN.structure(document, Outer)
    assert outer.many == (Inner(kind="b", count=2),)
    assert (outer.ratio, type(outer.ratio)) == (1.0, float)
    assert outer.text == ("one", "two")
    assert outer.model == ModelName.parse("ai/smollm2")
    assert str(outer.target) == "docker.io/acme/tiny:v1"
    assert outer.keep_alive == 300


def test_null_counts_as_absent_where_a_field_is_optional() -> None:
    names = [field.name for field in attrs.fields(Outer) if field.name not in ("name", "many")]
    assert OPEN.structure({"name": "x", **dict.fromkeys(names)}, Outer) == Outer(name="x")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", 5, "must be a string"),
        ("name", None, "must be a string"),
        ("inner", [], "must be an object"),
        ("many", {}, "must be a list"),
        ("many", "ab", "must be a list"),
        ("ratio", "0.5", "must be a number"),
        ("ratio", True, "must be a number"),
        ("flag", "no", "must be true or false"),
        ("flag", 0, "must be true or false"),
        ("text", 4, "must be a string or a list"),
        ("any_object", [], "must be an object"),
        ("even", "2", "must be an integer"),
        ("model", 5, "must be a string"),
        ("target", "sha256:" + "0" * 64, "is not a model name"),
        ("digest", "sha256:0", "a digest is sha256: and 64 lowercase hex digits"),
        ("digest", "md5:" + "0" * 64, "a digest is sha256: and 64 lowercase hex digits"),
        ("keep_alive", True, "must be a duration"),
        ("keep_alive", "soon", "is not a duration"),
        ("keep_alive", "1" * 33, "must have at most 32 characters"),
    ],
)
def test_nothing_is_coerced(field: str, value: object, message: str) -> None:
    faults = faults_of({"name": "x", field: value})
    assert list(faults) == [field]
    assert message in faults[field]


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("ratio", [0, 0.5, 1], [-0.001, 1.001]),
        ("inner", [{"kind": "a", "count": 0}, {"kind": "a", "count": 2}], []),
        ("text", ["a", "äö", []], ["", "äöü", "abcde", ["a", "b", "c"]]),
        ("many", [[], [{"kind": "a"}] * 2], [[{"kind": "a"}] * 3]),
    ],
)
def test_bounds_hold_at_below_and_above(field: str, good: list[object], bad: list[object]) -> None:
    for value in good:
        OPEN.structure({"name": "x", field: value}, Outer)
    for value in bad:
        assert list(faults_of({"name": "x", field: value})) == [field]


@pytest.mark.parametrize("count", [-1, 3, 1.0, "1", True])
def test_bounds_and_types_hold_inside_objects_and_lists(count: object) -> None:
    assert list(faults_of({"name": "x", "inner": {"kind": "a", "count": count}})) == ["inner.count"]
    many = [{"kind": "a"}, {"kind": "a", "count": count}]
    assert list(faults_of({"name": "x", "many": many})) == ["many[1].count"]


def test_every_fault_is_reported_at_once_with_its_path() -> None:
    document = {
        "inner": {"count": "x"},
        "many": [{"kind": "c"}, 5],
        "text": ["", 3],
        "pairs": 1,
        "ratio": 2,
    }
    assert list(faults_of(document)) == [
        "name",
        "inner.kind",
        "inner.count",
        "many[0].kind",
        "many[1]",
        "ratio",
        "text[0]",
        "text[1]",
        "pairs[0].left",
        "pairs.right",
    ]


def test_a_list_of_wrong_length_is_refused_before_its_members_are_looked_at() -> None:
    assert faults_of({"name": "x", "many": [5, 5, 5]}) == {"many": "must have 0 to 2 entries, and has 3"}


def test_unknown_keys_are_ignored_in_one_kind_of_schema_and_faults_in_the_other() -> None:
    document = {"name": "x", "inner": {"kind": "a", "extra": 1}, "extra": 1}
    assert OPEN.structure(document, Outer).inner == Inner(kind="a")
    assert faults_of(document, CLOSED) == dict.fromkeys(
        ["inner.extra", "extra"], "is not a field of this request"
    )


def test_what_is_not_implemented_has_an_error_of_its_own_unless_more_is_wrong() -> None:
    with pytest.raises(UnsupportedParameter):
        OPEN.structure({"name": "x", "even": 3}, Outer)
    with pytest.raises(InvalidParameter) as caught:
        OPEN.structure({"even": 3}, Outer)
    assert [fault.path for fault in caught.value.faults] == ["name", "even"]


def test_a_hostile_number_of_faults_is_cut() -> None:
    with pytest.raises(InvalidParameter) as caught:
        OPEN.structure([0] * 1000, tuple[str, ...])
    assert len(caught.value.faults) == FAULTS_MAX


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("0", 0),
        (0, 0),
        (90, 90),
        (1.5, 1.5),
        ("-1", math.inf),
        (-1, math.inf),
        ("-5m", math.inf),
    ],
)
def test_keep_alive_is_a_duration_a_number_or_never(text: object, seconds: float) -> None:
    assert OPEN.structure({"name": "x", "keep_alive": text}, Outer).keep_alive == seconds
