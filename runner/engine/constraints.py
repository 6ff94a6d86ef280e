"""Constrained output: constraints compiled once, followed by one matcher per sequence.

Owns the tokenizer that llguidance reads the vocabulary through, the cache of compiled constraints (O08), and
the rule that nothing unconstrained is ever generated under a constraint (N15). Compiling is done off the step
thread (`runner/worker/compiling.py`); a matcher belongs to the thread that steps. Imports llguidance, numpy
and `runner.domain`.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from runner.domain.constraints import Constraint, ConstraintKind
from runner.errors import FieldFault, InvalidParameter

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

CACHED_ENTRIES_MAX: Final = 32
CACHED_BYTES_MAX: Final = 1024 * 1024
"""Of the sources that what is cached was compiled from."""
LEXER_STATES_MAX: Final = 25_000
"""1 to 2 kB each, kept with what is cached; the library's own limit is ten times as many."""

_MESSAGE_CHARACTERS_MAX = 300
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)
_SPECIAL = frozenset('"\\[]^-/')
_JSON_OPTIONS: Final = {
    # One blank, or few line breaks with some indentation, as in llama.cpp's grammars: small models would
    # otherwise go on with white space for ever.
    "whitespace_pattern": r"( |\n{1,2}[ \t]{0,20})?",
    "lenient": False,
    "coerce_one_of": False,
}


class ConstraintBroken(Exception):
    """A matcher cannot go on: its grammar became too complex, or nothing that it allows may be chosen."""


class Matcher:
    """Follows one answer. Raises ConstraintBroken from every method once it cannot go on."""

    def __init__(self, matcher: LLMatcher, n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._mask = np.zeros((n_vocab + 31) // 32, np.int32)

    def take(self, token_id: int) -> bool:
        """Whether the answer may go on with this token; it then has."""
        is_taken = self._matcher.try_consume_tokens([token_id]) == 1
        if not is_taken and self._matcher.is_error():
            raise ConstraintBroken(self._matcher.get_error())
        return is_taken

    def forced(self) -> int | None:
        """The next token, where the constraint leaves no choice of text."""
        tokens = self._matcher.compute_ff_tokens()
        return tokens[0] if tokens else None

    def rule_out(self, logits: npt.NDArray[np.float32]) -> None:
        """Set the logits of all tokens that are not allowed to minus infinity, in place.

        200 µs for the mask and 50 µs to apply it at 49k vocabulary, the first time in a state.
        """
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            raise ConstraintBroken(self._matcher.get_error())
        allowed = np.unpackbits(self._mask.view(np.uint8), count=self._n_vocab, bitorder="little")
        np.copyto(logits, -np.inf, where=allowed == 0)

    @property
    def is_complete(self) -> bool:
        """The answer matches and nothing can follow it."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def __repr__(self) -> str:
        return f"<Matcher: {self._matcher.stop_reason()}>"


class CompiledConstraint:
    """Shared by all sequences that follow it; each starts a matcher of its own."""

    def __init__(self, matcher: LLMatcher, n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab

    def start(self) -> Matcher:
        """6 µs."""
        return Matcher(self._matcher.deep_copy(), self._n_vocab)


class ConstraintCompiler:
    """Compiles for one vocabulary. For one thread at a time."""

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer]) -> None:
        """`make_tokenizer` is called once, at the first use: it takes 0.2 s at 49k vocabulary."""
        self._make_tokenizer = make_tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._cache: OrderedDict[tuple[ConstraintKind, str], CompiledConstraint] = OrderedDict()
        self._cached_bytes = 0

    def __repr__(self) -> str:
        return f"<ConstraintCompiler: {len(self._cache)} cached, {self._cached_bytes} bytes>"

    def prepare(self) -> None:
        """Make the tokenizer, if it is not there."""
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()

    def cached(self, constraint: Constraint) -> CompiledConstraint | None:
        key = (constraint.kind, constraint.source)
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
        return found

    def compile(self, constraint: Constraint) -> CompiledConstraint:
        """Raises InvalidParameter, which names the constraint's field, when it cannot be compiled whole.

        A warning counts as such: it tells of something that would not be held to.
        """
        from llguidance import LLMatcher, LLParserLimits

        self.prepare()
        assert self._tokenizer is not None
        limits = LLParserLimits(max_lexer_states=LEXER_STATES_MAX, verbose_errors=False)
        matcher = LLMatcher(self._tokenizer, _grammar_of(constraint), log_level=0, limits=limits)
        complaint = matcher.get_error() or "; ".join(matcher.get_grammar_warnings())
        if complaint:
            raise _invalid(constraint, complaint)
        return CompiledConstraint(matcher, self._tokenizer.vocab_size)

    def keep(self, constraint: Constraint, compiled: CompiledConstraint) -> None:
        """For `cached`; the least recently used go when there is no room."""
        self._cache[constraint.kind, constraint.source] = compiled
        self._cached_bytes += len(constraint.source)
        while len(self._cache) > CACHED_ENTRIES_MAX or self._cached_bytes > CACHED_BYTES_MAX:
            (_, source), _ = self._cache.popitem(last=False)
            self._cached_bytes -= len(source)


def _grammar_of(constraint: Constraint) -> str:
    """llguidance's own form."""
    from llguidance import LLMatcher

    match constraint.kind:
        case ConstraintKind.JSON_SCHEMA:
            return LLMatcher.grammar_from_json_schema(_schema_object(constraint), overrides=_JSON_OPTIONS)  # type: ignore[arg-type]  # a TypedDict
        case ConstraintKind.REGEX:
            return LLMatcher.grammar_from_regex(constraint.source)
        case ConstraintKind.LARK:
            return LLMatcher.grammar_from_lark(constraint.source)
        case ConstraintKind.GBNF:
            return LLMatcher.grammar_from_lark(_lark_of(constraint))


def _schema_object(constraint: Constraint) -> dict[str, Any]:
    """The library takes its options from within the schema, and none from true or false."""
    schema = json.loads(constraint.source)
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise _invalid(constraint, "allows nothing" if schema is False else "is no schema")
    return {name: value for name, value in schema.items() if name != "x-guidance"}


def _lark_of(constraint: Constraint) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    source = _ESCAPE.sub(lambda match: _unescaped(constraint, match), constraint.source)
    try:
        return gbnf_to_lark(source)
    except Exception as error:  # the converter's own errors, and what it did not foresee
        raise _invalid(constraint, f"cannot be converted: {str(error) or type(error).__name__}") from None


def _unescaped(constraint: Constraint, match: re.Match[str]) -> str:
    """The character itself for an escape that gives its number: the converter cuts their zeros off, which
    may make another character of it."""
    digits = match[1] or match[2] or match[3]
    if digits is None:
        return match[0]
    number = int(digits, 16)
    character = chr(number) if number < 0x110000 else ""
    if not character.isprintable() or character in _SPECIAL or not character:
        raise _invalid(constraint, f"cannot be converted: the escape {match[0]} is not understood")
    return character


def _invalid(constraint: Constraint, complaint: str) -> InvalidParameter:
    """On one line, of bounded length, and without what separates several faults."""
    told = " ".join(complaint.replace(";", ",").split())
    return InvalidParameter(FieldFault(constraint.path, told[:_MESSAGE_CHARACTERS_MAX]))
