"""Blobs: visible only when complete, gone when anything failed, replaced and never rewritten."""

from __future__ import annotations

import errno
import os

import pytest

from runner.errors import BlobNotFound, ContentMismatch, DiskFull, StoreDamaged, StoreError
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store.blobs import BlobStore
from runner.store.layout import StoreLayout
from tests.support.cut_disk import CountingDisk, fail_at

CONTENT = b"some content"
DIGEST = Digest.of(CONTENT)
OTHER = Digest.of(b"other")


@pytest.fixture
def disk():
    return CountingDisk()


@pytest.fixture
def layout(tmp_path):
    layout = StoreLayout(tmp_path)
    for path in layout.directories():
        path.mkdir(mode=0o700)
    return layout


@pytest.fixture
def blobs(layout, disk):
    return BlobStore(layout, disk)


def write(blobs, content, **announced):
    writer = blobs.begin(**announced)
    try:
        writer.open()
        writer.write(content)
        writer.finish()
    except BaseException:
        writer.abandon()
        raise
    return writer


def is_empty(layout):
    return not any(layout.partial.iterdir()) and not any(layout.blobs.iterdir())


def test_content_becomes_a_sealed_file_named_by_its_digest(blobs, layout):
    assert blobs.put(CONTENT) == DIGEST
    assert layout.blob(DIGEST).read_bytes() == CONTENT
    assert oct(layout.blob(DIGEST).stat().st_mode) == "0o100400"
    assert blobs.digests() == (DIGEST,)
    assert blobs.read(DIGEST, limit_bytes=99) == CONTENT
    assert not any(layout.partial.iterdir())


def test_S17_a_file_is_complete_and_synced_before_it_has_its_name(blobs, disk):
    blobs.put(CONTENT)
    assert disk.operations == [
        "create", "write", "write", "seal", "sync", "close", "rename", "sync directory",
    ]  # fmt: skip


def test_S17_content_is_not_visible_before_it_is_adopted(blobs, layout):
    writer = write(blobs, CONTENT)
    assert blobs.facts(DIGEST) is None
    blobs.adopt(writer)
    assert blobs.facts(DIGEST).size_bytes == len(CONTENT)
    assert not any(layout.partial.iterdir())


@pytest.mark.parametrize("difference", [-1, 1])
def test_S02_content_of_another_length_than_announced_leaves_nothing(blobs, layout, difference):
    with pytest.raises(ContentMismatch, match="announced"):
        write(blobs, CONTENT, size_bytes=len(CONTENT) + difference)
    assert is_empty(layout)


def test_S02_writing_stops_at_the_first_byte_too_many(blobs):
    writer = blobs.begin(size_bytes=5)
    writer.open()
    writer.write(b"12345")
    with pytest.raises(ContentMismatch):
        writer.write(b"6")
    assert writer.path.stat().st_size == 5
    writer.abandon()


def test_S02_content_of_another_digest_than_announced_leaves_nothing(blobs, layout):
    with pytest.raises(ContentMismatch, match=str(OTHER)):
        write(blobs, CONTENT, digest=OTHER)
    assert is_empty(layout)


def test_content_as_announced_is_taken(blobs):
    blobs.adopt(write(blobs, CONTENT, size_bytes=len(CONTENT), digest=DIGEST))
    assert blobs.read(DIGEST, limit_bytes=99) == CONTENT


def test_an_empty_blob_is_a_blob(blobs):
    assert blobs.read(blobs.put(b""), limit_bytes=0) == b""


@pytest.mark.parametrize(
    "operation", ["create", "write", "seal", "sync", "close", "rename", "sync directory"]
)
def test_S19_after_any_error_the_file_is_lost_and_the_same_again_succeeds(blobs, layout, disk, operation):
    disk.arm(fail_at(lambda number, reached: reached == operation))
    with pytest.raises(StoreError):
        blobs.put(CONTENT)
    assert is_empty(layout)
    disk.arm(lambda number, reached: None)
    blobs.put(CONTENT)
    assert blobs.read(DIGEST, limit_bytes=99) == CONTENT


@pytest.mark.parametrize("operation", ["sync", "close", "sync directory"])
def test_S19_a_failed_sync_or_close_is_never_tried_again(blobs, disk, operation):
    disk.arm(fail_at(lambda number, reached: reached == operation and disk.operations.count(operation) == 1))
    with pytest.raises(StoreError):
        blobs.put(CONTENT)
    if operation == "close":  # the descriptor is gone
        assert disk.operations.count("close") == 1
    assert disk.operations.count(operation) == 1
    assert blobs.facts(DIGEST) is None


def test_S19_a_failed_sync_of_the_directory_keeps_a_blob_that_was_there_before(blobs, disk):
    blobs.put(CONTENT)
    disk.arm(fail_at(lambda number, reached: reached == "sync directory"))
    with pytest.raises(StoreError):
        blobs.put(CONTENT)
    assert blobs.read(DIGEST, limit_bytes=99) == CONTENT


@pytest.mark.parametrize("operation", ["create", "write", "sync", "close", "rename", "sync directory"])
def test_S23_a_full_disk_at_any_point_is_told_as_such_and_leaves_nothing(blobs, layout, disk, operation):
    disk.arm(fail_at(lambda number, reached: reached == operation, errno.ENOSPC))
    with pytest.raises(DiskFull):
        blobs.put(CONTENT)
    assert is_empty(layout)


def test_S23_a_length_that_cannot_fit_is_refused_before_anything_is_written(blobs, disk, layout):
    room_bytes = disk.free_bytes(layout.root)
    writer = blobs.begin(size_bytes=room_bytes + (1 << 40))
    with pytest.raises(DiskFull):
        writer.open()
    assert disk.operations == []


def test_S22_a_blob_that_is_written_again_is_replaced_and_whoever_reads_it_keeps_it(blobs, layout):
    blobs.put(CONTENT)
    with blobs.open(DIGEST) as before:
        inode = os.fstat(before.fileno()).st_ino
        blobs.put(CONTENT)
        assert layout.blob(DIGEST).stat().st_ino != inode
        assert before.read() == CONTENT


def test_wrong_content_on_disk_is_noticed_and_healed_by_writing_it_again(blobs, layout):
    blobs.put(CONTENT)
    layout.blob(DIGEST).chmod(0o600)
    layout.blob(DIGEST).write_bytes(b"sOme content")
    with pytest.raises(StoreDamaged, match=str(DIGEST)):
        blobs.read(DIGEST, limit_bytes=99)
    blobs.put(CONTENT)
    assert blobs.read(DIGEST, limit_bytes=99) == CONTENT


def test_S25_a_link_in_the_place_of_a_blob_is_refused_and_replaced_not_followed(blobs, layout, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(CONTENT)
    layout.blob(DIGEST).symlink_to(outside)
    with pytest.raises(StoreDamaged):
        blobs.read(DIGEST, limit_bytes=99)
    blobs.put(CONTENT)
    assert not layout.blob(DIGEST).is_symlink()
    assert outside.read_bytes() == CONTENT


def test_two_writers_of_the_same_content_do_not_meet(blobs):
    first, second = blobs.begin(), blobs.begin()
    first.open()
    second.open()
    for part in (CONTENT[:3], CONTENT[3:]):
        first.write(part)
        second.write(part)
    first.finish()
    blobs.adopt(first)
    second.finish()
    blobs.adopt(second)
    assert blobs.read(DIGEST, limit_bytes=99) == CONTENT


def test_abandoning_ends_a_writer_in_any_state_and_twice_is_once(blobs, layout):
    fresh = blobs.begin()
    fresh.abandon()
    opened = blobs.begin()
    opened.open()
    opened.abandon()
    opened.abandon()
    finished = write(blobs, CONTENT)
    finished.abandon()
    assert is_empty(layout)
    adopted = write(blobs, CONTENT)
    blobs.adopt(adopted)
    adopted.abandon()
    assert blobs.digests() == (DIGEST,)


def test_a_writer_refuses_steps_out_of_order(blobs):
    writer = blobs.begin()
    with pytest.raises(RuntimeError, match="must be open"):
        writer.write(b"")
    with pytest.raises(RuntimeError, match="must be finished"):
        writer.mark_adopted()
    writer.abandon()
    with pytest.raises(RuntimeError, match="must be new"):
        writer.open()


def test_check_and_hold_tell_what_is_missing_or_of_another_length(blobs):
    blobs.put(CONTENT)
    descriptor = Descriptor(media_type="t", size_bytes=len(CONTENT), digest=DIGEST)
    blobs.check(descriptor)
    (held,) = blobs.hold((DIGEST,))
    assert (held.size_bytes, held.path) == (len(CONTENT), blobs.path(DIGEST))
    with pytest.raises(StoreDamaged, match="12 bytes"):
        blobs.check(Descriptor(media_type="t", size_bytes=1, digest=DIGEST))
    with pytest.raises(StoreDamaged, match="missing"):
        blobs.check(Descriptor(media_type="t", size_bytes=1, digest=OTHER))
    with pytest.raises(StoreDamaged, match="missing"):
        blobs.open(OTHER)
    with pytest.raises(StoreDamaged, match="missing"):
        blobs.read(OTHER, limit_bytes=9)
    with pytest.raises(BlobNotFound):
        blobs.hold((DIGEST, OTHER))


def test_names_that_are_no_digests_are_not_ours(blobs, layout):
    (layout.blobs / "README").write_text("hello")
    (layout.blobs / DIGEST.hex.upper()).write_text("hello")
    assert blobs.digests() == ()


def test_removing_goes_in_the_given_order_and_twice_is_once(blobs, disk):
    blobs.put(CONTENT)
    disk.arm(lambda number, reached: None)
    blobs.remove((DIGEST, OTHER))
    assert disk.operations == ["unlink", "unlink", "sync directory"]
    blobs.remove(())
    assert len(disk.operations) == 3
