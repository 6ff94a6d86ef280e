"""The look at a model that came from elsewhere before it becomes loadable: as strict as on one packaged here.

Imports the store's handle, gguf and the rules of packages. Read on in `runner/store/loading.py`, which looks
again at every load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import BinaryIO

import trio

from actors.store_handle import StoreHandle
from runner.errors import BlobNotFound, StoreError
from runner.gguf.metadata import read_metadata
from runner.gguf.split import read_parts
from runner.oci.digest import Digest
from runner.oci.layers import ArtifactLayers, LayerKind
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.model_config import ModelConfig
from runner.store.blobs import StoredBlob
from runner.store.disk import Disk
from runner.store.package import TEXT_LAYER_BYTES_MAX, check_projector, check_text_layer, check_weights


async def check_model(manifest: Manifest, config: bytes, store: StoreHandle) -> None:
    """Read the headers of its parts, which lie in the store. Weights in formats that the engine does not read
    are kept as they are.

    Raises InvalidManifest for a config outside the format, InvalidModelFile for a part that must not reach
    the engine, StoreError.
    """
    layers = ArtifactLayers.of(manifest, model_format=ModelConfig.parse(config).format)
    if layers.format != LayerKind.GGUF.value:
        return
    found = await store.hold_blobs(tuple(layer.digest for layer in _looked_at(layers)))
    blobs = {blob.digest: blob for blob in found}
    await trio.to_thread.run_sync(partial(_check, layers, blobs))


def _looked_at(layers: ArtifactLayers) -> Iterator[Descriptor]:
    yield from layers.weights
    for layer in (layers.projector, layers.chat_template):
        if layer is not None:
            yield layer


def _check(layers: ArtifactLayers, blobs: Mapping[Digest, StoredBlob]) -> None:
    """In a thread: a header of many tokens takes some hundred milliseconds."""
    try:
        check_weights(read_parts(_opened(layers.weights, blobs), len(layers.weights)))
        if layers.projector is not None:
            with _open(blobs[layers.projector.digest]) as file:
                check_projector(read_metadata(file))
        if layers.chat_template is not None:
            with _open(blobs[layers.chat_template.digest]) as file:
                check_text_layer("chat_template", file.read(TEXT_LAYER_BYTES_MAX + 1))
    except OSError as error:
        raise StoreError(f"reading a part of the model failed: {error.strerror}") from error


def _opened(
    weights: tuple[Descriptor, ...], blobs: Mapping[Digest, StoredBlob]
) -> Iterator[tuple[BinaryIO, int]]:
    for layer in weights:
        with _open(blobs[layer.digest]) as file:
            yield file, layer.size_bytes


def _open(blob: StoredBlob) -> BinaryIO:
    file = Disk().open(blob.path)
    if file is None:
        raise BlobNotFound(str(blob.digest))
    return file
