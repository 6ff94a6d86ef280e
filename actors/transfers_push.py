"""Pushing: what the registry lacks is mounted or sent, side by side; the manifest follows, byte for byte.

Only what is reachable from the manifest of the named model is ever read (S12). Imports the registry's client
and the store's handle.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import attrs
import trio

from actors.held_models import HeldModel, hold_model, releasing
from actors.store_handle import StoreHandle
from actors.transfers_fetching import PARTS_AT_ONCE, Course, TransferTurns
from actors.transfers_threads import RemoteThreads, run_all
from runner.domain.model import Model
from runner.domain.transfer import PushRequest, RemoteCredentials, TransferPhase, TransferResult
from runner.errors import BlobNotFound, FieldFault, InvalidParameter, RegistryUnavailable
from runner.oci.layers import kind_of_layer
from runner.oci.manifest import Descriptor
from runner.oci.reference import ModelName, Reference
from runner.registry.abort import Abort
from runner.registry.client import RegistryClient
from runner.registry.huggingface import is_hub
from runner.registry.retrying import pause_before
from runner.store.disk import Disk

CONFIG_KIND = "config"
CHUNK_BYTES = 32 << 20
"""What a broken upload in pieces may have to send again."""


@attrs.frozen(kw_only=True)
class PushTools:
    """What all pushes share. `uploads` are threads that send content; `threads` are for small requests."""

    store: StoreHandle
    client: RegistryClient
    threads: RemoteThreads
    uploads: RemoteThreads
    turns: TransferTurns


@attrs.define(eq=False)
class _Upload:
    """One blob on its way out. The thread that sends writes `done_bytes`."""

    descriptor: Descriptor
    path: Path
    done_bytes: int = 0
    sent_bytes: int = 0

    def open(self, offset: int) -> BinaryIO:
        """The content from there on."""
        file = Disk().open(self.path)
        if file is None:
            raise BlobNotFound(str(self.descriptor.digest))
        file.seek(offset)
        return file

    def progress(self, done_bytes: int) -> None:
        self.done_bytes = done_bytes


async def push(request: PushRequest, course: Course, tools: PushTools) -> tuple[Model, TransferResult]:
    """Send a model to a registry, under `target` or the name it was asked for by.

    Blobs that the registry has are not sent; nothing is visible there before all of it is.
    Raises InvalidParameter without a usable target, ModelNotFound, StoreDamaged, RegistryError.
    """
    held = await hold_model(tools.store, request.name)
    with releasing(held):
        model = held.model
        target = _target(request, model)
        course.board.model_id = str(model.id)
        uploads = _uploads(held, course)
        places = (await tools.store.documents(ModelName.of(model.id))).places
        errand = _Errand(
            client=tools.client,
            target=target,
            given=request.given,
            mountable=_mountable(places, target),
            threads=tools.threads,
            uploads=tools.uploads,
            note=course.board.note,
        )
        async with tools.turns.turn((target.registry, target.repository, model.id), course):
            course.enter(TransferPhase.TRANSFERRING)
            await run_all([partial(errand.deliver, upload) for upload in uploads], at_once=PARTS_AT_ONCE)
            course.enter(TransferPhase.PUBLISHING)
            await errand.publish(held.manifest_bytes, held.manifest.media_type)
    return model, _result(model, target, uploads)


def _target(request: PushRequest, model: Model) -> Reference:
    """Raises InvalidParameter.

    1. A digest as the target must be the model's.
    2. A hub takes no models this way.
    """
    target = request.target or _place(request.name, model)
    if target is None:
        raise InvalidParameter(
            FieldFault("target", "is needed, since an id says nothing about where to push")
        )
    if target.digest is not None and target.digest != model.id:
        raise InvalidParameter(
            FieldFault("target", f"names another digest than the model's, {model.id}")
        )  # 1
    if is_hub(target):
        raise InvalidParameter(FieldFault("target", "is a hub, which takes no models from here"))  # 2
    return target


def _place(name: ModelName, model: Model) -> Reference | None:
    """What the model was asked for by, unless that was an id: digits may be both, and a name wins."""
    if name.short_id is not None and name.reference not in model.tags:
        return None
    return name.reference


def _uploads(held: HeldModel, course: Course) -> list[_Upload]:
    """Layers, then config, each content once."""
    descriptors = {descriptor.digest: descriptor for descriptor in held.manifest.descriptors()}
    uploads = [_Upload(descriptor, held.blobs[digest].path) for digest, descriptor in descriptors.items()]
    for upload in uploads:
        descriptor = upload.descriptor
        is_config = descriptor.digest == held.manifest.config.digest
        kind = CONFIG_KIND if is_config else kind_of_layer(descriptor).value
        course.add(descriptor, kind, descriptor.file_path(), upload)
    return uploads


def _mountable(places: tuple[Reference, ...], target: Reference) -> tuple[str, ...]:
    """Repositories of the same registry that may have the model's content: it has names there, or came from
    there."""
    found = {place.repository: None for place in places if place.registry == target.registry}
    return tuple(repository for repository in found if repository != target.repository)


@attrs.frozen(kw_only=True)
class _Errand:
    """All that is sent to one repository."""

    client: RegistryClient
    target: Reference
    given: RemoteCredentials | None = attrs.field(repr=False)
    mountable: tuple[str, ...]
    threads: RemoteThreads
    uploads: RemoteThreads
    note: Callable[[str], None]

    async def deliver(self, upload: _Upload) -> None:
        """What the repository has is not sent; what another one there has is mounted; the rest is sent."""
        if not await self._is_there(upload.descriptor):
            await self._upload(upload)
            upload.sent_bytes = upload.descriptor.size_bytes
        upload.done_bytes = upload.descriptor.size_bytes

    async def publish(self, content: bytes, media_type: str) -> None:
        """The manifest, when all that it refers to is there."""
        put = partial(self.client.put_manifest, self.target, content, media_type, given=self.given)
        await self.threads.ask(lambda abort: put(abort=abort), self.note)

    async def _is_there(self, descriptor: Descriptor) -> bool:
        has = partial(self.client.has_blob, self.target, descriptor, given=self.given)
        if await self.threads.ask(lambda abort: has(abort=abort), self.note):
            return True
        for repository in self.mountable:
            if await self.threads.ask(partial(self._mount, descriptor, repository), self.note):
                return True
        return False

    def _mount(self, descriptor: Descriptor, repository: str, abort: Abort) -> bool:
        return self.client.mount_blob(
            self.target, descriptor.digest, repository, given=self.given, abort=abort
        )

    async def _upload(self, upload: _Upload) -> None:
        """In one piece, which every registry takes; when that breaks, in pieces, which can be continued."""
        try:
            await self.uploads.ask_once(lambda abort: self._send(upload, abort, None))
        except RegistryUnavailable as error:
            pause_s = pause_before(2, error, chance=self.uploads.chance())
            if pause_s is None:
                raise
            self.note(f"{error}; trying again in pieces")
            await trio.sleep(pause_s)
            await self.uploads.ask_once(lambda abort: self._send(upload, abort, CHUNK_BYTES))

    def _send(self, upload: _Upload, abort: Abort, chunk_bytes: int | None) -> None:
        """In a thread."""
        self.client.upload_blob(
            self.target,
            upload.descriptor,
            upload.open,
            given=self.given,
            on_progress=upload.progress,
            abort=abort,
            chunk_bytes=chunk_bytes,
        )


def _result(model: Model, target: Reference, uploads: list[_Upload]) -> TransferResult:
    sent_bytes = sum(upload.sent_bytes for upload in uploads)
    return TransferResult(
        model_id=model.id,
        reference=str(target),
        size_bytes=model.size_bytes,
        transferred_bytes=sent_bytes,
        was_cached=sent_bytes == 0,
    )
