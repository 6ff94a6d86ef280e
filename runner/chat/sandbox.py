"""Where chat templates are compiled and run: what they may touch, and how much they may make.

A template comes out of a model file, so it is a stranger's program. Jinja's sandbox keeps it away from
Python's internals; it limits neither time nor memory. Here every operation by which a template can make
something large out of something small has a ceiling: the operators, `range`, concatenation, the filters and
string methods that pad, repeat or join, and the printing of containers. What is not listed (a filter, an
attribute) does not exist.

These ceilings give a clear error for ordinary excess. They are not the last line: what slips past them meets
the deadline of `runner.chat.deadline` and the limits that the worker puts on its own process
(`runner.worker.limits`). Imports jinja2 and the standard library. Read on in `growth.py` (the arithmetic of
the ceilings) and `template.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import BuiltinMethodType
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace

from runner.chat import filters, growth
from runner.chat.growth import text_of

_TEXT_METHODS = frozenset(
    re.findall(
        r"\w+",
        """capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower
        isnumeric isspace istitle isupper lower lstrip partition removeprefix removesuffix rfind rindex
        rpartition rsplit rstrip split splitlines startswith strip swapcase title upper""",
    )
)
_LOOP = {"changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem"}
_ATTRIBUTES: Mapping[type, frozenset[str]] = {
    str: _TEXT_METHODS,
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    LoopContext: frozenset(_LOOP | {"previtem", "revindex", "revindex0"}),
    Macro: frozenset({"arguments", "caller", "catch_kwargs", "catch_varargs", "name"}),
    Cycler: frozenset({"current", "next", "reset"}),
}
"""Attributes by exact type; of every other type there are none, except what a namespace was given."""

_FOREIGN_NODES = (
    nodes.Extends,
    nodes.FromImport,
    nodes.Import,
    nodes.Include,
    nodes.EvalContextModifier,  # {% autoescape %} brings Markup, whose methods are not in the tables
)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """One per template; `render_globals` are the callables that templates expect beside Jinja's own."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, render_globals: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, _GenerationMark],
            finalize=text_of,
            optimized=False,  # constants would be computed by the optimiser, past the interceptions
            cache_size=0,
        )
        self.code_generator_class = _SandboxCodeGenerator
        self.filters = dict(filters.FILTERS)
        self.globals = {
            "range": growth.bounded_range,
            "dict": dict,
            "namespace": Namespace,
            "cycler": Cycler,
            "joiner": Joiner,
            **render_globals,
        }

    def parse_bounded(self, source: str) -> nodes.Template:
        """The syntax tree; raises SecurityError for statements that reach for other templates or Markup."""
        tree = self.parse(source)
        for node in tree.find_all(_FOREIGN_NODES):
            raise SecurityError(f"line {node.lineno}: this statement is not available to chat templates")
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return growth.OPERATORS[operator](left, right)

    def new_buffer(self) -> list[str]:
        return _Buffer()

    def concat(self, pieces: Iterable[str]) -> str:
        """What macros, blocks and `{% set %}` sections are joined with."""
        return growth.bounded_join("", pieces)

    def concat_values(self, values: Sequence[Any]) -> str:
        """The `~` operator."""
        return growth.bounded_join("", map(text_of, values))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        return type(obj) is Namespace or attr in _ATTRIBUTES.get(type(obj), ())

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """The base class hands out a value that fails when it is used, and prints as nothing when it is
        not."""
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} is not allowed")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """A bounded stand-in for a string method that can make more than it is given.

        The base class asks at every access of an attribute, by dot, by subscript and from filters alike.
        """
        if type(value) is not BuiltinMethodType or type(value.__self__) is not str:
            return None
        text: str = value.__self__
        if value.__name__ == "format":
            return lambda *args, **kwargs: _Formatter(self).vformat(text, args, kwargs)
        if value.__name__ == "format_map":
            return lambda mapping: _Formatter(self).vformat(text, (), mapping)
        bounded = growth.TEXT_METHODS.get(value.__name__)
        return None if bounded is None else lambda *args, **kwargs: bounded(text, *args, **kwargs)


class _Buffer(list[str]):
    """What a macro, block or `{% set %}` section has put out so far."""

    def __init__(self) -> None:
        super().__init__()
        self._size = 0

    def append(self, piece: str) -> None:
        self._size += len(piece)
        growth.check_text(self._size)
        super().append(piece)

    def extend(self, pieces: Iterable[str]) -> None:
        for piece in pieces:
            self.append(piece)


class _SandboxCodeGenerator(CodeGenerator):
    """Two places that the sandbox does not intercept: the `~` operator and the buffers of sections."""

    def buffer(self, frame: Frame) -> None:
        frame.buffer = self.temporary_identifier()
        self.writeline(f"{frame.buffer} = environment.new_buffer()")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat_values((")
        for value in node.nodes:
            self.visit(value, frame)
            self.write(", ")
        self.write("))")


class _GenerationMark(Extension):
    """`{% generation %}…{% endgeneration %}` marks training targets; for rendering it is its content."""

    tags = {"generation"}  # noqa: RUF012  # the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Formatter(growth.BoundedFormatter):
    """`str.format`, whose fields may walk attributes: through the same doors as the rest of the template."""

    def __init__(self, environment: TemplateSandbox) -> None:
        super().__init__()
        self._environment = environment

    def step_into(self, value: Any, name: str | int, *, is_attribute: bool) -> Any:
        if is_attribute:
            return self._environment.getattr(value, str(name))
        return self._environment.getitem(value, name)
