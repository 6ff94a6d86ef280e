"""What an answer must look like: a schema, an expression or a grammar as a value, and the limits of N15.

`faults_of_schema` and `faults_of_text` say what is wrong before any model is loaded; what is right here may
still be refused by the worker, which compiles it. Values and pure functions. Read on in
`runner/engine/constraints.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, Final

import attrs

SOURCE_BYTES_MAX: Final = 64 * 1024
NESTING_MAX: Final = 32
PATTERN_CHARACTERS_MAX: Final = 512
RULES_MAX: Final = 1024
"""Rules of a grammar, or objects in a schema. The largest schemas that we know of have some 300."""
CHOICES_MAX: Final = 1024
"""Of a list of answers."""
COMPILE_S: Final = 2.0
PATH_CHARACTERS_MAX: Final = 64

_NO_REMOTE = "must begin with #: nothing is fetched from elsewhere"


class ConstraintKind(enum.Enum):
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"
    GBNF = "gbnf"


@attrs.frozen(kw_only=True)
class Constraint:
    """The whole answer matches `source`: JSON text of a schema, a regular expression, or a grammar.

    Within the limits. `path` is the field that it came in, for errors.
    """

    kind: ConstraintKind
    source: str
    path: str


def faults_of_schema(schema: Any) -> Iterator[tuple[str, str]]:
    """Path within the schema, and what is wrong there. Its size is the caller's to measure.

    Every object of JSON counts as a rule and as a level, wherever it stands: what only looks like a schema
    (`default`, `examples`) is told apart by no one who has not read all of it.
    """
    n_objects = 0
    pending: list[tuple[Any, str, int]] = [(schema, "", 1)]
    while pending:
        value, path, depth = pending.pop()
        if not isinstance(value, dict | list):
            continue
        if depth > NESTING_MAX:
            yield path[:PATH_CHARACTERS_MAX], f"is nested deeper than {NESTING_MAX}"
            return
        if isinstance(value, dict):
            n_objects += 1
            if n_objects > RULES_MAX:
                yield "", f"has more than {RULES_MAX} objects"
                return
            yield from _faults_of_object(value, path)
        pending += [(member, below, depth + 1) for below, member in _members(value, path)]


def _members(value: dict[str, Any] | list[Any], path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        yield from ((f"{path}[{index}]", member) for index, member in enumerate(value))
    else:
        yield from ((f"{path}.{name[:32]}" if path else name[:32], member) for name, member in value.items())


def _faults_of_object(value: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    prefix = f"{path}." if path else ""
    for name in ("$ref", "$dynamicRef", "$recursiveRef"):
        target = value.get(name)
        if isinstance(target, str) and not target.startswith("#"):
            yield f"{prefix}{name}"[:PATH_CHARACTERS_MAX], _NO_REMOTE
    too_long = f"has more than {PATTERN_CHARACTERS_MAX} characters"
    pattern = value.get("pattern")
    if isinstance(pattern, str) and len(pattern) > PATTERN_CHARACTERS_MAX:
        yield f"{prefix}pattern"[:PATH_CHARACTERS_MAX], too_long
    patterns = value.get("patternProperties")
    if isinstance(patterns, dict) and any(len(name) > PATTERN_CHARACTERS_MAX for name in patterns):
        yield f"{prefix}patternProperties"[:PATH_CHARACTERS_MAX], too_long


def faults_of_text(kind: ConstraintKind, source: str) -> Iterator[str]:
    """What is wrong with an expression or a grammar: size, nesting, patterns, rules."""
    if kind is ConstraintKind.REGEX:
        if len(source) > PATTERN_CHARACTERS_MAX:
            yield f"has more than {PATTERN_CHARACTERS_MAX} characters"
        elif _RegexReader().measure(source).depth > NESTING_MAX:
            yield f"is nested deeper than {NESTING_MAX}"
        return
    if len(source.encode("utf-8", "replace")) > SOURCE_BYTES_MAX:
        yield f"has more than {SOURCE_BYTES_MAX} bytes"
        return
    found = _GrammarReader(has_slashes=kind is ConstraintKind.LARK).measure(source)
    if found.depth > NESTING_MAX:
        yield f"is nested deeper than {NESTING_MAX}"
    if found.longest_pattern > PATTERN_CHARACTERS_MAX:
        yield f"has a pattern of more than {PATTERN_CHARACTERS_MAX} characters"
    if found.n_rules > RULES_MAX:
        yield f"has more than {RULES_MAX} rules"


@attrs.define
class _Measure:
    """Of a grammar's text. `n_rules` counts `:` and `::=` outside of everything quoted."""

    depth: int = 0
    longest_pattern: int = 0
    n_rules: int = 0


class _GrammarReader:
    """Reads a grammar character by character, as far as quotes, patterns, comments and brackets go.

    A pattern is `/…/` in Lark and `[…]` in GBNF. A text that ends within one counts to its end.
    """

    def __init__(self, *, has_slashes: bool) -> None:
        self._pattern_ends = {"/": "/"} if has_slashes else {"[": "]"}
        self._comments = ("//",) if has_slashes else ("#",)
        self._openings, self._closings = "([{" if has_slashes else "({", ")]}" if has_slashes else ")}"

    def measure(self, text: str) -> _Measure:
        found = _Measure()
        depth = position = 0
        while position < len(text):
            character = text[position]
            if text.startswith(self._comments, position):
                position = _end_of_line(text, position)
            elif character == '"':
                position = _after_quoted(text, position, '"')
            elif character in self._pattern_ends:
                end = _after_quoted(text, position, self._pattern_ends[character])
                found.longest_pattern = max(found.longest_pattern, end - position - 2)
                position = end
            else:
                depth += (character in self._openings) - (character in self._closings and depth > 0)
                found.depth = max(found.depth, depth)
                found.n_rules += character == ":" and text[position - 1 : position] != ":"
                position += 1
        return found


class _RegexReader:
    """Reads a regular expression as far as groups and classes go; within a class, only classes count."""

    def measure(self, text: str) -> _Measure:
        found = _Measure()
        groups = classes = position = 0
        while position < len(text):
            character = text[position]
            if character == "\\":
                position += 1
            elif character in "[]":
                classes = max(classes + (1 if character == "[" else -1), 0)
            elif character in "()" and not classes:
                groups = max(groups + (1 if character == "(" else -1), 0)
            found.depth = max(found.depth, groups + classes)
            position += 1
        return found


def _end_of_line(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def _after_quoted(text: str, start: int, mark: str) -> int:
    """Behind the next `mark` that no backslash precedes, or the end of the text."""
    position = start + 1
    while position < len(text) and text[position] != mark:
        position += 2 if text[position] == "\\" else 1
    return min(position + 1, len(text))
