"""What the control API is sent, checked. It is ours: a key that no field has is a fault, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

import attrs

from runner.api import strict_json
from runner.api.keep_alive import KeepAlive
from runner.api.structure import Length, Schema, Text
from runner.domain.sampling import Range
from runner.errors import FieldFault, InvalidParameter
from runner.oci.digest import Digest
from runner.oci.reference import ModelName, Reference

LAYERS_MAX: Final = 64
MODELS_MAX: Final = 256
CONTEXT_SIZE_MAX: Final = 2**31 - 1

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

    kind: Literal["gguf", "license", "chat_template"]
    digest: Digest
    filename: Annotated[str, Text(1, 255)]


@attrs.frozen(kw_only=True)
class PackageRequest:
    target: Reference
    layers: Annotated[tuple[LayerFields, ...], Length(1, LAYERS_MAX)]
    context_size: Annotated[int, Range(1, CONTEXT_SIZE_MAX)] | None = None


@attrs.frozen(kw_only=True)
class StartRequest:
    model: ModelName
    keep_alive: KeepAlive | None = None


@attrs.frozen(kw_only=True)
class UnloadRequest:
    """Either `models` or `all: true`."""

    models: Annotated[tuple[ModelName, ...], Length(0, MODELS_MAX)] | None = None
    all: bool | None = None


def parse_tag(body: bytes) -> TagRequest:
    return _parse(body, TagRequest)


def parse_untag(body: bytes) -> UntagRequest:
    return _parse(body, UntagRequest)


def parse_package(body: bytes) -> PackageRequest:
    return _parse(body, PackageRequest)


def parse_start(body: bytes) -> StartRequest:
    return _parse(body, StartRequest)


def parse_unload(body: bytes) -> UnloadRequest:
    request = _parse(body, UnloadRequest)
    if bool(request.models) == bool(request.all):
        raise InvalidParameter(FieldFault("models", "name models, or send all: true, and not both"))
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
