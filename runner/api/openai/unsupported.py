"""Known fields that would change the result and are not implemented: refused unless they change nothing.

`lora: []`, `suffix: ""` or `tools: []` ask for what happens anyway and pass; everything else is
refused, since an answer that ignores them would be taken for one that honours them. Types and ranges are
checked first (N12). Fields that no result depends on (`user`, `metadata`, `service_tier`, …)
are not listed: they are ignored like unknown ones. What becomes implemented moves to `schema.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import attrs

from runner.api.structure import By, Fault, Length, Schema, Unsupported
from runner.domain.sampling import LOGPROBS, Range

FUNCTIONS_MAX: Final = 256


@attrs.frozen
class Known:
    """A field: its type, and which of its values change nothing. null never does."""

    kind: Any
    changes_nothing: Callable[[Any], bool]
    hint: str = ""


def _only(*values: object) -> Callable[[Any], bool]:
    return lambda value: value in values


def _empty(value: Any) -> bool:
    return not value


Anything = Annotated[Any, By(lambda value: value)]
_FLAG_OFF: Final = Known(bool, _only(False))
_EMPTY_TEXT: Final = Known(str, _empty)
_EMPTY_LIST: Final = Known(tuple[Anything, ...], _empty)
_EMPTY_OBJECT: Final = Known(dict, _empty)
_NOTHING: Final = Known(Anything, _only())

_BOTH: Final[Mapping[str, Known]] = {
    # probabilities, other ways to search
    "n_probs": Known(Annotated[int, LOGPROBS], _only(0)),
    "use_beam_search": _FLAG_OFF,
    # the choice of the next token
    "bad_words": _EMPTY_LIST,
    # where it ends
    "min_tokens": Known(Annotated[int, Range(0, 2**63 - 1)], _only(0)),
    "n_predict": Known(int, _only(-1), "use max_tokens"),
    "stop_token_ids": _EMPTY_LIST,
    "truncate_prompt_tokens": _NOTHING,
    # another model
    "lora": _EMPTY_LIST,
}

CHAT: Final[Mapping[str, Known]] = {
    **_BOTH,
    "tools": Known(Annotated[tuple[Anything, ...], Length(0, FUNCTIONS_MAX)], _empty),
    "tool_choice": Known(str | dict, _only("none", "auto")),
    "functions": Known(Annotated[tuple[Anything, ...], Length(0, FUNCTIONS_MAX)], _empty),
    "function_call": Known(str | dict, _only("none", "auto")),
    "modalities": Known(tuple[str, ...], _only((), ("text",))),
    "audio": _NOTHING,
    "prediction": _NOTHING,
    "web_search_options": _NOTHING,
    "reasoning": _EMPTY_OBJECT,
    "verbosity": Known(str, _only("medium")),
    # the template (G08)
    "chat_template": _NOTHING,
    "add_generation_prompt": Known(bool, _only(True)),
    "continue_final_message": _FLAG_OFF,
    "documents": _EMPTY_LIST,
}

COMPLETION: Final[Mapping[str, Known]] = {
    **_BOTH,
    "suffix": _EMPTY_TEXT,
    "input_prefix": _EMPTY_TEXT,
    "input_suffix": _EMPTY_TEXT,
    "input_extra": _EMPTY_LIST,
    "image_data": _EMPTY_LIST,
}


EMBEDDING: Final[Mapping[str, Known]] = {
    "normalize": Known(bool, _only(True)),
    "embd_normalize": Known(int, _only(2)),
    "add_special_tokens": Known(bool, _only(True)),
    "messages": _EMPTY_LIST,
    "lora": _EMPTY_LIST,
}


def faults(
    document: Mapping[str, Any], table: Mapping[str, Known], schema: Schema
) -> list[tuple[str, Fault]]:
    """What is wrong with the fields of `table` in `document`, in the order of the document."""
    found: list[tuple[str, Fault]] = []
    for name, value in document.items():
        known = table.get(name)
        if known is None or value is None:
            continue
        typed, wrong = schema.attempt(value, known.kind)
        if wrong:
            found += [(f"{name}{path}", fault) for path, fault in wrong]
        elif not known.changes_nothing(typed):
            found.append((name, Unsupported(_refusal(known))))
    return found


def _refusal(known: Known) -> str:
    return f"is not implemented; {known.hint}" if known.hint else "is not implemented"
