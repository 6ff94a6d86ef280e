"""What earlier downloads left, and room for more."""

from __future__ import annotations

import os

import pytest

from runner.errors import DiskFull, StoreError
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store.disk import Disk
from runner.store.partials import PartialBlob
from runner.store.pieces import PIECE_BYTES
from tests.support import models

CONTENT = b"z" * 10_000
DESCRIPTOR = Descriptor.of(CONTENT, "any")
LARGE = b"a" * PIECE_BYTES + b"b" * PIECE_BYTES + b"c"
LARGE_DESCRIPTOR = Descriptor.of(LARGE, "any")


@pytest.fixture
def store(tmp_path):
    with models.opened(tmp_path / "store") as store:
        yield store


@pytest.fixture
def downloads(store):
    return store.directory.downloads


def names(store):
    return {path.name for path in store.directory.layout.partial.iterdir()}


def test_what_an_earlier_try_left_is_told_by_the_room_it_takes(store, downloads):
    assert downloads.unfinished() == ()
    partial = downloads.begin(DESCRIPTOR)
    partial.write_at(0, CONTENT[:4096])
    partial.close()
    (found,) = downloads.unfinished()
    assert found.digest == DESCRIPTOR.digest
    assert 4096 <= found.size_bytes < 10_000


def test_S26_what_somebody_is_at_is_not_removed(store, downloads):
    partial = downloads.begin(DESCRIPTOR)
    assert not downloads.remove(DESCRIPTOR.digest)
    partial.write_at(0, CONTENT)
    partial.finish()
    assert not downloads.remove(DESCRIPTOR.digest)
    partial.close()
    again = downloads.begin(DESCRIPTOR)
    assert again.done_bytes == len(CONTENT)
    again.close()
    assert downloads.remove(DESCRIPTOR.digest)
    assert downloads.remove(DESCRIPTOR.digest)
    assert names(store) == set()


def test_debris_goes_and_downloads_stay(store, downloads):
    downloads.begin(DESCRIPTOR).close()
    layout = store.directory.layout
    orphan = layout.journal_of(Digest.of(b"other"))
    for path in (orphan, layout.partial / "0123.blob", layout.partial / "x.part"):
        path.write_bytes(b"")
    os.mkfifo(layout.partial / "pipe")
    downloads.remove_debris()
    assert names(store) == {f"{DESCRIPTOR.digest.hex}.part", f"{DESCRIPTOR.digest.hex}.journal"}


def test_what_is_known_to_be_wrong_is_downloaded_again_at_once(store, downloads):
    digest = store.directory.blobs.put(CONTENT)
    assert downloads.begin(DESCRIPTOR).digest == digest
    facts = store.directory.blobs.facts(digest)
    store.directory.blobs.known.note_bad(digest, facts)
    partial = downloads.begin(DESCRIPTOR)
    assert isinstance(partial, PartialBlob)
    partial.discard()


def test_content_of_another_length_is_downloaded_again(store, downloads):
    path = store.directory.blobs.path(DESCRIPTOR.digest)
    path.write_bytes(b"short")
    partial = downloads.begin(DESCRIPTOR)
    partial.write_at(0, CONTENT)
    partial.finish()
    store.directory.blobs.adopt(partial)
    assert path.read_bytes() == CONTENT


def test_S03_a_download_that_does_not_fit_keeps_what_is_there(store, downloads, monkeypatch):
    partial = downloads.begin(DESCRIPTOR)
    partial.write_at(0, CONTENT[:5000])
    partial.close()
    monkeypatch.setattr(Disk, "free_bytes", lambda self, path: downloads.keep_free_bytes + 4999)
    with pytest.raises(DiskFull, match="are still to be written"):
        downloads.begin(DESCRIPTOR)
    monkeypatch.setattr(Disk, "free_bytes", lambda self, path: downloads.keep_free_bytes + 5000)
    again = downloads.begin(DESCRIPTOR)
    assert again.done_bytes == 5000
    again.close()


def test_S03_a_download_that_does_not_fit_at_all_leaves_nothing(store, downloads, monkeypatch):
    monkeypatch.setattr(Disk, "free_bytes", lambda self, path: downloads.keep_free_bytes)
    with pytest.raises(DiskFull):
        downloads.begin(DESCRIPTOR)
    assert names(store) == set()


def put_damaged(store):
    """The large content, with its second piece wrong."""
    blobs = store.directory.blobs
    path = blobs.path(blobs.put(LARGE))
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(PIECE_BYTES)
        file.write(b"!")
    return path


def test_a_repair_begins_with_the_good_pieces(store, downloads):
    put_damaged(store)
    partial = downloads.begin(LARGE_DESCRIPTOR, is_repair=True)
    downloads.seed(partial)
    assert partial.missing() == ((PIECE_BYTES, 2 * PIECE_BYTES),)
    partial.close()
    resumed = downloads.begin(LARGE_DESCRIPTOR, is_repair=True)
    downloads.seed(resumed)
    assert resumed.missing() == ((PIECE_BYTES, 2 * PIECE_BYTES),)
    resumed.discard()


@pytest.mark.parametrize("damage", ["gone", "shorter", "unreadable"])
def test_a_repair_of_what_cannot_be_read_begins_with_what_can(store, downloads, damage, monkeypatch):
    path = put_damaged(store)
    match damage:
        case "gone":
            path.unlink()
        case "shorter":
            os.truncate(path, PIECE_BYTES + 7)
        case "unreadable":

            def read_at(self, descriptor, buffer, offset):
                raise StoreError("a bad sector")

            monkeypatch.setattr(Disk, "read_at", read_at)
    partial = downloads.begin(LARGE_DESCRIPTOR, is_repair=True)
    downloads.seed(partial)
    assert partial.done_bytes == (PIECE_BYTES if damage == "shorter" else 0)
    partial.discard()
