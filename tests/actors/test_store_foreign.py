"""Files in the store that it did not make (S25): never followed, used or removed, but replaced by a pull."""

from __future__ import annotations

import os
import stat

import pytest
import trio

from runner.errors import StoreDamaged
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store.disk import Disk
from runner.store.partials import PartialBlob
from tests.support import models
from tests.support.models import name, running_store

pytestmark = pytest.mark.anyio

WEIGHTS, OTHER = models.tiny_gguf(), models.tiny_gguf("Other")
LAYER = Descriptor.of(WEIGHTS, media_types.GGUF)
KINDS = ("link", "link to nothing", "pipe", "socket", "directory", "second name", "foreign owner")


def put_foreign(path, kind: str, outside) -> None:
    """Something of this kind in the place of the file, with the same content where it has any."""
    outside.write_bytes(WEIGHTS)
    path.unlink()
    match kind:
        case "link":
            path.symlink_to(outside)
        case "link to nothing":
            path.symlink_to(outside.with_name("nothing"))
        case "pipe":
            os.mkfifo(path)
        case "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
        case "directory":
            path.mkdir()
        case "second name":
            os.link(outside, path)
        case "foreign owner":
            path.write_bytes(WEIGHTS)


def lies_there(path) -> bool:
    return os.path.lexists(path)


class OwnersDisk(Disk):
    """Files with this inode belong to somebody else."""

    foreign: int | None = None

    def _checked(self, status):
        if status.st_ino == self.foreign:
            raise StoreDamaged("a file of the store belongs to another user")
        return super()._checked(status)


@pytest.mark.parametrize("kind", KINDS)
async def test_S25_foreign_content_is_neither_loaded_nor_removed_and_is_found_and_replaced(tmp_path, kind):
    path = tmp_path / "store" / "blobs" / "sha256" / LAYER.digest.hex
    disk, outside = OwnersDisk(), tmp_path / "outside"
    async with running_store(tmp_path / "store", disk=disk) as running:
        store = running.store
        model = await running.package("a:1", WEIGHTS)
        await running.package("b:1", OTHER)
        put_foreign(path, kind, outside)
        if kind == "foreign owner":
            disk.foreign = path.lstat().st_ino
        with trio.fail_after(10):
            with pytest.raises(StoreDamaged):
                await store.lease(model.id)
            (finding,) = (await store.verify()).findings
            assert (finding.kind, finding.models) == ("foreign", ("ai/a:1",))
            await store.df()
            await store.gc(prune_untagged=True)
            assert lies_there(path)
            (await store.lease((await store.resolve(name("b:1"))).id)).release()
            if kind == "directory":  # nothing of ours replaces one
                return
            partial = await store.begin_download(LAYER)
            assert isinstance(partial, PartialBlob)
            partial.write_at(0, WEIGHTS)
            await store.adopt_download(partial)
            (await store.lease(model.id)).release()
        assert outside.read_bytes() == WEIGHTS
        assert (await store.verify()).findings == ()


@pytest.mark.parametrize("kind", KINDS[:5])
async def test_S25_a_foreign_file_that_nothing_needs_is_left_alone(tmp_path, kind):
    path = tmp_path / "store" / "blobs" / "sha256" / Digest.of(b"left over").hex
    async with running_store(tmp_path / "store") as running:
        await running.upload(b"left over")
        put_foreign(path, kind, tmp_path / "outside")
        running.store.abandon_uploads((Digest.of(b"left over"),))
        report = await running.store.gc(prune_untagged=True)
        assert report.removed == ()
        assert lies_there(path)
