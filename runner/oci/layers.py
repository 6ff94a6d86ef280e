"""What the layers of a model artifact are for, whichever of the formats it is in. Pure.

Owns the kinds of layers and which of them make the model. Imports descriptors, media types and file names. A
media type decides where it says enough; `…weight.v1.raw` and files of a directory are told apart by their
names. What no rule knows is a document, which nobody loads.
"""

from __future__ import annotations

import enum
import posixpath
import re
from typing import Final

import attrs

from runner.oci import media_types
from runner.oci.manifest import Descriptor, Manifest


class LayerKind(enum.Enum):
    GGUF = "gguf"
    SAFETENSORS = "safetensors"
    DDUF = "dduf"
    PROJECTOR = "mmproj"
    ADAPTER = "adapter"
    CHAT_TEMPLATE = "chat_template"
    LICENSE = "license"
    DOCUMENT = "document"
    """Anything that is neither loaded nor shown: configuration, vocabularies, texts."""
    PACKED = "packed"
    """An archive of files, which is kept and never unpacked."""


WEIGHTS: Final = (LayerKind.GGUF, LayerKind.SAFETENSORS, LayerKind.DDUF)

_BY_TYPE: Final = {
    media_types.GGUF_ADAPTER: LayerKind.ADAPTER,
    media_types.GGUF_PROJECTOR: LayerKind.PROJECTOR,
    media_types.PROJECTOR: LayerKind.PROJECTOR,
    media_types.SAFETENSORS: LayerKind.SAFETENSORS,
    media_types.DDUF: LayerKind.DDUF,
    media_types.CHAT_TEMPLATE: LayerKind.CHAT_TEMPLATE,
    media_types.LICENSE: LayerKind.LICENSE,
    media_types.VLLM_CONFIG_TAR: LayerKind.PACKED,
    media_types.DIRECTORY_TAR: LayerKind.PACKED,
    media_types.CNCF_WEIGHT_SAFETENSORS: LayerKind.SAFETENSORS,
}
_GGUF_TYPES: Final = frozenset({media_types.GGUF, media_types.CNCF_WEIGHT_GGUF})
_LICENSE_WORDS: Final = ("license", "licence", "copying", "notice")
_PART: Final = re.compile(r"(?P<prefix>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.IGNORECASE)


def kind_of_name(name: str) -> LayerKind:
    """What a file of this name is; only the part behind the last slash counts."""
    name = posixpath.basename(name).lower()
    if name.endswith(".gguf"):
        return LayerKind.PROJECTOR if "mmproj" in name else LayerKind.GGUF
    if name.endswith(".mmproj"):
        return LayerKind.PROJECTOR
    if name.endswith(".safetensors"):
        return LayerKind.SAFETENSORS
    if name.endswith(".dduf"):
        return LayerKind.DDUF
    if name.endswith(".jinja") or ("chat_template" in name and not name.endswith(".json")):
        return LayerKind.CHAT_TEMPLATE
    if any(word in name for word in _LICENSE_WORDS):
        return LayerKind.LICENSE
    return LayerKind.DOCUMENT


def kind_of_layer(layer: Descriptor, *, model_format: str = "") -> LayerKind:
    """What a layer is. `model_format` is the config's word for weights without a name (`gguf`).

    Raises InvalidManifest for a file name that must not be one (S13).
    """
    path = layer.file_path()
    by_name = kind_of_name(path) if path is not None else None
    media_type = layer.media_type
    if media_type in _BY_TYPE:
        return _BY_TYPE[media_type]
    if media_type in _GGUF_TYPES:  # projectors of a directory have no type of their own
        return LayerKind.PROJECTOR if by_name is LayerKind.PROJECTOR else LayerKind.GGUF
    if media_type.startswith(media_types.CNCF_LAYERS):
        return _kind_of_cncf(media_type, by_name, model_format)
    return by_name or LayerKind.DOCUMENT


def _kind_of_cncf(media_type: str, by_name: LayerKind | None, model_format: str) -> LayerKind:
    """ModelPack's types tell weights from the rest; a file of another kind by name is not one of those."""
    if media_type.endswith(media_types.CNCF_PACKED_SUFFIXES):
        return LayerKind.PACKED
    if media_type == media_types.CNCF_WEIGHT:
        if by_name is None:
            formats = {kind.value: kind for kind in WEIGHTS}
            return formats.get(model_format.lower(), LayerKind.DOCUMENT)
        return by_name
    is_weights = by_name in WEIGHTS or by_name is LayerKind.PROJECTOR
    return LayerKind.DOCUMENT if by_name is None or is_weights else by_name


@attrs.frozen(kw_only=True)
class ArtifactLayers:
    """The layers of one artifact by what they are for. `weights` are those of `format` that make the model,
    in the order of its parts; the format is empty when there are none."""

    format: str
    weights: tuple[Descriptor, ...]
    projector: Descriptor | None
    chat_template: Descriptor | None
    licenses: tuple[Descriptor, ...]
    has_packed: bool

    @classmethod
    def of(cls, manifest: Manifest, *, model_format: str = "") -> ArtifactLayers:
        """Sort the layers. `model_format` is the config's word. Raises InvalidManifest like
        `kind_of_layer`."""
        by_kind: dict[LayerKind, list[Descriptor]] = {kind: [] for kind in LayerKind}
        for layer in manifest.layers:
            by_kind[kind_of_layer(layer, model_format=model_format)].append(layer)
        found = next((kind for kind in WEIGHTS if by_kind[kind]), None)
        weights = tuple(by_kind[found]) if found is not None else ()
        is_directory = manifest.config.media_type != media_types.DOCKER_CONFIG_V01
        return cls(
            format=found.value if found is not None else "",
            weights=_first_model(weights) if found is LayerKind.GGUF and is_directory else weights,
            projector=min(by_kind[LayerKind.PROJECTOR], key=_preference_of_projector, default=None),
            chat_template=min(by_kind[LayerKind.CHAT_TEMPLATE], key=_depth_and_path, default=None),
            licenses=tuple(by_kind[LayerKind.LICENSE]),
            has_packed=bool(by_kind[LayerKind.PACKED]),
        )


def _first_model(weights: tuple[Descriptor, ...]) -> tuple[Descriptor, ...]:
    """Of the GGUF files of a directory those of one model, in the order of its parts. (v0.1 has no
    directories: there all weights are parts of one model, in the order of the manifest.)

    1. None has a name: all.
    2. The file that is least deep, then first by name; with it the other parts of the same model.
    """
    if all(layer.file_path() is None for layer in weights):  # 1
        return weights
    first = min(weights, key=_depth_and_path)  # 2
    group = _group(first)
    if group is None:
        return (first,)
    return tuple(sorted((layer for layer in weights if _group(layer) == group), key=_depth_and_path))


def _group(layer: Descriptor) -> tuple[str, str] | None:
    """Which split model a part belongs to: directory with prefix, and number of parts."""
    found = _PART.fullmatch(layer.file_path() or "")
    return (found["prefix"], found["count"]) if found else None


def _depth_and_path(layer: Descriptor) -> tuple[int, str]:
    path = layer.file_path() or ""
    return path.count("/"), path


def _preference_of_projector(layer: Descriptor) -> tuple[int, int, str]:
    """F16 before BF16 before F32 before the rest, by whole words of the name."""
    depth, path = _depth_and_path(layer)
    words = re.split(r"[-_.]", posixpath.basename(path).lower())
    rank = next((rank for rank, word in enumerate(("f16", "bf16", "f32")) if word in words), 3)
    return rank, depth, path
