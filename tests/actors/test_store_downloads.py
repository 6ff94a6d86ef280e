"""Downloads through the store's handle: begun, adopted, published as they came, repaired."""

from __future__ import annotations

import random

import pytest
import trio

from runner.errors import BlobNotFound, Conflict, ContentMismatch, DiskFull, StoreDamaged, Unavailable
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor, Manifest
from runner.store.blobs import StoredBlob
from runner.store.disk import Disk
from runner.store.partials import PartialBlob
from runner.store.pieces import PIECE_BYTES
from tests.support import models
from tests.support.cut_disk import BlockingDisk
from tests.support.models import name, reference, running_store

pytestmark = pytest.mark.anyio

WEIGHTS = models.tiny_gguf()
LAYER = Descriptor.of(WEIGHTS, media_types.GGUF)
LARGE = random.Random(7).randbytes(3 * PIECE_BYTES + 17)
LARGE_LAYER = Descriptor.of(LARGE, media_types.GGUF)


def documents(*contents: bytes) -> tuple[bytes, bytes]:
    """Config and manifest as a registry has them: not in the form that we would write."""
    package = models.built(*contents)
    manifest = Manifest.binding(package.config, package.layers, media_types.DOCKER_CONFIG_V01).encode()
    return package.config, manifest.replace(b'{"', b'{ "', 1)


async def download(store, content: bytes, descriptor: Descriptor) -> StoredBlob:
    partial = await store.begin_download(descriptor)
    assert isinstance(partial, PartialBlob)
    for start, end in partial.missing():
        partial.write_at(start, content[start:end])
    return await store.adopt_download(partial)


async def test_what_was_downloaded_is_published_with_the_very_bytes_of_its_documents(tmp_path):
    config, manifest = documents(WEIGHTS, models.LICENSE)
    async with running_store(tmp_path / "store") as running:
        store = running.store
        with pytest.raises(BlobNotFound):
            await store.publish_verbatim(manifest, config, reference("a:1"))
        await download(store, WEIGHTS, LAYER)
        await download(store, models.LICENSE, Descriptor.of(models.LICENSE, media_types.LICENSE))
        untagged = await store.publish_verbatim(manifest, config, None)
        assert (untagged.id, untagged.tags) == (Digest.of(manifest), ())
        model = await store.publish_verbatim(manifest, config, reference("a:1"))
        assert (model.id, model.name) == (Digest.of(manifest), "ai/a:1")
        assert await store.publish_verbatim(manifest, config, None) == model
        assert await store.list() == (model,)
        assert (tmp_path / "store" / "blobs" / "sha256" / model.id.hex).read_bytes() == manifest
        (await store.lease(model.id)).release()


async def test_S02_a_config_that_the_manifest_does_not_name_is_refused(tmp_path):
    config, manifest = documents(WEIGHTS)
    async with running_store(tmp_path / "store") as running:
        await download(running.store, WEIGHTS, LAYER)
        with pytest.raises(ContentMismatch):
            await running.store.publish_verbatim(manifest, config + b" ", None)
        assert await running.store.list() == ()


async def test_good_content_is_not_downloaded_again_and_wrong_content_is(tmp_path):
    path = tmp_path / "store" / "blobs" / "sha256" / LAYER.digest.hex
    async with running_store(tmp_path / "store") as running:
        await download(running.store, WEIGHTS, LAYER)
    async with running_store(tmp_path / "store", now_s=lambda: 0.0) as running:
        assert (await running.store.begin_download(LAYER)).path == path
        path.chmod(0o600)
        path.write_bytes(bytes(len(WEIGHTS)))
        await download(running.store, WEIGHTS, LAYER)
        assert path.read_bytes() == WEIGHTS


async def test_S24_wrong_content_is_found_when_it_is_loaded_and_healed_by_a_pull(tmp_path):
    path = tmp_path / "store" / "blobs" / "sha256" / LAYER.digest.hex
    async with running_store(tmp_path / "store") as running:
        model = await running.package("a:1", WEIGHTS)
        path.chmod(0o600)
        path.write_bytes(bytes(len(WEIGHTS)))
        with pytest.raises(StoreDamaged, match=LAYER.digest.hex):
            await running.store.lease(model.id)
        await download(running.store, WEIGHTS, LAYER)
        (await running.store.lease(model.id)).release()


async def test_a_repair_needs_the_bad_pieces_only(tmp_path):
    path = tmp_path / "store" / "blobs" / "sha256" / LARGE_LAYER.digest.hex
    async with running_store(tmp_path / "store") as running:
        await download(running.store, LARGE, LARGE_LAYER)
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(PIECE_BYTES + 5)
            file.write(b"rot")
        partial = await running.store.begin_repair(LARGE_LAYER)
        assert partial.missing() == ((PIECE_BYTES, 2 * PIECE_BYTES),)
        partial.write_at(PIECE_BYTES, LARGE[PIECE_BYTES : 2 * PIECE_BYTES])
        await running.store.adopt_download(partial)
        assert path.read_bytes() == LARGE


async def test_a_repair_without_checksums_needs_everything(tmp_path):
    async with running_store(tmp_path / "store") as running:
        await download(running.store, LARGE, LARGE_LAYER)
        (tmp_path / "store" / "pieces" / LARGE_LAYER.digest.hex).unlink()
        partial = await running.store.begin_repair(LARGE_LAYER)
        assert partial.missing() == ((0, len(LARGE)),)
        partial.discard()


async def test_S21_the_same_content_is_downloaded_once_at_a_time(tmp_path):
    async with running_store(tmp_path / "store") as running:
        partial = await running.store.begin_download(LAYER)
        with pytest.raises(Conflict):
            await running.store.begin_download(LAYER)
        partial.close()
        (await running.store.begin_download(LAYER)).close()


async def test_a_download_that_nobody_waits_for_is_not_kept_open(tmp_path):
    async with running_store(tmp_path / "store") as running:
        for _ in range(2):
            with trio.CancelScope() as scope:
                scope.cancel()
                await running.store.begin_download(LAYER)
        (await running.store.begin_download(LAYER)).close()


async def test_a_download_that_was_just_begun_when_the_store_ended_is_not_kept_open(tmp_path):
    disk = BlockingDisk()
    refused = []

    async def begin(store):
        try:
            await store.begin_download(LAYER)
        except Unavailable:
            refused.append(LAYER)

    async with trio.open_nursery() as askers:
        async with running_store(tmp_path / "store", disk=disk) as running:
            disk.stop_at("resize")
            askers.start_soon(begin, running.store)
            await disk.wait_until_stopped()
            askers.start_soon(disk.let_go_when_idle)
    assert refused == [LAYER]
    async with running_store(tmp_path / "store") as running:
        (await running.store.begin_download(LAYER)).close()


class SmallDisk(Disk):
    """Has room for so many bytes beside what is kept free."""

    def __init__(self, room_bytes: int) -> None:
        super().__init__()
        self.room_bytes = room_bytes

    def free_bytes(self, path):
        return (1 << 30) + self.room_bytes


async def test_S03_a_download_leaves_the_reserve_free(tmp_path):
    disk = SmallDisk(len(WEIGHTS))
    async with running_store(tmp_path / "store", disk=disk) as running:
        store = running.store
        await store.require_room((LAYER, LAYER))
        disk.room_bytes -= 1
        with pytest.raises(DiskFull, match="are kept free"):
            await store.require_room((LAYER,))
        with pytest.raises(DiskFull):
            await store.begin_download(LAYER)
        disk.room_bytes += 1
        partial = await store.begin_download(LAYER)
        with pytest.raises(DiskFull):  # the room is promised
            await store.require_room((Descriptor.of(b"x", "any"),))
        partial.write_at(0, WEIGHTS[:100])
        partial.close()
        disk.room_bytes = len(WEIGHTS) - 100
        await store.require_room((LAYER,))
        await download(store, WEIGHTS, LAYER)
        disk.room_bytes = 0
        await store.require_room((LAYER,))


async def test_S26_held_content_outlives_the_removal_of_its_model(tmp_path):
    path = tmp_path / "store" / "blobs" / "sha256" / LAYER.digest.hex
    async with running_store(tmp_path / "store") as running:
        await running.package("a:1", WEIGHTS)
        with running.store.holding((LAYER.digest,)), running.store.holding((LAYER.digest,)):
            await running.store.remove(name("a:1"))
            assert path.exists()
        await running.package("a:1", WEIGHTS)
        await running.store.remove(name("a:1"))
        assert not path.exists()
