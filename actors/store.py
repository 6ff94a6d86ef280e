"""The owner of the disk: which models there are, who uses their files, and every change to them.

Messages, then the handle, then the actor. Reading is answered from memory at once. Changes are carried out
one after another in a thread, each planned against the state that the previous one left, so that neither a
slow disk nor a large file keeps anyone else waiting. Imports runner.store; read `runner/store/changes.py` for
the order of writes on disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs
import trio

from actors.actor import Address, Reply
from runner.domain.model import Model, ModelFiles
from runner.domain.status import ModelReport, Removal, UploadedBlob
from runner.errors import Unavailable
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.oci.reference import ModelName, Reference
from runner.store.blobs import BlobWriter

UPLOAD_BUFFER_BYTES = 1 << 20  # one trip to a thread costs 0.3 ms, so small chunks travel together


# messages


@attrs.frozen
class ListModels:
    reply: Reply[tuple[Model, ...]]


@attrs.frozen
class ResolveName:
    name: ModelName
    reply: Reply[Model]


@attrs.frozen
class InspectModel:
    name: ModelName
    reply: Reply[ModelReport]


@attrs.frozen
class OpenFiles:
    """Answer what a worker loads. The asker has pinned the model already."""

    model_id: Digest
    reply: Reply[ModelFiles]


@attrs.frozen
class TagModel:
    source: ModelName
    target: Reference
    reply: Reply[Model]


@attrs.frozen
class UntagModel:
    target: Reference
    reply: Reply[Model]


@attrs.frozen(kw_only=True)
class RemoveModel:
    name: ModelName
    force: bool
    reply: Reply[tuple[Removal, ...]]


@attrs.frozen(kw_only=True)
class BeginUpload:
    size_bytes: int | None
    digest: Digest | None
    reply: Reply[BlobWriter]


@attrs.frozen
class AdoptUpload:
    """The writer is finished; make its content visible."""

    writer: BlobWriter
    reply: Reply[UploadedBlob]


@attrs.frozen
class HoldBlobs:
    """Answer where uploaded content lies, and keep it until it is published."""

    digests: tuple[Digest, ...]
    reply: Reply[tuple[StoredBlob, ...]]


@attrs.frozen(kw_only=True)
class PublishModel:
    config: bytes
    config_media_type: str
    layers: tuple[Descriptor, ...]
    tag: Reference | None
    reply: Reply[Model]


StoreMessage = (
    ListModels | ResolveName | InspectModel | OpenFiles | TagModel | UntagModel | RemoveModel
    | BeginUpload | AdoptUpload | HoldBlobs | PublishModel
)  # fmt: skip


# values and ledger


@attrs.frozen(kw_only=True)
class StoredBlob:
    """Content that lies in the store, complete."""

    digest: Digest
    path: Path
    size_bytes: int


class Pins:
    """How many leases each model has. It outlives restarts of the store, as the leases themselves do."""

    def __init__(self) -> None:
        self._counts: dict[Digest, int] = {}

    def add(self, model_id: Digest) -> None:
        self._counts[model_id] = self._counts.get(model_id, 0) + 1

    def drop(self, model_id: Digest) -> None:
        left = self._counts[model_id] - 1
        if left:
            self._counts[model_id] = left
        else:
            del self._counts[model_id]

    def is_pinned(self, model_id: Digest) -> bool:
        return model_id in self._counts

    def __repr__(self) -> str:
        return f"<Pins {sum(self._counts.values())} leases on {len(self._counts)} models>"


# handle


class StoreLease:
    """Keeps a model's files on disk until it is released; a context manager that releases."""

    def __init__(self, files: ModelFiles, pins: Pins) -> None:
        self.files = files
        self._pins: Pins | None = pins

    def release(self) -> None:
        """Give the files up; doing so again changes nothing."""
        pins, self._pins = self._pins, None
        if pins is not None:
            pins.drop(self.files.model.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<StoreLease {self.files.model.name} {'released' if self._pins is None else 'held'}>"


class StoreHandle:
    """What others know of the store. Every method raises Unavailable while the store is not running."""

    def __init__(self, address: Address[StoreMessage], pins: Pins) -> None:
        self._address = address
        self._pins = pins
        self._upload_limiter = trio.CapacityLimiter(4)

    async def list(self) -> tuple[Model, ...]:
        """All models, by name, untagged ones last."""
        return await self._address.ask(ListModels)

    async def resolve(self, name: ModelName) -> Model:
        """The model that the name means, from memory. Raises ModelNotFound, AmbiguousModel, StoreDamaged."""
        return await self._address.ask(lambda reply: ResolveName(name, reply))

    async def inspect(self, name: ModelName) -> ModelReport:
        """Layers, licence texts and header metadata. Raises like `resolve`."""
        return await self._address.ask(lambda reply: InspectModel(name, reply))

    async def tag(self, source: ModelName, target: Reference) -> Model:
        """Give a model another name; a name that another model has moves. Raises like `resolve`."""
        return await self._address.ask(lambda reply: TagModel(source, target, reply))

    async def untag(self, target: Reference) -> Model:
        """Take one name away; the model stays, if need be without a name. Raises ModelNotFound."""
        return await self._address.ask(lambda reply: UntagModel(target, reply))

    async def remove(self, name: ModelName, *, force: bool = False) -> tuple[Removal, ...]:
        """Take a name away, and with the last one the model.

        1. A name of several: only that name goes.
        2. The only name, or an id with at most one name: the model goes.
        3. An id with several names: Conflict, unless `force`; then all names and the model go.

        Raises ModelInUse when the model would go and is leased; else like `resolve`.
        """
        return await self._address.ask(lambda reply: RemoveModel(name=name, force=force, reply=reply))

    async def lease(self, model_id: Digest) -> StoreLease:
        """The model's files, which stay until the lease is released.

        Raises ModelNotFound; StoreDamaged or InvalidModelFile when a part is missing or must not be loaded.
        """
        self._pins.add(model_id)  # first, so that no removal can begin before the answer arrives
        try:
            files: ModelFiles = await self._address.ask(lambda reply: OpenFiles(model_id, reply))
        except BaseException:
            self._pins.drop(model_id)
            raise
        return StoreLease(files, self._pins)

    async def receive_blob(
        self, chunks: AsyncIterable[bytes], *, size_bytes: int | None = None, digest: Digest | None = None
    ) -> UploadedBlob:
        """Store content as it arrives, holding one buffer of it at a time.

        Length and digest are verified when given. Raises ContentMismatch at the first byte too many or, for
        anything else that differs, at the end, and DiskFull; then nothing of it is left. The content stays
        until a model refers to it, or is removed 7 days later.
        """
        writer: BlobWriter = await self._address.ask(
            lambda reply: BeginUpload(size_bytes=size_bytes, digest=digest, reply=reply)
        )
        try:
            await self._write_all(chunks, writer)
        except BaseException:
            await self._abandon(writer)
            raise
        try:
            return await self._address.ask(lambda reply: AdoptUpload(writer, reply))
        except Unavailable:  # any other ending is the store's, which has the writer now
            await self._abandon(writer)
            raise

    async def hold_blobs(self, digests: tuple[Digest, ...]) -> tuple[StoredBlob, ...]:
        """Where this content lies. It stays there until it is published, or until the store restarts.

        Raises BlobNotFound for the first one that is missing.
        """
        return await self._address.ask(lambda reply: HoldBlobs(digests, reply))

    async def publish(
        self,
        config: bytes,
        layers: tuple[Descriptor, ...],
        tag: Reference | None,
        *,
        config_media_type: str = media_types.DOCKER_CONFIG_V01,
    ) -> Model:
        """Make a model of layers that lie in the store. Raises BlobNotFound, InvalidManifest, DiskFull."""
        return await self._address.ask(
            lambda reply: PublishModel(
                config=config, config_media_type=config_media_type, layers=layers, tag=tag, reply=reply
            )
        )

    async def _write_all(self, chunks: AsyncIterable[bytes], writer: BlobWriter) -> None:
        buffer = bytearray()
        async for chunk in chunks:
            buffer += chunk
            if len(buffer) >= UPLOAD_BUFFER_BYTES:
                await self._in_upload_thread(writer.write, bytes(buffer))
                buffer.clear()
        await self._in_upload_thread(writer.write, bytes(buffer))
        await self._in_upload_thread(writer.finish)

    async def _in_upload_thread(self, action: Callable[..., None], *arguments: bytes) -> None:
        await trio.to_thread.run_sync(action, *arguments, limiter=self._upload_limiter)

    async def _abandon(self, writer: BlobWriter) -> None:
        with trio.CancelScope(shield=True):
            await self._in_upload_thread(writer.abandon)
