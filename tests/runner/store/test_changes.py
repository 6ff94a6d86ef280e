"""What publish, tag, untag and remove mean; the order on disk is tested in test_crash.py."""

from __future__ import annotations

import errno

import pytest

from runner.domain.status import Removal
from runner.errors import (
    BlobNotFound,
    Conflict,
    DiskFull,
    InvalidManifest,
    InvalidReference,
    ModelInUse,
    ModelNotFound,
    StoreDamaged,
)
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store.changes import carry_out, plan_publish, plan_remove, plan_tag, plan_untag
from runner.store.directory import RESERVE_BYTES
from tests.support import models
from tests.support.cut_disk import CountingDisk, do_nothing, fail_at
from tests.support.models import name, reference

WEIGHTS, OTHER_WEIGHTS, LICENSE = models.tiny_gguf(), models.tiny_gguf("Other"), models.LICENSE


@pytest.fixture
def store(tmp_path):
    with models.opened(tmp_path / "store") as store:
        yield store


def removal_of(store, text, *, force=False, pinned=(), kept=frozenset()):
    return plan_remove(store.catalog, name(text), force=force, is_pinned=pinned.__contains__, kept=kept)


def untagged(text):
    return Removal(untagged=f"docker.io/ai/{text}")


# remove: the table of the native API


def test_a_name_of_several_goes_alone(store):
    model_id = models.publish(store, "a:1", WEIGHTS)
    models.tag(store, "a:1", "a:2")
    change = removal_of(store, "a:1", pinned={model_id})
    assert change.removals == (untagged("a:1"),)
    assert change.unneeded == ()
    assert [str(tag) for tag in change.catalog.usable(model_id).model.tags] == ["docker.io/ai/a:2"]


def test_the_last_name_goes_with_its_model(store):
    model_id = models.publish(store, "a:1", WEIGHTS, LICENSE)
    change = removal_of(store, "a:1")
    assert change.removals == (untagged("a:1"), Removal(deleted=str(model_id)))
    carry_out(change, store.directory)
    assert store.directory.blobs.digests() == ()


@pytest.mark.parametrize("names", [(), ("a:1",)])
def test_an_id_removes_a_model_with_at_most_one_name(store, names):
    model_id = models.publish(store, names[0] if names else None, WEIGHTS)
    for text in (str(model_id), model_id.hex, model_id.short(), f"ai/any@{model_id}"):
        change = removal_of(store, text)
        assert change.removals == (*map(untagged, names), Removal(deleted=str(model_id)))


def test_an_id_of_a_model_with_several_names_is_a_conflict_unless_forced(store):
    model_id = models.publish(store, "a:1", WEIGHTS)
    models.tag(store, "a:1", "b:1")
    with pytest.raises(Conflict, match=r"several names \(ai/a:1, ai/b:1\)"):
        removal_of(store, str(model_id))
    change = removal_of(store, str(model_id), force=True)
    assert change.removals == (untagged("a:1"), untagged("b:1"), Removal(deleted=str(model_id)))


@pytest.mark.parametrize("force", [False, True])
def test_S22_a_model_in_use_is_not_removed_by_any_name_or_id(store, force):
    model_id = models.publish(store, "a:1", WEIGHTS)
    for text in ("a:1", str(model_id), model_id.short()):
        with pytest.raises(ModelInUse) as caught:
            removal_of(store, text, force=force, pinned={model_id})
        assert text in str(caught.value)


def test_removing_what_is_not_there_is_not_found(store):
    with pytest.raises(ModelNotFound):
        removal_of(store, "a:1")


def test_parts_go_in_reverse_order_of_publishing(store):
    model_id = models.publish(store, "a:1", WEIGHTS, LICENSE)
    manifest = store.catalog.usable(model_id).manifest
    assert removal_of(store, "a:1").unneeded == (
        model_id,
        manifest.config.digest,
        Digest.of(LICENSE),
        Digest.of(WEIGHTS),
    )


def test_parts_that_another_model_needs_or_somebody_uploads_stay(store):
    models.publish(store, "a:1", WEIGHTS, LICENSE)
    models.publish(store, "b:1", OTHER_WEIGHTS, LICENSE)
    gone = removal_of(store, "a:1").unneeded
    assert Digest.of(LICENSE) not in gone
    assert Digest.of(WEIGHTS) in gone
    assert Digest.of(WEIGHTS) not in removal_of(store, "a:1", kept={Digest.of(WEIGHTS)}).unneeded


def test_beside_a_damaged_model_only_the_manifest_goes(store, tmp_path):
    model_id = models.publish(store, "a:1", WEIGHTS)
    damaged = models.publish(store, "b:1", OTHER_WEIGHTS)
    store.directory.blobs.path(damaged).unlink()
    store.catalog = store.directory.load().catalog
    assert removal_of(store, "a:1").unneeded == (model_id,)
    assert removal_of(store, "b:1").removals == (untagged("b:1"), Removal(deleted=str(damaged)))


# tag and untag


def test_a_name_of_another_model_moves(store):
    first = models.publish(store, "a:1", WEIGHTS)
    second = models.publish(store, "b:1", OTHER_WEIGHTS)
    models.tag(store, "b:1", "a:1")
    assert store.catalog.resolve(name("a:1")).model.id == second
    assert store.catalog.usable(first).model.tags == ()


def test_a_name_that_is_there_already_changes_nothing_but_is_fine(store):
    models.publish(store, "a:1", WEIGHTS)
    assert plan_tag(store.catalog, name("a:1"), reference("a:1")).catalog == store.catalog


def test_a_target_that_begins_with_its_source_is_just_another_name(store):
    models.publish(store, "x:v1", WEIGHTS)
    models.tag(store, "x:v1", "x:v10")
    assert {str(tag) for tag in store.catalog.resolve(name("x:v10")).model.tags} == {
        "docker.io/ai/x:v1",
        "docker.io/ai/x:v10",
    }


def test_a_target_has_a_tag_and_no_digest(store):
    model_id = models.publish(store, "a:1", WEIGHTS)
    for text in (f"b@{model_id}", f"b:1@{model_id}"):
        with pytest.raises(InvalidReference, match="no digest"):
            plan_tag(store.catalog, name("a:1"), reference(text))


def test_untagging_leaves_the_model_and_needs_a_name_that_is_there(store):
    model_id = models.publish(store, "a:1", WEIGHTS)
    models.untag(store, "a:1")
    assert store.catalog.usable(model_id).model.tags == ()
    for text in ("a:1", f"a@{model_id}"):
        with pytest.raises(ModelNotFound):
            plan_untag(store.catalog, reference(text))


def test_tagging_a_model_that_is_not_there_or_damaged_is_refused(store):
    with pytest.raises(ModelNotFound):
        plan_tag(store.catalog, name("a:1"), reference("b:1"))
    models.publish(store, "a:1", WEIGHTS)
    store.directory.blobs.path(Digest.of(WEIGHTS)).unlink()
    store.catalog = store.directory.load().catalog
    with pytest.raises(StoreDamaged, match="missing"):
        plan_tag(store.catalog, name("a:1"), reference("b:1"))


# publish


def test_publishing_needs_every_layer_in_its_length(store):
    package = models.built(WEIGHTS)
    change = plan_publish(store.catalog, package.config, package.layers, reference("a:1"))
    with pytest.raises(BlobNotFound, match=str(Digest.of(WEIGHTS))):
        carry_out(change, store.directory)
    models.put_blob(store, WEIGHTS)
    shorter = Descriptor(media_type="t", size_bytes=1, digest=Digest.of(WEIGHTS))
    with pytest.raises(BlobNotFound):
        carry_out(plan_publish(store.catalog, package.config, (shorter,), None), store.directory)
    assert store.directory.load().catalog.models() == ()
    carry_out(change, store.directory)
    assert store.directory.load().catalog.resolve(name("a:1")).model.id == change.model_id


def test_documents_that_nobody_could_read_are_not_published(store):
    layers = models.built(WEIGHTS).layers
    with pytest.raises(InvalidManifest):
        plan_publish(store.catalog, b"{}", layers, None)
    with pytest.raises(InvalidManifest, match="1024"):
        plan_publish(store.catalog, b'{"config":{}}', layers * 1025, None)


def test_publishing_the_same_twice_is_publishing_once(store):
    first = models.publish(store, "a:1", WEIGHTS)
    assert models.publish(store, "a:1", WEIGHTS) == first
    assert models.publish(store, None, WEIGHTS) == first
    assert len(store.catalog.index.entries) == 1


def test_publishing_heals_a_damaged_model(store):
    model_id = models.publish(store, "a:1", WEIGHTS)
    store.directory.blobs.path(model_id).unlink()
    store.catalog = store.directory.load().catalog
    assert store.catalog.faults
    models.publish(store, "a:1", WEIGHTS)
    assert store.catalog.usable(model_id).model.name == "ai/a:1"


# a full disk


def full_while(path):
    """No room for anything new, until `path` gives its room back."""

    def does_fail(number, operation):
        is_held = path.exists() and path.stat().st_size == RESERVE_BYTES
        return is_held and operation in ("create", "write")

    return fail_at(does_fail, errno.ENOSPC)


def test_S23_a_model_can_be_removed_from_a_full_disk(tmp_path):
    disk = CountingDisk()
    with models.opened(tmp_path / "store", disk=disk) as store:
        models.publish(store, "a:1", WEIGHTS)
        reserve = store.directory.layout.reserve
        disk.arm(full_while(reserve))
        with pytest.raises(DiskFull):
            carry_out(plan_tag(store.catalog, name("a:1"), reference("b:1")), store.directory)
        assert reserve.exists(), "only what makes room may use it"
        carry_out(removal_of(store, "a:1"), store.directory)
        assert store.directory.blobs.digests() == ()
        assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES, "there is room again, so it is held again"
        disk.arm(do_nothing)
    with models.opened(tmp_path / "store") as store:
        assert models.shown(store) == {}


def test_a_reserve_that_was_cut_off_is_taken_anew(tmp_path):
    with models.opened(tmp_path / "store") as store:
        reserve = store.directory.layout.reserve
    reserve.write_bytes(b"")
    with models.opened(tmp_path / "store"):
        assert reserve.stat().st_size == RESERVE_BYTES


def test_a_disk_without_room_for_a_reserve_is_used_all_the_same(tmp_path):
    disk = CountingDisk(fail_at(lambda number, operation: operation == "allocate", errno.ENOSPC))
    with models.opened(tmp_path / "store", disk=disk) as store:
        assert not store.directory.layout.reserve.exists()
        models.publish(store, "a:1", WEIGHTS)
