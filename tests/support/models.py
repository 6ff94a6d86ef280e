"""Models for tests: a tiny GGUF, documents around it, and stores that hold them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import trio

from actors.actor import Address
from actors.leases import Pins
from actors.puller import PullerActor, PullerHandle
from actors.store import StoreActor
from actors.store_handle import StoreHandle
from actors.store_messages import StoreMessage, StoreNotice
from actors.transfers import TransferLedger
from runner.domain.model import Model
from runner.domain.settings import NOTHING, ModelSettings, write_settings
from runner.gguf.metadata import read_metadata
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.oci.reference import ModelName, Reference
from runner.store.changes import (
    carry_out,
    plan_configure,
    plan_publish_verbatim,
    plan_remove,
    plan_tag,
    plan_untag,
)
from runner.store.disk import Disk
from runner.store.opening import OpenStore, open_store
from runner.store.package import PackageLayer, PackageSpec
from runner.store.packaging import BuiltPackage, build
from tests.support.gguf_writer import Tensor, gguf_bytes, model_keys, text

NOW_S = 1_800_000_000.0
LICENSE = b"Do what you like.\n"


def tiny_gguf(name: str = "Little") -> bytes:
    """A sound GGUF of some kilobytes; another name gives another digest."""
    return gguf_bytes(model_keys({"general.name": text(name)}), [Tensor("token_embd.weight", (64, 4))])


def reference(text: str) -> Reference:
    return Reference.parse(text)


def name(text: str) -> ModelName:
    return ModelName.parse(text)


def spec_of(target: str, weights: bytes, *licenses: bytes, **changes: object) -> PackageSpec:
    """A spec for content that is, or will be, uploaded."""
    layers = [PackageLayer(kind="gguf", digest=Digest.of(weights), filename="model.gguf")]
    for index, content in enumerate(licenses):
        layers.append(PackageLayer(kind="license", digest=Digest.of(content), filename=f"LICENSE-{index}"))
    return attrs.evolve(PackageSpec(target=Reference.parse(target), layers=tuple(layers)), **changes)


def built(weights: bytes, *licenses: bytes, created_s: int = int(NOW_S)) -> BuiltPackage:
    """Config and layers of a model of these parts."""
    sizes_bytes = [len(content) for content in (weights, *licenses)]
    metadata = read_metadata(io.BytesIO(weights))
    return build(spec_of("any", weights, *licenses), sizes_bytes, metadata, created_s=created_s)


# stores without an actor


def put_blob(store: OpenStore, content: bytes) -> Digest:
    """What an upload does, in one piece."""
    return store.directory.blobs.put(content)


def publish(store: OpenStore, target: str | None, weights: bytes, *licenses: bytes) -> Digest:
    """What packaging does; returns the model's id."""
    for content in (weights, *licenses):
        put_blob(store, content)
    package = built(weights, *licenses)
    named = Reference.parse(target) if target is not None else None
    change = plan_publish_verbatim(store.catalog, package.manifest, package.config, named)
    carry_out(change, store.directory)
    store.catalog = change.catalog
    return change.model_id


def tag(store: OpenStore, source: str, target: str) -> None:
    change = plan_tag(store.catalog, name(source), reference(target))
    carry_out(change, store.directory)
    store.catalog = change.catalog


def untag(store: OpenStore, target: str) -> None:
    change = plan_untag(store.catalog, reference(target))
    carry_out(change, store.directory)
    store.catalog = change.catalog


def configure(store: OpenStore, target: str, *unset: str, **changes: object) -> None:
    change = plan_configure(store.catalog, name(target), ModelSettings(**changes), unset)
    carry_out(change, store.directory)
    store.catalog = change.catalog


def remove(store: OpenStore, target: str, *, force: bool = False) -> None:
    change = plan_remove(store.catalog, name(target), force=force, is_pinned=lambda model_id: False)
    carry_out(change, store.directory)
    store.catalog = change.catalog


@contextlib.contextmanager
def opened(root: Path, *, disk: Disk | None = None, now_s: float = NOW_S) -> Iterator[OpenStore]:
    with open_store(root, now_s=now_s, disk=disk) as store:
        yield store


def shown(store: OpenStore) -> dict[str, str]:
    """Every name with its model and settings, and untagged models; all of them are usable and complete."""
    assert not store.catalog.faults, store.catalog.faults
    found = {}
    for model in store.catalog.models():
        stored = store.catalog.usable(model.id)
        for part in stored.manifest.descriptors():
            check_content(store, part)
        what = " ".join([model.id.short(), *map(str, write_settings(model.settings).items())])
        for tagged in model.tags:
            found[tagged.familiar()] = what
        if not model.tags:
            found[f"<none> {model.id.short()}"] = what
    configured = {model.id.hex for model in store.catalog.models() if model.settings != NOTHING}
    assert {path.stem for path in store.directory.layout.settings.iterdir()} == configured
    return found


def check_content(store: OpenStore, part: Descriptor) -> None:
    with store.directory.blobs.open(part.digest) as file:
        content = file.read()
    assert Digest.of(content) == part.digest
    assert len(content) == part.size_bytes


# stores with their actors


@attrs.frozen(kw_only=True)
class RunningStore:
    """Handles to a store and a puller that run, and what the store had to say."""

    store: StoreHandle
    puller: PullerHandle
    address: Address[StoreMessage]
    pins: Pins
    notices: list[str]

    async def upload(self, *contents: bytes) -> None:
        for content in contents:
            await self.store.receive_blob(in_chunks(content))

    async def package(self, target: str, weights: bytes, *licenses: bytes, **changes: object) -> Model:
        """Upload and package."""
        await self.upload(weights, *licenses)
        return await self.puller.package(spec_of(target, weights, *licenses, **changes))


@contextlib.asynccontextmanager
async def running_store(
    root: Path, *, disk: Disk | None = None, now_s: Callable[[], float] = lambda: NOW_S, **puller: Any
) -> AsyncIterator[RunningStore]:
    """Store and puller, as the daemon starts them; both have ended afterwards. `puller` is what the puller
    is given beside them."""
    address: Address[StoreMessage] = Address("store")
    pins = Pins()
    notices: list[str] = []

    def report(notice: StoreNotice) -> None:
        notices.append(notice.message)

    store = StoreHandle(address, pins)
    puller_address = Address("puller")
    ledger = TransferLedger()
    async with trio.open_nursery() as nursery:
        await nursery.start(StoreActor(address, pins, root, disk=disk, now_s=now_s, report=report).run)
        await nursery.start(PullerActor(puller_address, store, now_s=now_s, ledger=ledger, **puller).run)
        yield RunningStore(
            store=store,
            puller=PullerHandle(puller_address, ledger),
            address=address,
            pins=pins,
            notices=notices,
        )
        nursery.cancel_scope.cancel()


async def in_chunks(content: bytes, size_bytes: int = 1000) -> AsyncIterator[bytes]:
    """The content as a request body brings it."""
    for start in range(0, len(content), size_bytes):
        await trio.lowlevel.checkpoint()
        yield content[start : start + size_bytes]
