"""Collections, figures and checks of the disk through the store's handle."""

from __future__ import annotations

import contextlib
import os
import random

import attrs
import pytest
import trio

from actors.actor import Address
from actors.leases import Pins
from actors.store import StoreActor
from actors.store_handle import StoreHandle
from runner.errors import InvalidModelFile, ModelNotFound, StoreDamaged, StoreError
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store.gc import LEFTOVER_AGE_S
from runner.store.pieces import PIECE_BYTES
from tests.support import models
from tests.support.cut_disk import CountingDisk, do_nothing, fail_at
from tests.support.models import name, reference, running_store

pytestmark = pytest.mark.anyio

WEIGHTS, OTHER, LICENSE = models.tiny_gguf(), models.tiny_gguf("Other"), models.LICENSE
LARGE = random.Random(7).randbytes(3 * PIECE_BYTES + 17)
LARGE_LAYER = Descriptor.of(LARGE, media_types.LICENSE)


def blob(tmp_path, content: bytes):
    return tmp_path / "store" / "blobs" / "sha256" / Digest.of(content).hex


def age(path, days: float) -> None:
    now_s = models.NOW_S
    os.utime(path, (now_s - days * 86400, now_s - days * 86400))


def damage(path, content: bytes = b"rot", offset: int = 0) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


# collections


@pytest.mark.parametrize("is_dry", [True, False])
async def test_S26_a_collection_takes_what_is_old_and_tells_what_stays(tmp_path, is_dry):
    async with running_store(tmp_path / "store") as running:
        model = await running.package("a:1", WEIGHTS)
        old, young = b"old leftover", b"young leftover"
        await running.upload(old, young)
        age(blob(tmp_path, old), 8)
        age(blob(tmp_path, young), 6)
        age(blob(tmp_path, WEIGHTS), 100)
        (await running.store.begin_download(LARGE_LAYER)).close()
        for path in (tmp_path / "store" / "partial").iterdir():
            age(path, 8)
        report = await running.store.gc(dry_run=is_dry)
        assert report.is_dry_run == is_dry
        assert report.removed == (str(Digest.of(old)),)
        assert report.removed_downloads == (str(LARGE_LAYER.digest),)
        assert report.freed_bytes == len(old)
        assert (report.kept_leftovers, report.kept_bytes) == ((str(Digest.of(young)),), len(young))
        assert blob(tmp_path, old).exists() == is_dry
        assert any((tmp_path / "store" / "partial").iterdir()) == is_dry
        assert blob(tmp_path, young).exists()
        assert await running.store.list() == (model,)


async def test_S26_nothing_that_is_in_progress_goes_however_old_it_is(tmp_path):
    async with running_store(tmp_path / "store", now_s=lambda: 4e9) as running:
        store = running.store
        model = await running.package("a:1", WEIGHTS)
        await running.upload(OTHER)
        partial = await store.begin_download(LARGE_LAYER)
        partial.write_at(0, LARGE[:100])
        with await store.lease(model.id), store.holding((Digest.of(OTHER),)):
            await store.untag(reference("a:1"))
            report = await store.gc(prune_untagged=True)
            assert (report.removed_models, report.removed, report.removed_downloads) == ((), (), ())
        partial.write_at(100, LARGE[100:])
        await store.adopt_download(partial)
        with store.holding((LARGE_LAYER.digest,)):
            await store.gc(prune_untagged=True)
            assert blob(tmp_path, LARGE).exists()
        await store.gc(prune_untagged=True)
        assert not blob(tmp_path, LARGE).exists()
        assert not any((tmp_path / "store" / "pieces").iterdir())


@pytest.mark.parametrize("is_dry", [True, False])
async def test_pruning_takes_models_without_a_name_and_what_is_young(tmp_path, is_dry):
    async with running_store(tmp_path / "store") as running:
        store = running.store
        kept = await running.package("a:1", WEIGHTS, LICENSE)
        gone = await running.package("b:1", OTHER, LICENSE)
        await store.untag(reference("b:1"))
        (await store.begin_download(LARGE_LAYER)).close()
        report = await store.gc(prune_untagged=True, dry_run=is_dry)
        assert report.removed_models == (str(gone.id),)
        assert str(Digest.of(OTHER)) in report.removed
        assert str(Digest.of(LICENSE)) not in report.removed
        assert report.removed_downloads == (str(LARGE_LAYER.digest),)
        assert len(await store.list()) == (2 if is_dry else 1)
        assert blob(tmp_path, OTHER).exists() == is_dry
        assert (await store.resolve(name("a:1"))) == kept
    async with running_store(tmp_path / "store") as running:
        assert len(await running.store.list()) == (2 if is_dry else 1)


async def test_a_collection_does_just_what_it_told(tmp_path):
    async with running_store(tmp_path / "store") as running:
        await running.package("a:1", WEIGHTS, LICENSE)
        await running.package("b:1", OTHER, LICENSE)
        await running.store.untag(reference("b:1"))
        await running.upload(b"waits")
        (await running.store.begin_download(LARGE_LAYER)).close()
        before = await running.store.df()
        told = await running.store.gc(prune_untagged=True, dry_run=True)
        assert (await running.store.df()).total_bytes == before.total_bytes
        done = await running.store.gc(prune_untagged=True)
        assert done == attrs.evolve(told, is_dry_run=False)
        after = await running.store.df()
        assert before.total_bytes - after.total_bytes == done.freed_bytes
        assert (await running.store.gc(prune_untagged=True)).freed_bytes == 0


async def test_S26_an_upload_that_waits_to_be_packaged_survives_pruning_and_one_that_was_refused_does_not(
    tmp_path,
):
    junk = b"no model at all"
    async with running_store(tmp_path / "store", now_s=lambda: 0.0) as running:
        await running.upload(WEIGHTS, junk)
        await running.store.gc(prune_untagged=True)
        assert blob(tmp_path, junk).exists()
        await running.store.gc()
        running.store.abandon_uploads((Digest.of(junk), Digest.of(WEIGHTS)))
        await running.upload(WEIGHTS)
        await running.store.gc()
        assert not blob(tmp_path, junk).exists()
        await running.puller.package(models.spec_of("a:1", WEIGHTS))


async def test_S26_leftovers_go_without_being_asked_for(tmp_path, virtual_clock):
    notices, told, address, pins = [], trio.Event(), Address("store"), Pins()
    now_s = [0.0]

    def report(notice):
        notices.append(notice.message)
        told.set()

    actor = StoreActor(
        address, pins, tmp_path / "store", now_s=lambda: now_s[0], report=report, collect_every_s=60.0
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(actor.run)
        await StoreHandle(address, pins).receive_blob(models.in_chunks(b"never packaged"))
        now_s[0] = 4e9
        await told.wait()
        nursery.cancel_scope.cancel()
    assert notices == ["removed 1 leftover files"]
    assert not blob(tmp_path, b"never packaged").exists()


async def test_S18_a_collection_that_fails_halfway_shows_what_the_disk_shows(tmp_path):
    disk = CountingDisk()
    async with running_store(tmp_path / "store", disk=disk) as running:
        await running.package("a:1", WEIGHTS)
        await running.package("b:1", OTHER)
        await running.store.untag(reference("a:1"))
        await running.store.untag(reference("b:1"))
        renames = []

        def after_the_first_model(number, operation):
            renames.append(operation)
            return renames.count("rename") > 2

        disk.arm(fail_at(after_the_first_model))
        with pytest.raises(StoreError):
            await running.store.gc(prune_untagged=True)
        disk.arm(do_nothing)
        assert len(await running.store.list()) == 1
        await running.store.gc(prune_untagged=True)
        assert await running.store.list() == ()


async def test_S26_parts_of_a_refused_package_go_with_the_next_collection(tmp_path):
    junk = b"no model at all"
    async with running_store(tmp_path / "store", now_s=lambda: 0.0) as running:
        await running.upload(junk)
        with pytest.raises(InvalidModelFile):
            await running.puller.package(models.spec_of("junk:1", junk))
        assert (await running.store.gc()).removed == (str(Digest.of(junk)),)
        assert not blob(tmp_path, junk).exists()


# figures


async def test_the_disk_is_told_by_model_and_what_is_shared_is_counted_once(tmp_path):
    async with running_store(tmp_path / "store") as running:
        store = running.store
        assert (await store.df()).total_bytes == 0
        one = await running.package("a:1", WEIGHTS, LICENSE)
        await running.package("b:1", OTHER, LICENSE)
        await store.tag(name("a:1"), reference("c:1"))
        await running.upload(b"left over")
        partial = await store.begin_download(LARGE_LAYER)
        partial.write_at(0, LARGE[: 1 << 16])
        partial.close()
        report = await store.df()
        sizes = {path.name: path.stat().st_size for path in blob(tmp_path, b"").parent.iterdir()}
        assert report.total_bytes == sum(sizes.values()) + report.partial_bytes
        assert 1 << 16 <= report.partial_bytes < 1 << 20
        assert (report.shared_bytes, report.leftover_bytes) == (len(LICENSE), len(b"left over"))
        assert report.reserve_bytes == 1 << 30
        first = next(row for row in report.models if row.id == str(one.id))
        assert (first.name, len(first.tags)) == ("ai/a:1", 2)
        assert first.size_bytes == one.size_bytes + sizes[one.id.hex]
        assert first.own_bytes == first.size_bytes - len(LICENSE)


# checks


async def test_S24_a_check_names_every_kind_of_damage_and_the_models_that_have_it(tmp_path):
    async with running_store(tmp_path / "store") as running:
        store = running.store
        await running.package("a:1", WEIGHTS, LICENSE)
        await running.package("b:1", OTHER, LICENSE)
        sound = await store.verify()
        assert (sound.models, sound.blobs, sound.findings) == (2, 7, ())
        progress = []
        damage(blob(tmp_path, WEIGHTS), offset=40)
        blob(tmp_path, OTHER).unlink()
        damage(blob(tmp_path, LICENSE), offset=len(LICENSE))
        report = await store.verify(on_progress=progress.append)
        found = {finding.digest: (finding.kind, finding.models) for finding in report.findings}
        assert found == {
            str(Digest.of(WEIGHTS)): ("wrong_content", ("ai/a:1",)),
            str(Digest.of(OTHER)): ("missing", ("ai/b:1",)),
            str(Digest.of(LICENSE)): ("wrong_size", ("ai/a:1", "ai/b:1")),
        }
        only = await store.verify([name("b:1")])
        assert {finding.digest for finding in only.findings} == {
            str(Digest.of(OTHER)),
            str(Digest.of(LICENSE)),
        }
        with pytest.raises(ModelNotFound):
            await store.verify([name("c:1")])
        blob(tmp_path, OTHER).symlink_to(tmp_path)
        assert "foreign" in {finding.kind for finding in (await store.verify()).findings}


async def test_S24_a_check_of_a_large_file_tells_which_pieces_are_bad(tmp_path):
    async with running_store(tmp_path / "store") as running:
        store = running.store
        model = await running.package("a:1", WEIGHTS, LICENSE)
        partial = await store.begin_download(LARGE_LAYER)
        partial.write_at(0, LARGE)
        stored = await store.adopt_download(partial)
        documents = await store.documents(name("a:1"))
        assert (documents.model_id, documents.tags) == (model.id, model.tags)
        manifest = attrs.evolve(documents.manifest, layers=(*documents.manifest.layers, LARGE_LAYER))
        await store.publish_verbatim(manifest.encode(), documents.config_bytes, reference("b:1"))
        damage(stored.path, offset=2 * PIECE_BYTES)
        (finding,) = (await store.verify([name("b:1")])).findings
        assert finding.bad_ranges == ((2 * PIECE_BYTES, 3 * PIECE_BYTES),)
        repair = await store.begin_repair(LARGE_LAYER)
        assert repair.missing() == finding.bad_ranges
        repair.write_at(2 * PIECE_BYTES, LARGE[2 * PIECE_BYTES : 3 * PIECE_BYTES])
        await store.adopt_download(repair)
        assert (await store.verify()).findings == ()


async def test_S24_what_the_disk_itself_forgot_stays_known_through_a_restart(tmp_path):
    path = blob(tmp_path, LARGE)
    async with running_store(tmp_path / "store", now_s=lambda: 0.0) as running:
        partial = await running.store.begin_download(LARGE_LAYER)
        partial.write_at(0, LARGE)
        await running.store.adopt_download(partial)
        documents = await running.package("a:1", WEIGHTS)
        found = await running.store.documents(name("a:1"))
        manifest = attrs.evolve(found.manifest, layers=(*found.manifest.layers, LARGE_LAYER))
        model = await running.store.publish_verbatim(manifest.encode(), found.config_bytes, reference("b:1"))
        before = path.stat()
        damage(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert len((await running.store.verify()).findings) == 1
        assert documents.id != model.id
    async with running_store(tmp_path / "store", now_s=lambda: 0.0) as running:
        with pytest.raises(StoreDamaged, match=LARGE_LAYER.digest.hex):
            await running.store.lease(model.id)


async def test_the_documents_of_a_damaged_model_can_still_be_read(tmp_path):
    async with running_store(tmp_path / "store") as running:
        model = await running.package("a:1", WEIGHTS)
        config = (await running.store.documents(name("a:1"))).manifest.config
    blob(tmp_path, WEIGHTS).unlink()
    async with running_store(tmp_path / "store") as running:
        found = await running.store.documents(name("a:1"))
        assert Digest.of(found.manifest_bytes) == model.id
        assert Digest.of(found.config_bytes) == config.digest
        with pytest.raises(StoreDamaged):
            await running.store.resolve(name("a:1"))
        await running.upload(WEIGHTS)
        assert await running.store.resolve(name("a:1")) == model
        damage(tmp_path / "store" / "blobs" / "sha256" / config.digest.hex)
        assert (await running.store.documents(name("a:1"))).config_bytes is None
        damage(tmp_path / "store" / "blobs" / "sha256" / model.id.hex)
        with pytest.raises(StoreDamaged):
            await running.store.documents(name("a:1"))


# an index that cannot be read


async def test_S23_a_change_that_fails_on_a_disk_that_cannot_be_read_either_is_an_error_and_no_restart(
    tmp_path, monkeypatch
):
    disk = CountingDisk()
    async with running_store(tmp_path / "store", disk=disk) as running:
        store = running.store
        model = await running.package("a:1", WEIGHTS)
        await running.package("b:1", OTHER)

        def fail_to_read(path, *, limit_bytes):
            raise StoreError("reading a file of the store failed: Input/output error")

        with monkeypatch.context() as broken:
            broken.setattr(disk, "read", fail_to_read)
            disk.arm(fail_at(lambda number, operation: True))
            for _ in range(2):
                with pytest.raises(StoreError):
                    await store.remove(name("b:1"))
            assert len(await store.list()) == 2
            assert await store.resolve(name("a:1")) == model
            disk.arm(do_nothing)
            with pytest.raises(StoreError, match="reading"):  # it might bring back what is gone
                await store.tag(name("a:1"), reference("c:1"))
        await store.tag(name("a:1"), reference("c:1"))
        with contextlib.suppress(ModelNotFound):
            await store.remove(name("b:1"))
        assert len(await store.list()) == 1
    assert "cannot be read" in running.notices[0]


def test_the_age_of_leftovers_is_that_of_the_requirement():
    assert LEFTOVER_AGE_S == 7 * 86400
