"""What people are shown of a model. Reads small blobs, so it belongs in a thread.

Owns the texts of `inspect`. Imports domain, oci and the store's blobs.
"""

from __future__ import annotations

from collections.abc import Iterator

from runner.domain.model import Model
from runner.domain.status import LayerSummary, ModelReport, ModelSummary
from runner.errors import InvalidManifest, StoreDamaged
from runner.oci.manifest import Descriptor
from runner.oci.model_config import CONFIG_BYTES_MAX, ModelConfig
from runner.store.blobs import BlobStore
from runner.store.catalog import StoredModel
from runner.store.package import TEXT_LAYER_BYTES_MAX

LICENSES_BYTES_MAX = 4 * TEXT_LAYER_BYTES_MAX


def summary_of(model: Model) -> ModelSummary:
    """The row of a list."""
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
    )


def report_of(stored: StoredModel, blobs: BlobStore) -> ModelReport:
    """Everything about one model; `licenses` are their texts. Raises StoreDamaged."""
    manifest = stored.manifest
    try:
        config = ModelConfig.parse(blobs.read(manifest.config.digest, limit_bytes=CONFIG_BYTES_MAX))
    except InvalidManifest as error:
        raise StoreDamaged(str(error)) from error
    return ModelReport(
        model=summary_of(stored.model),
        manifest_digest=str(stored.model.id),
        config_digest=str(manifest.config.digest),
        layers=tuple(layer_summary(layer) for layer in manifest.layers),
        licenses=tuple(_licenses(stored, blobs)),
        metadata=dict(config.metadata),
        described_size=config.size,
        described_context_size=config.context_size,
        labels=dict(manifest.annotations),
    )


def layer_summary(layer: Descriptor) -> LayerSummary:
    """A row of the list of layers."""
    return LayerSummary(
        media_type=layer.media_type,
        digest=str(layer.digest),
        size_bytes=layer.size_bytes,
        filename=layer.file_path(),
    )


def _licenses(stored: StoredModel, blobs: BlobStore) -> Iterator[str]:
    """The texts, of which nobody promised an encoding. A model from elsewhere may have any number of any
    length; what would be too much is only mentioned."""
    left_bytes = LICENSES_BYTES_MAX
    for layer in stored.layers().licenses:
        if layer.size_bytes > min(left_bytes, TEXT_LAYER_BYTES_MAX):
            yield f"({layer.size_bytes} bytes, not shown)"
            continue
        left_bytes -= layer.size_bytes
        yield blobs.read(layer.digest, limit_bytes=layer.size_bytes).decode(errors="replace")
