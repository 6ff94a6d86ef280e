"""What the control API is sent, checked. It is ours: a key that no field has is a fault, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

import attrs

from runner.api import strict_json
from runner.api.keep_alive import KeepAlive
from runner.api.structure import By, Fault, Faults, Length, Schema, Text
from runner.domain.sampling import Range
from runner.domain.settings import (
    NOTHING,
    SETTING_BY_NAME,
    SETTINGS,
    ModelSettings,
    read_settings,
    write_settings,
)
from runner.errors import FieldFault, InvalidParameter
from runner.oci.digest import Digest
from runner.oci.reference import ModelName, Reference

LAYERS_MAX: Final = 1024
MODELS_MAX: Final = 256
CONTEXT_SIZE_MAX: Final = 2**31 - 1
MEMORY_BYTES_MAX: Final = 2**60

_SCHEMA: Final = Schema(forbid_unknown=True)
T = TypeVar("T")


@attrs.frozen(kw_only=True)
class TagRequest:
    source: ModelName
    target: Reference


@attrs.frozen(kw_only=True)
class UntagRequest:
    target: Reference


@attrs.frozen(kw_only=True)
class LayerFields:
    """One uploaded part; `filename` is data and names nothing on any disk."""

    kind: Literal["gguf", "license", "chat_template", "mmproj"]
    digest: Digest
    filename: Annotated[str, Text(1, 255)]


def _read_labels(value: Any) -> dict[str, str]:
    if type(value) is not dict:
        raise Fault("must be an object")
    if not all(type(text) is str for text in value.values()):
        raise Fault("must hold strings only")
    return value


@attrs.frozen(kw_only=True)
class PackageRequest:
    """Either `layers` with weights, or a `base` of the store, to which `layers` are added."""

    target: Reference
    layers: Annotated[tuple[LayerFields, ...], Length(0, LAYERS_MAX)] = ()
    base: ModelName | None = None
    context_size: Annotated[int, Range(1, CONTEXT_SIZE_MAX)] | None = None
    labels: Annotated[dict[str, str], By(_read_labels)] | None = None
    format: Literal["docker", "cncf"] | None = None


@attrs.frozen(kw_only=True)
class StartRequest:
    model: ModelName
    keep_alive: KeepAlive | None = None
    context_size: Annotated[int, Range(1, CONTEXT_SIZE_MAX)] | None = None


@attrs.frozen(kw_only=True)
class UnquarantineRequest:
    model: ModelName


@attrs.frozen(kw_only=True)
class PlanRequest:
    """`context_size` is the least that a sequence would need, in tokens."""

    model: ModelName
    context_size: Annotated[int, Range(1, CONTEXT_SIZE_MAX)] | None = None


@attrs.frozen(kw_only=True)
class BudgetRequest:
    """Bytes of host memory; None for no bound."""

    memory_budget: Annotated[int, Range(0, MEMORY_BYTES_MAX)] | None


@attrs.frozen(kw_only=True)
class UnloadRequest:
    """Either `models` or `all: true`."""

    models: Annotated[tuple[ModelName, ...], Length(0, MODELS_MAX)] | None = None
    all: bool | None = None


def _read_set(value: Any) -> ModelSettings:
    if type(value) is not dict:
        raise Fault("must be an object")
    try:
        return read_settings(value)
    except InvalidParameter as error:
        raise Faults([(fault.path, Fault(fault.message)) for fault in error.faults]) from None


def _read_setting_name(value: Any) -> str:
    if type(value) is not str or value not in SETTING_BY_NAME:
        raise Fault("is no setting of a model")
    name: str = value
    return name


SettingName = Annotated[str, By(_read_setting_name)]


@attrs.frozen(kw_only=True)
class ConfigureRequest:
    """`set` changes what it names and nothing else; `unset` leaves settings to others who say something."""

    model: ModelName
    set: Annotated[ModelSettings, By(_read_set)] | None = None
    unset: Annotated[tuple[SettingName, ...], Length(0, len(SETTINGS))] | None = None


def parse_tag(body: bytes) -> TagRequest:
    return _parse(body, TagRequest)


def parse_untag(body: bytes) -> UntagRequest:
    return _parse(body, UntagRequest)


def parse_package(body: bytes) -> PackageRequest:
    return _parse(body, PackageRequest)


def parse_unquarantine(body: bytes) -> UnquarantineRequest:
    return _parse(body, UnquarantineRequest)


def parse_start(body: bytes) -> StartRequest:
    return _parse(body, StartRequest)


def parse_plan(body: bytes) -> PlanRequest:
    return _parse(body, PlanRequest)


def plan_query(model: str, context_size: str | None) -> PlanRequest:
    """The same from a query; raises InvalidParameter and InvalidReference."""
    name = ModelName.parse(model)
    if context_size is None:
        return PlanRequest(model=name)
    is_number = context_size.isascii() and context_size.isdecimal() and len(context_size) <= 10
    if not is_number or not 1 <= int(context_size) <= CONTEXT_SIZE_MAX:
        fault = f"must be a whole number from 1 to {CONTEXT_SIZE_MAX}"
        raise InvalidParameter(FieldFault("context_size", fault))
    return PlanRequest(model=name, context_size=int(context_size))


def parse_budget(body: bytes) -> BudgetRequest:
    return _parse(body, BudgetRequest)


def parse_unload(body: bytes) -> UnloadRequest:
    request = _parse(body, UnloadRequest)
    if bool(request.models) == bool(request.all):
        raise InvalidParameter(FieldFault("models", "name models, or send all: true, and not both"))
    return request


def parse_configure(body: bytes) -> ConfigureRequest:
    request = _parse(body, ConfigureRequest)
    named = write_settings(request.set or NOTHING)
    if not named and not request.unset:
        raise InvalidParameter(FieldFault("set", "names no setting to change, and neither does unset"))
    twice = [
        FieldFault("unset", f"names {name}, which is set") for name in request.unset or () if name in named
    ]
    if twice:
        raise InvalidParameter(*twice)
    return request


def parse_nothing(body: bytes) -> None:
    """For requests without fields: no body, or an empty object."""
    if body:
        _parse(body, _Nothing)


@attrs.frozen
class _Nothing:
    pass


def _parse(body: bytes, kind: type[T]) -> T:
    """Every fault at once; raises InvalidParameter."""
    document: Any = strict_json.decode(body)
    return _SCHEMA.structure(document, kind)
