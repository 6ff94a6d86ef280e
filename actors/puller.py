"""What brings models into the store. Today it packages local files that were uploaded as content.

Messages, then the handle, then the actor. Every package is a task of its own, and reads headers in threads.
Imports the store's handle, runner.store and runner.gguf.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

import attrs
import trio

from actors.actor import Address, Reply
from actors.store import StoreHandle
from runner.domain.model import Model
from runner.errors import BlobNotFound, ModelNotFound, RunnerError, StoreDamaged, StoreError
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

# messages


@attrs.frozen
class PackageModel:
    spec: PackageSpec
    reply: Reply[Model]


PullerMessage = PackageModel


# handle


class PullerHandle:
    """What others know of the puller. Every method raises Unavailable while it is not running."""

    def __init__(self, address: Address[PullerMessage]) -> None:
        self._address = address

    async def package(self, spec: PackageSpec) -> Model:
        """Check uploaded parts, write config and manifest, and name the result.

        Raises InvalidParameter with every fault of the spec, BlobNotFound for a part that was never uploaded,
        InvalidModelFile for a part that must not reach the engine, DiskFull. Packaging the same again under
        the same name changes nothing.
        """
        spec.check()
        return await self._address.ask(lambda reply: PackageModel(spec, reply))


# actor


class PullerActor:
    """Carries out packages side by side. A supervisor makes a new one for every start."""

    def __init__(
        self,
        address: Address[PullerMessage],
        store: StoreHandle,
        *,
        now_s: Callable[[], float] = time.time,
        on_published: Callable[[Model], None] = lambda model: None,
    ) -> None:
        """`now_s` is Unix time. `on_published` hears of every model that was packaged."""
        self._address = address
        self._store = store
        self._now_s = now_s
        self._on_published = on_published
        self._limiter = trio.CapacityLimiter(2)  # reading a header is CPU work that the loop would feel

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        with self._address.open() as mailbox:
            async with trio.open_nursery() as nursery:
                task_status.started()
                async for message in mailbox:
                    nursery.start_soon(self._answer, message)

    async def _answer(self, message: PackageModel) -> None:
        try:
            message.reply.set(await self._package(message.spec))
        except RunnerError as error:
            message.reply.fail(error)

    async def _package(self, spec: PackageSpec) -> Model:
        blobs = await self._store.hold_blobs(tuple(layer.digest for layer in spec.in_order()))
        existing = await self._existing(spec.target)
        make = partial(_make, spec, blobs, existing, int(self._now_s()))
        built = await trio.to_thread.run_sync(make, limiter=self._limiter)
        model = await self._store.publish(built.config, built.layers, spec.target)
        self._on_published(model)
        return model

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
