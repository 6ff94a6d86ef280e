"""Pulling from a registry: the name is resolved once, parts come side by side, then all becomes visible.

Order of S17: blobs, then manifest, then name. Imports the registry's client, the store's handle and the
transfers of parts. Models of hubs: `actors/transfers_hub.py`.
"""

from __future__ import annotations

from functools import partial

import attrs
import trio

from actors.store_handle import StoreHandle
from actors.transfers_blob import BlobBody
from actors.transfers_blobs import BlobTransfers
from actors.transfers_checks import check_model
from actors.transfers_fetching import Course, Fetching, Part, TransferTurns
from actors.transfers_threads import RemoteThreads
from runner.domain.model import Model
from runner.domain.transfer import PullRequest, RemoteCredentials, TransferPhase, TransferResult
from runner.errors import BadInput, BlobNotFound, ModelNotFound, StoreDamaged
from runner.oci.digest import Digest
from runner.oci.layers import kind_of_layer
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.model_config import CONFIG_BYTES_MAX
from runner.oci.reference import ModelName, Reference
from runner.registry.abort import Abort
from runner.registry.client import RegistryClient, RemoteManifest
from runner.store.disk import Disk


@attrs.frozen(kw_only=True)
class RegistrySource:
    """A repository that has a blob. The client and the credentials do not tell sources apart in errors, but
    other credentials are another source: they may see more."""

    client: RegistryClient = attrs.field(eq=False)
    reference: Reference
    given: RemoteCredentials | None = attrs.field(default=None, repr=False)

    @property
    def registry(self) -> str:
        return self.reference.registry

    def open(self, descriptor: Descriptor, *, start: int, end: int | None, abort: Abort) -> BlobBody:
        return self.client.open_blob(
            self.reference,
            descriptor.digest,
            descriptor.size_bytes,
            start=start,
            end=end,
            given=self.given,
            abort=abort,
        )


@attrs.frozen(kw_only=True)
class PullTools:
    """What all pulls share."""

    store: StoreHandle
    client: RegistryClient
    blobs: BlobTransfers
    threads: RemoteThreads
    turns: TransferTurns


async def pull(request: PullRequest, course: Course, tools: PullTools) -> tuple[Model, TransferResult]:
    """Bring the model that a reference means now into the store, under its tag if it has one.

    Nothing of it is visible before all of it is there; what has come stays to be resumed after any end.
    Raises RegistryError, DiskFull and StoreError, ContentMismatch, InvalidManifest, InvalidModelFile.
    """
    remote = await _resolve(request, course, tools)
    course.board.model_id = str(remote.digest)
    fetching = _fetching(request, remote, course, tools)
    config_descriptor = remote.manifest.config
    with tools.store.holding((*(each.digest for each in fetching.descriptors), config_descriptor.digest)):
        was_stored = await is_stored(remote.digest, tools.store)
        if was_stored:
            fetching.expect_all()
            await _fetch(fetching, course, tools)  # nothing, unless it is damaged: no reason to queue for
        else:
            async with tools.turns.turn(remote.digest, course):
                await _fetch(fetching, course, tools)
        config = await _config(config_descriptor, request, course, tools)
        if not was_stored or fetching.transferred_bytes:
            await _check(remote.manifest, config, fetching, course, tools)
        course.enter(TransferPhase.PUBLISHING)
        name = name_of(request.reference)
        origin = attrs.evolve(request.reference, digest=remote.digest) if name is None else None
        model = await tools.store.publish_verbatim(remote.content, config, name, origin=origin)
    return model, result_of(model, request.reference, fetching)


async def _resolve(request: PullRequest, course: Course, tools: PullTools) -> RemoteManifest:
    resolve = partial(tools.client.resolve, request.reference, given=request.given)
    return await tools.threads.ask(lambda abort: resolve(abort=abort), course.board.note)


def _fetching(request: PullRequest, remote: RemoteManifest, course: Course, tools: PullTools) -> Fetching:
    source = RegistrySource(client=tools.client, reference=request.reference, given=request.given)
    parts = (
        Part(descriptor=layer, kind=kind_of_layer(layer).value, title=layer.file_path(), source=source)
        for layer in remote.manifest.layers
    )
    return Fetching(parts, tools.blobs, course)


async def _fetch(fetching: Fetching, course: Course, tools: PullTools) -> None:
    await tools.store.require_room(fetching.descriptors)
    course.enter(TransferPhase.TRANSFERRING)
    await fetching.run()


async def _config(descriptor: Descriptor, request: PullRequest, course: Course, tools: PullTools) -> bytes:
    """From the store when it is there, else from the registry."""
    try:
        (blob,) = await tools.store.hold_blobs((descriptor.digest,))
    except BlobNotFound:
        pass
    else:
        content = await trio.to_thread.run_sync(partial(Disk().read, blob.path, limit_bytes=CONFIG_BYTES_MAX))
        if content is not None and Digest.of(content) == descriptor.digest:
            return content
    read = partial(
        tools.client.read_small, request.reference, descriptor, CONFIG_BYTES_MAX, given=request.given
    )
    return await tools.threads.ask(lambda abort: read(abort=abort), course.board.note)


async def _check(
    manifest: Manifest, config: bytes, fetching: Fetching, course: Course, tools: PullTools
) -> None:
    course.enter(TransferPhase.VERIFYING)
    try:
        await check_model(manifest, config, tools.store)
    except BadInput:
        tools.store.abandon_uploads(each.digest for each in fetching.descriptors)
        raise


async def is_stored(model_id: Digest, store: StoreHandle) -> bool:
    """Whether the store has this model, and knows of no damage."""
    try:
        await store.resolve(ModelName.of(model_id))
    except (ModelNotFound, StoreDamaged):
        return False
    return True


def name_of(reference: Reference) -> Reference | None:
    """The name that a pull gives: the tag that was asked for; none for a digest."""
    return reference.without_digest() if reference.tag is not None else None


def result_of(model: Model, reference: Reference, fetching: Fetching) -> TransferResult:
    return TransferResult(
        model_id=model.id,
        reference=str(reference),
        size_bytes=model.size_bytes,
        transferred_bytes=fetching.transferred_bytes,
        was_cached=fetching.transferred_bytes == 0,
    )
