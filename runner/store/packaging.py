"""From checked parts to the config and manifest of a model. Pure: values in, bytes out.

Owns how a package is written: Docker's model artifact v0.1 or a CNCF ModelPack, built anew or derived from a
model that is there. Imports oci, gguf and the specification. The same parts, options and time give the same
bytes, and so the same model id; no annotation holds a modification time, as other tools write it.
"""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import attrs
import orjson

from runner.errors import FieldFault, InvalidModelFile, InvalidParameter
from runner.gguf.metadata import GgufMetadata
from runner.gguf.split import PartName
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.layers import ArtifactLayers, LayerKind, kind_of_layer, kind_of_name
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.model_config import CONFIG_BYTES_MAX, ModelConfig
from runner.store import package
from runner.store.package import PackageLayer, PackageSpec, no_context_in_packs

_DOCKER_TYPES: Final[Mapping[package.LayerKind, str]] = {
    "gguf": media_types.GGUF,
    "license": media_types.LICENSE,
    "chat_template": media_types.CHAT_TEMPLATE,
    "mmproj": media_types.PROJECTOR,
}
_REPLACED: Final[Mapping[package.LayerKind, LayerKind]] = {
    "chat_template": LayerKind.CHAT_TEMPLATE,
    "mmproj": LayerKind.PROJECTOR,
}
"""What there is one of, so that an added layer takes the place of the base's."""
_PACK_TYPES: Final[Mapping[LayerKind, str]] = {
    LayerKind.GGUF: media_types.CNCF_WEIGHT,
    LayerKind.SAFETENSORS: media_types.CNCF_WEIGHT,
    LayerKind.DDUF: media_types.CNCF_WEIGHT,
    LayerKind.PROJECTOR: media_types.CNCF_WEIGHT,
    LayerKind.ADAPTER: media_types.CNCF_WEIGHT,
    LayerKind.CHAT_TEMPLATE: media_types.CNCF_WEIGHT_CONFIG,
    LayerKind.LICENSE: media_types.CNCF_DOCUMENT,
    LayerKind.DOCUMENT: media_types.CNCF_WEIGHT_CONFIG,
    LayerKind.PACKED: media_types.CNCF_WEIGHT_CONFIG,
}


@attrs.frozen(kw_only=True)
class BuiltPackage:
    """The documents of a model, ready to publish."""

    manifest: bytes
    config: bytes
    layers: tuple[Descriptor, ...]

    def model_id(self) -> Digest:
        """The id that the model has once these are published."""
        return Digest.of(self.manifest)


@attrs.frozen(kw_only=True)
class BaseModel:
    """The documents of the model that a package is derived from; `config_bytes` are those of `config`."""

    manifest: Manifest
    config: ModelConfig
    config_bytes: bytes

    @classmethod
    def read(cls, manifest: bytes, config: bytes) -> Self:
        """Raises InvalidManifest."""
        return cls(manifest=Manifest.parse(manifest), config=ModelConfig.parse(config), config_bytes=config)


def build(
    spec: PackageSpec, sizes_bytes: Sequence[int], metadata: GgufMetadata, *, created_s: int
) -> BuiltPackage:
    """Config, layers and manifest of a checked spec without a base.

    `sizes_bytes` belong to `spec.in_order()`, `metadata` is that of all parts of the weights. Raises
    InvalidModelFile when the header has so much text that whoever pulls the model would refuse its config.
    """
    layers = _added_layers(spec, sizes_bytes)
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
    )
    if spec.format == "cncf":
        config, layers = config.as_pack(), _as_pack(layers)
    return _bound(config.encode(), layers, config.media_type, _annotations({}, spec))


def derive(spec: PackageSpec, base: BaseModel, sizes_bytes: Sequence[int]) -> BuiltPackage:
    """The base with what a checked spec changes; its layers and all else that it says stay as they are.

    `sizes_bytes` belong to `spec.in_order()`. Raises InvalidParameter for what the base has no place for.
    """
    is_pack = base.manifest.config.media_type == media_types.CNCF_CONFIG
    if is_pack and spec.format == "docker":
        raise InvalidParameter(FieldFault("format", "a ModelPack cannot be turned into Docker's format"))
    if spec.context_size is not None and (is_pack or spec.format == "cncf"):
        raise InvalidParameter(no_context_in_packs())
    there = {layer.digest for layer in base.manifest.layers}
    added = tuple(layer for layer in _added_layers(spec, sizes_bytes) if layer.digest not in there)
    replaced = {
        _REPLACED[layer.kind]
        for layer in spec.layers
        if layer.kind in _REPLACED and layer.digest not in there
    }
    kept = tuple(layer for layer in base.manifest.layers if _kind(layer, base) not in replaced)
    annotations = _annotations(base.manifest.annotations, spec)
    _check_names(kept, added)
    if spec.format == "cncf" and not is_pack:
        return _converted(base, kept, added, annotations, spec)
    if is_pack:
        added = _as_pack(added)
    layers = (*kept, *added)
    media_type = base.manifest.config.media_type
    if layers == base.manifest.layers and spec.context_size is None and spec.created_s is None:
        config = base.config_bytes  # nothing of it changes, so not a byte does
    else:
        config = _rewritten(base, layers, spec, "modelfs" if is_pack else "rootfs")
    return _bound(config, layers, media_type, annotations)


def _converted(
    base: BaseModel,
    kept: tuple[Descriptor, ...],
    added: tuple[Descriptor, ...],
    annotations: dict[str, str],
    spec: PackageSpec,
) -> BuiltPackage:
    """As a ModelPack, with the same blobs."""
    kinds = {layer.digest: _kind(layer, base) for layer in kept}
    weights = ArtifactLayers.of(base.manifest, model_format=base.config.format).weights
    layers = _as_pack(added, before=kept, kinds=kinds, weights=weights)
    annotations.pop(media_types.ANNOTATION_CONTEXT_SIZE, None)
    config = attrs.evolve(
        base.config.as_pack(),
        diff_ids=tuple(layer.digest for layer in layers),
        created_s=base.config.created_s if spec.created_s is None else spec.created_s,
    )
    return _bound(config.encode(), layers, config.media_type, annotations)


# documents


def _bound(
    config: bytes, layers: tuple[Descriptor, ...], media_type: str, annotations: Mapping[str, str]
) -> BuiltPackage:
    if len(config) > CONFIG_BYTES_MAX:
        raise InvalidModelFile(f"the header's metadata exceeds the {CONFIG_BYTES_MAX} bytes of a config")
    manifest = Manifest.binding(config, layers, media_type, annotations)
    return BuiltPackage(manifest=manifest.encode(), config=config, layers=layers)


def _annotations(base: Mapping[str, str], spec: PackageSpec) -> dict[str, str]:
    ours = {}
    if spec.context_size is not None:
        ours[media_types.ANNOTATION_CONTEXT_SIZE] = str(spec.context_size)
    return {**base, **spec.labels, **ours}


def _rewritten(base: BaseModel, layers: tuple[Descriptor, ...], spec: PackageSpec, files: str) -> bytes:
    """The base's config with other layers, context or date; members that we do not know stay in it.

    Layers whose content has another digest than their blob (none that we know) keep that.
    """
    document: dict[str, Any] = orjson.loads(base.config_bytes)  # it was read as a config, so it is one
    if spec.context_size is not None:
        document["config"]["context_size"] = spec.context_size
    known = base.config.diff_ids
    are_listed = len(known) == len(base.manifest.layers)
    diff_ids = dict(zip(base.manifest.layers, known, strict=True)) if are_listed else {}
    is_pack = files == "modelfs"
    own = document.get(files) or {"type": "layers" if is_pack else "rootfs"}
    member = "diffIds" if is_pack else "diff_ids"
    document[files] = {**own, member: [str(diff_ids.get(layer, layer.digest)) for layer in layers]}
    if spec.created_s is not None:
        described = document.get("descriptor") or {}
        moment = orjson.loads(attrs.evolve(base.config, created_s=spec.created_s).encode())["descriptor"]
        described.update({name: moment[name] for name in ("created", "createdAt") if name in moment})
        document["descriptor"] = described
    return orjson.dumps(document)


# layers


def _kind(layer: Descriptor, base: BaseModel) -> LayerKind:
    return kind_of_layer(layer, model_format=base.config.format)


def _added_layers(spec: PackageSpec, sizes_bytes: Sequence[int]) -> tuple[Descriptor, ...]:
    sized = zip(spec.in_order(), sizes_bytes, strict=True)
    return tuple(_docker_layer(layer, size_bytes) for layer, size_bytes in sized)


def _docker_layer(layer: PackageLayer, size_bytes: int) -> Descriptor:
    return Descriptor(
        media_type=_DOCKER_TYPES[layer.kind],
        size_bytes=size_bytes,
        digest=layer.digest,
        annotations={
            media_types.ANNOTATION_FILE_PATH: layer.filename,
            media_types.ANNOTATION_TYPE_UNTESTED: "false",
        },
    )


def _as_pack(
    added: tuple[Descriptor, ...],
    *,
    before: tuple[Descriptor, ...] = (),
    kinds: Mapping[Digest, LayerKind] | None = None,
    weights: tuple[Descriptor, ...] = (),
) -> tuple[Descriptor, ...]:
    """Docker's layers as those of a ModelPack, whose types say less: names say the rest.

    `before` are the layers of a base, of these `kinds`; `weights` are the parts of the model, in order.
    """
    weights = weights or tuple(layer for layer in added if layer.media_type == media_types.GGUF)
    names = _names_of_parts(weights)
    told = kinds or {}
    packed: list[Descriptor] = []
    used: set[str] = set()
    for layer in (*before, *added):
        kind = told.get(layer.digest) or kind_of_layer(layer)
        path = _unused(names.get(layer.digest) or _telling_path(kind, layer.file_path()), used)
        annotations = {**layer.annotations, media_types.ANNOTATION_FILE_PATH: path}
        packed.append(attrs.evolve(layer, media_type=_PACK_TYPES[kind], annotations=annotations))
    return tuple(packed)


def _unused(path: str, used: set[str]) -> str:
    """The path, or the first of its numbered variants that no file has yet (`LICENSE`, `2-LICENSE`)."""
    directory, name = posixpath.split(path)
    variants = (posixpath.join(directory, f"{number}-{name}") for number in itertools.count(2))
    found = next(variant for variant in itertools.chain((path,), variants) if variant not in used)
    used.add(found)
    return found


_NAMES: Final[Mapping[LayerKind, tuple[str, str]]] = {
    LayerKind.GGUF: ("model.gguf", "{}.gguf"),
    LayerKind.SAFETENSORS: ("model.safetensors", "{}.safetensors"),
    LayerKind.DDUF: ("model.dduf", "{}.dduf"),
    LayerKind.PROJECTOR: ("model.mmproj", "{}.mmproj"),
    LayerKind.CHAT_TEMPLATE: ("template.jinja", "{}.jinja"),
    LayerKind.LICENSE: ("LICENSE", "LICENSE.{}"),
}
"""The name of a file that has none, and what is made of one from which its kind could not be read."""


def _telling_path(kind: LayerKind, path: str | None) -> str:
    default, pattern = _NAMES.get(kind, ("file", "{}"))
    if path is None:
        return default
    if kind not in _NAMES or kind_of_name(path) is kind:
        return path
    directory, name = posixpath.split(path)
    return posixpath.join(directory, pattern.format(name))


def _names_of_parts(weights: tuple[Descriptor, ...]) -> dict[Digest, str]:
    """Names for the parts of a split model that has no such names, or others than their order; else none."""
    count = len(weights)
    if count <= 1:
        return {}
    paths = [layer.file_path() or "" for layer in weights]
    first = PartName.parse(posixpath.basename(paths[0]))
    directory = posixpath.dirname(paths[0])
    if first is not None and paths == [posixpath.join(directory, name) for name in first.names()]:
        return {}
    names = PartName("model", 1, count).names()
    return {layer.digest: name for layer, name in zip(weights, names, strict=True)}


def _check_names(kept: tuple[Descriptor, ...], added: tuple[Descriptor, ...]) -> None:
    """Two files of one path would hide each other where the model is unpacked."""
    there = {layer.file_path() for layer in kept}
    for layer in added:
        if layer.file_path() in there:
            fault = f"the base has a file {layer.file_path()!r:.80} already; rename the new one"
            raise InvalidParameter(FieldFault("layers", fault))
