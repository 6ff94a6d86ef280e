"""A model's chat template: messages in, prompt text out, as its authors' tools would render it.

Rendering follows what transformers and llama.cpp agree on: Jinja with `trim_blocks`, `lstrip_blocks` and loop
controls; `messages` as dictionaries, `tools` and `documents` none, `add_generation_prompt` true, the texts of
the BOS and EOS tokens, `raise_exception` and `strftime_now`; `tojson` as Python writes JSON.

A template that fails fails the request: another format would answer with a model that was asked something
else (G09). Imports jinja2, `runner.domain` and `runner.errors`. Read on in `sandbox.py` for what a
template may do, and in `control_text.py` for what clients' text may not.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn, TypeVar

from jinja2 import nodes
from jinja2.environment import Template
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from runner.chat.deadline import DeadlinePassed, call_before
from runner.chat.growth import TEXT_MAX, TooMuch, check_text
from runner.chat.sandbox import TemplateSandbox
from runner.domain.generation import (
    TEMPLATE_OPTION_CHARACTERS_MAX,
    TEMPLATE_OPTIONS,
    ChatMessage,
)
from runner.errors import FieldFault, InvalidParameter, TemplateFailed

SOURCE_MAX = 1024 * 1024
"""Characters of a template; the longest in use have some 20,000."""
OUTPUT_BYTES_MAX = 4 * 1024 * 1024
DEADLINE_S = 2.0

T = TypeVar("T")

_MESSAGE_MAX = 300
_KINDS = {bool: "true or false", str: "text"}
_FORMAT_MAX = 200
_WIDE_DIRECTIVE = re.compile(r"%[^a-zA-Z%]*[0-9]")  # glibc pads `%1000000000Y` as it is told

Guard = Callable[[], AbstractContextManager[object]]
"""Entered around everything that runs a template: limits of the process, see `runner.worker.limits`."""


class ChatTemplate:
    """One template, compiled at the first use. Used by one thread.

    `source` None stands for a model that has none: every request then fails and says what to do.
    """

    def __init__(
        self,
        source: str | None,
        bos: str,
        eos: str,
        *,
        guard: Guard = nullcontext,
        deadline_s: float = DEADLINE_S,
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        self._source = source
        self._special_texts = {"bos_token": bos, "eos_token": eos}
        self._guard = guard
        self._deadline_s = deadline_s
        self._now = now
        self._template: Template | None = None
        self._fault: str | None = None
        self._names: frozenset[str] = frozenset()

    @property
    def source(self) -> str | None:
        return self._source

    def render(
        self, messages: tuple[ChatMessage, ...], options: Mapping[str, str | int | float | bool]
    ) -> str:
        """The prompt. Raises TemplateFailed, or InvalidParameter for options outside the allowlist."""
        check_options(options)
        variables = {
            **options,
            **self._special_texts,
            "messages": [self._as_dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        template = self._compiled()
        return self._run(lambda: _output(template, variables))

    def reads(self, name: str) -> bool:
        """Whether a variable of this name means anything to it; not when it cannot be compiled."""
        self.prepare()
        return name in self._names

    def prepare(self) -> None:
        """Compile ahead of the first request. A fault is kept for the requests, which are told it."""
        try:
            self._compiled()
        except TemplateFailed:
            pass  # told to whoever needs the template

    def _compiled(self) -> Template:
        if self._fault is not None:
            raise TemplateFailed(self._fault)
        if self._template is None:
            try:
                self._template = self._run(self._compile)
            except TemplateFailed as failure:
                self._fault = str(failure)
                raise
        return self._template

    def _compile(self) -> Template:
        if self._source is None:
            raise TemplateFailed(
                "this model has no chat template; package it again with --chat-template FILE, "
                "or use text completions"
            )
        if len(self._source) > SOURCE_MAX:
            raise TemplateFailed(f"the chat template has more than {SOURCE_MAX} characters")
        sandbox = TemplateSandbox({"raise_exception": _raise_exception, "strftime_now": self._strftime_now})
        parsed = sandbox.parse_bounded(self._source)
        self._names = frozenset(node.name for node in parsed.find_all(nodes.Name) if node.ctx == "load")
        return sandbox.from_string(parsed)

    def _run(self, function: Callable[[], T]) -> T:
        """`function()` within the limits; whatever goes wrong in a template comes out as TemplateFailed."""
        try:
            with self._guard():
                return call_before(self._deadline_s, function)
        except TemplateFailed:
            raise
        except DeadlinePassed:
            reason = f"it had not finished after {self._deadline_s:g} s"
        except TooMuch as error:
            reason = f"it asked for {error}"
        except RecursionError:
            reason = "it is nested too deeply"
        except MemoryError:
            reason = "it needs too much memory"
        except TemplateSyntaxError as error:
            reason = f"line {error.lineno}: {error.message}"
        except TemplateError as error:
            reason = error.message or type(error).__name__
        except Exception as error:  # a template can raise whatever its expressions raise
            reason = f"{type(error).__name__}: {error}"
        raise TemplateFailed(f"the chat template failed: {_printable(reason)}")

    def _as_dict(self, message: ChatMessage) -> dict[str, str]:
        """A turn as templates read it. `developer` is what newer clients call `system`; a template that does
        not know the word would make it a speaker of its own."""
        role = message.role
        if role == "developer" and "developer" not in (self._source or ""):
            role = "system"
        turn = {"role": role, "content": message.content}
        return turn if message.name is None else {**turn, "name": message.name}

    def _strftime_now(self, layout: str) -> str:
        if len(layout) > _FORMAT_MAX or _WIDE_DIRECTIVE.search(layout):
            raise TooMuch("a date of unusual width")
        return self._now().strftime(layout)


def check_options(options: Mapping[str, str | int | float | bool]) -> None:
    """Raise InvalidParameter for options that are not in the allowlist, or not of their type (G08)."""
    faults = [
        FieldFault(f"chat_template_kwargs.{name}", reason)
        for name, value in options.items()
        if (reason := _option_fault(name, value)) is not None
    ]
    if faults:
        raise InvalidParameter(*faults)


def _option_fault(name: str, value: str | int | float | bool) -> str | None:
    expected = TEMPLATE_OPTIONS.get(name)
    if expected is None:
        return f"not an option; there are {', '.join(TEMPLATE_OPTIONS)}"
    if type(value) is not expected:
        return f"must be {_KINDS[expected]}"
    if isinstance(value, str) and len(value) > TEMPLATE_OPTION_CHARACTERS_MAX:
        return f"has more than {TEMPLATE_OPTION_CHARACTERS_MAX} characters"
    return None


def _output(template: Template, variables: dict[str, Any]) -> str:
    """Joined piece by piece, so that an endless template stops at the limit and not at the end of memory."""
    pieces: list[str] = []
    size = 0
    for piece in template.root_render_func(template.new_context(variables)):
        size += len(piece)
        check_text(size)
        pieces.append(piece)
    text = "".join(pieces)
    if len(text.encode()) > OUTPUT_BYTES_MAX:  # raises UnicodeEncodeError for lone surrogates
        raise TooMuch(f"a text of more than {TEXT_MAX} bytes")
    return text


def _raise_exception(message: object = "") -> NoReturn:
    """What templates call to refuse a conversation (`roles must alternate`)."""
    raise TemplateError(str(message)[:_MESSAGE_MAX])


def _printable(text: str) -> str:
    """One line that any encoder takes, cut to a readable length."""
    line = " ".join(text[: 4 * _MESSAGE_MAX].encode(errors="replace").decode().split())
    return line if len(line) <= _MESSAGE_MAX else line[: _MESSAGE_MAX - 1] + "…"
