"""Downloads by ranges: what counts after an end at any point, and what is never believed."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading

import pytest

from runner.errors import Conflict, ContentMismatch, DiskFull, StoreError
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store.blobs import BlobStore
from runner.store.disk import Disk
from runner.store.layout import StoreLayout
from runner.store.partials import PartialBlob
from tests.support.cut_disk import (
    BlockingDisk,
    CountingDisk,
    ForgetfulDisk,
    Killed,
    cut_at,
    do_nothing,
    fail_at,
)

CONTENT = random.Random(5).randbytes(100_000)
DESCRIPTOR = Descriptor.of(CONTENT, "application/octet-stream")


@pytest.fixture
def layout(tmp_path):
    layout = StoreLayout(tmp_path)
    for path in layout.directories():
        path.mkdir(mode=0o700)
    return layout


def begin(layout, disk=None, descriptor=DESCRIPTOR) -> PartialBlob:
    return BlobStore(layout, disk or Disk()).begin_partial(descriptor)


def write(partial, *ranges, content=CONTENT):
    for start, end in ranges:
        partial.write_at(start, content[start:end])


def names(layout):
    return {path.name for path in layout.partial.iterdir()}


def finish(layout, partial):
    write(partial, *partial.missing())
    partial.finish()
    stored = BlobStore(layout, Disk()).adopt(partial)
    assert stored.path.read_bytes() == CONTENT
    assert names(layout) == set()


def test_ranges_in_any_order_become_the_content(layout):
    partial = begin(layout)
    assert partial.missing() == ((0, 100_000),)
    write(partial, (70_000, 100_000), (0, 10), (5, 40_000))
    assert partial.missing() == ((40_000, 70_000),)
    assert partial.done_bytes == 70_000
    finish(layout, partial)
    assert oct(layout.blob(DESCRIPTOR.digest).stat().st_mode & 0o777) == "0o400"


def test_empty_content_needs_no_writing(layout):
    partial = begin(layout, descriptor=Descriptor.of(b"", "any"))
    assert partial.missing() == ()
    partial.finish()
    assert BlobStore(layout, Disk()).adopt(partial).size_bytes == 0


def test_threads_that_write_the_same_bytes_leave_the_first(layout):
    partial = begin(layout)
    rivals = [CONTENT, bytes(len(CONTENT))]

    def write_all(content):
        for start in range(0, len(content), 1000):
            partial.write_at(start, content[start : start + 1000])

    write(partial, (0, 100_000))
    threads = [threading.Thread(target=write_all, args=(content,)) for content in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finish(layout, partial)


def test_threads_write_hash_and_checkpoint_at_once(layout):
    partial = begin(layout)
    chances = [random.Random(seed) for seed in range(6)]

    def write_some(chance):
        while missing := partial.missing():
            start, end = chance.choice(missing)
            start = chance.randrange(start, end)
            write(partial, (max(0, start - 500), min(start + 2500, 100_000)))

    def look_after():
        while partial.missing():
            partial.checkpoint()
            partial.hash_forward(3000)

    workers = [threading.Thread(target=write_some, args=(chance,)) for chance in chances]
    workers += [threading.Thread(target=look_after) for _ in range(2)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    finish(layout, partial)


def test_closing_waits_for_a_thread_that_writes(layout):
    disk = BlockingDisk()
    partial = begin(layout, disk)
    disk.stop_at("write")
    writer = threading.Thread(target=write, args=(partial, (0, 5000)))
    writer.start()
    assert disk.has_stopped.wait(5)
    closer = threading.Thread(target=partial.close)
    closer.start()
    disk.let_go()
    closer.join()
    writer.join()
    again = begin(layout)
    assert again.done_bytes in (0, 5000)  # written before or after the last checkpoint
    finish(layout, again)


def test_bytes_that_were_hashed_are_never_written_again(layout):
    partial = begin(layout)
    write(partial, (0, 50_000))
    assert partial.hash_forward() == 50_000
    partial.write_at(0, bytes(50_000))
    finish(layout, partial)


# what counts


def test_S20_what_was_not_journalled_counts_no_more_after_an_end(layout):
    partial = begin(layout)
    write(partial, (0, 30_000))
    partial.checkpoint()
    write(partial, (60_000, 100_000))
    abandoned = (partial._part, partial._journal)
    for descriptor in abandoned:  # what the end of a process does
        os.close(descriptor)
    again = begin(layout)
    assert again.missing() == ((30_000, 100_000),)
    finish(layout, again)


def test_closing_keeps_everything_and_resuming_goes_on(layout):
    partial = begin(layout)
    write(partial, (20, 30_000))
    partial.close()
    partial.close()
    with pytest.raises(StoreError, match="ended"):
        partial.write_at(0, b"x")
    again = begin(layout)
    assert again.missing() == ((0, 20), (30_000, 100_000))
    finish(layout, again)


def test_S20_bytes_of_an_earlier_try_are_hashed_anew(layout):
    partial = begin(layout)
    write(partial, (0, 50_000))
    partial.close()
    with layout.partial_of(DESCRIPTOR.digest).open("r+b") as file:
        file.write(b"something else")
    again = begin(layout)
    write(again, *again.missing())
    with pytest.raises(ContentMismatch, match=DESCRIPTOR.digest.hex):
        again.finish()
    assert names(layout) == set()
    finish(layout, begin(layout))


@pytest.mark.parametrize("cut_bytes", [1, 10, 19, 20, 21, 39])
def test_S20_a_torn_end_of_the_journal_is_ignored_and_written_over(layout, cut_bytes):
    partial = begin(layout)
    for start in (0, 20_000, 40_000):
        write(partial, (start, start + 10_000))
        partial.checkpoint()
    partial.close()
    journal = layout.journal_of(DESCRIPTOR.digest)
    journal.write_bytes(journal.read_bytes()[:-cut_bytes])
    again = begin(layout)
    assert again.done_bytes == (20_000 if cut_bytes <= 20 else 10_000)
    write(again, (90_000, 100_000))
    again.close()
    again = begin(layout)
    assert again.missing()[-1][1] == 90_000
    finish(layout, again)


@pytest.mark.parametrize("damage", ["size", "version", "gone", "short part", "no part", "false record"])
def test_S20_a_journal_that_does_not_fit_is_dropped_with_its_file(layout, damage):
    partial = begin(layout)
    write(partial, (0, 50_000))
    partial.close()
    part, journal = layout.partial_of(DESCRIPTOR.digest), layout.journal_of(DESCRIPTOR.digest)
    content = journal.read_bytes()
    match damage:
        case "size":
            journal.write_bytes(content[:47] + b"\0" + content[48:])
        case "version":
            journal.write_bytes(b"RUNRJ999" + content[8:])
        case "gone":
            journal.unlink()
        case "short part":
            os.truncate(part, 99_999)
        case "no part":
            part.unlink()
        case "false record":
            journal.write_bytes(content[:-20] + (7).to_bytes(8, "big") + content[-12:])
    again = begin(layout)
    assert again.done_bytes == 0
    finish(layout, again)


# what is refused


@pytest.mark.parametrize(("offset", "size_bytes"), [(100_000, 1), (99_999, 2), (-1, 1), (0, 100_001)])
def test_S02_not_one_byte_beyond_the_announced_length_is_written(layout, offset, size_bytes):
    partial = begin(layout)
    with pytest.raises(ContentMismatch, match="longer than the announced 100000 bytes"):
        partial.write_at(offset, bytes(size_bytes))
    assert partial.done_bytes == 0
    finish(layout, partial)


def test_S02_content_of_another_digest_is_removed(layout):
    partial = begin(layout)
    partial.write_at(0, bytes(100_000))
    with pytest.raises(ContentMismatch):
        partial.finish()
    assert names(layout) == set()
    assert not layout.blob(DESCRIPTOR.digest).exists()


def test_what_is_not_complete_cannot_be_finished(layout):
    partial = begin(layout)
    write(partial, (0, 99_999))
    with pytest.raises(StoreError, match="not complete"):
        partial.finish()
    finish(layout, partial)


def test_S21_one_download_of_a_digest_at_a_time(layout):
    partial = begin(layout)
    write(partial, (0, 100))
    with pytest.raises(Conflict, match="already"):
        begin(layout)
    finish(layout, partial)


@pytest.mark.parametrize("which", ["part", "journal"])
@pytest.mark.parametrize("kind", ["link", "pipe", "directory link", "second name", "device"])
def test_S25_files_that_are_not_ours_are_replaced_and_never_followed(layout, tmp_path, which, kind):
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    begin(layout).close()
    path = layout.partial_of(DESCRIPTOR.digest) if which == "part" else layout.journal_of(DESCRIPTOR.digest)
    path.unlink()
    match kind:
        case "link":
            path.symlink_to(outside)
        case "directory link":
            path.symlink_to(tmp_path)
        case "pipe":
            os.mkfifo(path)
        case "second name":
            os.link(outside, path)
        case "device":
            path.symlink_to("/dev/zero")
    partial = begin(layout)
    assert partial.done_bytes == 0
    finish(layout, partial)
    assert outside.read_bytes() == b"precious"


# failing disks


def test_S19_after_a_failed_sync_nothing_of_the_file_is_believed(layout):
    disk = CountingDisk()
    partial = begin(layout, disk)
    write(partial, (0, 30_000))
    partial.checkpoint()
    write(partial, (30_000, 60_000))
    disk.arm(fail_at(lambda number, operation: operation == "sync"))
    with pytest.raises(StoreError, match="sync"):
        partial.checkpoint()
    disk.arm(do_nothing)
    with pytest.raises(StoreError, match="ended"):
        partial.checkpoint()
    partial.close()
    assert names(layout) == set()
    finish(layout, begin(layout))


def test_S23_a_disk_that_fills_up_costs_only_what_could_not_be_written(layout):
    disk = CountingDisk()
    partial = begin(layout, disk)
    write(partial, (0, 30_000))
    disk.arm(fail_at(lambda number, operation: operation == "write", errno.ENOSPC))
    with pytest.raises(DiskFull):
        write(partial, (30_000, 60_000))
    assert partial.missing() == ((30_000, 100_000),)
    with pytest.raises(DiskFull):
        partial.checkpoint()
    disk.arm(do_nothing)
    partial.close()
    again = begin(layout)
    assert again.missing() == ((30_000, 100_000),)
    finish(layout, again)


@pytest.mark.parametrize("operation", ["seal", "sync", "close"])
def test_S19_an_error_at_the_very_end_leaves_nothing(layout, operation):
    disk = CountingDisk()
    partial = begin(layout, disk)
    write(partial, (0, 100_000))
    partial.checkpoint()
    disk.arm(fail_at(lambda number, reached: reached == operation))
    with pytest.raises(StoreError):
        partial.finish()
    disk.arm(do_nothing)
    partial.close()
    assert names(layout) == set()
    finish(layout, begin(layout))


def test_S23_what_cannot_be_renamed_is_kept_for_another_try(layout):
    disk = CountingDisk()
    partial = begin(layout, disk)
    write(partial, (0, 100_000))
    partial.finish()
    partial.finish()
    disk.arm(fail_at(lambda number, reached: reached == "rename", errno.ENOSPC))
    with pytest.raises(DiskFull):
        BlobStore(layout, disk).adopt(partial)
    again = begin(layout)
    assert again.missing() == ()
    finish(layout, again)


def test_a_finished_download_can_be_discarded(layout):
    partial = begin(layout)
    write(partial, (0, 100_000))
    partial.finish()
    partial.discard()
    assert names(layout) == set()


def test_a_file_that_is_cut_off_meanwhile_is_an_error(layout):
    partial = begin(layout)
    write(partial, (0, 100_000))
    assert partial.hash_forward(50_000) == 50_000
    assert partial.hashed_bytes == 50_000
    os.truncate(partial.path, 60_000)
    with pytest.raises(StoreError, match="cut off"):
        partial.finish()
    partial.discard()


def test_what_is_not_finished_cannot_be_adopted(layout):
    partial = begin(layout)
    write(partial, (0, 10))
    assert repr(partial) == f"<PartialBlob {DESCRIPTOR.digest.short()} open, 10/100000>"
    with pytest.raises(RuntimeError):
        partial.mark_adopted()
    partial.discard()
    partial.discard()


# ends at every operation


def download(layout, disk) -> None:
    """In three parts, with a checkpoint after each."""
    partial = begin(layout, disk)
    try:
        for start in (66_000, 0, 33_000):
            for left, right in partial.missing():
                write(partial, (max(left, start), min(right, start + 34_000)))
            partial.checkpoint()
            partial.hash_forward()
        partial.finish()
        BlobStore(layout, disk).adopt(partial)
    except Killed:
        for descriptor in (partial._part, partial._journal, partial._lock):  # what the end of a process does
            with contextlib.suppress(OSError, TypeError):
                os.close(descriptor)
        raise


@pytest.mark.parametrize("make_disk", [CountingDisk, ForgetfulDisk])
def test_S18_a_download_that_ends_anywhere_is_resumed_and_complete(tmp_path, make_disk):
    number, resumed = 0, set()
    while True:
        number += 1
        layout = StoreLayout(tmp_path / str(number))
        for path in (layout.root, *layout.directories()):
            path.mkdir(mode=0o700)
        disk = make_disk(cut_at(number))
        try:
            download(layout, disk)
            break
        except Killed:
            pass
        disk.arm(do_nothing)
        if isinstance(disk, ForgetfulDisk):
            disk.lose_power()
        target = layout.blob(DESCRIPTOR.digest)
        assert not target.exists() or target.read_bytes() == CONTENT
        again = begin(layout)
        resumed.add(again.done_bytes)
        finish(layout, again)
        assert Digest.of(target.read_bytes()) == DESCRIPTOR.digest
    assert len(resumed) > 2
    print(f"\ndownload: {number - 1} points, resumed at {sorted(resumed)}")
