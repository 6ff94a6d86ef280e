"""One run of the store's actor: what it knows, what it answers at once, and its changes, one at a time.

Reading is answered from memory, or in a thread when it needs the disk. Changes are carried out one after
another in a thread, each planned against the state that the previous one left. Read on in
`runner/store/changes.py` for the order of writes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar, assert_never

import trio

from actors.actor import Mailbox, Reply
from actors.leases import KeptUploads, Pins
from actors.store_messages import (
    AdoptDownload,
    AdoptUpload,
    BeginCheck,
    BeginDownload,
    BeginUpload,
    ChangeMessage,
    ConfigureModel,
    HoldBlobs,
    InspectModel,
    ListModels,
    OpenFiles,
    PublishModel,
    PublishVerbatim,
    RemoveModel,
    RequireRoom,
    ResolveName,
    SeedDownload,
    StoreMessage,
    StoreNotice,
    TagModel,
    UntagModel,
    Work,
    WorkDone,
    WorkFailed,
)
from runner.domain.model import Model
from runner.domain.status import UploadedBlob
from runner.errors import ModelNotFound, RunnerError, Unavailable
from runner.oci.digest import Digest
from runner.store.blobs import StoredBlob
from runner.store.catalog import Catalog, StoredModel
from runner.store.changes import (
    Change,
    carry_out,
    plan_configure,
    plan_publish,
    plan_publish_verbatim,
    plan_remove,
    plan_tag,
    plan_untag,
)
from runner.store.describe import report_of
from runner.store.loading import ModelLoader
from runner.store.opening import OpenStore
from runner.store.partials import PartialBlob
from runner.store.verify import BlobCheck

T = TypeVar("T")


class StoreRun:
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
            case SeedDownload():
                seed = partial(self._directory.downloads.seed, message.partial)
                self._nursery.start_soon(self._answer_from_disk, message.reply, seed)
            case BeginCheck():
                message.reply.set(BlobCheck(self._directory.blobs, message.descriptor))
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
            if work.reply.is_abandoned and work.give_back is not None:
                await self._in_change_thread(partial(work.give_back, result))
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
            case AdoptDownload(download, reply):
                adopt = partial(self._directory.blobs.adopt, download)
                return Work(reply=reply, in_thread=adopt, settle=_as_it_is)
            case BeginDownload(descriptor, is_repair, reply):
                begin = partial(self._directory.downloads.begin, descriptor, is_repair=is_repair)
                return Work(reply=reply, in_thread=begin, settle=_as_it_is, give_back=_close_download)
            case RequireRoom(descriptors, reply):
                require = partial(self._directory.downloads.require_room, descriptors)
                return Work(reply=reply, in_thread=require, settle=_as_it_is)
            case HoldBlobs():
                hold = partial(self._directory.blobs.hold, change.digests)
                return Work(reply=change.reply, in_thread=hold, settle=self._settle_held)
            case PublishModel(config, media_type, layers, tag, reply):
                planned = plan_publish(catalog, config, layers, tag, config_media_type=media_type)
                return self._index_work(reply, planned, self._settle_published)
            case PublishVerbatim(manifest, config, tag, reply):
                planned = plan_publish_verbatim(catalog, manifest, config, tag)
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
        is_pinned, kept = self._pins.is_pinned, self._kept.digests() | self._pins.held()
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


def _as_it_is(result: T) -> T:
    return result


def _close_download(begun: StoredBlob | PartialBlob | None) -> None:
    if isinstance(begun, PartialBlob):
        begun.close()


def _answer(reply: Reply[T], find: Callable[[], T]) -> None:
    try:
        reply.set(find())
    except RunnerError as error:
        reply.fail(error)
