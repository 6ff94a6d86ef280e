"""The two directions of a probe as arrays of plain fields: one question, one answer.

A probe has tables of its own, so that it cannot say what only a worker may say, nor the other way round.
Imports the messages, the checks and `schema.py`. Used by `runner.wire.codec` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from runner.domain.engine import EngineSizes
from runner.wire.checks import NAME_LIMIT, Fields, as_array, as_paths, as_text, paths_fields
from runner.wire.messages import FromProbe, LoadFailed, Probed, ProbeModel, ToProbe
from runner.wire.schema import LOAD_FAILED, encode_load_failed, read_load_failed
from runner.wire.sizes import as_size, buffers_fields, options_fields, read_buffers, read_options

_PROBE_MODEL, _PROBED = 32, 48  # none of the worker's


def to_fields(message: ToProbe | FromProbe) -> list[Any]:
    """What msgpack encodes. `LoadFailed` is the worker's, said of a load that was only simulated."""
    return _ENCODERS[type(message)](message)


def _encode_probe_model(message: ProbeModel) -> list[Any]:
    return [_PROBE_MODEL, paths_fields(message.weights_paths), options_fields(message.options)]


def _encode_probed(message: Probed) -> list[Any]:
    sizes = message.sizes
    devices = [buffers_fields(buffers) for buffers in sizes.devices]
    annex = [buffers_fields(buffers) for buffers in sizes.annex]
    return [_PROBED, message.engine_version, devices, sizes.process_bytes, annex]


def _read_probe_model(fields: Fields) -> ProbeModel:
    _, paths, options = fields
    return ProbeModel(weights_paths=as_paths(paths), options=read_options(as_array(options)))


def _read_probed(fields: Fields) -> Probed:
    _, engine_version, devices, process_bytes, annex = fields
    return Probed(
        engine_version=as_text(engine_version, NAME_LIMIT),
        sizes=EngineSizes(
            devices=read_buffers(as_array(devices)),
            process_bytes=as_size(process_bytes),
            annex=read_buffers(as_array(annex)),
        ),
    )


_ENCODERS: Final[Mapping[type, Callable[[Any], list[Any]]]] = {
    ProbeModel: _encode_probe_model,
    Probed: _encode_probed,
    LoadFailed: encode_load_failed,
}
TO_PROBE: Final[Mapping[int, tuple[str, Callable[[Fields], ToProbe]]]] = {
    _PROBE_MODEL: ("ProbeModel", _read_probe_model),
}
FROM_PROBE: Final[Mapping[int, tuple[str, Callable[[Fields], FromProbe]]]] = {
    _PROBED: ("Probed", _read_probed),
    LOAD_FAILED: ("LoadFailed", read_load_failed),
}
