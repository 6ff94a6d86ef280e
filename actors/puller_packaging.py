"""Local files that were uploaded as content become a model: checked, described, published.

Reads headers in threads. Imports the store's handle, runner.store and runner.gguf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

import trio

from actors.held_models import hold_model, releasing
from actors.store_handle import StoreHandle
from runner.domain.model import Model
from runner.errors import BlobNotFound, ModelNotFound, RunnerError, StoreDamaged, StoreError
from runner.gguf.metadata import GgufMetadata, read_metadata
from runner.gguf.split import read_parts
from runner.oci.digest import Digest
from runner.oci.reference import ModelName, Reference
from runner.store.blobs import StoredBlob
from runner.store.disk import Disk
from runner.store.package import (
    TEXT_LAYER_BYTES_MAX,
    PackageLayer,
    PackageSpec,
    check_projector,
    check_text_layer,
    check_weights,
)
from runner.store.packaging import BaseModel, BuiltPackage, build, derive


class Packaging:
    """Carries out packages side by side."""

    def __init__(self, store: StoreHandle, *, now_s: Callable[[], float]) -> None:
        """`now_s` is Unix time."""
        self._store = store
        self._now_s = now_s
        self._limiter = trio.CapacityLimiter(2)  # reading a header is CPU work that the loop would feel

    async def package(self, spec: PackageSpec) -> Model:
        """Raises like `PullerHandle.package`. Parts of what is refused go with the next collection."""
        digests = tuple(layer.digest for layer in spec.in_order())
        try:
            if spec.base is not None:
                return await self._derive(spec, spec.base)
            return await self._pack(spec, digests)
        except RunnerError:
            self._store.abandon_uploads(digests)
            raise

    async def _pack(self, spec: PackageSpec, digests: tuple[Digest, ...]) -> Model:
        with self._store.holding(digests):
            blobs = await self._store.hold_blobs(digests)
            existing = await self._existing(spec.target)
            make = partial(_make, spec, blobs, existing, int(self._now_s()))
            return await self._publish(await self._in_thread(make), spec.target)

    async def _derive(self, spec: PackageSpec, base_name: ModelName) -> Model:
        """A model of the base's layers, with others beside them; not one of the base's bytes is copied."""
        digests = tuple(layer.digest for layer in spec.in_order())
        held = await hold_model(self._store, base_name)
        with releasing(held), self._store.holding(digests):
            blobs = await self._store.hold_blobs(digests)
            base = BaseModel.read(held.manifest_bytes, held.config_bytes)
            make = partial(_make_derived, spec, blobs, base)
            return await self._publish(await self._in_thread(make), spec.target)

    async def _in_thread(self, make: Callable[[], BuiltPackage]) -> BuiltPackage:
        return await trio.to_thread.run_sync(make, limiter=self._limiter)

    async def _publish(self, built: BuiltPackage, target: Reference) -> Model:
        return await self._store.publish_verbatim(built.manifest, built.config, target)

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


def _make_derived(spec: PackageSpec, blobs: tuple[StoredBlob, ...], base: BaseModel) -> BuiltPackage:
    """The same for a model that is derived from one whose weights were checked when it came."""
    with _translated():
        _check_others(spec.in_order(), _by_digest(blobs))
    return derive(spec, base, [blob.size_bytes for blob in blobs])


def _read_parts(layers: tuple[PackageLayer, ...], blobs: tuple[StoredBlob, ...]) -> GgufMetadata:
    """What the weights' headers say, once every part has been checked. Raises InvalidModelFile."""
    found = _by_digest(blobs)
    weights = [found[layer.digest] for layer in layers if layer.kind == "gguf"]
    with _translated():
        _check_others(layers, found)
        metadata = read_parts(_opened(weights), len(weights))
    check_weights(metadata)
    return metadata


def _check_others(layers: tuple[PackageLayer, ...], blobs: Mapping[Digest, StoredBlob]) -> None:
    for layer in layers:
        if layer.kind == "gguf":
            continue
        with _open(blobs[layer.digest]) as file:
            if layer.kind == "mmproj":
                check_projector(read_metadata(file, blobs[layer.digest].size_bytes))
            else:
                check_text_layer(layer.kind, file.read(TEXT_LAYER_BYTES_MAX + 1))


def _by_digest(blobs: tuple[StoredBlob, ...]) -> dict[Digest, StoredBlob]:
    return {blob.digest: blob for blob in blobs}


def _opened(blobs: list[StoredBlob]) -> Iterator[tuple[BinaryIO, int]]:
    for blob in blobs:
        with _open(blob) as file:
            yield file, blob.size_bytes


def _open(blob: StoredBlob) -> BinaryIO:
    file = Disk().open(blob.path)
    if file is None:
        raise BlobNotFound(str(blob.digest))
    return file


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"reading an uploaded part failed: {error.strerror}") from error
