"""Opening a store: whose it is, who holds it, which version wrote it, what is left over."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from runner.errors import StartRefused
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store.changes import plan_remove
from runner.store.disk import Disk
from runner.store.gc import LEFTOVER_AGE_S
from runner.store.opening import open_store
from runner.store.pieces import PIECE_BYTES
from tests.support import models
from tests.support.cut_disk import CountingDisk, fail_at
from tests.support.models import NOW_S

WEIGHTS = models.tiny_gguf()


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "store"
    with models.opened(root) as store:
        models.publish(store, "a:1", WEIGHTS, models.LICENSE)
    return root


def refusal(root, **options):
    with pytest.raises(StartRefused) as caught:
        open_store(root, now_s=NOW_S, **options)
    assert str(root) not in str(caught.value)
    return str(caught.value)


def test_a_new_store_is_an_oci_image_layout(tmp_path):
    root = tmp_path / "some" / "where"
    with models.opened(root) as store:
        assert store.notices == ()
        assert store.catalog.models() == ()
    assert orjson.loads((root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert orjson.loads((root / "index.json").read_bytes())["manifests"] == []
    assert (root / "blobs" / "sha256").is_dir()


def test_S25_everything_in_a_store_is_for_its_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        root = tmp_path / "store"
        with models.opened(root) as store:
            models.publish(store, "a:1", WEIGHTS)
            models.put_blob(store, bytes(PIECE_BYTES + 1))
            partial = store.directory.downloads.begin(Descriptor.of(b"half", "any"))
            partial.write_at(0, b"ha")
            partial.close()
    finally:
        os.umask(before)
    for path in (root, *root.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == 0o700 if path.is_dir() else mode in (0o600, 0o400), path


def test_an_empty_directory_of_the_user_becomes_a_store_and_is_narrowed(tmp_path):
    root = tmp_path / "store"
    root.mkdir(mode=0o755)
    with models.opened(root):
        pass
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_a_link_to_the_store_is_the_users_choice(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    with models.opened(tmp_path / "link") as store:
        assert set(models.shown(store)) == {"ai/a:1"}


@pytest.mark.parametrize("content", ["notes.txt", "oci-layout", "index.json"])
def test_a_directory_with_something_else_in_it_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "work").mkdir(mode=0o755)
    (tmp_path / "work" / content).write_text("{}")
    assert "choose an empty directory with --store" in refusal(tmp_path / "work")
    assert [path.name for path in (tmp_path / "work").iterdir()] == [content]
    assert stat.S_IMODE((tmp_path / "work").stat().st_mode) == 0o755


def test_a_file_in_the_place_of_the_store_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    refusal(tmp_path / "file")
    refusal(tmp_path / "file" / "below")


# the lock


def test_a_second_owner_is_refused_with_the_first_ones_process_and_a_way_out(root):
    with models.opened(root):
        message = refusal(root)
    assert f"process {os.getpid()}" in message
    assert "`runner ctl shutdown`" in message
    assert "--store" in message
    with models.opened(root):
        pass


def test_L10_the_lock_of_a_killed_process_is_free(root):
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from runner.store.opening import open_store\n"
        "store = open_store(Path(sys.argv[1]), now_s=0)\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    project = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", program, str(root)], cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"open\n"
        assert f"process {holder.pid}" in refusal(root)
        holder.kill()
    with models.opened(root) as store:
        assert set(models.shown(store)) == {"ai/a:1"}


def test_a_refused_or_failed_opening_gives_the_lock_back(root):
    disk = CountingDisk(fail_at(lambda number, reached: reached == "unlink"))
    (root / "partial" / "x").write_text("")
    assert "cannot be opened" in refusal(root, disk=disk)
    with models.opened(root):
        pass


def test_a_store_on_a_full_disk_is_opened_without_a_note_of_who_did(root, monkeypatch):
    def write(descriptor, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    with open_store(root, now_s=NOW_S):
        assert "another runner uses this store" in refusal(root)


def test_S25_a_lock_that_is_a_link_is_refused(root, tmp_path):
    (root / "lock").unlink()
    (root / "lock").symlink_to(tmp_path / "elsewhere")
    refusal(root)
    assert not (tmp_path / "elsewhere").exists()


# versions


@pytest.mark.parametrize(
    ("version", "is_good"), [(1, True), (2, False), (99, False), ("1", False), (0, False)]
)
def test_S27_a_store_of_a_newer_version_is_refused(root, version, is_good):
    content = orjson.dumps({"store_version": version, "written_by": "somebody"})
    (root / "store.json").write_bytes(content)
    if is_good:
        with models.opened(root):
            pass
        return
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    message = refusal(root)
    assert "newer version" in message
    assert str(version) in message
    del before[root / "lock"]
    assert before.items() <= {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}.items()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"5"])
def test_a_damaged_version_is_refused_and_not_guessed(root, content):
    (root / "store.json").write_bytes(content)
    assert "store.json in the store is damaged" in refusal(root)


def test_an_image_layout_of_another_version_is_refused(root):
    (root / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
    assert "2.0.0" in refusal(root)


# what may not be there


@pytest.mark.parametrize("name", ["blobs", "partial", "blobs/sha256"])
def test_S25_a_directory_of_the_store_that_is_a_link_is_refused(root, tmp_path, name):
    (root / name).rename(tmp_path / "moved")
    (root / name).symlink_to(tmp_path / "moved")
    assert "not a directory" in refusal(root)


@pytest.mark.parametrize("name", ["index.json", "store.json", "oci-layout"])
def test_S25_a_file_of_the_store_that_is_a_link_a_pipe_or_has_two_names_is_refused(root, tmp_path, name):
    path = root / name
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    assert "link" in refusal(root)
    path.unlink()
    os.mkfifo(path)
    assert "pipe" in refusal(root)
    path.unlink()
    os.link(tmp_path / "moved", path)
    assert "second name" in refusal(root)
    (tmp_path / "moved").unlink()
    with models.opened(root) as store:
        assert set(models.shown(store)) == {"ai/a:1"}


def test_S25_a_store_of_another_user_is_refused(root):
    assert "another user" in refusal(root, disk=Disk(owner_uid=os.geteuid() + 1))


def test_S25_a_blob_that_is_a_link_makes_its_model_unusable_and_is_left_alone(root, tmp_path):
    blob = root / "blobs" / "sha256" / Digest.of(WEIGHTS).hex
    blob.rename(tmp_path / "outside")
    blob.symlink_to(tmp_path / "outside")
    with models.opened(root, now_s=NOW_S + 1e9) as store:
        assert store.catalog.models() == ()
        assert len(store.catalog.faults) == 1
    assert blob.is_symlink()
    assert (tmp_path / "outside").read_bytes() == WEIGHTS


# leftovers


def aged(path, age_s):
    os.utime(path, (NOW_S - age_s, NOW_S - age_s))


@pytest.mark.parametrize(("beyond_s", "goes"), [(-60, False), (60, True)])
def test_S26_content_that_nothing_refers_to_goes_after_7_days(root, beyond_s, goes):
    with models.opened(root) as store:
        digest = models.put_blob(store, b"never packaged")
        path = store.directory.blobs.path(digest)
    aged(path, LEFTOVER_AGE_S + beyond_s)
    with models.opened(root) as store:
        assert path.exists() != goes
        assert store.notices == (("removed 1 leftover files",) if goes else ())
        assert set(models.shown(store)) == {"ai/a:1"}


@pytest.mark.parametrize(("beyond_s", "goes"), [(-60, False), (60, True)])
def test_S26_an_unfinished_download_goes_7_days_after_it_went_on_last(root, beyond_s, goes):
    with models.opened(root) as store:
        partial = store.directory.downloads.begin(Descriptor.of(b"content", "any"))
        partial.write_at(0, b"con")
        partial.close()
    for path in (root / "partial").iterdir():
        aged(path, LEFTOVER_AGE_S + beyond_s)
    with models.opened(root) as store:
        assert any((root / "partial").iterdir()) != goes
        assert store.notices == (("removed 1 leftover files",) if goes else ())


def test_records_of_content_that_is_not_there_go(root):
    (root / "pieces" / ("0" * 64)).write_bytes(b"")
    with models.opened(root):
        assert not any((root / "pieces").iterdir())


def test_S18_what_a_removal_left_goes_at_the_next_start(root):
    with models.opened(root) as store:
        change = plan_remove(store.catalog, models.name("a:1"), force=False, is_pinned=lambda model_id: False)
        store.directory.condemn(change.unneeded)
        store.directory.commit(change.catalog.index)  # here it ends
    with models.opened(root):
        assert not any((root / "blobs" / "sha256").iterdir())


def test_S18_a_removal_that_did_not_happen_leaves_its_model_whole(root):
    with models.opened(root) as store:
        change = plan_remove(store.catalog, models.name("a:1"), force=False, is_pinned=lambda model_id: False)
        store.directory.condemn(change.unneeded)
    with models.opened(root) as store:
        assert set(models.shown(store)) == {"ai/a:1"}


def test_S26_nothing_that_a_model_refers_to_goes_however_old_it_is(root):
    for path in (root / "blobs" / "sha256").iterdir():
        aged(path, 10 * LEFTOVER_AGE_S)
    with models.opened(root) as store:
        assert set(models.shown(store)) == {"ai/a:1"}
        assert store.notices == ()


@pytest.mark.parametrize("damage", ["index", "manifest"])
def test_S26_nothing_goes_while_it_is_uncertain_what_belongs_to_what(root, damage):
    with models.opened(root) as store:
        manifest_path = store.directory.blobs.path(store.catalog.find(models.name("a:1")))
    path = root / "index.json" if damage == "index" else manifest_path
    path.chmod(0o600)
    path.write_bytes(b"{")
    for blob in (root / "blobs" / "sha256").iterdir():
        aged(blob, 10 * LEFTOVER_AGE_S)
    with models.opened(root) as store:
        assert store.directory.blobs.facts(Digest.of(WEIGHTS)) is not None


def test_files_of_writers_that_never_finished_go_at_once(root):
    (root / "partial" / "0123456789abcdef.blob").write_bytes(b"half")
    with models.opened(root):
        assert not any((root / "partial").iterdir())


def test_a_directory_without_room_or_rights_is_refused_with_the_reason(tmp_path):
    disk = CountingDisk(fail_at(lambda number, reached: reached == "create"))
    assert "Input/output error" in refusal(tmp_path / "store", disk=disk)
