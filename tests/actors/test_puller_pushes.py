"""Models from a real store to registries on loopback."""

from __future__ import annotations

import random
import threading

import pytest
import trio

from runner.domain.transfer import PushRequest, TransferDirection, TransferPhase
from runner.errors import (
    ContentMismatch,
    InvalidParameter,
    ModelNotFound,
    RegistryDenied,
    RegistryUnavailable,
    StoreDamaged,
)
from runner.oci.digest import Digest
from runner.oci.manifest import Manifest
from runner.oci.reference import ModelName, Reference
from tests.support.models import tiny_gguf
from tests.support.registry_server import RegistryServer, error_reply
from tests.support.transfers import Pulls, pulls, until

pytestmark = pytest.mark.anyio

WEIGHTS = tiny_gguf()
LICENSE = b"Do what you like.\n"


@pytest.fixture
def server():
    with RegistryServer() as running:
        yield running


def sent(server: RegistryServer) -> list[str]:
    """Digests of content that was uploaded, and `manifest`, in the order in which they were completed."""
    found = []
    for request in server.requests:
        if request.method == "PUT":
            found.append(request.query.get("digest", "manifest"))
    return found


async def package(into: Pulls, name: str = "tiny:1", weights: bytes = WEIGHTS) -> Digest:
    return (await into.running.package(name, weights, LICENSE)).id


async def test_a_model_is_pushed_as_it_is_and_its_manifest_comes_last(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        model_id = await package(into)
        result = await into.push("tiny:1", f"{server.netloc}/ai/tiny:1")
        content, _ = server.manifests["ai/tiny", "1"]
        assert Digest.of(content) == model_id == result.model_id
        parts = {str(part.digest) for part in Manifest.parse(content).descriptors()}
        assert set(server.blobs) == parts
        assert sent(server)[-1] == "manifest"
        assert set(sent(server)[:-1]) == parts
        assert result.transferred_bytes == sum(map(len, server.blobs.values()))
        assert result.reference == f"{server.netloc}/ai/tiny:1"


async def test_what_was_pushed_is_pulled_with_the_same_digest(tmp_path, server):
    async with pulls(tmp_path / "one") as into:
        model_id = await package(into)
        await into.push("tiny:1", f"{server.netloc}/ai/tiny:1")
    async with pulls(tmp_path / "two") as into:
        assert (await into.pull(server.reference("ai/tiny:1"))).model_id == model_id


async def test_what_was_pushed_leaves_nothing_behind_when_it_is_removed(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        await package(into)
        await into.push("tiny:1", f"{server.netloc}/ai/tiny:1")
        await into.store.remove(ModelName.parse("tiny:1"))
        assert into.files() == set()


async def test_a_model_is_pushed_under_the_name_it_is_asked_for_by(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        await package(into, f"{server.netloc}/ai/tiny:1")
        await into.push(f"{server.netloc}/ai/tiny:1")
        assert ("ai/tiny", "1") in server.manifests


async def test_content_that_is_there_is_not_sent_again(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        await package(into)
        await into.push("tiny:1", f"{server.netloc}/ai/tiny:1")
        server.requests.clear()
        result = await into.push("tiny:1", f"{server.netloc}/ai/tiny:2")
        assert result.was_cached
        assert sent(server) == ["manifest"]


async def test_content_of_another_repository_is_mounted(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        await package(into, f"{server.netloc}/ai/tiny:1")
        await into.push(f"{server.netloc}/ai/tiny:1")
        server.requests.clear()
        result = await into.push(f"{server.netloc}/ai/tiny:1", f"{server.netloc}/team/other:1")
        assert result.transferred_bytes == 0
        assert sent(server) == ["manifest"]


async def test_content_of_the_repository_that_a_model_came_from_is_mounted(tmp_path, server):
    async with pulls(tmp_path / "one") as into:
        model_id = await package(into)
        await into.push("tiny:1", f"{server.netloc}/ai/tiny:1")
    async with pulls(tmp_path / "two") as into:
        await into.pull(Reference.parse(f"{server.netloc}/ai/tiny@{model_id}"))
        result = await into.push(str(model_id), f"{server.netloc}/team/other:1")
        assert result.transferred_bytes == 0


async def test_S12_only_what_the_manifest_reaches_is_sent(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        await package(into)
        await package(into, "other:1", tiny_gguf("Other"))
        await into.push("tiny:1", f"{server.netloc}/ai/tiny:1")
        assert str(Digest.of(tiny_gguf("Other"))) not in server.blobs


async def test_progress_counts_layers_and_config(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        await package(into)
        request = PushRequest(
            name=ModelName.parse("tiny:1"), target=Reference.parse(f"{server.netloc}/ai/tiny:1")
        )
        async with into.puller.push(request) as feed:
            told = [progress async for progress in feed]
        assert told[-1].direction is TransferDirection.PUSH
        assert told[-1].phase is TransferPhase.PUBLISHING
        assert [layer.kind for layer in told[-1].layers] == ["gguf", "license", "config"]
        assert told[-1].done_bytes == told[-1].total_bytes


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("{id}", None),
        ("{short}", None),
        ("tiny:1", "hf.co/org/repo:Q4_0"),
        ("tiny:1", "r.example/tiny@sha256:" + "0" * 64),
    ],
)
async def test_a_push_to_nowhere_is_refused(tmp_path, name, target):
    async with pulls(tmp_path / "store") as into:
        model_id = await package(into)
        with pytest.raises(InvalidParameter, match="target"):
            await into.push(name.format(id=model_id, short=model_id.short()), target)


async def test_a_model_that_is_not_in_the_store_is_told(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        with pytest.raises(ModelNotFound):
            await into.push("nothing", f"{server.netloc}/ai/tiny:1")


async def test_a_refusal_leaves_no_manifest(tmp_path, server):
    server.before = lambda request: error_reply(403, "DENIED") if request.method == "POST" else None
    async with pulls(tmp_path / "store") as into:
        await package(into)
        with pytest.raises(RegistryDenied):
            await into.push("tiny:1", f"{server.netloc}/ai/tiny:1")
        assert not server.manifests


async def test_S24_damaged_content_is_not_published(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        model_id = await package(into)
        (blob,) = await into.store.hold_blobs((Digest.of(WEIGHTS),))
        blob.path.chmod(0o600)
        blob.path.write_bytes(bytes(len(WEIGHTS)))
        with pytest.raises((ContentMismatch, StoreDamaged)):
            await into.push("tiny:1", f"{server.netloc}/ai/tiny:1")
        assert not server.manifests
        (blob,) = await into.store.hold_blobs((model_id,))
        blob.path.chmod(0o600)
        blob.path.write_bytes(b"{}")
        with pytest.raises(StoreDamaged):
            await into.push("tiny:1", f"{server.netloc}/ai/tiny:1")


async def test_an_upload_that_breaks_is_sent_again_in_pieces(tmp_path, server):
    broken = []

    def before(request):
        if request.method == "PUT" and "digest" in request.query and not broken:
            broken.append(request)
            return error_reply(503, "UNAVAILABLE", ("Retry-After", "0"))
        return None

    server.before = before
    weights = WEIGHTS + random.Random(4).randbytes(100_000)
    async with pulls(tmp_path / "store") as into:
        await package(into, weights=weights)
        await into.push("tiny:1", f"{server.netloc}/ai/tiny:1")
        assert broken
        assert any(request.method == "PATCH" for request in server.requests)
        assert server.blobs[str(Digest.of(weights))] == weights


async def test_S06_a_registry_that_takes_nothing_ends_the_push(tmp_path, server):
    def before(request):
        failing = request.method in ("PUT", "PATCH")
        return error_reply(503, "UNAVAILABLE", ("Retry-After", "0")) if failing else None

    server.before = before
    async with pulls(tmp_path / "store") as into:
        await package(into)
        with pytest.raises(RegistryUnavailable):
            await into.push("tiny:1", f"{server.netloc}/ai/tiny:1")


async def test_a_cancelled_push_ends_and_publishes_nothing(tmp_path, server):
    gate, is_reached = threading.Event(), threading.Event()

    def before(request):
        if request.method == "PUT":
            is_reached.set()
            gate.wait(30)

    server.before = before
    async with pulls(tmp_path / "store") as into:
        await package(into)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(into.push, "tiny:1", f"{server.netloc}/ai/tiny:1")
            await until(is_reached.is_set)
            nursery.cancel_scope.cancel()
        await until(lambda: into.puller.status() == ())
        gate.set()
        assert not server.manifests


async def test_a_model_cannot_be_removed_while_it_is_pushed(tmp_path, server):
    gate, is_reached = threading.Event(), threading.Event()

    def before(request):
        if request.method == "PUT":
            is_reached.set()
            gate.wait(30)

    server.before = before
    async with pulls(tmp_path / "store") as into:
        await package(into)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(into.push, "tiny:1", f"{server.netloc}/ai/tiny:1")
            await until(is_reached.is_set)
            await into.store.remove(ModelName.parse("tiny:1"))
            gate.set()
        assert server.blobs[str(Digest.of(WEIGHTS))] == WEIGHTS
