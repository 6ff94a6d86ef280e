"""Descriptors, manifests and indexes: what an OCI artifact is made of, as values.

Owns their formats and limits (S03). Imports errors, digests and media types. The bytes of a manifest
are its identity: what came from elsewhere is kept verbatim, and only what we build is written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import attrs

from runner.errors import InvalidManifest
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.documents import make_converter, read_document, write_document
from runner.oci.filename import relative_path_fault

MANIFEST_BYTES_MAX = 4 << 20  # S03
INDEX_BYTES_MAX = 64 << 20  # about 200,000 names
LAYERS_MAX = 1024  # S03
SIZE_MAX = 1 << 50  # 1 PiB; above it a sum of layers could leave 63 bits
_SCHEMA_VERSION = 2


def _check_size(_instance: object, _attribute: object, value: int) -> None:
    if not 0 <= value <= SIZE_MAX:
        raise InvalidManifest(f"a size of {value} bytes is out of range")


def _sorted(annotations: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(annotations.items()))


@attrs.frozen(kw_only=True)
class Descriptor:
    """What content is, by digest; `size_bytes` is its exact length."""

    media_type: str
    size_bytes: int = attrs.field(validator=_check_size)
    digest: Digest
    annotations: Mapping[str, str] = attrs.field(factory=dict, converter=_sorted, hash=False)

    @classmethod
    def of(cls, content: bytes, media_type: str) -> Self:
        """The descriptor of these bytes."""
        return cls(media_type=media_type, size_bytes=len(content), digest=Digest.of(content))

    def file_path(self) -> str | None:
        """The name the content had as a file; None when there is none. Raises InvalidManifest (S13)."""
        path = self.annotations.get(media_types.ANNOTATION_FILE_PATH)
        fault = relative_path_fault(path) if path is not None else None
        if fault is not None:
            raise InvalidManifest(f"a layer names the file {path!r:.80}: {fault}")
        return path


@attrs.frozen(kw_only=True)
class Manifest:
    """One artifact: its config and its layers, in order."""

    schema_version: int = _SCHEMA_VERSION
    media_type: str = media_types.IMAGE_MANIFEST
    artifact_type: str | None = None
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = attrs.field(factory=dict, converter=_sorted, hash=False)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The manifest in these bytes; raises InvalidManifest."""
        manifest = read_document(content, cls, _CONVERTER, limit_bytes=MANIFEST_BYTES_MAX)
        if manifest.schema_version != _SCHEMA_VERSION or manifest.media_type != media_types.IMAGE_MANIFEST:
            raise InvalidManifest("the document is no OCI image manifest")
        if len(manifest.layers) > LAYERS_MAX:
            raise InvalidManifest(f"{len(manifest.layers)} layers are more than the limit of {LAYERS_MAX}")
        for layer in manifest.layers:
            layer.file_path()
        return manifest

    @classmethod
    def binding(cls, config: bytes, layers: tuple[Descriptor, ...], config_media_type: str) -> Self:
        """The manifest that binds these layers to a config."""
        return cls(config=Descriptor.of(config, config_media_type), layers=layers)

    def encode(self) -> bytes:
        """The bytes of a manifest built here; their digest is the id of the model."""
        return write_document(self, _CONVERTER)

    def descriptors(self) -> tuple[Descriptor, ...]:
        """Everything the manifest refers to, in the order of publishing: layers, then config."""
        return (*self.layers, self.config)


@attrs.frozen(kw_only=True)
class ImageIndex:
    """`index.json` of an image layout."""

    schema_version: int = _SCHEMA_VERSION
    media_type: str | None = media_types.IMAGE_INDEX
    manifests: tuple[Descriptor, ...]

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The index in these bytes; raises InvalidManifest."""
        index = read_document(content, cls, _CONVERTER, limit_bytes=INDEX_BYTES_MAX)
        if index.schema_version != _SCHEMA_VERSION:
            raise InvalidManifest("the document is no OCI image index")
        return index

    def encode(self) -> bytes:
        return write_document(self, _CONVERTER)


_CONVERTER = make_converter(
    (Descriptor, {"media_type": "mediaType", "size_bytes": "size"}),
    (
        Manifest,
        {"schema_version": "schemaVersion", "media_type": "mediaType", "artifact_type": "artifactType"},
    ),
    (ImageIndex, {"schema_version": "schemaVersion", "media_type": "mediaType"}),
)
