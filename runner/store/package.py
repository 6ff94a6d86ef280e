"""From parts that lie in the store to the config and manifest of a model. Pure: values in, bytes out.

Owns what a package may consist of and how it is written: Docker's model artifact v0.1. Imports oci and gguf.
The same parts, context size and time give the same bytes, and so the same model id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import attrs

from runner.errors import FieldFault, InvalidModelFile, InvalidParameter
from runner.gguf.metadata import GgufMetadata
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.filename import file_name_fault
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.model_config import CONFIG_BYTES_MAX, ModelConfig
from runner.oci.reference import Reference

LayerKind = Literal["gguf", "license", "chat_template"]

LICENSES_MAX = 16
TEXT_LAYER_BYTES_MAX = 1 << 20  # a licence or template; the longest licence in use has 35 KB
CONTEXT_SIZE_MAX = 2**31 - 1  # an int32 in the config

_MEDIA_TYPES: dict[LayerKind, str] = {
    "gguf": media_types.GGUF,
    "license": media_types.LICENSE,
    "chat_template": media_types.CHAT_TEMPLATE,
}
_KINDS_IN_ORDER: tuple[LayerKind, ...] = ("gguf", "license", "chat_template")


@attrs.frozen(kw_only=True)
class PackageLayer:
    """One uploaded part and the name of the file it came from."""

    kind: LayerKind
    digest: Digest
    filename: str


@attrs.frozen(kw_only=True)
class PackageSpec:
    """What to package under which name. `context_size` in tokens; `created_s` None means now.

    `target` needs a tag and no digest, since the digest is what packaging yields.
    """

    target: Reference
    layers: tuple[PackageLayer, ...]
    context_size: int | None = None
    created_s: int | None = None

    def check(self) -> None:
        """Raise InvalidParameter with every fault; paths are those of the control API."""
        faults = [*self._target_faults(), *self._layer_faults()]
        if self.context_size is not None and not 1 <= self.context_size <= CONTEXT_SIZE_MAX:
            faults.append(FieldFault("context_size", f"must be from 1 to {CONTEXT_SIZE_MAX}"))
        if faults:
            raise InvalidParameter(*faults)

    def in_order(self) -> tuple[PackageLayer, ...]:
        """The layers as a manifest lists them: weights, licences, template."""
        return tuple(layer for kind in _KINDS_IN_ORDER for layer in self.layers if layer.kind == kind)

    def _target_faults(self) -> list[FieldFault]:
        if self.target.tag is None or self.target.digest is not None:
            return [FieldFault("target", "must be a name with a tag and without a digest")]
        return []

    def _layer_faults(self) -> list[FieldFault]:
        faults = []
        counts = dict.fromkeys(_KINDS_IN_ORDER, 0)
        for layer_index, layer in enumerate(self.layers):
            path = f"layers[{layer_index}]"
            if layer.kind not in counts:
                faults.append(FieldFault(f"{path}.kind", f"must be one of {', '.join(_KINDS_IN_ORDER)}"))
                continue
            counts[layer.kind] += 1
            name_fault = file_name_fault(layer.filename)
            if name_fault is not None:
                faults.append(FieldFault(f"{path}.filename", name_fault))
        if counts["gguf"] != 1:
            faults.append(FieldFault("layers", f"need exactly one gguf layer, not {counts['gguf']}"))
        if counts["chat_template"] > 1:
            faults.append(FieldFault("layers", "may hold one chat_template layer"))
        if counts["license"] > LICENSES_MAX:
            faults.append(FieldFault("layers", f"may hold {LICENSES_MAX} license layers"))
        return faults


@attrs.frozen(kw_only=True)
class BuiltPackage:
    """The documents of a model, ready to publish."""

    config: bytes
    layers: tuple[Descriptor, ...]

    def model_id(self) -> Digest:
        """The id that the model has once these are published."""
        manifest = Manifest.binding(self.config, self.layers, media_types.DOCKER_CONFIG_V01)
        return Digest.of(manifest.encode())


def check_weights(metadata: GgufMetadata) -> None:
    """Raise InvalidModelFile unless the file alone is a language model."""
    if not metadata.is_language_model:
        raise InvalidModelFile(f"the file holds no language model ({metadata.architecture}, {metadata.kind})")
    if metadata.text_map.get("split.count", "1") not in ("0", "1"):
        raise InvalidModelFile("the file is one part of several; only models in one file can be packaged")


def check_text_layer(kind: LayerKind, content: bytes) -> str:
    """The text of a licence or template; raises InvalidModelFile unless it is UTF-8 within the limit."""
    if len(content) > TEXT_LAYER_BYTES_MAX:
        raise InvalidModelFile(f"a {kind} layer is larger than {TEXT_LAYER_BYTES_MAX} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise InvalidModelFile(f"a {kind} layer is not UTF-8 text") from None


def build(
    spec: PackageSpec, sizes_bytes: Sequence[int], metadata: GgufMetadata, *, created_s: int
) -> BuiltPackage:
    """Config and layers of a checked spec.

    `sizes_bytes` belong to `spec.in_order()`. Raises InvalidModelFile when the header has so much text that
    whoever pulls the model would refuse its config.
    """
    layers = tuple(
        _descriptor(layer, size_bytes) for layer, size_bytes in zip(spec.in_order(), sizes_bytes, strict=True)
    )
    config = ModelConfig(
        format="gguf",
        quantization=metadata.quantization,
        parameters=metadata.parameters,
        architecture=metadata.architecture,
        size=metadata.size,
        metadata=metadata.as_text_map(),
        context_size=spec.context_size,
        created_s=created_s,
        diff_ids=tuple(layer.digest for layer in layers),
    ).encode()
    if len(config) > CONFIG_BYTES_MAX:
        raise InvalidModelFile(f"the header's metadata exceeds the {CONFIG_BYTES_MAX} bytes of a config")
    return BuiltPackage(config=config, layers=layers)


def _descriptor(layer: PackageLayer, size_bytes: int) -> Descriptor:
    # No file metadata annotation: the modification time in it would give every packaging another id.
    return Descriptor(
        media_type=_MEDIA_TYPES[layer.kind],
        size_bytes=size_bytes,
        digest=layer.digest,
        annotations={
            media_types.ANNOTATION_FILE_PATH: layer.filename,
            media_types.ANNOTATION_TYPE_UNTESTED: "false",
        },
    )
