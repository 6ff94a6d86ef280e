"""Pulling from a hub: files of one commit become the parts of a package that is built here.

Imports the hub, the transfers of parts and packaging. Which files make a model is decided in
`runner/registry/hub_selection.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from functools import partial

import attrs
import trio

from actors.puller_packaging import Packaging
from actors.store_handle import StoreHandle
from actors.transfers_blob import BlobBody
from actors.transfers_blobs import BlobTransfers
from actors.transfers_fetching import Course, Fetching, Part, TransferTurns
from actors.transfers_pull import result_of
from actors.transfers_threads import RemoteThreads
from runner.domain.model import Model
from runner.domain.transfer import PullRequest, TransferPhase, TransferResult
from runner.errors import InvalidManifest, RemoteModelNotFound
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.registry.abort import Abort
from runner.registry.hub_selection import HubFile
from runner.registry.huggingface import HUB_REGISTRY, Hub, HubSelection
from runner.store.package import PackageLayer, PackageSpec

FILE_TYPE = "application/octet-stream"


@attrs.frozen(kw_only=True)
class HubSource:
    """A file of a commit."""

    hub: Hub = attrs.field(eq=False)
    selection: HubSelection
    file: HubFile

    @property
    def registry(self) -> str:
        return HUB_REGISTRY

    def open(self, descriptor: Descriptor, *, start: int, end: int | None, abort: Abort) -> BlobBody:
        return self.hub.open_file(self.selection, self.file, start=start, end=end, abort=abort)


@attrs.frozen(kw_only=True)
class HubTools:
    """What all pulls from the hub share."""

    store: StoreHandle
    hub: Hub
    blobs: BlobTransfers
    threads: RemoteThreads
    turns: TransferTurns
    packaging: Packaging


async def pull_from_hub(
    request: PullRequest, course: Course, tools: HubTools
) -> tuple[Model, TransferResult]:
    """Bring a quantisation of a repository, as it is at this moment, into the store under its reference.

    Large files are fetched like the parts of any model; small ones, of which a hub publishes no digest, are
    read first. Raises like `transfers_pull.pull`.
    """
    selection = await _resolve(request, course, tools)
    for note in selection.notes:
        course.board.note(note)
    small = await _read_small_files(selection, course, tools)
    fetching = Fetching(_parts(selection, tools), tools.blobs, course)
    digests = {
        file.path: small[file.path] if file.path in small else _digest(file) for file in selection.files
    }
    with tools.store.holding(digests.values()):
        async with tools.turns.turn((selection.revision, str(selection.reference)), course):
            await tools.store.require_room(fetching.descriptors)
            course.enter(TransferPhase.TRANSFERRING)
            await fetching.run()
        course.enter(TransferPhase.PUBLISHING)
        model = await tools.packaging.package(_spec(selection, digests))
    return model, result_of(model, request.reference, fetching)


async def hub_parts(
    wanted: Collection[Descriptor], request: PullRequest, commit: str | None, course: Course, tools: HubTools
) -> list[Part]:
    """Where the hub has this content, at the commit it came from as far as that is known.

    Raises RemoteModelNotFound when the hub has other files there.
    """
    parts = _parts(await _resolve(request, course, tools, commit), tools)
    digests = {each.digest for each in wanted}
    found = [part for part in parts if part.descriptor.digest in digests]
    if len({part.descriptor.digest for part in found}) < len(digests):
        raise RemoteModelNotFound(HUB_REGISTRY, f"{request.reference.familiar()} is another model there now")
    return found


async def _resolve(
    request: PullRequest, course: Course, tools: HubTools, commit: str | None = None
) -> HubSelection:
    resolve = partial(
        tools.hub.resolve,
        request.reference,
        source_text=request.source_text,
        commit=commit,
        given=request.given,
    )
    return await tools.threads.ask(lambda abort: resolve(abort=abort), course.board.note)


async def _read_small_files(selection: HubSelection, course: Course, tools: HubTools) -> dict[str, Digest]:
    """Files without a published digest, into the store; their digests by path."""
    found = {}
    for file in selection.files:
        if file.sha256 is None:
            content = await tools.threads.ask(_reading(selection, file, tools.hub), course.board.note)
            uploaded = await tools.store.receive_blob(_in_one(content), size_bytes=len(content))
            found[file.path] = Digest.parse(uploaded.digest)
    return found


def _reading(selection: HubSelection, file: HubFile, hub: Hub) -> Callable[[Abort], bytes]:
    return lambda abort: hub.read_file(selection, file, abort=abort)


async def _in_one(content: bytes) -> AsyncIterator[bytes]:
    await trio.lowlevel.checkpoint()
    yield content


def _parts(selection: HubSelection, tools: HubTools) -> list[Part]:
    return [
        Part(
            descriptor=Descriptor(media_type=FILE_TYPE, size_bytes=file.size_bytes, digest=_digest(file)),
            kind=file.kind,
            title=file.name,
            source=HubSource(hub=tools.hub, selection=selection, file=file),
        )
        for file in selection.files
        if file.sha256 is not None
    ]


def _digest(file: HubFile) -> Digest:
    if file.sha256 is None:
        raise InvalidManifest(f"the hub publishes no digest of {file.path!r:.80}")
    return file.sha256


def _spec(selection: HubSelection, digests: dict[str, Digest]) -> PackageSpec:
    """The package of these files; created when the commit was, so that the same commit is the same model."""
    return PackageSpec(
        target=selection.reference,
        layers=tuple(
            PackageLayer(kind=file.kind, digest=digests[file.path], filename=file.name)
            for file in selection.files
        ),
        labels=selection.annotations(),
        created_s=selection.created_s,
    )
