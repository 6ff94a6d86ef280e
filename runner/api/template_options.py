"""What a request hands to a chat template, checked; shared by dialects.

Imports the shared schema machinery and the domain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runner.api import strict_json
from runner.api.structure import Fault, Faults, Unsupported
from runner.domain.generation import TEMPLATE_OPTION_CHARACTERS_MAX, TEMPLATE_OPTIONS

_OPTION_NOUNS: Final = {bool: "true or false", int: "an integer", str: "a string"}


def read_template_options(value: Any) -> Mapping[str, str | int | bool]:
    """What the request hands to the model's chat template: the names of G08, each of its type."""
    if type(value) is not dict:
        raise Fault("must be an object")
    faults: list[tuple[str, Fault]] = []
    for name, option in value.items():
        kind = TEMPLATE_OPTIONS.get(name)
        if kind is None:
            faults.append((name[:64], Unsupported("is no option that a request may set")))
        elif type(option) is not kind:
            faults.append((name, Fault(f"must be {_OPTION_NOUNS[kind]}")))
        elif isinstance(option, str) and len(option) > TEMPLATE_OPTION_CHARACTERS_MAX:
            faults.append((name, Fault(f"must have at most {TEMPLATE_OPTION_CHARACTERS_MAX} characters")))
    if faults:
        raise Faults(faults[: strict_json.FAULTS_MAX])
    return value
