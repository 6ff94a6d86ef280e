"""Constraints over the vocabulary of bytes: what is allowed, what is refused, and what is kept."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from runner.domain.constraints import Constraint, ConstraintKind
from runner.domain.engine import EngineOptions
from runner.engine.constraints import (
    CACHED_BYTES_MAX,
    CACHED_ENTRIES_MAX,
    ConstraintBroken,
    ConstraintCompiler,
    Matcher,
)
from runner.engine.fake import BOS, END, N_VOCAB, ScriptedBackend
from runner.errors import InvalidParameter

BACKEND = ScriptedBackend(EngineOptions(context_size=64, n_cells=64))


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(BACKEND.new_constraint_tokenizer)


def constraint(kind: str, source: Any, path: str = "response_format") -> Constraint:
    text = json.dumps(source) if kind == "json_schema" else source
    return Constraint(kind=ConstraintKind(kind), source=text, path=path)


def start(compiler: ConstraintCompiler, kind: str, source: Any) -> Matcher:
    return compiler.compile(constraint(kind, source)).start()


def matches(matcher: Matcher, text: str) -> bool:
    """The whole text, with the end of the turn where something might follow."""
    return all(matcher.take(byte) for byte in text.encode()) and (matcher.is_complete or matcher.take(END))


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z][a-z]+$"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("kind", "source", "good", "bad"),
    [
        ("json_schema", PERSON, ['{"name":"Ann","age":3}', '{"name": "Ann", "age": 3}'], ["{}", '{"age":3}']),
        ("json_schema", {"type": "object"}, ["{}", '{"a":[1,{"b":null}]}'], ["[]", "1", '{"a"}']),
        ("json_schema", {}, ["{}", "[1, 2]", '"x"', "null"], ["", "x"]),
        ("json_schema", True, ["1"], [""]),
        ("json_schema", {"$ref": "#/$defs/a", "$defs": {"a": {"const": 5}}}, ["5"], ["6"]),
        ("json_schema", {"enum": ["é", 1]}, ['"é"', "1"], ['"e"']),
        ("regex", "[a-c]+d?", ["a", "abcd"], ["d", "abdd", ""]),
        ("regex", "^[0-9]+$", ["12"], ["^1$", "1$", ""]),
        ("regex", r"(?i)a/b\.", ["A/b."], ["a/bx"]),
        ("lark", 'start: "a" b+\nb: "x" | "y"', ["ax", "ayxy"], ["a", "xx"]),
        ("lark", '%llguidance {}\nstart: "a"', ["a"], ["b"]),
        (
            "gbnf",
            'root ::= "a" [b-d]+ ("x" | foo)\nfoo ::= "y"{2,3} # two or three',
            ["abdx", "abyy"],
            ["ay"],
        ),
        ("gbnf", r'root ::= "\u00e4\x41" [^\u00e4]', ["äAb"], ["äAä"]),
        ("gbnf", r'root ::= "\\u0041"', [r"\u0041"], ["A"]),
    ],
)
def test_an_answer_is_what_the_constraint_says(
    compiler: ConstraintCompiler, kind: str, source: Any, good: list[str], bad: list[str]
) -> None:
    for text in good:
        assert matches(start(compiler, kind, source), text), text
    for text in bad:
        assert not matches(start(compiler, kind, source), text), text


@pytest.mark.parametrize(
    ("kind", "source", "told"),
    [
        ("json_schema", {"not": {"type": "string"}}, "not"),
        ("json_schema", {"type": "array", "uniqueItems": True}, "uniqueItems"),
        ("json_schema", {"x-guidance": {"lenient": True}, "not": {}}, "not"),
        ("json_schema", {"type": "colour"}, "colour"),
        ("json_schema", {"$ref": "#/$defs/none"}, "none"),
        ("json_schema", {"$ref": "http://127.0.0.1:9/x"}, "127.0.0.1"),
        ("json_schema", {"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ("json_schema", False, "allows nothing"),
        ("json_schema", [], "is no schema"),
        ("regex", "(a", "unclosed"),
        ("lark", "start: nowhere", "nowhere"),
        ("lark", 'start: %json {"x-guidance": {"lenient": true}, "not": {}}', "not"),
        ("lark", 'start: %json {"$ref": "http://127.0.0.1:9/x"}', "127.0.0.1"),
        ("gbnf", 'root ::= "a', "cannot be converted"),
        ("gbnf", "start = a", "cannot be converted"),
        ("gbnf", r'root ::= "\x22"', "escape"),
        ("gbnf", r"root ::= [\U00110000]", "escape"),
        ("gbnf", "root ::= " + "(" * 3000, "cannot be converted"),
    ],
)
def test_N15_what_cannot_be_compiled_whole_names_its_field_and_why(
    compiler: ConstraintCompiler, kind: str, source: Any, told: str
) -> None:
    with pytest.raises(InvalidParameter) as caught:
        compiler.compile(constraint(kind, source, "guided_json"))
    [fault] = caught.value.faults
    assert fault.path == "guided_json"
    assert told in fault.message
    assert "\n" not in fault.message
    assert "; " not in fault.message
    assert len(fault.message) <= 300


GENERATED = [
    {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Person",
        "type": "object",
        "$defs": {"Name": {"type": "string", "description": "of a person", "examples": ["Ann"]}},
        "properties": {
            "name": {"$ref": "#/$defs/Name", "title": "Name"},
            "age": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
            "born": {"type": "string", "format": "date-time"},
        },
        "required": ["name"],
    },
    {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"list": {"type": "object", "properties": {"next": {"$ref": "#/definitions/list"}}}},
        "$ref": "#/definitions/list",
    },
    {"$id": "https://example.com/x", "type": ["string", "null"]},
    {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]} for kind in "ab"
        ]
    },
    {"type": "array", "prefixItems": [{"type": "string"}], "items": False},
]


@pytest.mark.parametrize("schema", GENERATED)
def test_schemas_as_libraries_write_them_compile(
    compiler: ConstraintCompiler, schema: dict[str, Any]
) -> None:
    assert not start(compiler, "json_schema", schema).is_complete


def test_a_token_that_is_not_allowed_changes_nothing(compiler: ConstraintCompiler) -> None:
    matcher = start(compiler, "regex", "abc")
    assert matcher.take(ord("a"))
    for token in (ord("x"), ord("a"), END, BOS):
        assert not matcher.take(token)
    assert matcher.take(ord("b"))


def test_the_mask_leaves_what_may_follow_and_the_end_where_it_may_come(compiler: ConstraintCompiler) -> None:
    matcher = start(compiler, "regex", "a[bc]*")

    def left() -> list[int]:
        logits = np.zeros(N_VOCAB, np.float32)
        matcher.rule_out(logits)
        return [int(token) for token in np.flatnonzero(logits == 0)]

    assert left() == [ord("a")]
    assert matcher.take(ord("a"))
    assert left() == [ord("b"), ord("c"), END]


def test_what_is_the_only_text_is_forced(compiler: ConstraintCompiler) -> None:
    matcher = start(compiler, "regex", "abc?")
    assert matcher.forced() == ord("a")
    assert matcher.take(ord("a"))
    assert matcher.take(ord("b"))
    assert matcher.forced() is None


def test_it_is_complete_when_nothing_can_follow(compiler: ConstraintCompiler) -> None:
    matcher = start(compiler, "json_schema", {"type": "object"})
    assert matcher.take(ord("{"))
    assert not matcher.is_complete
    assert matcher.take(ord("}"))
    assert matcher.is_complete


def test_each_sequence_follows_by_itself(compiler: ConstraintCompiler) -> None:
    compiled = compiler.compile(constraint("regex", "ab"))
    first, second = compiled.start(), compiled.start()
    assert first.take(ord("a"))
    assert second.take(ord("a"))
    assert first.take(ord("b"))
    assert not second.take(ord("a"))


def test_N15_a_grammar_that_becomes_too_complex_is_broken_for_good(compiler: ConstraintCompiler) -> None:
    matcher = start(compiler, "lark", 'start: "b" ' + " ".join("a?" for _ in range(2500)) + '\na: "x"')
    with pytest.raises(ConstraintBroken):
        for byte in b"b" + b"x" * 100:
            matcher.take(byte)
            matcher.rule_out(np.zeros(N_VOCAB, np.float32))
    with pytest.raises(ConstraintBroken):
        matcher.take(ord("x"))
    assert not matcher.is_complete


def test_the_tokenizer_is_made_once_and_late() -> None:
    made = []

    def make() -> Any:
        made.append(1)
        return BACKEND.new_constraint_tokenizer()

    compiler = ConstraintCompiler(make)
    assert not made
    for source in ("a", "b"):
        compiler.compile(constraint("regex", source))
    assert made == [1]


def test_O08_what_is_kept_levels_off_in_number(compiler: ConstraintCompiler) -> None:
    own = ConstraintCompiler(BACKEND.new_constraint_tokenizer)
    compiled = compiler.compile(constraint("regex", "a"))
    for index in range(CACHED_ENTRIES_MAX):
        own.keep(constraint("regex", str(index)), compiled)
    assert own.cached(constraint("regex", "0")) is compiled  # used, so the next goes
    own.keep(constraint("regex", "x"), compiled)
    assert own.cached(constraint("regex", "0")) is compiled
    assert own.cached(constraint("regex", "1")) is None
    assert own.cached(constraint("lark", "0")) is None
    assert f"{CACHED_ENTRIES_MAX} cached" in repr(own)


def test_O08_what_is_kept_levels_off_in_bytes(compiler: ConstraintCompiler) -> None:
    own = ConstraintCompiler(BACKEND.new_constraint_tokenizer)
    compiled = compiler.compile(constraint("regex", "a"))
    half = CACHED_BYTES_MAX // 2
    for letter in "abc":
        own.keep(constraint("regex", letter * half), compiled)
    assert [own.cached(constraint("regex", letter * half)) is not None for letter in "abc"] == [
        False,
        True,
        True,
    ]
    assert repr(own) == f"<ConstraintCompiler: 2 cached, {2 * half} bytes>"
