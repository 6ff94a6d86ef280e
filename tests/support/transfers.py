"""Sources of content that do what a test says, and stores to transfer into."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import attrs
import trio

from actors.puller import Network, PullerHandle, TransferFault
from actors.store_handle import StoreHandle
from actors.transfers_blob import BlobMeter, BlobTools, transfer_blob
from runner.domain.model import Model
from runner.domain.transfer import PullRequest, PushRequest, TransferProgress, TransferResult
from runner.errors import RangeRefused, RegistryUnavailable
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.oci.reference import ModelName, Reference
from runner.registry.abort import Abort
from runner.registry.huggingface import Hub
from runner.registry.rules import NetworkRules
from runner.registry.transfer import RangeRules
from runner.store.blobs import StoredBlob
from runner.store.disk import Disk
from tests.support.models import RunningStore, running_store
from tests.support.registry_client import open_door, registry_client

REGISTRY = "registry.example"
RULES = RangeRules(connections=4, piece_bytes_min=1000, piece_bytes_max=1000)


def descriptor_of(content: bytes, *, size_bytes: int | None = None) -> Descriptor:
    return Descriptor(
        media_type="application/octet-stream",
        size_bytes=len(content) if size_bytes is None else size_bytes,
        digest=Digest.of(content),
    )


@attrs.frozen
class Asked:
    """One request. `number` counts from 0; without `end` no range was asked for."""

    number: int
    start: int
    end: int | None


@attrs.define(eq=False)
class ScriptedSource:
    """Has one content. `answer` may raise, or return other bytes than those that were asked for; `gate`
    holds bodies back until it is set; bodies break off after `breaks_after` bytes, and may be asked for
    again at once; those that `stalls` says send nothing."""

    content: bytes
    answer: Callable[[Asked], bytes | None] = lambda asked: None
    registry: str = REGISTRY
    asked: list[Asked] = attrs.field(factory=list)
    gate: threading.Event = attrs.field(factory=threading.Event)
    breaks_after: int | None = None
    stalls: Callable[[Asked], bool] = lambda asked: False
    open_bodies: int = 0
    open_bodies_max: int = 0
    sent_bytes: int = 0
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        self.gate.set()

    def open(self, descriptor: Descriptor, *, start: int, end: int | None, abort: Abort) -> ScriptedBody:
        with self.lock:
            asked = Asked(len(self.asked), start, end)
            self.asked.append(asked)
        abort.raise_if_aborted()
        content = self.answer(asked)
        with self.lock:
            self.open_bodies += 1
            self.open_bodies_max = max(self.open_bodies_max, self.open_bodies)
        body = self.content[start:end] if content is None else content
        return ScriptedBody(self, body, abort, stalls=self.stalls(asked))

    def ranges(self) -> list[tuple[int, int | None]]:
        return [(asked.start, asked.end) for asked in self.asked]


@attrs.define(eq=False)
class ScriptedBody:
    source: ScriptedSource
    left: bytes
    abort: Abort
    stalls: bool
    sent_bytes: int = 0

    def readinto(self, buffer: memoryview) -> int:
        while self.stalls or not self.source.gate.is_set():
            self.abort.wait(0.005)
        self.abort.raise_if_aborted()
        limit = self.source.breaks_after
        if limit is not None and self.sent_bytes >= limit:
            raise RegistryUnavailable(self.source.registry, "it broke off", retry_after_s=0.0)
        piece = self.left[: min(len(buffer), 400 if limit is None else limit - self.sent_bytes)]
        buffer[: len(piece)] = piece
        self.left = self.left[len(piece) :]
        self.sent_bytes += len(piece)
        with self.source.lock:
            self.source.sent_bytes += len(piece)
        return len(piece)

    def close(self) -> None:
        with self.source.lock:
            self.source.open_bodies -= 1


def without_ranges(asked: Asked) -> None:
    """What a server does that knows no ranges."""
    if asked.end is not None:
        raise RangeRefused(REGISTRY, "it sends all of it")


def tools(*, connections: int = 12, rules: RangeRules = RULES) -> BlobTools:
    return BlobTools(
        connections=trio.CapacityLimiter(connections),
        disk=trio.CapacityLimiter(4),
        rules=rules,
        chance=lambda: 0.0,
    )


@attrs.define
class Downloads:
    """A store, and what is needed to transfer into it."""

    running: RunningStore
    root: Path
    tools: BlobTools = attrs.field(factory=tools)
    meter: BlobMeter = attrs.field(factory=lambda: BlobMeter(0))

    async def fetch(self, source: ScriptedSource, descriptor: Descriptor | None = None) -> StoredBlob:
        wanted = descriptor or descriptor_of(source.content)
        return await transfer_blob(wanted, source, self.running.store, self.tools, self.meter)

    def files(self) -> set[str]:
        """Names of all content in the store, finished or not."""
        blobs, partial = self.root / "blobs" / "sha256", self.root / "partial"
        return {path.name for path in (*blobs.iterdir(), *partial.iterdir())}


@contextlib.asynccontextmanager
async def downloads(
    root: Path, *, disk: Disk | None = None, within_s: float = 30.0
) -> AsyncIterator[Downloads]:
    """A real store; a block that takes longer fails."""
    with trio.fail_after(within_s):
        async with running_store(root, disk=disk) as running:
            yield Downloads(running, root)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what threads bring about; a test bounds it."""
    while not is_so():
        await trio.lowlevel.checkpoint()


# whole models


@attrs.define
class Pulls:
    """A store and a puller with a way to registries on loopback, and to a hub."""

    running: RunningStore
    root: Path
    published: list[Model]
    faults: list[TransferFault]

    @property
    def store(self) -> StoreHandle:
        return self.running.store

    @property
    def puller(self) -> PullerHandle:
        return self.running.puller

    async def pull(self, reference: Reference, **asked: object) -> TransferResult:
        """To the end, or its error."""
        return (await self.follow(PullRequest(reference=reference, **asked)))[0]

    async def follow(self, request: PullRequest) -> tuple[TransferResult, list[TransferProgress]]:
        """The result, and all that was told on the way."""
        async with self.puller.pull(request) as feed:
            told = [progress async for progress in feed]
            return feed.result(), told

    async def push(self, name: str, target: str | None = None, **asked: object) -> TransferResult:
        request = PushRequest(
            name=ModelName.parse(name), target=None if target is None else Reference.parse(target), **asked
        )
        async with self.puller.push(request) as feed:
            async for _ in feed:
                pass
            return feed.result()

    async def repair(self, name: str) -> TransferResult:
        async with self.puller.repair(ModelName.parse(name)) as feed:
            async for _ in feed:
                pass
            return feed.result()

    async def names(self) -> list[str]:
        """Names of all models, short ids of those without."""
        return sorted(model.name for model in await self.store.list())

    def files(self) -> set[str]:
        """Names of all content in the store, finished or not."""
        blobs, partial = self.root / "blobs" / "sha256", self.root / "partial"
        return {path.name for path in (*blobs.iterdir(), *partial.iterdir())}


@contextlib.asynccontextmanager
async def pulls(
    root: Path,
    *,
    rules: RangeRules = RULES,
    disk: Disk | None = None,
    hub_url: str = "http://127.0.0.1:1",
    private: frozenset[str] = frozenset(),
    within_s: float = 60.0,
    **network: int,
) -> AsyncIterator[Pulls]:
    """Store and puller, as the daemon starts them; a block that takes longer fails.

    `private` are hosts that the hub may send us to.
    """
    published: list[Model] = []
    faults: list[TransferFault] = []
    rules_out = NetworkRules(allowed_private=private)
    with trio.fail_after(within_s), registry_client() as client, open_door(rules_out) as door:
        way = Network(client=client, hub=Hub(door, endpoint=hub_url), rules=rules, **network)
        async with running_store(
            root,
            disk=disk,
            network=way,
            chance=lambda: 0.0,
            on_published=published.append,
            report=faults.append,
        ) as running:
            yield Pulls(running, root, published, faults)
    assert not faults, faults
