"""Sampling parameters and constraints as fields, and back.

Imports the domain's values and `checks.py`. Used by `schema.py`.
"""

from __future__ import annotations

from typing import Any, Final

from runner.domain.constraints import (
    PATH_CHARACTERS_MAX,
    SOURCE_BYTES_MAX,
    Constraint,
    ConstraintKind,
)
from runner.domain.sampling import INTEGERS, RANGES, SamplingParams, Stage
from runner.wire.checks import Fields, Malformed, as_array, as_count, as_integer, as_real, as_text

_NUMBERS: Final = tuple(RANGES)


def sampling_fields(params: SamplingParams) -> list[Any]:
    """All numbers in the order of `RANGES`, then what is a list."""
    return [
        [_number_field(name, getattr(params, name)) for name in _NUMBERS],
        params.dry_sequence_breakers,
        params.logit_bias,
        [stage.value for stage in params.samplers],
    ]


def _number_field(name: str, value: float | None) -> float | None:
    return value if value is None or name in INTEGERS else float(value)


def read_sampling(fields: Fields) -> SamplingParams:
    """Also raises ValueError for stages that do not exist."""
    numbers, breakers, biases, samplers = fields
    values = dict(zip(_NUMBERS, as_array(numbers), strict=True))
    for name, value in values.items():
        _check_number(name, value)
    return SamplingParams(
        **values,
        dry_sequence_breakers=tuple([as_text(text) for text in as_array(breakers)]),
        logit_bias=tuple([_read_bias(as_array(bias)) for bias in as_array(biases)]),
        samplers=tuple([Stage(as_text(name)) for name in as_array(samplers)]),
    )


def _check_number(name: str, value: Any) -> None:
    if name == "seed" and value is None:
        return
    number = as_integer(value) if name in INTEGERS else as_real(value)
    if number not in RANGES[name]:
        raise Malformed(f"{name} out of range")


def _read_bias(fields: Fields) -> tuple[int, float]:
    token_id, bias = fields
    return as_count(token_id), as_real(bias)


def constraint_fields(constraint: Constraint | None) -> Fields | None:
    if constraint is None:
        return None
    return constraint.kind.value, constraint.source, constraint.path


def read_constraint(value: Any) -> Constraint | None:
    """Also raises ValueError for kinds that do not exist."""
    if value is None:
        return None
    kind, source, path = as_array(value)
    return Constraint(
        kind=ConstraintKind(as_text(kind)),
        source=as_text(source, SOURCE_BYTES_MAX),
        path=as_text(path, PATH_CHARACTERS_MAX),
    )
