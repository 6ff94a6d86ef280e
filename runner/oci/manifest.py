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
_INDEX_TYPES = frozenset(
    {media_types.IMAGE_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"}
)
_DOCKER_STATEMENT = "vnd.docker.reference.type"
"""Annotation of what BuildKit adds about the other manifests: provenance, lists of packages."""


def _check_size(_instance: object, _attribute: object, value: int) -> None:
    if not 0 <= value <= SIZE_MAX:
        raise InvalidManifest(f"a size of {value} bytes is out of range")


def _sorted(annotations: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(annotations.items()))


@attrs.frozen(kw_only=True)
class Platform:
    """What a manifest of an index is for, in the words of the Go toolchain (`linux`, `amd64`)."""

    os: str = ""
    architecture: str = ""
    variant: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@attrs.frozen(kw_only=True)
class Descriptor:
    """What content is, by digest; `size_bytes` is its exact length. `platform` is that of a manifest in an
    index."""

    media_type: str
    size_bytes: int = attrs.field(validator=_check_size)
    digest: Digest
    annotations: Mapping[str, str] = attrs.field(factory=dict, converter=_sorted, hash=False)
    artifact_type: str | None = None
    platform: Platform | None = None

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
    def binding(
        cls,
        config: bytes,
        layers: tuple[Descriptor, ...],
        config_media_type: str,
        annotations: Mapping[str, str] | None = None,
    ) -> Self:
        """The manifest that binds these layers to a config. That of a ModelPack says that it is one."""
        is_pack = config_media_type == media_types.CNCF_CONFIG
        return cls(
            artifact_type=media_types.CNCF_ARTIFACT if is_pack else None,
            config=Descriptor.of(config, config_media_type),
            layers=layers,
            annotations=annotations or {},
        )

    def encode(self) -> bytes:
        """The bytes of a manifest built here; their digest is the id of the model."""
        return write_document(self, _CONVERTER)

    def descriptors(self) -> tuple[Descriptor, ...]:
        """Everything the manifest refers to, in the order of publishing: layers, then config."""
        return (*self.layers, self.config)


@attrs.frozen(kw_only=True)
class ImageIndex:
    """`index.json` of an image layout, or what a registry has under one name for several platforms."""

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

    def manifest_for(self, platform: Platform) -> Descriptor:
        """The manifest that is meant on this platform.

        1. Nested indexes are refused, wherever they would lead; statements about manifests are passed over.
        2. The manifest for the platform, whatever its variant.
        3. The only manifest there is: models run anywhere, and many are published for one platform.

        Raises InvalidManifest when none is meant, naming the platforms that there are.
        """
        manifests = [found for found in self.manifests if _DOCKER_STATEMENT not in found.annotations]
        if any(found.media_type in _INDEX_TYPES for found in manifests):  # 1
            raise InvalidManifest("the index holds another index, which is not followed")
        manifests = [found for found in manifests if found.media_type == media_types.IMAGE_MANIFEST]
        wanted = (platform.os, platform.architecture)
        for found in manifests:  # 2
            if found.platform is not None and (found.platform.os, found.platform.architecture) == wanted:
                return found
        if len(manifests) == 1:  # 3
            return manifests[0]
        there = ", ".join(sorted({str(found.platform or "any") for found in manifests})) or "none"
        raise InvalidManifest(f"the index has no manifest for {platform}; it has {there}"[:300])

    def encode(self) -> bytes:
        return write_document(self, _CONVERTER)


_CONVERTER = make_converter(
    (Platform, {}),
    (
        Descriptor,
        {"media_type": "mediaType", "size_bytes": "size", "artifact_type": "artifactType"},
    ),
    (
        Manifest,
        {"schema_version": "schemaVersion", "media_type": "mediaType", "artifact_type": "artifactType"},
    ),
    (ImageIndex, {"schema_version": "schemaVersion", "media_type": "mediaType"}),
)
