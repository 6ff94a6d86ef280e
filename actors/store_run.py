"""One run of the store's actor: what it knows, what it answers at once, and its changes, one at a time.

Reading is answered from memory, or in a thread when it needs the disk. Changes are carried out one after
another in a thread, each planned against the state that the previous one left. Read on in
`runner/store/changes.py` for the order of writes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar, assert_never

import attrs
import trio

from actors.actor import Mailbox, Reply
from actors.leases import KeptUploads, Pins
from actors.store_messages import (
    AbandonUploads,
    AdoptDownload,
    AdoptUpload,
    BeginCheck,
    BeginDownload,
    BeginUpload,
    ChangeMessage,
    CollectGarbage,
    ConfigureModel,
    HoldBlobs,
    InspectModel,
    ListContent,
    ListModels,
    OpenFiles,
    PublishModel,
    PublishVerbatim,
    ReadDocuments,
    Reloaded,
    RemoveModel,
    ReportDisk,
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
from runner.domain.disk import GcReport
from runner.domain.model import Model
from runner.domain.status import UploadedBlob
from runner.errors import ModelNotFound, RunnerError, Unavailable
from runner.oci.digest import Digest
from runner.oci.reference import ModelName
from runner.store.blobs import FinishedContent, StoredBlob
from runner.store.catalog import Catalog, StoredModel
from runner.store.changes import (
    Change,
    carry_out,
    plan_configure,
    plan_prune,
    plan_publish,
    plan_publish_verbatim,
    plan_remove,
    plan_tag,
    plan_untag,
)
from runner.store.collecting import collect, disk_report
from runner.store.describe import report_of
from runner.store.directory import LoadedCatalog
from runner.store.documents import ModelDocuments, UsedContent, read_documents, used_content
from runner.store.gc import GarbageRules
from runner.store.loading import ModelLoader
from runner.store.opening import OpenStore
from runner.store.partials import PartialBlob
from runner.store.verify import BlobCheck

T = TypeVar("T")
F = TypeVar("F")


class StoreRun:
    """What one run of the actor knows. No method waits; threads are watched by tasks of the nursery."""

    def __init__(
        self,
        store: OpenStore,
        pins: Pins,
        mailbox: Mailbox[StoreMessage],
        nursery: trio.Nursery,
        report: Callable[[StoreNotice], None],
        now_s: Callable[[], float],
    ) -> None:
        self._now_s = now_s
        self._directory = store.directory
        self._loader = ModelLoader(store.directory.blobs)
        self._pins = pins
        self._mailbox = mailbox
        self._nursery = nursery
        self._waiting: deque[ChangeMessage] = deque()  # bounded by the mailbox's limit of open asks
        self._is_changing = False
        self._must_reload = False  # a change failed, and what the disk shows now could not be read
        self._removing: frozenset[Digest] = frozenset()
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
            case ReadDocuments():
                self._read(message.reply, lambda: self._catalog.find(message.name), self._documents_of)
            case AbandonUploads():
                for digest in message.digests:
                    self._kept.abandon(digest)
            case WorkDone() | WorkFailed():
                self._end_change(message)
            case Reloaded():
                self._end_reload(message.outcome)
            case _:
                self._waiting.append(message)
                self._begin_next_change()

    async def collect_now_and_then(self, every_s: float) -> None:
        """What nothing needs goes without being asked for."""
        while True:
            await trio.sleep(every_s)
            reply: Reply[GcReport] = Reply()
            self._mailbox.tell(CollectGarbage(prunes_untagged=False, is_dry_run=False, reply=reply))
            try:
                report = await reply.wait()
            except RunnerError as error:
                self._report(StoreNotice(message=f"what nothing needs could not be removed: {error}"))
            else:
                removed = len(report.removed) + len(report.removed_downloads)
                if removed:
                    self._report(StoreNotice(message=f"removed {removed} leftover files"))

    # reading

    def _read(self, reply: Reply[T], find: Callable[[], F], read: Callable[[F], T]) -> None:
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

    def _documents_of(self, model_id: Digest) -> ModelDocuments:
        return read_documents(self._catalog, model_id, self._directory.blobs)

    def _content_of(self, names: tuple[ModelName, ...] | None) -> tuple[UsedContent, ...]:
        if names is None:
            return used_content(self._catalog, self._catalog.index.manifests())
        return used_content(self._catalog, dict.fromkeys(map(self._catalog.find, names)))

    def _leasable(self, model_id: Digest) -> StoredModel:
        """Raises like `Catalog.usable`, and ModelNotFound for a model that is just being removed."""
        if model_id in self._removing:
            raise ModelNotFound(str(model_id))
        return self._catalog.usable(model_id)

    # changing, one at a time

    def _begin_next_change(self) -> None:
        if self._waiting and not self._is_changing and self._must_reload:
            self._is_changing = True
            self._nursery.start_soon(self._reload_first)
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
            self._mailbox.tell(WorkFailed(work, error, await self._load() if work.changes_index else None))
        else:
            is_ending = trio.current_effective_deadline() == -math.inf
            if work.give_back is not None and (is_ending or work.reply.is_abandoned):
                with trio.CancelScope(shield=True):
                    await self._in_change_thread(partial(work.give_back, result))
            self._mailbox.tell(WorkDone(work, result))

    async def _load(self) -> LoadedCatalog | RunnerError:
        """What the disk shows, or why that cannot be told."""
        try:
            return await self._in_change_thread(self._directory.load)
        except RunnerError as error:
            return error

    async def _reload_first(self) -> None:
        self._mailbox.tell(Reloaded(await self._load()))

    async def _in_change_thread(self, action: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(action, limiter=self._change_limiter)

    def _end_change(self, ended: WorkDone | WorkFailed) -> None:
        self._is_changing = False
        self._removing = frozenset()
        if isinstance(ended, WorkDone):
            ended.work.reply.set(ended.work.settle(ended.result))
        else:
            self._take_over(ended.loaded)
            ended.work.reply.fail(ended.error)
        self._begin_next_change()

    def _end_reload(self, outcome: LoadedCatalog | RunnerError) -> None:
        """Go on with the change that waited for it, or refuse that one."""
        self._is_changing = False
        self._take_over(outcome)
        if isinstance(outcome, RunnerError):
            self._waiting.popleft().reply.fail(outcome)
        self._begin_next_change()

    def _take_over(self, loaded: LoadedCatalog | RunnerError | None) -> None:
        """Show what the disk shows. When that is unknown, what was shown stays, and nothing changes until
        it is known: a plan made now might bring back what is gone."""
        if isinstance(loaded, RunnerError):
            self._must_reload = True
            self._report(StoreNotice(message=f"what the store holds cannot be read: {loaded}"))
        elif loaded is not None:
            self._must_reload = False
            self._show(loaded.catalog, loaded.notices)

    def _plan(self, change: ChangeMessage) -> Work:
        """The work of a change, by the state of this moment; raises when it is not possible."""
        catalog = self._catalog
        match change:
            case AdoptUpload():
                return self._plan_adoption(change)
            case AdoptDownload(download, reply):
                return Work(
                    reply=reply,
                    in_thread=partial(self._adopt, download, catalog),
                    settle=self._settle_adopted,
                )
            case BeginDownload(descriptor, is_repair, reply):
                begin = partial(self._directory.downloads.begin, descriptor, is_repair=is_repair)
                return Work(reply=reply, in_thread=begin, settle=_as_it_is, give_back=_close_download)
            case RequireRoom(descriptors, reply):
                require = partial(self._directory.downloads.require_room, descriptors)
                return Work(reply=reply, in_thread=require, settle=_as_it_is)
            case CollectGarbage():
                return self._plan_collection(change)
            case ReportDisk(reply):
                report = partial(disk_report, self._directory, catalog)
                return Work(reply=reply, in_thread=report, settle=_as_it_is)
            case ListContent(names, reply):
                return Work(reply=reply, in_thread=partial(self._content_of, names), settle=_as_it_is)
            case HoldBlobs():
                hold = partial(self._directory.blobs.hold, change.digests)
                return Work(reply=change.reply, in_thread=hold, settle=_as_it_is)
            case PublishModel(config, media_type, layers, tag, reply):
                planned = plan_publish(catalog, config, layers, tag, config_media_type=media_type)
                return self._index_work(reply, planned, self._settle_published)
            case PublishVerbatim(manifest, config, tag, origin, reply):
                planned = plan_publish_verbatim(catalog, manifest, config, tag, origin=origin)
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
        for digest in (*(layer.digest for layer in done.required), *map(Digest.of, done.documents)):
            self._kept.discard(digest)
        return done.model()

    def _plan_removal(self, change: RemoveModel) -> Work:
        is_pinned, kept = self._pins.is_pinned, self._kept.digests() | self._pins.held()
        planned = plan_remove(self._catalog, change.name, force=change.force, is_pinned=is_pinned, kept=kept)
        if planned.model_id not in planned.catalog.index.manifests():
            self._removing = frozenset({planned.model_id})
            self._pins.send_away(planned.model_id)
        return self._index_work(change.reply, planned, lambda done: done.removals)

    def _plan_collection(self, change: CollectGarbage) -> Work:
        held, waiting = self._pins.held(), self._kept.digests()
        rules = GarbageRules(
            now_s=self._now_s(), held=held, waiting=waiting, abandoned=self._kept.abandoned()
        )
        removals: tuple[Change, ...] = ()
        if change.prunes_untagged:
            rules = attrs.evolve(rules, older_than_s=-math.inf)
            removals = plan_prune(self._catalog, is_pinned=self._pins.is_pinned, kept=held | waiting)
        is_dry_run = change.is_dry_run
        if not is_dry_run:
            self._removing = frozenset(removal.model_id for removal in removals)
            for removal in removals:
                self._pins.send_away(removal.model_id)

        def settle(report: GcReport) -> GcReport:
            if removals and not is_dry_run:
                self._catalog = removals[-1].catalog
            return report

        in_thread = partial(
            collect, self._directory, self._catalog, rules, removals=removals, is_dry_run=is_dry_run
        )
        return Work(reply=change.reply, in_thread=in_thread, settle=settle, changes_index=bool(removals))

    def _plan_adoption(self, change: AdoptUpload) -> Work:
        writer = change.writer
        if change.reply.is_abandoned:
            return Work(reply=change.reply, in_thread=writer.abandon, settle=lambda _: None)

        def settle(adopted: tuple[StoredBlob, Catalog]) -> UploadedBlob:
            blob = self._settle_adopted(adopted)
            self._kept.add(blob.digest)
            return UploadedBlob(digest=str(blob.digest), size_bytes=blob.size_bytes)

        adopt = partial(self._adopt, writer, self._catalog)
        return Work(reply=change.reply, in_thread=adopt, settle=settle)

    def _adopt(self, content: FinishedContent, catalog: Catalog) -> tuple[StoredBlob, Catalog]:
        """In a thread: the content, and the catalog with the models that it made usable."""
        blob = self._directory.blobs.adopt(content)
        return blob, self._directory.healed(catalog, blob.digest)

    def _settle_adopted(self, adopted: tuple[StoredBlob, Catalog]) -> StoredBlob:
        blob, self._catalog = adopted
        return blob


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
