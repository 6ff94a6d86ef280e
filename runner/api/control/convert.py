"""Between the control API's shapes and ours; pure.

Answers carry the attributes of `runner.domain.status` under their own names; only models, whose names and
digests are values, are written out here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import attrs
import orjson

from runner.api.control.schema import PackageRequest
from runner.domain.model import Model
from runner.domain.quarantine import FailedLoads
from runner.domain.settings import SETTINGS, SettingOrigin, SettingsLayer, resolve, write_settings
from runner.domain.status import ModelConfiguration, ModelReport, ModelSummary, SettingStatus
from runner.oci.digest import Digest
from runner.oci.reference import Reference
from runner.store.package import PackageLayer, PackageSpec


def package_spec(request: PackageRequest) -> PackageSpec:
    """Not judged yet: what a package may consist of is `PackageSpec.check`'s to say."""
    layers = tuple(
        PackageLayer(kind=layer.kind, digest=layer.digest, filename=layer.filename)
        for layer in request.layers
    )
    return PackageSpec(
        target=request.target,
        layers=layers,
        base=request.base,
        context_size=request.context_size,
        labels=request.labels or {},
        format=request.format,
    )


def model_summary(model: Model, quarantined: Iterable[FailedLoads] = ()) -> ModelSummary:
    """`quarantined` are the models that are not loaded any more."""
    return ModelSummary(
        id=str(model.id),
        name=model.name,
        tags=tuple(str(tag) for tag in model.tags),
        created_s=model.created_s,
        size_bytes=model.size_bytes,
        format=model.format,
        architecture=model.architecture,
        quantization=model.quantization,
        parameters=model.parameters,
        context_size=model.context_size,
        trained_context_size=model.trained_context_size,
        quarantine=_quarantine(str(model.id), quarantined),
    )


def with_quarantine(report: ModelReport, quarantined: Iterable[FailedLoads]) -> ModelReport:
    """The store knows everything of a model but this."""
    told = _quarantine(report.model.id, quarantined)
    return attrs.evolve(report, model=attrs.evolve(report.model, quarantine=told))


def _quarantine(model_id: str, quarantined: Iterable[FailedLoads]) -> str | None:
    for one in quarantined:
        if one.model_id == model_id:
            return f"{one.crashes} loads crashed the engine, the last by {one.cause}"
    return None


def model_configuration(model: Model, layers: tuple[SettingsLayer, ...]) -> ModelConfiguration:
    """Every setting of a model; `layers` say what holds for all models."""
    resolved = resolve(*model.layers(), *layers).within(model.trained_context_size)
    values = write_settings(resolved.values)
    unsaid = {
        "chat_template": SettingOrigin.PACKAGED if model.has_chat_template else SettingOrigin.MODEL,
    }
    return ModelConfiguration(
        model=model.name,
        model_id=str(model.id),
        settings=tuple(
            SettingStatus(
                name=one.name,
                value=values.get(one.name),
                origin=resolved.origins.get(one.name, unsaid.get(one.name, SettingOrigin.BUILT_IN)).value,
            )
            for one in SETTINGS
        ),
    )


def encode(answer: Any) -> bytes:
    """A status value, or a tuple of them, as JSON. An infinite duration is null, which reads "never"."""
    return orjson.dumps(plain(answer))


def plain(value: Any) -> Any:
    """What JSON has: digests and references are texts."""
    if isinstance(value, Digest | Reference):
        return str(value)
    if attrs.has(type(value)):
        return {field.name: plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
