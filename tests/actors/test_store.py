"""The store's actor: it answers from memory, changes the disk in order, and keeps what is in use."""

from __future__ import annotations

import errno
from contextlib import aclosing

import pytest
import trio
import trio.testing

from actors.store import StoreActor
from actors.store_handle import StoreHandle
from actors.uploads import UPLOAD_BUFFER_BYTES
from runner.domain.status import Removal
from runner.errors import (
    BlobNotFound,
    ContentMismatch,
    DiskFull,
    ModelInUse,
    ModelNotFound,
    RunnerError,
    StartRefused,
    StoreDamaged,
    StoreError,
    Unavailable,
)
from runner.oci.digest import Digest
from tests.support import models
from tests.support.cut_disk import BlockingDisk, CountingDisk, fail_at
from tests.support.models import in_chunks, name, reference, running_store

pytestmark = pytest.mark.anyio

WEIGHTS, OTHER_WEIGHTS, LICENSE = models.tiny_gguf(), models.tiny_gguf("Other"), models.LICENSE


def blob_names(root):
    return {path.name for path in (root / "blobs" / "sha256").iterdir()}


async def test_what_was_packaged_is_listed_found_inspected_and_leased(tmp_path):
    async with running_store(tmp_path / "store") as running:
        store = running.store
        model = await running.package("a:1", WEIGHTS, LICENSE, context_size=2048)
        assert await store.list() == (model,)
        assert (model.name, model.context_size, model.trained_context_size) == ("ai/a:1", 2048, 4096)
        for text in (
            "a:1",
            str(model.id),
            model.id.hex,
            model.id.short(),
            f"a@{model.id}",
            f"a:1@{model.id}",
        ):
            assert await store.resolve(name(text)) == model
        report = await store.inspect(name("a:1"))
        assert (report.model.id, report.licenses) == (str(model.id), (LICENSE.decode(),))
        with await store.lease(model.id) as lease:
            assert lease.files.weights[0].read_bytes() == WEIGHTS
            assert lease.files.kv_bytes_per_cell == 256
    async with running_store(tmp_path / "store") as running:
        assert await running.store.list() == (model,)


async def test_a_removal_sends_away_who_only_looks_at_the_model(tmp_path):
    async with running_store(tmp_path / "store") as running:
        store, told = running.store, []
        model = await running.package("a:1", WEIGHTS)
        await store.tag(name("a:1"), reference("b:1"))
        with store.visiting(model.id, lambda: told.append("leave")):
            assert (await store.files(model.id)).weights[0].read_bytes() == WEIGHTS
            await store.remove(name("a:1"))
            assert told == []
            await store.remove(name("b:1"))
            assert told == ["leave"]
        other = await running.package("c:1", OTHER_WEIGHTS)
        await store.untag(reference("c:1"))
        with store.visiting(other.id, lambda: told.append("leave")):
            await store.gc(prune_untagged=True, dry_run=True)
            assert told == ["leave"]
            await store.gc(prune_untagged=True)
            assert told == ["leave", "leave"]
        assert await store.list() == ()


async def test_tag_untag_and_remove_change_what_is_shown(tmp_path):
    async with running_store(tmp_path / "store") as running:
        store = running.store
        model = await running.package("a:1", WEIGHTS)
        tagged = await store.tag(name("a:1"), reference("b:1"))
        assert [str(tag) for tag in tagged.tags] == ["docker.io/ai/a:1", "docker.io/ai/b:1"]
        untagged = await store.untag(reference("a:1"))
        assert [str(tag) for tag in untagged.tags] == ["docker.io/ai/b:1"]
        removals = await store.remove(name(model.id.short()))
        assert removals == (Removal(untagged="docker.io/ai/b:1"), Removal(deleted=str(model.id)))
        assert await store.list() == ()
        assert blob_names(tmp_path / "store") == set()
        for ask in (store.resolve, store.inspect, store.remove):
            with pytest.raises(ModelNotFound):
                await ask(name("b:1"))
        with pytest.raises(ModelNotFound):
            await store.lease(model.id)


# leases


@pytest.mark.parametrize("force", [False, True])
async def test_S22_a_leased_model_is_not_removed_until_it_is_released(tmp_path, force):
    async with running_store(tmp_path / "store") as running:
        store = running.store
        model = await running.package("a:1", WEIGHTS, LICENSE)
        lease = await store.lease(model.id)
        before = blob_names(tmp_path / "store")
        for text in ("a:1", str(model.id)):
            with pytest.raises(ModelInUse):
                await store.remove(name(text), force=force)
        assert blob_names(tmp_path / "store") == before
        assert await store.resolve(name("a:1")) == model
        await store.tag(name("a:1"), reference("b:1"))
        await store.remove(name("b:1"))  # only a name
        lease.release()
        await store.remove(name("a:1"))
        assert blob_names(tmp_path / "store") == set()


async def test_S22_a_lease_outlives_a_restart_of_the_store(tmp_path):
    async with running_store(tmp_path / "store") as running:
        model = await running.package("a:1", WEIGHTS)
        lease = await running.store.lease(model.id)
        pins = running.pins
        address = running.address
    async with trio.open_nursery() as nursery:
        await nursery.start(StoreActor(address, pins, tmp_path / "store").run)
        store = StoreHandle(address, pins)
        with pytest.raises(ModelInUse):
            await store.remove(name("a:1"))
        lease.release()
        await store.remove(name("a:1"))
        nursery.cancel_scope.cancel()


async def test_S22_a_model_that_is_being_removed_cannot_be_leased_and_one_being_leased_not_removed(tmp_path):
    disk = BlockingDisk()
    async with running_store(tmp_path / "store", disk=disk) as running:
        store = running.store
        model = await running.package("a:1", WEIGHTS)
        disk.stop_at("unlink")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.remove, name("a:1"))
            await disk.wait_until_stopped()
            with pytest.raises(ModelNotFound):
                await store.lease(model.id)
            disk.let_go()
        assert not running.pins.is_pinned(model.id)
        assert await store.list() == ()


async def test_S22_a_removal_that_waits_for_its_turn_sees_a_lease_that_was_asked_for_meanwhile(tmp_path):
    disk = BlockingDisk()
    async with running_store(tmp_path / "store", disk=disk) as running:
        store = running.store
        model = await running.package("a:1", WEIGHTS)
        await running.package("b:1", OTHER_WEIGHTS)
        disk.stop_at("unlink")
        refused = []

        async def remove_a() -> None:
            try:
                await store.remove(name("a:1"))
            except ModelInUse:
                refused.append("a:1")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.remove, name("b:1"))
            await disk.wait_until_stopped()
            nursery.start_soon(remove_a)
            await trio.testing.wait_all_tasks_blocked()
            lease = await store.lease(model.id)
            disk.let_go()
        assert refused == ["a:1"]
        lease.release()


async def test_a_lease_that_fails_or_is_not_waited_for_pins_nothing(tmp_path):
    async with running_store(tmp_path / "store") as running:
        model = await running.package("a:1", WEIGHTS)
        path = tmp_path / "store" / "blobs" / "sha256" / Digest.of(WEIGHTS).hex
        path.chmod(0o600)
        path.write_bytes(b"x" * len(WEIGHTS))
        with pytest.raises(StoreDamaged, match="not what its name says"):
            await running.store.lease(model.id)
        path.unlink()
        with pytest.raises(StoreDamaged, match="missing"):
            await running.store.lease(model.id)
        with trio.CancelScope() as scope:
            scope.cancel()
            await running.store.lease(model.id)
        assert not running.pins.is_pinned(model.id)
        await running.store.remove(name("a:1"))


# uploads


@pytest.mark.parametrize(
    "size_bytes", [0, 1, UPLOAD_BUFFER_BYTES - 1, UPLOAD_BUFFER_BYTES, UPLOAD_BUFFER_BYTES + 1]
)
async def test_content_arrives_whole_whatever_its_pieces_are(tmp_path, size_bytes):
    content = bytes(range(256)) * (size_bytes // 256 + 1)
    content = content[:size_bytes]
    async with running_store(tmp_path / "store") as running:
        blob = await running.store.receive_blob(
            in_chunks(content, 300_007), size_bytes=size_bytes, digest=Digest.of(content)
        )
        assert (blob.digest, blob.size_bytes) == (str(Digest.of(content)), size_bytes)
        (held,) = await running.store.hold_blobs((Digest.of(content),))
        assert held.path.read_bytes() == content


async def test_an_upload_never_holds_more_than_a_buffer(tmp_path):
    largest, pending = 0, 0

    class Measuring(CountingDisk):
        def write(self, descriptor, content):
            nonlocal largest, pending
            largest, pending = max(largest, pending), 0
            super().write(descriptor, content)

    async def endless():
        nonlocal pending
        for _ in range(160):
            pending += 65536
            yield bytes(65536)

    async with running_store(tmp_path / "store", disk=Measuring()) as running:
        await running.store.receive_blob(endless())
    assert 0 < largest <= UPLOAD_BUFFER_BYTES


@pytest.mark.parametrize(
    "announced",
    [
        {"size_bytes": len(WEIGHTS) - 1},
        {"size_bytes": len(WEIGHTS) + 1},
        {"size_bytes": 0},
        {"digest": Digest.of(OTHER_WEIGHTS)},
    ],
)
async def test_S02_an_upload_that_is_not_what_was_announced_leaves_nothing(tmp_path, announced):
    async with running_store(tmp_path / "store") as running:
        with pytest.raises(ContentMismatch):
            await running.store.receive_blob(in_chunks(WEIGHTS), **announced)
        assert blob_names(tmp_path / "store") == set()
        assert not any((tmp_path / "store" / "partial").iterdir())
        await running.upload(WEIGHTS)


async def test_S02_an_endless_upload_is_stopped_at_its_announced_length(tmp_path):
    async def endless():
        while True:
            await trio.lowlevel.checkpoint()
            yield bytes(1 << 16)

    async with running_store(tmp_path / "store") as running:
        async with aclosing(endless()) as chunks:
            with trio.fail_after(10), pytest.raises(ContentMismatch):
                await running.store.receive_blob(chunks, size_bytes=3 << 20)


@pytest.mark.parametrize("ending", ["error", "cancel"])
async def test_an_upload_that_ends_early_leaves_nothing(tmp_path, ending):
    async def broken():
        yield WEIGHTS[:100]
        if ending == "error":
            raise ConnectionError
        scope.cancel()
        await trio.lowlevel.checkpoint()

    async with running_store(tmp_path / "store") as running:
        with trio.CancelScope() as scope:
            if ending == "error":
                with pytest.raises(ConnectionError):
                    await running.store.receive_blob(broken())
            else:
                await running.store.receive_blob(broken())
        assert not any((tmp_path / "store" / "partial").iterdir())
        assert blob_names(tmp_path / "store") == set()


async def test_an_upload_whose_client_left_at_the_last_moment_leaves_nothing(tmp_path):
    disk = BlockingDisk()
    async with running_store(tmp_path / "store", disk=disk) as running:
        await running.package("a:1", WEIGHTS)
        disk.stop_at("unlink")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.store.remove, name("a:1"))
            await disk.wait_until_stopped()
            sent = trio.Event()

            async def content():
                yield LICENSE
                sent.set()

            with trio.CancelScope() as scope:
                nursery.start_soon(_cancel_when_adoption_waits, scope, sent, running.address)
                await running.store.receive_blob(content())
            assert scope.cancelled_caught
            disk.let_go()
        await running.upload(OTHER_WEIGHTS)
        assert blob_names(tmp_path / "store") == {Digest.of(OTHER_WEIGHTS).hex}
        assert not any((tmp_path / "store" / "partial").iterdir())


async def _cancel_when_adoption_waits(scope, sent, address):
    await sent.wait()
    with trio.fail_after(5):
        while address.statistics().open_asks < 2:  # the removal, and then the adoption
            await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_simultaneous_uploads_of_one_digest_are_harmless(tmp_path):
    async with running_store(tmp_path / "store") as running:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(running.upload, WEIGHTS)
        assert blob_names(tmp_path / "store") == {Digest.of(WEIGHTS).hex}
        model = await running.puller.package(models.spec_of("a:1", WEIGHTS))
        with await running.store.lease(model.id) as lease:
            await running.upload(WEIGHTS)  # replaces the file, never rewrites it
            assert lease.files.weights[0].read_bytes() == WEIGHTS


async def test_what_was_uploaded_survives_the_removal_of_a_model_that_has_it_too(tmp_path):
    async with running_store(tmp_path / "store") as running:
        await running.package("a:1", WEIGHTS, LICENSE)
        await running.upload(WEIGHTS)
        await running.store.remove(name("a:1"))
        assert blob_names(tmp_path / "store") == {Digest.of(WEIGHTS).hex}
        await running.puller.package(models.spec_of("b:1", WEIGHTS))
        await running.store.remove(name("b:1"))
        assert blob_names(tmp_path / "store") == set()


async def test_holding_what_was_never_uploaded_is_refused_by_name(tmp_path):
    async with running_store(tmp_path / "store") as running:
        with pytest.raises(BlobNotFound) as caught:
            await running.store.hold_blobs((Digest.of(WEIGHTS),))
        assert caught.value.digest == str(Digest.of(WEIGHTS))


# a slow, full or failing disk


@pytest.mark.parametrize("operation", ["sync", "rename", "unlink"])
async def test_O06_the_store_answers_while_a_thread_hangs_in_the_disk(tmp_path, operation):
    disk = BlockingDisk()
    async with running_store(tmp_path / "store", disk=disk) as running:
        store = running.store
        model = await running.package("a:1", WEIGHTS)
        await running.package("b:1", OTHER_WEIGHTS)
        disk.stop_at(operation)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.remove, name("b:1"))
            await disk.wait_until_stopped()
            with trio.fail_after(1):
                assert len(await store.list()) == 2
                assert await store.resolve(name("a:1")) == model
                assert (await store.inspect(name("a:1"))).model.id == str(model.id)
                (await store.lease(model.id)).release()
            disk.let_go()
        assert await store.list() == (model,)


async def test_changes_happen_one_after_another_in_the_order_they_were_asked_for(tmp_path):
    async with running_store(tmp_path / "store") as running:
        await running.package("a:1", WEIGHTS)
        await running.package("b:1", OTHER_WEIGHTS)
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(running.store.tag, name("ab"[number % 2] + ":1"), reference(f"c:{number}"))
            await trio.testing.wait_all_tasks_blocked()
        for number in range(20):
            model = await running.store.resolve(name(f"c:{number}"))
            assert model == await running.store.resolve(name("ab"[number % 2] + ":1"))


@pytest.mark.parametrize("operation", ["create", "write", "sync", "close", "rename", "sync directory"])
async def test_S23_a_full_disk_fails_the_request_alone_and_the_same_succeeds_later(tmp_path, operation):
    disk = CountingDisk()
    async with running_store(tmp_path / "store", disk=disk) as running:
        model = await running.package("a:1", WEIGHTS)
        disk.arm(fail_at(lambda number, reached: reached == operation, errno.ENOSPC))
        with pytest.raises(DiskFull):
            await running.upload(OTHER_WEIGHTS)
        with pytest.raises(DiskFull):
            await running.store.tag(name("a:1"), reference("b:1"))
        assert (await running.store.resolve(name("a:1"))).id == model.id
        disk.arm(lambda number, reached: None)
        await running.package("c:1", OTHER_WEIGHTS)
        await running.store.tag(name("a:1"), reference("b:1"))
        assert len(await running.store.list()) == 2


@pytest.mark.parametrize("operation", ["sync", "close"])
async def test_S19_what_could_not_be_synced_is_not_shown(tmp_path, operation):
    disk = CountingDisk()
    async with running_store(tmp_path / "store", disk=disk) as running:
        await running.package("a:1", WEIGHTS)
        disk.arm(fail_at(lambda number, reached: reached == operation))
        with pytest.raises(StoreError):
            await running.store.tag(name("a:1"), reference("b:1"))
        with pytest.raises(ModelNotFound):
            await running.store.resolve(name("b:1"))


async def test_S19_after_an_uncertain_write_memory_shows_what_the_disk_shows(tmp_path):
    disk = CountingDisk()
    async with running_store(tmp_path / "store", disk=disk) as running:
        await running.package("a:1", WEIGHTS)
        renames = []

        def fail_after_the_second_rename(number, reached):
            renames.append(reached)
            return reached == "sync directory" and renames.count("rename") == 2

        disk.arm(fail_at(fail_after_the_second_rename))
        with pytest.raises(StoreError):
            await running.store.tag(name("a:1"), reference("b:1"))
        assert (await running.store.resolve(name("b:1"))).name == "ai/a:1"


async def test_an_index_that_is_destroyed_meanwhile_is_rebuilt_and_reported(tmp_path):
    disk = CountingDisk()
    async with running_store(tmp_path / "store", disk=disk) as running:
        model = await running.package("a:1", WEIGHTS)
        (tmp_path / "store" / "index.json").write_bytes(b"{")
        disk.arm(fail_at(lambda number, reached: number == 1))
        with pytest.raises(StoreError):
            await running.store.tag(name("a:1"), reference("b:1"))
        assert await running.store.resolve(name("a:1")) == model
        assert "damaged" in running.notices[0]


# beginning and end


async def test_a_second_store_on_the_same_directory_does_not_start(tmp_path):
    async with running_store(tmp_path / "store"):
        with pytest.raises(ExceptionGroup) as caught:
            async with running_store(tmp_path / "store"):
                pass
        assert isinstance(caught.value.exceptions[0], StartRefused)


async def test_asks_of_a_store_that_has_ended_are_answered(tmp_path):
    async with running_store(tmp_path / "store") as running:
        store = running.store
    for ask in (
        store.list(),
        store.resolve(name("a")),
        store.receive_blob(in_chunks(b"")),
        store.lease(Digest.of(b"")),
    ):
        with pytest.raises(Unavailable):
            await ask
    assert not running.pins.is_pinned(Digest.of(b""))


async def test_a_change_in_progress_ends_before_the_store_does_and_its_asker_is_answered(tmp_path):
    disk = BlockingDisk()
    errors = []

    async def remove(store):
        try:
            await store.remove(name("a:1"))
        except RunnerError as error:
            errors.append(type(error))

    async with trio.open_nursery() as askers:
        async with running_store(tmp_path / "store", disk=disk) as running:
            await running.package("a:1", WEIGHTS)
            disk.stop_at("unlink")
            askers.start_soon(remove, running.store)
            await disk.wait_until_stopped()
            askers.start_soon(disk.let_go_when_idle)
    assert errors == [Unavailable]
    assert blob_names(tmp_path / "store") == set()
    async with running_store(tmp_path / "store") as running:
        assert await running.store.list() == ()
