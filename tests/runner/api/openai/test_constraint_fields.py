"""Fields that constrain an answer: OpenAI's, llama-server's and vLLM's, with the limits of N15."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runner.api.openai.schema import parse_chat, parse_completion
from runner.domain.constraints import (
    CHOICES_MAX,
    NESTING_MAX,
    PATTERN_CHARACTERS_MAX,
    RULES_MAX,
    SOURCE_BYTES_MAX,
    Constraint,
    ConstraintKind,
)
from runner.errors import BadInput, InvalidParameter, UnsupportedParameter

KINDS = {kind.value: kind for kind in ConstraintKind}


def sent(**fields: Any) -> tuple[Constraint, ...]:
    body = {"model": "ai/smollm2", "messages": [{"role": "user", "content": "Why?"}], **fields}
    found = parse_chat(json.dumps(body).encode()).constraints
    body = {"model": "ai/smollm2", "prompt": "Why?", **fields}
    assert parse_completion(json.dumps(body).encode()).constraints == found
    return found


def refused(**fields: Any) -> tuple[type[BadInput], list[str]]:
    with pytest.raises((InvalidParameter, UnsupportedParameter)) as caught:
        sent(**fields)
    return type(caught.value), [fault.path for fault in caught.value.faults]


SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
SCHEMA_TEXT = '{"type":"object","properties":{"b":{},"a":{}}}'
OBJECT_TEXT = '{"type":"object"}'


@pytest.mark.parametrize(
    ("field", "value", "kind", "source", "path"),
    [
        ("response_format", {"type": "json_object"}, "json_schema", OBJECT_TEXT, "response_format"),
        (
            "response_format",
            {"type": "json_object", "schema": SCHEMA},
            "json_schema",
            SCHEMA_TEXT,
            "response_format.schema",
        ),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "x", "strict": False, "schema": SCHEMA}},
            "json_schema",
            SCHEMA_TEXT,
            "response_format.json_schema.schema",
        ),
        ("response_format", {"type": "regex", "pattern": "a+"}, "regex", "a+", "response_format.pattern"),
        ("response_format", {"type": "lark", "grammar": "start: A"}, "lark", "start: A", None),
        ("response_format", {"type": "gbnf", "grammar": 'root ::= "a"'}, "gbnf", 'root ::= "a"', None),
        ("grammar", 'root ::= "a"', "gbnf", 'root ::= "a"', "grammar"),
        ("grammar", "%llguidance {}\nstart: A", "lark", "%llguidance {}\nstart: A", "grammar"),
        ("json_schema", SCHEMA, "json_schema", SCHEMA_TEXT, "json_schema"),
        ("json_schema", {}, "json_schema", "{}", "json_schema"),
        ("guided_json", SCHEMA, "json_schema", SCHEMA_TEXT, "guided_json"),
        ("guided_json", SCHEMA_TEXT, "json_schema", SCHEMA_TEXT, "guided_json"),
        ("guided_regex", "a+", "regex", "a+", "guided_regex"),
        ("guided_choice", ["a", 'ö"'], "lark", 'start: "a" | "ö\\""', "guided_choice"),
        ("guided_grammar", "start: A", "lark", "start: A", "guided_grammar"),
        ("guided_grammar", 'root ::= "a"', "gbnf", 'root ::= "a"', "guided_grammar"),
        ("structured_outputs", {"json": SCHEMA}, "json_schema", SCHEMA_TEXT, "structured_outputs.json"),
        ("structured_outputs", {"regex": "a+", "json": None}, "regex", "a+", "structured_outputs.regex"),
        ("structured_outputs", {"json_object": True}, "json_schema", OBJECT_TEXT, None),
        ("structured_outputs", {"choice": ["a"]}, "lark", 'start: "a"', "structured_outputs.choice"),
    ],
)
def test_every_way_of_saying_it_is_the_same_constraint(
    field: str, value: Any, kind: str, source: str, path: str | None
) -> None:
    [found] = sent(**{field: value})
    assert (found.kind, found.source) == (KINDS[kind], source)
    assert path is None or found.path == path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "text"}),
        ("response_format", None),
        ("grammar", ""),
        ("grammar", None),
        ("json_schema", None),
        ("structured_outputs", {}),
        ("structured_outputs", {"json_object": False, "disable_any_whitespace": True}),
    ],
)
def test_what_asks_for_any_text_is_no_constraint(field: str, value: Any) -> None:
    assert sent(**{field: value}) == ()


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("response_format", "json_object", ""),
        ("response_format", {}, ""),
        ("response_format", {"type": "json_schema"}, ".json_schema"),
        ("response_format", {"type": "json_schema", "json_schema": 5}, ".json_schema"),
        ("response_format", {"type": "json_schema", "json_schema": {}}, ".json_schema.schema"),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": []}}, ".json_schema.schema"),
        ("response_format", {"type": "regex"}, ".pattern"),
        ("response_format", {"type": "regex", "pattern": ""}, ".pattern"),
        ("response_format", {"type": "lark", "grammar": 5}, ".grammar"),
        ("grammar", 5, ""),
        ("json_schema", "x", ""),
        ("guided_json", "{", ""),
        ("guided_json", "5", ""),
        ("guided_choice", [], ""),
        ("guided_choice", "a", ""),
        ("guided_choice", ["a", 5], ""),
        ("guided_choice", ["a", ""], ""),
        ("structured_outputs", [], ""),
        ("structured_outputs", {"json": {}, "regex": "a"}, ".regex"),
        ("structured_outputs", {"json_object": 1}, ".json_object"),
    ],
)
def test_what_is_no_constraint_of_its_kind_is_named(field: str, value: Any, path: str) -> None:
    assert refused(**{field: value}) == (InvalidParameter, [f"{field}{path}"])


def test_kinds_that_are_not_known_here_are_unsupported() -> None:
    assert refused(response_format={"type": "structural_tag"}) == (
        UnsupportedParameter,
        ["response_format.type"],
    )
    assert refused(structured_outputs={"structural_tag": "{}"}) == (
        UnsupportedParameter,
        ["structured_outputs.structural_tag"],
    )


def test_one_answer_has_one_constraint() -> None:
    assert refused(response_format={"type": "json_object"}, grammar='root ::= "a"', guided_regex="a") == (
        InvalidParameter,
        ["grammar", "guided_regex"],
    )


# N15, at, below and above


@pytest.mark.parametrize(("excess", "is_fault"), [(-1, False), (0, False), (1, True)])
def test_N15_a_schema_is_so_large(excess: int, is_fault: bool) -> None:
    frame = len(b'{"title":""}')
    schema = {"title": "x" * (SOURCE_BYTES_MAX - frame + excess)}
    fields = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    if is_fault:
        assert refused(**fields) == (InvalidParameter, ["response_format.json_schema.schema"])
        assert refused(guided_json=json.dumps(schema)) == (InvalidParameter, ["guided_json"])
    else:
        assert sent(**fields)


def test_N15_faults_of_a_schema_are_named_by_their_place() -> None:
    deep: Any = {}
    for _ in range(NESTING_MAX):
        deep = {"not": deep}
    for schema, below in (
        ({"items": {"$ref": "http://x/y"}}, "items.$ref"),
        ({"pattern": "a" * (PATTERN_CHARACTERS_MAX + 1)}, "pattern"),
        (deep, ".".join(["not"] * NESTING_MAX)[:64]),
    ):
        path = f"response_format.schema.{below}"
        fields = {"response_format": {"type": "json_object", "schema": schema}}
        assert refused(**fields) == (InvalidParameter, [path])


def test_N15_too_many_objects_are_a_fault_of_the_field() -> None:
    schema: Any = {"anyOf": [{}] * RULES_MAX}
    assert refused(json_schema=schema) == (InvalidParameter, ["json_schema"])


@pytest.mark.parametrize(("excess", "is_fault"), [(-1, False), (0, False), (1, True)])
def test_N15_texts_are_so_long(excess: int, is_fault: bool) -> None:
    fields = {
        "guided_regex": "a" * (PATTERN_CHARACTERS_MAX + excess),
        "grammar": "root ::= A #" + "x" * (SOURCE_BYTES_MAX - 12 + excess),
        "guided_choice": ["a"] * (CHOICES_MAX + excess),
    }
    for name, value in fields.items():
        if is_fault:
            assert refused(**{name: value}) == (InvalidParameter, [name])
        else:
            assert sent(**{name: value})
