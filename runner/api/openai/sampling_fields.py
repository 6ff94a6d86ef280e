"""Readers of the sampling fields that are no plain numbers: logit biases and the order of stages.

Imports the shared schema machinery and the domain. Used by `schema.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from runner.api import strict_json
from runner.api.structure import Fault, Faults
from runner.domain.sampling import LOGIT_BIAS, LOGIT_BIAS_MAX, Stage

TOKEN_ID_MAX: Final = 2**31 - 1  # the engine's token type; the worker knows the vocabulary

_STAGES: Final = {stage.value: stage for stage in Stage} | {"typical_p": Stage.TYPICAL_P}
_STAGE_NAMES: Final = ", ".join(stage.value for stage in Stage)

_Entry = tuple[str, Any, Any]
"""Path, token id, bias; neither of the two is checked."""


def read_logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of token id and bias, from an object whose keys are ids (OpenAI) or from a list of pairs
    (llama-server, which takes texts for ids too; we do not)."""
    if type(value) not in (dict, list):
        raise Fault("must be an object of token ids and biases")
    if len(value) > LOGIT_BIAS_MAX:
        raise Fault(f"must have at most {LOGIT_BIAS_MAX} entries, and has {len(value)}")
    entries = list(_of_object(value) if type(value) is dict else _of_list(value))
    faults = [(path, fault) for path, token_id, bias in entries if (fault := _bias_fault(token_id, bias))]
    if faults:
        raise Faults(faults[: strict_json.FAULTS_MAX])
    return tuple((token_id, float(bias)) for _, token_id, bias in entries)


def _of_object(value: dict[str, Any]) -> Iterable[_Entry]:
    for name, bias in value.items():
        is_number = name.isascii() and name.isdecimal() and len(name) <= 10
        yield f"[{name[:16]}]", int(name) if is_number else None, bias


def _of_list(value: list[Any]) -> Iterable[_Entry]:
    for index, pair in enumerate(value):
        token_id, bias = pair if type(pair) is list and len(pair) == 2 else (None, None)
        yield f"[{index}]", token_id, bias


def _bias_fault(token_id: Any, bias: Any) -> Fault | None:
    if type(token_id) is not int or not 0 <= token_id <= TOKEN_ID_MAX:
        return Fault("must name a token id")
    if type(bias) not in (int, float) or bias not in LOGIT_BIAS:
        return Fault(f"must be a number between {LOGIT_BIAS.low:g} and {LOGIT_BIAS.high:g}")
    return None


def read_samplers(value: Any) -> tuple[Stage, ...]:
    """Stages by name and in order, each at most once."""
    if type(value) is not list:
        raise Fault("must be a list of names")
    faults: list[tuple[str, Fault]] = []
    stages: list[Stage] = []
    for index, name in enumerate(value):
        stage = _STAGES.get(name) if type(name) is str else None
        if stage is None:
            faults.append((f"[{index}]", Fault(f"must be one of {_STAGE_NAMES}")))
        elif stage in stages:
            faults.append((f"[{index}]", Fault("is named twice")))
        else:
            stages.append(stage)
    if faults:
        raise Faults(faults[: strict_json.FAULTS_MAX])
    return tuple(stages)
