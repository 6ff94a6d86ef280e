"""Reading a store as it lies on disk, writing its index, and repairing it."""

from __future__ import annotations

import errno

import attrs
import pytest

from runner.errors import DiskFull, StoreDamaged, StoreError
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store.disk import Disk
from runner.store.index import StoreIndex
from tests.support import models
from tests.support.cut_disk import CountingDisk, Killed, cut_at, fail_at
from tests.support.models import name, reference

WEIGHTS, OTHER_WEIGHTS = models.tiny_gguf(), models.tiny_gguf("Other")


@pytest.fixture
def root(tmp_path):
    """A store with two models and three names."""
    root = tmp_path / "store"
    with models.opened(root) as store:
        models.publish(store, "a:1", WEIGHTS, models.LICENSE)
        models.tag(store, "a:1", "a:2")
        models.publish(store, "b:1", OTHER_WEIGHTS, models.LICENSE)
    return root


def shown(root):
    with models.opened(root) as store:
        return models.shown(store)


def test_a_store_shows_the_same_when_it_is_opened_again(root):
    first = shown(root)
    assert set(first) == {"ai/a:1", "ai/a:2", "ai/b:1"}
    assert shown(root) == first


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00" * 500, b"[]", b'{"schemaVersion":2,"manifests":[{}]}'])
def test_S27_a_damaged_index_is_rebuilt_from_the_manifests_with_its_names_and_says_so(root, damage):
    before = shown(root)
    (root / "index.json").write_bytes(damage)
    with models.opened(root) as store:
        assert models.shown(store) == before
        assert "index.json is damaged" in store.notices[0]
        assert "rebuilt from 2 manifests, and 3 names" in store.notices[0]
    if damage:
        assert (root / "index.damaged.json").read_bytes() == damage
    with models.opened(root) as store:
        assert store.notices == ()


def test_S27_a_missing_index_is_rebuilt_too(root):
    before = shown(root)
    (root / "index.json").unlink()
    with models.opened(root) as store:
        assert models.shown(store) == before
        assert "index.json is missing" in store.notices[0]


def test_S27_without_the_copy_models_come_back_without_names(root):
    (root / "index.json").write_bytes(b"{")
    (root / "index.copy.json").unlink()
    found = shown(root)
    assert len(found) == 2
    assert all(text.startswith("<none>") for text in found)


def test_S27_what_can_be_read_of_a_damaged_index_counts_more_than_its_copy(root):
    with models.opened(root) as store:
        entries = [entry for entry in store.catalog.index.entries if str(entry.name) != "docker.io/ai/b:1"]
    kept = StoreIndex.of(entries).encode().removesuffix(b"]}") + b",{}]}"
    (root / "index.json").write_bytes(kept)
    (root / "index.copy.json").unlink()
    found = shown(root)
    assert {"ai/a:1", "ai/a:2"} < set(found)
    assert len(found) == 3


def test_S27_a_name_whose_manifest_is_gone_is_reported(root):
    with models.opened(root) as store:
        store.directory.blobs.path(store.catalog.find(name("b:1"))).unlink()
    (root / "index.json").write_bytes(b"{")
    with models.opened(root) as store:
        assert set(models.shown(store)) == {"ai/a:1", "ai/a:2"}
        assert store.notices[1:] == ("the manifest of docker.io/ai/b:1 is gone",)


def test_S27_a_rebuild_that_is_cut_anywhere_is_done_again(root):
    before = shown(root)
    damaged, number = b'{"schemaVersion":2', 0
    while True:
        number += 1
        (root / "index.json").write_bytes(damaged)
        try:
            with models.opened(root, disk=CountingDisk(cut_at(number))):
                break
        except Killed:
            assert shown(root) == before
    assert number > 10


@pytest.mark.parametrize("part", ["manifest", "config", "weights"])
def test_a_model_with_a_missing_or_changed_part_is_not_usable_and_the_others_are(root, part):
    with models.opened(root) as store:
        stored = store.catalog.resolve(name("a:1"))
        digest = {
            "manifest": stored.model.id,
            "config": stored.manifest.config.digest,
            "weights": Digest.of(WEIGHTS),
        }[part]
        path = store.directory.blobs.path(digest)
    path.chmod(0o600)
    path.write_bytes(b"x" + path.read_bytes())
    with models.opened(root) as store:
        assert [model.name for model in store.catalog.models()] == ["ai/b:1"]
        with pytest.raises(StoreDamaged, match=str(digest)):
            store.catalog.resolve(name("a:2"))
        assert str(digest) in store.notices[0]
        models.remove(store, "a:1")
        models.remove(store, "a:2")
    assert set(shown(root)) == {"ai/b:1"}


def test_a_model_whose_manifest_the_disk_cannot_read_does_not_cost_the_others(root):
    class BadSector(Disk):
        def read(self, path, *, limit_bytes):
            if path.name == bad.hex:
                raise StoreError("reading a file of the store failed: Input/output error")
            return super().read(path, limit_bytes=limit_bytes)

    with models.opened(root) as store:
        bad = store.catalog.find(name("b:1"))
    with models.opened(root, disk=BadSector()) as store:
        assert [model.name for model in store.catalog.models()] == ["ai/a:1"]
        with pytest.raises(StoreDamaged, match="Input/output error"):
            store.catalog.resolve(name("b:1"))


@pytest.mark.parametrize("operation", ["create", "write", "sync", "close", "rename"])
def test_S19_an_index_that_could_not_be_written_is_the_old_one(root, operation):
    disk = CountingDisk()
    with models.opened(root, disk=disk) as store:
        before = store.catalog
        disk.arm(fail_at(lambda number, reached: reached == operation))
        with pytest.raises(StoreError):
            models.untag(store, "a:1")
        disk.arm(lambda number, reached: None)
        assert store.directory.load().catalog == before
        assert not any((root / "partial").iterdir())
        models.untag(store, "a:1")
    assert set(shown(root)) == {"ai/a:2", "ai/b:1"}


def test_S19_after_a_failed_sync_of_the_directory_the_index_is_written_anew(root):
    disk = CountingDisk()
    with models.opened(root, disk=disk) as store:
        models.tag(store, "a:1", "c")
        disk.arm(fail_at(lambda number, reached: reached == "sync directory"))
        with pytest.raises(StoreError):
            models.tag(store, "a:1", "d")
        store.catalog = store.directory.load().catalog
        disk.arm(lambda number, reached: None)
        models.tag(store, "a:1", "d")
        assert disk.operations.count("rename") == 2, "success must not be claimed for what was never synced"
        disk.arm(lambda number, reached: None)
        models.tag(store, "a:1", "d")
        assert disk.operations == [], "what is synced already is not written again"


def test_S23_an_index_for_which_there_is_no_room_is_told_as_such(root):
    disk = CountingDisk()
    with models.opened(root, disk=disk) as store:
        disk.arm(fail_at(lambda number, reached: reached == "write", errno.ENOSPC))
        with pytest.raises(DiskFull):
            models.tag(store, "a:1", "c")
        disk.arm(lambda number, reached: None)
        models.tag(store, "a:1", "c")
    assert "ai/c" in shown(root)


def test_a_model_of_a_kind_that_this_version_does_not_read_is_not_usable(root):
    with models.opened(root) as store:
        stored = store.catalog.resolve(name("b:1"))
        config = attrs.evolve(stored.manifest.config, media_type="application/vnd.example.config.v9+json")
        content = attrs.evolve(stored.manifest, config=config).encode()
        store.directory.blobs.put(content)
        descriptor = Descriptor.of(content, media_types.IMAGE_MANIFEST)
        index = store.catalog.index.with_model(descriptor, reference("later:1"))
        store.directory.commit(index)
    with models.opened(root) as store:
        with pytest.raises(StoreDamaged, match="this version does not read"):
            store.catalog.resolve(name("later:1"))
        assert store.catalog.resolve(name("b:1")).model == stored.model
    (root / "index.json").write_bytes(b"{")
    with models.opened(root) as store:
        assert {model.name for model in store.catalog.models()} == {"ai/a:1", "ai/b:1"}


def test_what_fails_first_is_told_when_cleaning_up_fails_too(root):
    disk = CountingDisk()
    with models.opened(root, disk=disk) as store:
        disk.arm(fail_at(lambda number, reached: reached in ("sync", "unlink")))
        with pytest.raises(StoreError, match="sync"):
            models.tag(store, "a:1", "c")
        with pytest.raises(StoreError, match="sync"):
            models.put_blob(store, b"content")
        disk.arm(lambda number, reached: None)
        assert len(list((root / "partial").iterdir())) == 2
    with models.opened(root):
        assert not any((root / "partial").iterdir())
