"""Whole models from registries on loopback into a real store, and who waits for which."""

from __future__ import annotations

import itertools
import random
import threading

import pytest
import trio
import trio.testing

from actors.puller import Network
from runner.domain.transfer import PullRequest, TransferDirection, TransferPhase
from runner.errors import (
    ContentMismatch,
    DiskFull,
    Draining,
    InvalidManifest,
    InvalidModelFile,
    RegistryUnavailable,
    RemoteModelNotFound,
    RunnerError,
    Unavailable,
    UnsupportedArtifact,
)
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.reference import ModelName, Reference
from tests.support.cut_disk import CountingDisk, fail_at
from tests.support.models import built, running_store, tiny_gguf
from tests.support.registry_server import RegistryServer, error_reply
from tests.support.transfers import pulls, until

pytestmark = pytest.mark.anyio

WEIGHTS = tiny_gguf()
LICENSE = b"Do what you like.\n" * 300


@pytest.fixture
def server():
    with RegistryServer() as running:
        yield running


def add_model(
    server: RegistryServer, tag: str = "1", *, weights: bytes = WEIGHTS, licence: bytes = LICENSE
) -> Digest:
    """A model as packaging makes it; its id."""
    package = built(weights, licence)
    for content in (package.config, weights, licence):
        server.add_blob(content)
    manifest = Manifest.binding(package.config, package.layers, media_types.DOCKER_CONFIG_V01).encode()
    return server.add_manifest(manifest, media_types.IMAGE_MANIFEST, tag)


def blob_requests(server: RegistryServer, content: bytes) -> list[str]:
    """Ranges that were asked for of this content."""
    path = f"/v2/ai/tiny/blobs/{Digest.of(content)}"
    return [
        request.headers.get("range", "whole")
        for request in server.requests
        if request.path == path and request.method == "GET"
    ]


async def test_a_model_is_pulled_and_can_be_loaded(tmp_path, server):
    model_id = add_model(server)
    async with pulls(tmp_path / "store") as into:
        result, told = await into.follow(PullRequest(reference=server.reference()))
        assert result.model_id == model_id
        assert result.reference == str(server.reference())
        assert not result.was_cached
        assert result.transferred_bytes == len(WEIGHTS) + len(LICENSE)
        assert [str(model.id) for model in into.published] == [str(model_id)]
        assert await into.names() == [server.reference().familiar()]
        with await into.store.lease(model_id) as lease:
            assert lease.files.weights[0].read_bytes() == WEIGHTS
        assert told[-1].direction is TransferDirection.PULL


async def test_no_connection_is_kept_when_the_last_transfer_has_ended(tmp_path, server):
    add_model(server)
    rests = []
    async with pulls(tmp_path / "store", rest=lambda: rests.append("rest")) as into:
        await into.follow(PullRequest(reference=server.reference()))
        await trio.testing.wait_all_tasks_blocked()
        assert rests == ["rest"]


async def test_of_a_model_that_is_there_nothing_is_told_to_be_missing(tmp_path, server, monkeypatch):
    add_model(server)
    async with pulls(tmp_path / "store") as into:
        await into.pull(server.reference())
        monkeypatch.setattr("actors.transfers_pull.check_model", None)  # it has been looked at
        result, told = await into.follow(PullRequest(reference=server.reference()))
        assert result.was_cached
        assert all(progress.done_bytes == progress.total_bytes for progress in told)
        assert TransferPhase.TRANSFERRING not in {progress.phase for progress in told}


async def test_progress_counts_every_layer_to_its_end(tmp_path, server):
    add_model(server)
    async with pulls(tmp_path / "store") as into:
        _, told = await into.follow(PullRequest(reference=server.reference()))
        last = told[-1]
        assert last.phase in (TransferPhase.VERIFYING, TransferPhase.PUBLISHING)
        assert last.total_bytes == last.done_bytes == len(WEIGHTS) + len(LICENSE)
        assert [(layer.kind, layer.title, layer.size_bytes) for layer in last.layers] == [
            ("gguf", "model.gguf", len(WEIGHTS)),
            ("license", "LICENSE-0", len(LICENSE)),
        ]
        for earlier, later in itertools.pairwise(told):
            assert earlier.done_bytes <= later.done_bytes


async def test_a_model_that_is_there_costs_only_its_manifest(tmp_path, server):
    add_model(server)
    async with pulls(tmp_path / "store") as into:
        await into.pull(server.reference())
        server.requests.clear()
        result = await into.pull(server.reference())
        assert result.was_cached
        assert result.transferred_bytes == 0
        assert len(server.requests) == 1


async def test_another_name_of_a_model_that_is_there_is_added(tmp_path, server):
    add_model(server, "1")
    add_model(server, "2")
    async with pulls(tmp_path / "store") as into:
        await into.pull(server.reference("ai/tiny:1"))
        assert (await into.pull(server.reference("ai/tiny:2"))).was_cached
        (model,) = await into.store.list()
        assert [tag.tag for tag in model.tags] == ["1", "2"]


async def test_a_pull_by_digest_invents_no_tag(tmp_path, server):
    model_id = add_model(server)
    async with pulls(tmp_path / "store") as into:
        by_digest = Reference.parse(f"{server.netloc}/ai/tiny@{model_id}")
        await into.pull(by_digest)
        assert await into.names() == [model_id.short()]
        assert (await into.store.resolve(ModelName.of(by_digest))).id == model_id


async def test_a_tag_and_a_digest_must_agree(tmp_path, server):
    model_id = add_model(server, "1")
    add_model(server, "2", weights=tiny_gguf("Other"))
    async with pulls(tmp_path / "store") as into:
        both = Reference.parse(f"{server.netloc}/ai/tiny:1@{model_id}")
        assert (await into.pull(both)).model_id == model_id
        assert await into.names() == [both.without_digest().familiar()]
        with pytest.raises(ContentMismatch, match="means"):
            await into.pull(Reference.parse(f"{server.netloc}/ai/tiny:2@{model_id}"))


# refusals before any layer


async def test_a_model_that_is_not_there_is_told(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        with pytest.raises(RemoteModelNotFound):
            await into.pull(server.reference())
        assert into.puller.status() == ()


async def test_what_is_no_model_is_refused_before_any_layer(tmp_path, server):
    config = b"{}"
    server.add_blob(config)
    layers = (Descriptor.of(WEIGHTS, "application/vnd.oci.image.layer.v1.tar"),)
    manifest = Manifest.binding(config, layers, "application/vnd.oci.image.config.v1+json")
    server.add_manifest(manifest.encode(), media_types.IMAGE_MANIFEST, "1")
    async with pulls(tmp_path / "store") as into:
        with pytest.raises(UnsupportedArtifact):
            await into.pull(server.reference())
        assert len(server.requests) == 1


async def test_S03_more_than_the_disk_holds_is_refused_before_any_layer(tmp_path, server):
    config = built(WEIGHTS).config
    server.add_blob(config)
    huge = Descriptor(media_type=media_types.GGUF, size_bytes=1 << 50, digest=Digest.of(WEIGHTS))
    manifest = Manifest.binding(config, (huge,), media_types.DOCKER_CONFIG_V01)
    server.add_manifest(manifest.encode(), media_types.IMAGE_MANIFEST, "1")
    async with pulls(tmp_path / "store") as into:
        with pytest.raises(DiskFull):
            await into.pull(server.reference())
        assert not blob_requests(server, WEIGHTS)


async def test_S03_too_many_layers_are_refused_before_any_layer(tmp_path, server):
    config = built(WEIGHTS).config
    layers = (Descriptor.of(WEIGHTS, media_types.GGUF),) * 1025
    manifest = Manifest(config=Descriptor.of(config, media_types.DOCKER_CONFIG_V01), layers=layers).encode()
    server.add_manifest(manifest, media_types.IMAGE_MANIFEST, "1")
    async with pulls(tmp_path / "store") as into:
        with pytest.raises(InvalidManifest):
            await into.pull(server.reference())
        assert not blob_requests(server, WEIGHTS)


# refusals after it


async def test_G02_weights_that_must_not_be_loaded_make_no_model(tmp_path, server):
    add_model(server)
    broken = WEIGHTS[:40] + bytes(len(WEIGHTS) - 40)
    package = built(WEIGHTS)
    server.add_blob(broken)
    server.add_blob(package.config)
    layer = Descriptor.of(broken, media_types.GGUF)
    manifest = Manifest.binding(package.config, (layer,), media_types.DOCKER_CONFIG_V01)
    server.add_manifest(manifest.encode(), media_types.IMAGE_MANIFEST, "broken")
    async with pulls(tmp_path / "store") as into:
        with pytest.raises(InvalidModelFile):
            await into.pull(server.reference("ai/tiny:broken"))
        assert await into.names() == []


async def test_S02_a_layer_with_wrong_bytes_leaves_nothing_visible(tmp_path, server):
    add_model(server)
    digest = str(Digest.of(WEIGHTS))
    server.blobs[digest] = bytes(len(WEIGHTS))
    async with pulls(tmp_path / "store") as into:
        before = into.files()
        with pytest.raises(ContentMismatch) as caught:
            await into.pull(server.reference())
        assert digest in str(caught.value)
        assert server.netloc in str(caught.value)
        assert await into.names() == []
        assert into.files() - before <= {
            Digest.of(LICENSE).hex,
            f"{Digest.of(LICENSE).hex}.part",
            f"{Digest.of(LICENSE).hex}.journal",
        }
        server.blobs[digest] = WEIGHTS
        assert not (await into.pull(server.reference())).was_cached


async def test_S23_a_full_disk_fails_one_pull_and_the_same_pull_succeeds_afterwards(tmp_path, server):
    add_model(server)
    disk = CountingDisk()
    async with pulls(tmp_path / "store", disk=disk) as into:
        disk.arm(fail_at(lambda number, operation: operation.startswith("write") and number > 5, 28))
        with pytest.raises(DiskFull):
            await into.pull(server.reference())
        assert await into.names() == []
        disk.arm(lambda number, operation: None)
        await into.pull(server.reference())
        assert await into.names() == [server.reference().familiar()]


async def test_S06_a_registry_that_keeps_failing_ends_the_pull_with_its_reason(tmp_path, server):
    add_model(server)
    server.before = lambda request: error_reply(503, "UNAVAILABLE", ("Retry-After", "0"))
    async with pulls(tmp_path / "store") as into:
        with pytest.raises(RegistryUnavailable, match="503"):
            await into.pull(server.reference())
        assert len(server.requests) == 5


# sharing


async def test_S21_twenty_pulls_of_one_model_download_it_once(tmp_path, server):
    model_id = add_model(server)
    async with pulls(tmp_path / "store") as into:
        results = []

        async def pull():
            results.append(await into.pull(server.reference()))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(pull)
        assert {result.model_id for result in results} == {model_id}
        asked = blob_requests(server, LICENSE)
        assert len(asked) == len(set(asked))


class Hold:
    """Holds back answers to requests for one content until it is let go."""

    def __init__(self, server: RegistryServer, content: bytes) -> None:
        self.gate = threading.Event()
        self.is_reached = threading.Event()
        digest = str(Digest.of(content))

        def before(request):
            if request.path.endswith(digest) and not self.gate.is_set():
                self.is_reached.set()
                self.gate.wait(30)

        server.before = before


async def test_S21_two_models_with_a_layer_in_common_download_it_once(tmp_path, server):
    add_model(server, "1")
    add_model(server, "2", weights=tiny_gguf("Other"))
    async with pulls(tmp_path / "store") as into:
        hold = Hold(server, LICENSE)
        async with trio.open_nursery() as nursery:
            for tag in ("1", "2"):
                nursery.start_soon(into.pull, server.reference(f"ai/tiny:{tag}"))
            await until(lambda: hold.is_reached.is_set() and len(into.puller.status()) == 2)
            hold.gate.set()
        asked = blob_requests(server, LICENSE)
        assert len(asked) == len(set(asked))
        assert len(await into.names()) == 2


async def test_L09_a_daemon_that_ends_ends_its_transfers_where_they_are_and_begins_none(tmp_path, server):
    add_model(server)
    async with pulls(tmp_path / "store") as into:
        hold = Hold(server, WEIGHTS)
        errors = []

        async def wait():
            try:
                await into.pull(server.reference())
            except Draining as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await until(hold.is_reached.is_set)
            into.puller.end_transfers()
            await until(lambda: len(errors) == 2)
            hold.gate.set()
        with pytest.raises(Draining):
            await into.pull(server.reference())
        assert await into.names() == []
        assert into.puller.status() == ()


async def test_S21_when_the_first_caller_leaves_the_others_get_the_model(tmp_path, server):
    add_model(server)
    async with pulls(tmp_path / "store") as into:
        hold = Hold(server, WEIGHTS)
        first = trio.CancelScope()

        async def leave():
            with first:
                await into.pull(server.reference())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            await until(hold.is_reached.is_set)
            for _ in range(3):
                nursery.start_soon(into.pull, server.reference())
            await until(lambda: [status.waiters for status in into.puller.status()] == [4])
            first.cancel()
            await until(lambda: [status.waiters for status in into.puller.status()] == [3])
            hold.gate.set()
        assert await into.names() == [server.reference().familiar()]
        assert len(set(blob_requests(server, WEIGHTS))) == len(blob_requests(server, WEIGHTS))


async def test_when_all_have_left_the_pull_ends_and_the_next_one_resumes(tmp_path, server):
    weights = tiny_gguf() + random.Random(3).randbytes(20_000)
    add_model(server, weights=weights)
    async with pulls(tmp_path / "store") as into:
        hold = Hold(server, LICENSE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(into.pull, server.reference())
            await until(hold.is_reached.is_set)
            await until(lambda: into.puller.status()[0].progress.done_bytes >= len(weights))
            nursery.cancel_scope.cancel()
        await until(lambda: into.puller.status() == ())
        assert await into.names() == []
        hold.gate.set()
        server.requests.clear()
        assert (await into.pull(server.reference())).transferred_bytes == len(LICENSE)


async def test_no_more_pulls_run_than_may_and_the_others_see_their_place(tmp_path, server):
    for number in range(4):
        add_model(server, str(number), weights=tiny_gguf(f"Model {number}"))
    async with pulls(tmp_path / "store") as into:
        hold = Hold(server, LICENSE)
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(into.pull, server.reference(f"ai/tiny:{number}"))
            await until(lambda: _positions(into) == [None, None, 1, 2])
            queued = [s.progress for s in into.puller.status() if s.progress.queue_position]
            assert [progress.phase for progress in queued] == [TransferPhase.QUEUED] * 2
            assert all(progress.total_bytes for progress in queued)
            hold.gate.set()
        assert len(await into.names()) == 4


def _positions(into):
    """Places in the queue, sorted, those that run first."""
    status = into.puller.status()
    if any(each.progress.phase is TransferPhase.RESOLVING for each in status):
        return None
    return sorted((each.progress.queue_position for each in status), key=lambda place: place or 0)


async def test_a_feed_tells_only_the_newest(tmp_path, server):
    add_model(server)
    async with pulls(tmp_path / "store") as into:
        hold = Hold(server, WEIGHTS)
        async with into.puller.pull(PullRequest(reference=server.reference())) as feed:
            await until(hold.is_reached.is_set)
            await until(lambda: into.puller.status()[0].progress.done_bytes == len(LICENSE))
            assert (await anext(feed)).done_bytes == len(LICENSE)
            hold.gate.set()
            async for _ in feed:
                pass
            assert feed.result().size_bytes


class BrokenClient:
    """Fails in a way that nobody foresaw."""

    def resolve(self, *_args: object, **_more: object) -> None:
        raise ValueError("a fault of ours")


async def test_a_fault_of_ours_fails_one_transfer_and_is_reported(tmp_path, server):
    faults = []
    network = Network(client=BrokenClient(), hub=None)
    with trio.fail_after(30):
        async with running_store(tmp_path / "store", network=network, report=faults.append) as running:
            for _ in range(2):
                async with running.puller.pull(PullRequest(reference=server.reference())) as feed:
                    async for _ in feed:
                        pass
                    with pytest.raises(RunnerError, match="fault of ours"):
                        feed.result()
    assert [repr(fault.error) for fault in faults] == ["ValueError('a fault of ours')"] * 2


async def test_transfers_that_end_with_the_puller_are_answered(tmp_path, server):
    add_model(server)
    hold = Hold(server, WEIGHTS)
    ended = []

    async def pull(into):
        async with into.puller.pull(PullRequest(reference=server.reference())) as feed:
            async for _ in feed:
                pass
            with pytest.raises(Unavailable) as caught:
                feed.result()
            ended.append(caught.value)

    async with trio.open_nursery() as nursery:
        async with pulls(tmp_path / "store") as into:
            nursery.start_soon(pull, into)
            await until(hold.is_reached.is_set)
    hold.gate.set()
    assert len(ended) == 1


async def test_without_a_network_there_are_no_transfers(tmp_path, server):
    async with running_store(tmp_path / "store") as running:
        with pytest.raises(Unavailable):
            async with running.puller.pull(PullRequest(reference=server.reference())):
                pytest.fail("nobody should get here")
