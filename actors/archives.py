"""Models as files: one leaves the store as an archive, others come in from one.

No actor: whoever saves or loads drives it, and the store only holds, begins, adopts and publishes. Both ways
one piece of content is in memory at a time. What an archive consists of: `runner/store/archive.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Generator, Iterator
from functools import partial
from typing import BinaryIO, Final, Self

import trio

from actors.held_models import HeldModel, hold_model
from actors.store_handle import StoreHandle
from actors.transfers_checks import check_model
from runner.domain.model import Model
from runner.errors import InvalidArchive, StoreDamaged, StoreError, Unavailable
from runner.oci.digest import Digest
from runner.oci.reference import ModelName, Reference
from runner.store.archive import ArchivedModel, ArchiveIntake, ArchivePlan
from runner.store.blobs import BlobWriter
from runner.store.disk import Disk

CHUNK_BYTES: Final = 1 << 20  # one trip to a thread costs 0.3 ms, so small pieces travel together
ARCHIVE_BYTES_MAX: Final = 4 << 40  # the disk has less


# out of the store


class SavedArchive:
    """An archive that is read piece by piece; its model stays in the store until `close`.

    Not used by two tasks at once. A blob that has become shorter ends it with StoreDamaged; longer ones are
    cut, so that the archive stays one.
    """

    def __init__(self, held: HeldModel, plan: ArchivePlan) -> None:
        self.model = held.model
        self.size_bytes = plan.size_bytes
        self._held = held
        self._pieces = _reads(held, plan)
        self._limiter = trio.CapacityLimiter(1)

    @classmethod
    async def open(cls, store: StoreHandle, name: ModelName) -> Self:
        """Raises like `hold_model`, and InvalidArchive for a model that fits no archive."""
        held = await hold_model(store, name)
        try:
            return cls(held, ArchivePlan.of(held.manifest_bytes, held.manifest, _name_of(name, held.model)))
        except BaseException:
            held.release()
            raise

    async def next_chunk(self) -> bytes:
        """The next bytes, about CHUNK_BYTES of them; empty at the end."""
        return await trio.to_thread.run_sync(self._read, limiter=self._limiter)

    def close(self) -> None:
        """Give the model up; doing so again changes nothing. Does not wait. Not during `next_chunk`."""
        self._pieces.close()
        self._held.release()

    def _read(self) -> bytes:
        gathered = bytearray()
        for piece in self._pieces:
            gathered += piece
            if len(gathered) >= CHUNK_BYTES:
                break
        return bytes(gathered)


def _name_of(name: ModelName, model: Model) -> Reference | None:
    """What the model is called in its archive: as the asker calls it, else by its first name."""
    reference = name.reference
    if reference is not None and reference.tag is not None and reference.without_digest() in model.tags:
        return reference.without_digest()
    return model.tags[0] if model.tags else None


def _reads(held: HeldModel, plan: ArchivePlan) -> Generator[bytes, None, None]:
    for piece in plan.pieces:
        if piece.blob is None:
            yield piece.content
        else:
            yield from _blob(held, piece.blob, piece.size_bytes)


def _blob(held: HeldModel, digest: Digest, size_bytes: int) -> Iterator[bytes]:
    file: BinaryIO | None = Disk().open(held.blobs[digest].path)
    if file is None:
        raise StoreDamaged(f"{digest} is missing from the store")
    with file:
        left = size_bytes
        while left:
            try:
                content = file.read(min(left, CHUNK_BYTES))
            except OSError as error:
                raise StoreError(f"reading {digest} failed: {error.strerror}") from error
            if not content:
                raise StoreDamaged(f"{digest} in the store is shorter than its manifest says")
            left -= len(content)
            yield content


# into the store


async def load_archive(
    store: StoreHandle, chunks: AsyncIterable[bytes], *, name: Reference | None = None
) -> tuple[Model, ...]:
    """Store the models of an archive that arrives in `chunks`.

    A model gets the name that it has in the archive, or `name` when the archive holds one model only; without
    either it is found by its id. Every digest is verified, and nothing is visible before all of the archive
    has been checked. Raises InvalidArchive, UnsupportedModel, InvalidModelFile, ContentMismatch, DiskFull;
    then no model of it is there.
    """
    limiter = trio.CapacityLimiter(1)

    def begin(size_bytes: int, digest: Digest) -> BlobWriter:
        return trio.from_thread.run(store.begin_upload, size_bytes, digest)

    intake = ArchiveIntake(begin, ARCHIVE_BYTES_MAX)
    try:
        buffer = bytearray()
        async for chunk in chunks:
            buffer += chunk
            if len(buffer) >= CHUNK_BYTES:
                await trio.to_thread.run_sync(partial(intake.feed, buffer), limiter=limiter)
                buffer = bytearray()
        await trio.to_thread.run_sync(partial(intake.feed, buffer), limiter=limiter)
        models = await trio.to_thread.run_sync(partial(intake.finish, _content), limiter=limiter)
        if name is not None and len(models) > 1:
            raise InvalidArchive(f"the archive holds {len(models)} models, which cannot share one name")
        return await _publish(store, intake, models, name)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(intake.abandon, limiter=limiter)


async def _publish(
    store: StoreHandle, intake: ArchiveIntake, models: tuple[ArchivedModel, ...], name: Reference | None
) -> tuple[Model, ...]:
    """Adopt all content, check all models, and only then name the first one."""
    digests = {part.digest for model in models for part in model.manifest.descriptors()}
    with store.holding(digests):
        try:
            for digest in digests:
                await _adopt(store, intake, digest)
            for model in models:
                await check_model(model.manifest, model.config_bytes, store)
            return tuple(
                [
                    await store.publish_verbatim(model.manifest_bytes, model.config_bytes, name or model.name)
                    for model in models
                ]
            )
        except BaseException:
            store.abandon_uploads(digests)
            raise


async def _adopt(store: StoreHandle, intake: ArchiveIntake, digest: Digest) -> None:
    writer = intake.writers.pop(digest)  # it is the store's from here on, whatever becomes of us
    try:
        await store.adopt_upload(writer)
    except Unavailable:  # unless the store is not there
        intake.writers[digest] = writer
        raise


def _content(writer: BlobWriter) -> bytes:
    content = Disk().read(writer.path, limit_bytes=writer.size_bytes)
    if content is None:
        raise StoreError("a file that was just written is gone")
    return content
