"""The owner of the disk: which models there are, who uses their files, and every change to them.

Messages, then the handle, then the actor. Reading is answered from memory at once. Changes are carried out
one after another in a thread, each planned against the state that the previous one left, so that neither a
slow disk nor a large file keeps anyone waiting. Imports runner.store; the order of writes is that of
`runner/store/changes.py`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterable, Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, assert_never

import attrs
import trio

from actors.actor import Address, Mailbox, Reply
from actors.leases import KeptUploads, Pins, StoreLease
from actors.uploads import UploadThreads
from runner.domain.model import Model, ModelFiles
from runner.domain.settings import ModelSettings
from runner.domain.status import ModelReport, Removal, UploadedBlob
from runner.errors import ModelNotFound, RunnerError, Unavailable
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.oci.reference import ModelName, Reference
from runner.store.blobs import BlobWriter, StoredBlob
from runner.store.catalog import Catalog, StoredModel
from runner.store.changes import (
    Change,
    carry_out,
    plan_configure,
    plan_publish,
    plan_remove,
    plan_tag,
    plan_untag,
)
from runner.store.describe import report_of
from runner.store.directory import LoadedCatalog
from runner.store.disk import Disk
from runner.store.loading import ModelLoader
from runner.store.opening import OpenStore, open_store

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class StoreNotice:
    """Something about the disk that whoever looks after the daemon should know, as a sentence."""

    message: str


@attrs.frozen(kw_only=True)
class Work:
    """What a thread does of a change. `settle` takes its result over in the loop and gives the answer."""

    reply: Reply[Any]
    in_thread: Callable[[], object]
    settle: Callable[[Any], object]
    changes_index: bool = False


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


@attrs.frozen
class ConfigureModel:
    name: ModelName
    changes: ModelSettings
    unset: frozenset[str]
    reply: Reply[Model]


@attrs.frozen
class RemoveModel:
    name: ModelName
    force: bool
    reply: Reply[tuple[Removal, ...]]


@attrs.frozen
class BeginUpload:
    """Answer a writer that the asker drives, then abandons or has adopted."""

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


@attrs.frozen
class PublishModel:
    config: bytes
    config_media_type: str
    layers: tuple[Descriptor, ...]
    tag: Reference | None
    reply: Reply[Model]


@attrs.frozen
class WorkDone:
    work: Work
    result: object


@attrs.frozen
class WorkFailed:
    """`loaded` is what the disk shows now, when the work may have altered the index."""

    work: Work
    error: RunnerError
    loaded: LoadedCatalog | None


ChangeMessage = TagModel | UntagModel | ConfigureModel | RemoveModel | AdoptUpload | HoldBlobs | PublishModel
StoreMessage = (
    ListModels | ResolveName | InspectModel | OpenFiles | BeginUpload | WorkDone | WorkFailed | ChangeMessage
)  # fmt: skip


# handle


class StoreHandle:
    """What others know of the store. Every method raises Unavailable while the store is not running."""

    def __init__(self, address: Address[StoreMessage], pins: Pins) -> None:
        self._address = address
        self._pins = pins
        self._uploads = UploadThreads()

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

    async def configure(
        self, name: ModelName, changes: ModelSettings, *, unset: Collection[str] = ()
    ) -> Model:
        """Keep what `changes` say for a model, by its digest, and nothing any more of what is in `unset`.
        Raises InvalidParameter for what does not go together or not with the model; else like `resolve`."""
        return await self._address.ask(lambda reply: ConfigureModel(name, changes, frozenset(unset), reply))

    async def remove(self, name: ModelName, *, force: bool = False) -> tuple[Removal, ...]:
        """Take a name away, and with the last one the model.

        1. A name of several: only that name goes.
        2. The only name, or an id with at most one name: the model goes.
        3. An id with several names: Conflict, unless `force`; then all names and the model go.

        Raises ModelInUse when the model would go and is leased; else like `resolve`.
        """
        return await self._address.ask(lambda reply: RemoveModel(name, force, reply))

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
        writer: BlobWriter = await self._address.ask(lambda reply: BeginUpload(size_bytes, digest, reply))
        try:
            await self._uploads.write_all(chunks, writer)
        except BaseException:
            await self._uploads.abandon(writer)
            raise
        try:
            return await self._address.ask(lambda reply: AdoptUpload(writer, reply))
        except Unavailable:  # any other ending is the store's, which has the writer now
            await self._uploads.abandon(writer)
            raise

    async def hold_blobs(self, digests: tuple[Digest, ...]) -> tuple[StoredBlob, ...]:
        """Where this content lies. It stays there until it is published, or until the store restarts.
        Raises BlobNotFound for the first one that is missing."""
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
            lambda reply: PublishModel(config, config_media_type, layers, tag, reply)
        )


# actor


class StoreActor:
    """Owns a store directory from `run` to its end. A supervisor makes a new one for every start."""

    def __init__(
        self,
        address: Address[StoreMessage],
        pins: Pins,
        root: Path,
        *,
        disk: Disk | None = None,
        now_s: Callable[[], float] = time.time,
        report: Callable[[StoreNotice], None] = lambda notice: None,
    ) -> None:
        """`now_s` is Unix time. `report` hears of repairs and damage."""
        self._address = address
        self._pins = pins
        self._root = root
        self._disk = disk or Disk()
        self._now_s = now_s
        self._report = report

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Raises StartRefused when the directory must not be used."""
        opening = partial(open_store, self._root, now_s=self._now_s(), disk=self._disk)
        with await trio.to_thread.run_sync(opening) as store, self._address.open() as mailbox:
            async with trio.open_nursery() as nursery:
                run = _Run(store, self._pins, mailbox, nursery, self._report)
                task_status.started()
                async for message in mailbox:
                    run.handle(message)


class _Run:
    """What one run of the actor knows. No method waits; threads are watched by tasks of the nursery."""

    def __init__(
        self,
        store: OpenStore,
        pins: Pins,
        mailbox: Mailbox[StoreMessage],
        nursery: trio.Nursery,
        report: Callable[[StoreNotice], None],
    ) -> None:
        self._directory = store.directory
        self._loader = ModelLoader(store.directory.blobs)
        self._pins = pins
        self._mailbox = mailbox
        self._nursery = nursery
        self._waiting: deque[ChangeMessage] = deque()  # bounded by the mailbox's limit of open asks
        self._is_changing = False
        self._removing: Digest | None = None
        self._kept = KeptUploads()
        self._read_limiter = trio.CapacityLimiter(4)
        self._change_limiter = trio.CapacityLimiter(1)
        self._report = report
        self._show(store.catalog, store.notices)

    def _show(self, catalog: Catalog, notices: tuple[str, ...]) -> None:
        self._catalog = catalog
        for notice in notices:
            self._report(StoreNotice(message=notice))

    def handle(self, message: StoreMessage) -> None:
        match message:
            case ListModels():
                message.reply.set(self._catalog.models())
            case ResolveName():
                _answer(message.reply, lambda: self._catalog.resolve(message.name).model)
            case InspectModel():
                report = partial(report_of, blobs=self._directory.blobs)
                self._read(message.reply, lambda: self._catalog.resolve(message.name), report)
            case OpenFiles():
                self._read(message.reply, lambda: self._leasable(message.model_id), self._loader.files_of)
            case BeginUpload():
                begin = self._directory.blobs.begin
                message.reply.set(begin(size_bytes=message.size_bytes, digest=message.digest))
            case WorkDone() | WorkFailed():
                self._end_change(message)
            case _:
                self._waiting.append(message)
                self._begin_next_change()

    # reading

    def _read(
        self, reply: Reply[T], find: Callable[[], StoredModel], read: Callable[[StoredModel], T]
    ) -> None:
        """Answer with what a thread reads about the model that `find` finds now."""
        try:
            stored = find()
        except RunnerError as error:
            reply.fail(error)
        else:
            self._nursery.start_soon(self._answer_from_disk, reply, partial(read, stored))

    async def _answer_from_disk(self, reply: Reply[T], read: Callable[[], T]) -> None:
        try:
            reply.set(await trio.to_thread.run_sync(read, limiter=self._read_limiter))
        except RunnerError as error:
            reply.fail(error)

    def _leasable(self, model_id: Digest) -> StoredModel:
        """Raises like `Catalog.usable`, and ModelNotFound for a model that is just being removed."""
        if model_id == self._removing:
            raise ModelNotFound(str(model_id))
        return self._catalog.usable(model_id)

    # changing, one at a time

    def _begin_next_change(self) -> None:
        while self._waiting and not self._is_changing:
            change = self._waiting.popleft()
            if change.reply.is_abandoned and not isinstance(change, AdoptUpload):
                change.reply.fail(Unavailable("the caller has left"))
                continue
            try:
                work = self._plan(change)
            except RunnerError as error:
                change.reply.fail(error)
            else:
                self._is_changing = True
                self._nursery.start_soon(self._carry_out, work)

    async def _carry_out(self, work: Work) -> None:
        try:
            result = await self._in_change_thread(work.in_thread)
        except RunnerError as error:
            loaded = await self._in_change_thread(self._directory.load) if work.changes_index else None
            self._mailbox.tell(WorkFailed(work, error, loaded))
        else:
            self._mailbox.tell(WorkDone(work, result))

    async def _in_change_thread(self, action: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(action, limiter=self._change_limiter)

    def _end_change(self, ended: WorkDone | WorkFailed) -> None:
        self._is_changing = False
        self._removing = None
        if isinstance(ended, WorkDone):
            ended.work.reply.set(ended.work.settle(ended.result))
        else:
            if ended.loaded is not None:
                self._show(ended.loaded.catalog, ended.loaded.notices)
            ended.work.reply.fail(ended.error)
        self._begin_next_change()

    def _plan(self, change: ChangeMessage) -> Work:
        """The work of a change, by the state of this moment; raises when it is not possible."""
        catalog = self._catalog
        match change:
            case AdoptUpload():
                return self._plan_adoption(change)
            case HoldBlobs():
                hold = partial(self._directory.blobs.hold, change.digests)
                return Work(reply=change.reply, in_thread=hold, settle=self._settle_held)
            case PublishModel(config, media_type, layers, tag, reply):
                planned = plan_publish(catalog, config, layers, tag, config_media_type=media_type)
                return self._index_work(reply, planned, self._settle_published)
            case TagModel(source, target, reply):
                return self._index_work(reply, plan_tag(catalog, source, target), Change.model)
            case UntagModel(target, reply):
                return self._index_work(reply, plan_untag(catalog, target), Change.model)
            case ConfigureModel(name, changes, unset, reply):
                planned = plan_configure(catalog, name, changes, unset)
                return self._index_work(reply, planned, Change.model)
            case RemoveModel():
                return self._plan_removal(change)
            case _:
                assert_never(change)

    def _index_work(self, reply: Reply[T], planned: Change, answer: Callable[[Change], T]) -> Work:
        def settle(_: object) -> T:
            self._catalog = planned.catalog
            return answer(planned)

        in_thread = partial(carry_out, planned, self._directory)
        return Work(reply=reply, in_thread=in_thread, settle=settle, changes_index=True)

    def _settle_published(self, done: Change) -> Model:
        for layer in done.required:
            self._kept.discard(layer.digest)
        return done.model()

    def _plan_removal(self, change: RemoveModel) -> Work:
        is_pinned, kept = self._pins.is_pinned, self._kept.digests()
        planned = plan_remove(self._catalog, change.name, force=change.force, is_pinned=is_pinned, kept=kept)
        if planned.model_id not in planned.catalog.index.manifests():
            self._removing = planned.model_id
        return self._index_work(change.reply, planned, lambda done: done.removals)

    def _plan_adoption(self, change: AdoptUpload) -> Work:
        writer = change.writer
        if change.reply.is_abandoned:
            return Work(reply=change.reply, in_thread=writer.abandon, settle=lambda _: None)

        def settle(_: object) -> UploadedBlob:
            self._kept.add(writer.digest)
            return UploadedBlob(digest=str(writer.digest), size_bytes=writer.size_bytes)

        adopt = partial(self._directory.blobs.adopt, writer)
        return Work(reply=change.reply, in_thread=adopt, settle=settle)

    def _settle_held(self, held: tuple[StoredBlob, ...]) -> tuple[StoredBlob, ...]:
        for blob in held:
            self._kept.add(blob.digest)
        return held


def _answer(reply: Reply[T], find: Callable[[], T]) -> None:
    try:
        reply.set(find())
    except RunnerError as error:
        reply.fail(error)
