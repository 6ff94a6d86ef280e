"""The documents of a model and all content that models refer to, also of models that cannot be used.

For whoever moves or checks models rather than loads them. Imports the catalog and blobs; reading belongs in a
thread.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from runner.errors import InvalidManifest, StoreDamaged
from runner.oci.digest import Digest
from runner.oci.manifest import MANIFEST_BYTES_MAX, Descriptor, Manifest
from runner.oci.model_config import CONFIG_BYTES_MAX
from runner.oci.reference import Reference
from runner.store.blobs import BlobStore
from runner.store.catalog import Catalog


@attrs.frozen(kw_only=True)
class ModelDocuments:
    """`manifest_bytes` and `config_bytes` are verbatim, verified; `config_bytes` None: missing or damaged.
    `origin` is the digest reference that a model without tags was pulled by."""

    descriptor: Descriptor
    tags: tuple[Reference, ...]
    origin: Reference | None
    manifest: Manifest
    manifest_bytes: bytes
    config_bytes: bytes | None

    @property
    def places(self) -> tuple[Reference, ...]:
        """Where the model may be had: what its names tell, else where it came from."""
        return self.tags or (() if self.origin is None else (self.origin,))

    @property
    def model_id(self) -> Digest:
        return self.descriptor.digest


@attrs.frozen(kw_only=True)
class UsedContent:
    """Content that a manifest refers to, or the manifest itself, and the names of all models with it."""

    descriptor: Descriptor
    models: tuple[str, ...]


def read_documents(catalog: Catalog, model_id: Digest, blobs: BlobStore) -> ModelDocuments:
    """Raises StoreDamaged when the manifest cannot be read."""
    content = blobs.read(model_id, limit_bytes=MANIFEST_BYTES_MAX)
    try:
        manifest = Manifest.parse(content)
    except InvalidManifest as error:
        raise StoreDamaged(f"{model_id} in the store is no manifest: {error}") from error
    try:
        config = blobs.read(manifest.config.digest, limit_bytes=CONFIG_BYTES_MAX)
    except StoreDamaged:
        config = None
    return ModelDocuments(
        descriptor=catalog.index.manifests()[model_id],
        tags=catalog.index.names_of(model_id),
        origin=catalog.index.origin_of(model_id),
        manifest=manifest,
        manifest_bytes=content,
        config_bytes=config,
    )


def used_content(catalog: Catalog, model_ids: Iterable[Digest]) -> tuple[UsedContent, ...]:
    """Each content of these models once, manifests first. Pure."""
    descriptors: dict[Digest, Descriptor] = {}
    wanted = tuple(model_ids)
    for model_id in wanted:
        descriptors[model_id] = catalog.index.manifests()[model_id]
    users: dict[Digest, list[str]] = {}
    for model_id in catalog.index.manifests():
        manifest = catalog.manifest_of(model_id)
        parts = () if manifest is None else manifest.descriptors()
        for digest in {model_id, *(part.digest for part in parts)}:
            users.setdefault(digest, []).append(_name(catalog, model_id))
        if model_id in wanted:
            for part in parts:
                descriptors.setdefault(part.digest, part)
    return tuple(
        UsedContent(descriptor=descriptor, models=tuple(users[digest]))
        for digest, descriptor in descriptors.items()
    )


def _name(catalog: Catalog, model_id: Digest) -> str:
    names = catalog.index.names_of(model_id)
    return names[0].familiar() if names else model_id.short()
