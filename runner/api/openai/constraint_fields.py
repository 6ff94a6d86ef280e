"""Readers of the fields that say what an answer must look like: OpenAI's `response_format`, and the fields of
llama-server (`grammar`, `json_schema`) and vLLM (`guided_…`, `structured_outputs`).

What is wrong by the limits of N15 is refused here, before a model is loaded; whether it compiles is the
worker's to say. Imports the shared schema machinery and the domain. Used by `schema.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from runner.api import strict_json
from runner.api.structure import Fault, Faults, Unsupported
from runner.domain.constraints import (
    CHOICES_MAX,
    PATH_CHARACTERS_MAX,
    SOURCE_BYTES_MAX,
    Constraint,
    ConstraintKind,
    faults_of_schema,
    faults_of_text,
)

_ANY_OBJECT: Final = {"type": "object"}
_LLGUIDANCE: Final = "%llguidance"  # what llama.cpp knows a Lark grammar by

Reader = Callable[[Any, str], Constraint | None]
"""Of a field's value, and its path; None: any text may be answered."""


def _schema(value: Any, path: str) -> Constraint:
    if type(value) is not dict and type(value) is not bool:
        raise Fault("must be a schema")
    source = orjson.dumps(value)
    if len(source) > SOURCE_BYTES_MAX:
        raise Fault(f"has more than {SOURCE_BYTES_MAX} bytes")
    if faults := [(below, Fault(what)) for below, what in faults_of_schema(value)]:
        raise Faults(faults[: strict_json.FAULTS_MAX])
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, source=source.decode(), path=path)


def _schema_or_text(value: Any, path: str) -> Constraint:
    """vLLM takes a schema as JSON text too."""
    if type(value) is str:
        if len(value) > SOURCE_BYTES_MAX:
            raise Fault(f"has more than {SOURCE_BYTES_MAX} bytes")
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise Fault("must be a schema, or JSON text of one") from None
    return _schema(value, path)


def _text(kind: ConstraintKind) -> Callable[[Any, str], Constraint]:
    def read(value: Any, path: str) -> Constraint:
        if type(value) is not str or not value:
            raise Fault("must be a text")
        for what in faults_of_text(kind, value):
            raise Fault(what)
        return Constraint(kind=kind, source=value, path=path)

    return read


_regex: Final = _text(ConstraintKind.REGEX)
_lark: Final = _text(ConstraintKind.LARK)
_gbnf: Final = _text(ConstraintKind.GBNF)


def _llama_grammar(value: Any, path: str) -> Constraint | None:
    """GBNF, or Lark with llama.cpp's mark. An empty one is none."""
    if value == "":
        return None
    is_lark = type(value) is str and value.startswith(_LLGUIDANCE)
    return (_lark if is_lark else _gbnf)(value, path)


def _vllm_grammar(value: Any, path: str) -> Constraint:
    """Lark, or the notation of GBNF, which only it has `::=` in."""
    return (_gbnf if type(value) is str and "::=" in value else _lark)(value, path)


def _choice(value: Any, path: str) -> Constraint:
    """One of several texts."""
    if type(value) is not list or not value or not {str}.issuperset(map(type, value)) or "" in value:
        raise Fault("must be a list of texts that are not empty")
    if len(value) > CHOICES_MAX:
        raise Fault(f"must have at most {CHOICES_MAX} entries, and has {len(value)}")
    return _lark("start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in value), path)


def _any_object(value: Any, path: str) -> Constraint | None:
    if type(value) is not bool:
        raise Fault("must be true or false")
    return _schema(_ANY_OBJECT, path) if value else None


def read_response_format(value: Any, path: str) -> Constraint | None:
    """1. `text` is none.  2. `json_object`; llama-server's may name a schema.  3. `json_schema` is held to,
    whatever `strict` says.  4. `regex`, `lark` and `gbnf` are additions of ours."""
    if type(value) is not dict or type(value.get("type")) is not str:
        raise Fault("must be an object with a type")
    match value["type"]:
        case "text":
            return None
        case "json_object":
            return _below(value, path, "schema", _schema) if "schema" in value else _schema(_ANY_OBJECT, path)
        case "json_schema":
            return _below(value, path, "json_schema", _named_schema)
        case "regex":
            return _below(value, path, "pattern", _regex)
        case "lark":
            return _below(value, path, "grammar", _lark)
        case "gbnf":
            return _below(value, path, "grammar", _gbnf)
    raise Faults([("type", Unsupported("must be text, json_object, json_schema, regex, lark or gbnf"))])


def _named_schema(value: Any, path: str) -> Constraint | None:
    """OpenAI's wrapping of a schema, with a name and a description that change nothing."""
    if type(value) is not dict:
        raise Fault("must be an object with a schema")
    return _below(value, path, "schema", _schema)


_STRUCTURED: Final[Mapping[str, Reader]] = {
    "json": _schema_or_text,
    "regex": _regex,
    "choice": _choice,
    "grammar": _vllm_grammar,
    "json_object": _any_object,
}


def _structured_outputs(value: Any, path: str) -> Constraint | None:
    """vLLM's newer form: an object with one of several kinds, beside options of its own engines."""
    if type(value) is not dict:
        raise Fault("must be an object")
    if value.get("structural_tag") is not None:
        raise Faults([("structural_tag", Unsupported("is not implemented"))])
    named = [name for name in _STRUCTURED if value.get(name) not in (None, False)]
    if len(named) > 1:
        raise Faults([(named[1], Fault(f"cannot be together with {named[0]}"))])
    return _below(value, path, named[0], _STRUCTURED[named[0]]) if named else None


def _below(value: dict[str, Any], path: str, name: str, read: Reader) -> Constraint | None:
    """A member; its faults are told with its name."""
    if name not in value:
        raise Faults([(name, Fault("is required"))])
    try:
        return read(value[name], f"{path}.{name}"[:PATH_CHARACTERS_MAX])
    except Faults as faults:
        raise Faults([(_joined(name, below), fault) for below, fault in faults.faults]) from None
    except Fault as fault:
        raise Faults([(name, fault)]) from None


def _joined(name: str, below: str) -> str:
    return f"{name}{below}" if below.startswith("[") or not below else f"{name}.{below}"


READERS: Final[Mapping[str, Reader]] = {
    "response_format": read_response_format,
    "grammar": _llama_grammar,
    "json_schema": _schema,
    "guided_json": _schema_or_text,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _vllm_grammar,
    "structured_outputs": _structured_outputs,
}
"""Every field that may constrain an answer; at most one of them may."""


def reader_of(name: str) -> Callable[[Any], Constraint | None]:
    """For a field of a schema."""
    return lambda value: READERS[name](value, name)
