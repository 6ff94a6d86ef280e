"""Local files that were uploaded as content become a model: checked, described, published.

Reads headers in threads. Imports the store's handle, runner.store and runner.gguf.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import BinaryIO

import trio

from actors.store_handle import StoreHandle
from runner.domain.model import Model
from runner.errors import BlobNotFound, ModelNotFound, StoreDamaged, StoreError
from runner.gguf.metadata import GgufMetadata, read_metadata
from runner.oci.reference import ModelName, Reference
from runner.store.blobs import StoredBlob
from runner.store.disk import Disk
from runner.store.package import (
    TEXT_LAYER_BYTES_MAX,
    BuiltPackage,
    PackageLayer,
    PackageSpec,
    build,
    check_text_layer,
    check_weights,
)


class Packaging:
    """Carries out packages side by side."""

    def __init__(self, store: StoreHandle, *, now_s: Callable[[], float]) -> None:
        """`now_s` is Unix time."""
        self._store = store
        self._now_s = now_s
        self._limiter = trio.CapacityLimiter(2)  # reading a header is CPU work that the loop would feel

    async def package(self, spec: PackageSpec) -> Model:
        """Raises like `PullerHandle.package`."""
        blobs = await self._store.hold_blobs(tuple(layer.digest for layer in spec.in_order()))
        existing = await self._existing(spec.target)
        make = partial(_make, spec, blobs, existing, int(self._now_s()))
        built = await trio.to_thread.run_sync(make, limiter=self._limiter)
        return await self._store.publish(built.config, built.layers, spec.target)

    async def _existing(self, target: Reference) -> Model | None:
        try:
            return await self._store.resolve(ModelName.of(target))
        except (ModelNotFound, StoreDamaged):
            return None


def _make(
    spec: PackageSpec, blobs: tuple[StoredBlob, ...], existing: Model | None, now_s: int
) -> BuiltPackage:
    """Check every part and build the documents; belongs in a thread. Raises InvalidModelFile.

    The model was created when the spec says so; else, if the same package exists under that name, when that
    one was, so that packaging once more does not replace a model by a twin; else now.
    """
    metadata = _read_parts(spec.in_order(), blobs)
    build_at = partial(build, spec, [blob.size_bytes for blob in blobs], metadata)
    if spec.created_s is not None:
        return build_at(created_s=spec.created_s)
    if existing is not None:
        twin = build_at(created_s=existing.created_s)
        if twin.model_id() == existing.id:
            return twin
    return build_at(created_s=now_s)


def _read_parts(layers: tuple[PackageLayer, ...], blobs: tuple[StoredBlob, ...]) -> GgufMetadata:
    """What the weights' header says, once every part has been checked. Raises InvalidModelFile."""
    try:
        for layer, blob in zip(layers[1:], blobs[1:], strict=True):
            with _open(blob) as file:
                check_text_layer(layer.kind, file.read(TEXT_LAYER_BYTES_MAX + 1))
        with _open(blobs[0]) as file:
            metadata = read_metadata(file, blobs[0].size_bytes)
    except OSError as error:
        raise StoreError(f"reading an uploaded part failed: {error.strerror}") from error
    check_weights(metadata)
    return metadata


def _open(blob: StoredBlob) -> BinaryIO:
    file = Disk().open(blob.path)
    if file is None:
        raise BlobNotFound(str(blob.digest))
    return file
