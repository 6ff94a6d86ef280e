"""What is known of files, and of which file."""

from __future__ import annotations

import errno
import os

import attrs
import pytest

from runner.oci.digest import Digest
from runner.store.disk import Disk
from runner.store.known import KnownContent
from runner.store.layout import StoreLayout
from runner.store.pieces import PIECE_BYTES, PieceSums
from tests.support.cut_disk import CountingDisk, fail_at

CONTENT = b"y" * (PIECE_BYTES + 5)
DIGEST, SMALL = Digest.of(CONTENT), b"small"


@pytest.fixture
def layout(tmp_path):
    layout = StoreLayout(tmp_path)
    for path in layout.directories():
        path.mkdir(mode=0o700)
    return layout


def written(layout, content=CONTENT):
    path = layout.blob(Digest.of(content))
    path.write_bytes(content)
    return Disk().facts(path)


def noted(layout, disk=None, content=CONTENT):
    """Knowledge of a file that was just verified."""
    known, facts, sums = KnownContent(layout, disk or Disk()), written(layout, content), PieceSums()
    sums.update(memoryview(content))
    known.note_good(Digest.of(content), facts, sums)
    return known, facts


def test_a_large_file_is_known_by_the_next_process_too_and_a_small_one_is_not(layout):
    known, facts = noted(layout)
    assert known.is_good(DIGEST, facts)
    _, small = noted(layout, content=SMALL)
    again = KnownContent(layout, Disk())
    assert again.is_good(DIGEST, facts)
    assert not again.is_good(Digest.of(SMALL), small)


@pytest.mark.parametrize("change", [{"file_id": 1}, {"modified_s": 1.0}, {"size_bytes": 1}])
def test_S24_another_file_of_the_same_name_is_not_known(layout, change):
    known, facts = noted(layout)
    for one in (known, KnownContent(layout, Disk())):
        assert not one.is_good(DIGEST, attrs.evolve(facts, **change))
        assert not one.is_bad(DIGEST, attrs.evolve(facts, **change))


def test_S24_what_was_found_wrong_is_never_good_again_unless_it_was_verified(layout):
    known, facts = noted(layout)
    known.note_bad(DIGEST, facts)
    assert known.is_bad(DIGEST, facts)
    assert not known.is_good(DIGEST, facts)
    again = KnownContent(layout, Disk())
    assert not again.is_good(DIGEST, facts)
    assert again.record(DIGEST) is not None  # a repair needs the checksums
    sums = PieceSums()
    sums.update(memoryview(CONTENT))
    known.note_good(DIGEST, facts, sums)
    assert known.is_good(DIGEST, facts)
    assert not known.is_bad(DIGEST, facts)


def test_S19_knowledge_that_cannot_be_written_is_not_an_error(layout):
    disk = CountingDisk(fail_at(lambda number, operation: True, errno.ENOSPC))
    known, facts = noted(layout, disk)
    assert known.is_good(DIGEST, facts)
    assert known.record(DIGEST) is None


@pytest.mark.parametrize("kind", ["link", "pipe", "second name", "torn"])
def test_S25_a_record_that_is_not_ours_says_nothing(layout, tmp_path, kind):
    noted(layout)
    path = layout.pieces_of(DIGEST)
    content = path.read_bytes()
    path.unlink()
    outside = tmp_path / "outside"
    outside.write_bytes(content)
    match kind:
        case "link":
            path.symlink_to(outside)
        case "pipe":
            os.mkfifo(path)
        case "second name":
            os.link(outside, path)
        case "torn":
            path.write_bytes(content[:-1])
    assert KnownContent(layout, Disk()).record(DIGEST) is None


def test_records_go_with_their_files(layout):
    known, facts = noted(layout)
    (layout.pieces / "something").write_bytes(b"")
    known.drop_all_but(frozenset({DIGEST}))
    assert {path.name for path in layout.pieces.iterdir()} == {DIGEST.hex}
    known.forget(DIGEST)
    assert not any(layout.pieces.iterdir())
    assert not known.is_good(DIGEST, facts)


def test_memory_is_bounded(layout, monkeypatch):
    monkeypatch.setattr("runner.store.known._REMEMBERED_MAX", 2)
    known, facts = noted(layout, content=SMALL)
    for number in range(2):
        known.note_good(Digest.of(b"%d" % number), facts, PieceSums())
    assert not known.is_good(Digest.of(SMALL), facts)
    assert known.is_good(Digest.of(b"1"), facts)
