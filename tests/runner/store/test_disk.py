"""File operations: what may lie in a store, and how the system's errors read."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from runner.errors import DiskFull, StoreDamaged, StoreError
from runner.store.disk import Disk, translated

DISK = Disk()


def write(path, content=b"content"):
    descriptor = DISK.create(path)
    DISK.write(descriptor, content)
    DISK.seal(descriptor)
    DISK.sync(descriptor)
    DISK.close(descriptor)


def test_a_file_reads_as_it_was_written(tmp_path):
    write(tmp_path / "a")
    assert DISK.read(tmp_path / "a", limit_bytes=7) == b"content"
    assert DISK.facts(tmp_path / "a").size_bytes == 7
    assert DISK.names(tmp_path) == ["a"]


def test_what_is_not_there_is_None_or_nothing(tmp_path):
    path = tmp_path / "a"
    assert DISK.read(path, limit_bytes=1) is None
    assert DISK.open(path) is None
    assert DISK.facts(path) is None
    assert DISK.names(path) == []
    DISK.unlink(path)


@pytest.mark.parametrize(("limit_bytes", "is_good"), [(8, True), (7, True), (6, False)])
def test_a_file_longer_than_its_limit_is_not_read(tmp_path, limit_bytes, is_good):
    write(tmp_path / "a")
    if is_good:
        assert DISK.read(tmp_path / "a", limit_bytes=limit_bytes) == b"content"
    else:
        with pytest.raises(StoreDamaged, match="longer"):
            DISK.read(tmp_path / "a", limit_bytes=limit_bytes)


def test_S25_files_and_directories_are_created_for_their_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        descriptor = DISK.create(tmp_path / "a")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
        DISK.seal(descriptor)
        DISK.close(descriptor)
        DISK.make_directory(tmp_path / "d")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o400
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700


def test_S25_a_directory_that_others_may_enter_is_narrowed(tmp_path):
    (tmp_path / "d").mkdir(mode=0o755)
    DISK.check_directory(tmp_path / "d")
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700


@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_S25_a_symbolic_link_is_refused_whatever_it_points_to(tmp_path, target):
    write(tmp_path / "there")
    (tmp_path / "a").symlink_to(tmp_path / target)
    for look in (DISK.open, DISK.facts, lambda path: DISK.read(path, limit_bytes=99)):
        with pytest.raises(StoreDamaged, match="link"):
            look(tmp_path / "a")


def test_S25_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "a")
    for look in (DISK.open, DISK.facts):
        with pytest.raises(StoreDamaged, match="pipe"):
            look(tmp_path / "a")


def test_S25_a_directory_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    for look in (DISK.open, DISK.facts):
        with pytest.raises(StoreDamaged, match="directory"):
            look(tmp_path / "a")


def test_S25_a_second_name_of_a_file_is_refused(tmp_path):
    write(tmp_path / "a")
    os.link(tmp_path / "a", tmp_path / "b")
    for look in (DISK.open, DISK.facts):
        with pytest.raises(StoreDamaged, match="second name"):
            look(tmp_path / "a")
    (tmp_path / "b").unlink()
    assert DISK.facts(tmp_path / "a") is not None


def test_a_file_that_is_removed_while_it_is_opened_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"1")
    fstat = os.fstat

    def remove_first(descriptor):
        (tmp_path / "a").unlink(missing_ok=True)
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", remove_first)
    assert DISK.open(tmp_path / "a") is None


def test_S25_a_file_or_directory_of_another_user_is_refused(tmp_path):
    write(tmp_path / "a")
    stranger = Disk(owner_uid=os.geteuid() + 1)
    for look in (stranger.open, stranger.facts):
        with pytest.raises(StoreDamaged, match="another user"):
            look(tmp_path / "a")
    with pytest.raises(StoreDamaged, match="another user"):
        stranger.check_directory(tmp_path)


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b""), lambda path: path.symlink_to("/tmp")])
def test_S25_what_is_no_directory_is_refused_as_one(tmp_path, make):
    make(tmp_path / "d")
    with pytest.raises(StoreDamaged, match="not a directory"):
        DISK.check_directory(tmp_path / "d")


def test_an_existing_file_or_link_is_never_opened_for_writing(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "new")
    for name in ("a", "b"):
        with pytest.raises(StoreError):
            DISK.create(tmp_path / name)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("code", "error_class"),
    [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, StoreError), (errno.EROFS, StoreError)],
)
def test_S23_no_room_is_an_error_of_its_own_and_none_tells_a_path(code, error_class):
    with pytest.raises(StoreError) as caught, translated("writing a file"):
        raise OSError(code, os.strerror(code), "/home/user/secret")
    assert type(caught.value) is error_class
    assert "secret" not in str(caught.value)
