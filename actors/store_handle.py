"""What others know of the store: typed methods instead of messages.

Callers never build a message and never wait for the disk's queue longer than for their own answer. Read on in
`actors/store_run.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Collection, Iterable
from contextlib import AbstractContextManager

import attrs
import trio

from actors.actor import Address
from actors.leases import Pins, StoreLease
from actors.saved_states import SavedStates
from actors.store_messages import (
    AbandonUploads,
    AdoptDownload,
    AdoptUpload,
    BeginCheck,
    BeginDownload,
    BeginUpload,
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
    RemoveModel,
    ReportDisk,
    RequireRoom,
    ResolveName,
    SeedDownload,
    StoreMessage,
    TagModel,
    UntagModel,
)
from actors.uploads import UploadThreads
from runner.domain.disk import BlobFinding, DiskReport, GcReport, VerifyProgress, VerifyReport
from runner.domain.model import Model, ModelFiles
from runner.domain.settings import ModelSettings
from runner.domain.status import ModelReport, Removal, UploadedBlob
from runner.errors import Unavailable
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.oci.reference import ModelName, Reference
from runner.store.blobs import BlobWriter, StoredBlob
from runner.store.documents import ModelDocuments, UsedContent
from runner.store.partials import PartialBlob
from runner.store.verify import BlobCheck, attributed


class StoreHandle:
    """What others know of the store. Every method raises Unavailable while the store is not running."""

    def __init__(
        self, address: Address[StoreMessage], pins: Pins, *, states: SavedStates | None = None
    ) -> None:
        """`states` go with the weights that they were saved of."""
        self._address = address
        self._pins = pins
        self._states = states
        self._threads = UploadThreads()

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
        removals: tuple[Removal, ...] = await self._address.ask(lambda reply: RemoveModel(name, force, reply))
        await self._forget_unwanted()
        return removals

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

    def visiting(self, model_id: Digest, leave: Callable[[], None]) -> AbstractContextManager[None]:
        """While the block runs, `leave` is called when the model is removed, which nothing else hinders. For
        what is done in the background: nobody should be refused a removal for it."""
        return self._pins.visiting(model_id, leave)

    async def files(self, model_id: Digest) -> ModelFiles:
        """As `lease`, but they may go at any moment."""
        return await self._address.ask(lambda reply: OpenFiles(model_id, reply))

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
            await self._threads.write_all(chunks, writer)
        except BaseException:
            await self._threads.end(writer.abandon)
            raise
        try:
            return await self._address.ask(lambda reply: AdoptUpload(writer, reply))
        except Unavailable:  # any other ending is the store's, which has the writer now
            await self._threads.end(writer.abandon)
            raise

    async def begin_upload(self, size_bytes: int, digest: Digest) -> BlobWriter:
        """A writer for content that arrives among other content; the caller drives it in threads, then has it
        adopted or abandons it. Raises DiskFull when it cannot fit."""
        await self.require_room((Descriptor(media_type="", size_bytes=size_bytes, digest=digest),))
        return await self._address.ask(lambda reply: BeginUpload(size_bytes, digest, reply))

    async def adopt_upload(self, writer: BlobWriter) -> UploadedBlob:
        """Make the content of a finished writer visible, as `receive_blob` does."""
        return await self._address.ask(lambda reply: AdoptUpload(writer, reply))

    def holding(self, digests: Iterable[Digest]) -> AbstractContextManager[None]:
        """While the block runs nothing removes this content: neither removals nor collections, and whether it
        is there yet or comes meanwhile. For every pull, push and package, around all that it needs."""
        return self._pins.holding(digests)

    async def require_room(self, descriptors: Iterable[Descriptor]) -> None:
        """Raise DiskFull unless all of this that is not there yet fits onto the disk (S03)."""
        wanted = tuple(descriptors)
        await self._address.ask(lambda reply: RequireRoom(wanted, reply))

    async def begin_download(self, descriptor: Descriptor) -> StoredBlob | PartialBlob:
        """The content, when it lies there and is good; else a file to write it into, by ranges and resumable.

        What lies there and was never verified is read first. The caller drives a PartialBlob in threads, then
        has it adopted or closes it. Raises DiskFull when it cannot fit, Conflict while somebody downloads the
        same.
        """
        with self.holding((descriptor.digest,)):
            while True:
                begun = await self._begin(descriptor, is_repair=False)
                if begun is not None:
                    return begun
                await self._check(descriptor)

    async def begin_repair(self, descriptor: Descriptor) -> PartialBlob:
        """A file that will replace damaged content, with those pieces of it that are still good.

        When adopting it fails with ContentMismatch, a good piece was none: begin a download then, which
        fetches all of it. Raises like `begin_download`.
        """
        with self.holding((descriptor.digest,)):
            begun = await self._begin(descriptor, is_repair=True)
            assert isinstance(begun, PartialBlob)
            try:
                await self._address.ask(lambda reply: SeedDownload(begun, reply))
            except BaseException:
                await self._threads.end(begun.close)
                raise
        return begun

    async def adopt_download(self, download: PartialBlob) -> StoredBlob:
        """Verify what is complete, and make it visible.

        Raises ContentMismatch when it is not what its digest says, and nothing of it is left (S02). After any
        other error the next download of it goes on with what is there, or begins anew.
        """
        await self._threads.run(download.finish)
        return await self._address.ask(lambda reply: AdoptDownload(download, reply))

    async def hold_blobs(self, digests: tuple[Digest, ...]) -> tuple[StoredBlob, ...]:
        """Where this content lies; it stays there for as long as the caller is `holding` it.
        Raises BlobNotFound for the first one that is missing."""
        return await self._address.ask(lambda reply: HoldBlobs(digests, reply))

    def abandon_uploads(self, digests: Iterable[Digest]) -> None:
        """The package of this content was refused: what no model refers to goes with the next collection,
        unless it is uploaded or packaged again before."""
        self._address.tell(AbandonUploads(tuple(digests)))

    async def documents(self, name: ModelName) -> ModelDocuments:
        """Manifest and config as they were published, also of a model with damaged layers.
        Raises ModelNotFound, AmbiguousModel; StoreDamaged when the manifest itself cannot be read."""
        return await self._address.ask(lambda reply: ReadDocuments(name, reply))

    async def gc(self, *, prune_untagged: bool = False, dry_run: bool = False) -> GcReport:
        """Remove content that no model refers to and unfinished downloads, once they are 7 days old (S26).

        `prune_untagged`: models without a name go as well, unless somebody uses them, and leftovers of any
        age. What an upload, download or package in progress needs stays in any case. `dry_run` only tells.
        """
        report: GcReport = await self._address.ask(
            lambda reply: CollectGarbage(prune_untagged, dry_run, reply)
        )
        await self._forget_unwanted()
        return report

    async def df(self) -> DiskReport:
        """What takes how much room on the disk."""
        report = await self._address.ask(ReportDisk)
        if self._states is None:
            return report
        usage = self._states.usage
        return attrs.evolve(report, cache_states=usage.states, cache_bytes=usage.size_bytes)

    async def verify(
        self,
        names: Collection[ModelName] | None = None,
        *,
        on_progress: Callable[[VerifyProgress], None] = lambda progress: None,
    ) -> VerifyReport:
        """Read all content of these models again, or of all models, and tell what is wrong with it (S24).

        What was found wrong is not loaded any more, and the next pull or repair replaces it. `on_progress` is
        called in the caller's task, about ten times a second. Raises ModelNotFound, AmbiguousModel.
        """
        wanted = None if names is None else tuple(names)
        used = await self._content(wanted)
        total_bytes = sum(one.descriptor.size_bytes for one in used)
        done_bytes = 0
        findings: list[BlobFinding] = []
        for one in used:
            digest = str(one.descriptor.digest)

            def tell(checked_bytes: int, digest: str = digest, before_bytes: int = done_bytes) -> None:
                on_progress(
                    VerifyProgress(
                        digest=digest, done_bytes=before_bytes + checked_bytes, total_bytes=total_bytes
                    )
                )

            if await self._check(one.descriptor, tell) is not None:
                findings += await self._confirmed(one.descriptor)
            done_bytes += one.descriptor.size_bytes
        return VerifyReport(
            models=sum(one.descriptor.media_type == media_types.IMAGE_MANIFEST for one in used),
            blobs=len(used),
            size_bytes=total_bytes,
            findings=tuple(findings),
        )

    async def publish_verbatim(
        self,
        manifest: bytes,
        config: bytes,
        tag: Reference | None,
        *,
        origin: Reference | None = None,
    ) -> Model:
        """Make a model of layers that lie in the store, with these very bytes as its manifest and config.

        `tag` None: it is found by its digest alone, names that it has already stay, and `origin`, the
        digest reference that it was pulled by, is kept while it has none. Raises InvalidManifest,
        ContentMismatch when the config is another one, BlobNotFound for a layer that is missing, DiskFull.
        """
        return await self._address.ask(lambda reply: PublishVerbatim(manifest, config, tag, origin, reply))

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

    async def _forget_unwanted(self) -> None:
        if self._states is not None:
            await self._states.forget_unwanted()

    async def _content(self, names: tuple[ModelName, ...] | None) -> tuple[UsedContent, ...]:
        return await self._address.ask(lambda reply: ListContent(names, reply))

    async def _begin(self, descriptor: Descriptor, *, is_repair: bool) -> StoredBlob | PartialBlob | None:
        """What the store answers. It is waited for also when the caller is cancelled, since an open download
        that nobody took would keep everybody else from it."""
        with trio.CancelScope(shield=True):
            begun: StoredBlob | PartialBlob | None = await self._address.ask(
                lambda reply: BeginDownload(descriptor, is_repair, reply)
            )
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            if isinstance(begun, PartialBlob):
                await self._threads.end(begun.close)
            raise
        return begun

    async def _confirmed(self, descriptor: Descriptor) -> tuple[BlobFinding, ...]:
        """The finding, unless it was of content that was just being removed or replaced."""
        with self.holding((descriptor.digest,)):  # from the next answer on nothing removes it
            for used in await self._content(None):
                if used.descriptor.digest == descriptor.digest:
                    finding = await self._check(descriptor)
                    return () if finding is None else (attributed(finding, used.models),)
        return ()

    async def _check(
        self, descriptor: Descriptor, tell: Callable[[int], None] = lambda checked_bytes: None
    ) -> BlobFinding | None:
        """Read this content, so that the store knows afterwards whether it is good."""
        check: BlobCheck = await self._address.ask(lambda reply: BeginCheck(descriptor, reply))
        try:
            while await self._threads.run(check.step):
                tell(check.done_bytes)
            return check.finding
        finally:
            check.close()
