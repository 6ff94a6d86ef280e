"""The limits of N15, each at, below and above."""

from __future__ import annotations

from typing import Any

import pytest

from runner.domain.constraints import (
    NESTING_MAX,
    PATTERN_CHARACTERS_MAX,
    RULES_MAX,
    SOURCE_BYTES_MAX,
    ConstraintKind,
    faults_of_schema,
    faults_of_text,
)

LARK, GBNF, REGEX = ConstraintKind.LARK, ConstraintKind.GBNF, ConstraintKind.REGEX


def nested(depth: int) -> Any:
    schema: Any = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


def paths(schema: Any) -> list[str]:
    return [path for path, _ in faults_of_schema(schema)]


@pytest.mark.parametrize(("excess", "n_faults"), [(-1, 0), (0, 0), (1, 1)])
def test_N15_a_schema_is_nested_so_deep(excess: int, n_faults: int) -> None:
    assert len(paths(nested(NESTING_MAX + excess))) == n_faults


@pytest.mark.parametrize(("excess", "n_faults"), [(-1, 0), (0, 0), (1, 1)])
def test_N15_a_schema_has_so_many_objects(excess: int, n_faults: int) -> None:
    schema: Any = {"anyOf": [{} for _ in range(RULES_MAX - 1 + excess)]}
    assert len(paths(schema)) == n_faults


@pytest.mark.parametrize(("excess", "n_faults"), [(-1, 0), (0, 0), (1, 1)])
def test_N15_patterns_of_a_schema_are_so_long(excess: int, n_faults: int) -> None:
    text = "a" * (PATTERN_CHARACTERS_MAX + excess)
    assert paths({"items": {"pattern": text}}) == ["items.pattern"] * n_faults
    assert paths({"items": {"patternProperties": {text: {}}}}) == ["items.patternProperties"] * n_faults


@pytest.mark.parametrize(
    "target", ["http://example.com/x", "https://x", "other.json#/a", "file:///etc/passwd", "/a", ""]
)
def test_N15_a_reference_to_elsewhere_is_refused(target: str) -> None:
    for name in ("$ref", "$dynamicRef", "$recursiveRef"):
        assert paths({"anyOf": [{}, {name: target}]}) == [f"anyOf[1].{name}"]
        assert paths({"anyOf": [{}, {name: "#/$defs/a"}]}) == []


def test_properties_that_are_named_like_keywords_are_no_faults() -> None:
    properties = {"$ref": {"type": "string"}, "pattern": {"type": "string"}, "patternProperties": {}}
    assert paths({"properties": properties}) == []


def text_faults(kind: ConstraintKind, source: str) -> int:
    return len(list(faults_of_text(kind, source)))


@pytest.mark.parametrize(("excess", "n_faults"), [(-1, 0), (0, 0), (1, 1)])
def test_N15_an_expression_is_so_long(excess: int, n_faults: int) -> None:
    assert text_faults(REGEX, "a" * (PATTERN_CHARACTERS_MAX + excess)) == n_faults


@pytest.mark.parametrize(("excess", "n_faults"), [(-1, 0), (0, 0), (1, 1)])
def test_N15_an_expression_is_nested_so_deep(excess: int, n_faults: int) -> None:
    depth = NESTING_MAX + excess
    assert text_faults(REGEX, "(" * depth + "a" + ")" * depth) == n_faults
    assert text_faults(REGEX, "[" * depth + "a" + "]" * depth) == n_faults


def test_what_is_no_group_does_not_count_as_nesting() -> None:
    assert text_faults(REGEX, r"\(" * 100) == 0
    assert text_faults(REGEX, "[(]" * 100) == 0
    assert text_faults(REGEX, "(a)" * 100) == 0


@pytest.mark.parametrize(("excess", "n_faults"), [(-1, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize(("kind", "text"), [(LARK, "start: A // "), (GBNF, "root ::= A # ")])
def test_N15_a_grammar_is_so_large(kind: ConstraintKind, text: str, excess: int, n_faults: int) -> None:
    assert text_faults(kind, text + "x" * (SOURCE_BYTES_MAX - len(text) + excess)) == n_faults


def test_N15_bytes_count_and_not_characters() -> None:
    assert text_faults(LARK, "start: A // " + "ä" * (SOURCE_BYTES_MAX // 2)) == 1


@pytest.mark.parametrize(("excess", "n_faults"), [(-1, 0), (0, 0), (1, 1)])
def test_N15_a_grammar_has_so_many_rules(excess: int, n_faults: int) -> None:
    count = RULES_MAX + excess
    assert text_faults(LARK, "\n".join(f'r{index}: "a:b:c" /:/ // :' for index in range(count))) == n_faults
    assert text_faults(GBNF, "\n".join(f'r{index} ::= "a:b" [:] # :' for index in range(count))) == n_faults


@pytest.mark.parametrize(("excess", "n_faults"), [(-1, 0), (0, 0), (1, 1)])
def test_N15_a_grammar_is_nested_so_deep(excess: int, n_faults: int) -> None:
    depth = NESTING_MAX + excess
    group = "(" * depth + ' "(((" ' + ")" * depth
    assert text_faults(LARK, f"start: {group}") == n_faults
    assert text_faults(GBNF, f"root ::= {group}") == n_faults


@pytest.mark.parametrize(("excess", "n_faults"), [(-1, 0), (0, 0), (1, 1)])
def test_N15_patterns_of_a_grammar_are_so_long(excess: int, n_faults: int) -> None:
    text = r"\/\]" + "a" * (PATTERN_CHARACTERS_MAX - 4 + excess)
    assert text_faults(LARK, f"start: /{text}/") == n_faults
    assert text_faults(GBNF, f"root ::= [{text}]") == n_faults


def test_quotes_that_do_not_end_reach_to_the_end() -> None:
    assert text_faults(LARK, 'start: "' + "(" * 100) == 0
    assert text_faults(LARK, "start: /" + "a" * PATTERN_CHARACTERS_MAX + "bb") == 1
    assert text_faults(LARK, 'start: "\\') == 0
