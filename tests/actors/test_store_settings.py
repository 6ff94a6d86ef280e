"""The store's actor keeps what is configured for models."""

from __future__ import annotations

import errno

import attrs
import pytest
import trio

from runner.domain.engine import CacheType, FlashAttention
from runner.domain.settings import NOTHING, ModelSettings
from runner.errors import DiskFull, InvalidParameter, ModelNotFound
from tests.support import models
from tests.support.cut_disk import CountingDisk, fail_at
from tests.support.models import name, reference, running_store

pytestmark = pytest.mark.anyio

WEIGHTS = models.tiny_gguf()


async def test_what_is_configured_holds_for_all_names_of_a_model_and_after_a_restart(tmp_path):
    async with running_store(tmp_path / "store") as running:
        store = running.store
        model = await running.package("a:1", WEIGHTS)
        await store.tag(name("a:1"), reference("b:1"))
        first = await store.configure(name("a:1"), ModelSettings(context_size=512, seed=1))
        assert (first.id, first.settings) == (model.id, ModelSettings(context_size=512, seed=1))
        second = await store.configure(name("b:1"), ModelSettings(pin=True), unset=["seed"])
        expected = ModelSettings(context_size=512, pin=True)
        assert second.settings == expected
        assert (await store.resolve(name("a:1"))).settings == expected
        assert [listed.settings for listed in await store.list()] == [expected]
        with await store.lease(model.id) as lease:
            assert lease.files.model.settings == expected
            await store.configure(name("a:1"), ModelSettings(seed=9))  # in use is no obstacle
    async with running_store(tmp_path / "store") as running:
        settings = (await running.store.resolve(name(str(model.id)))).settings
        assert settings == attrs.evolve(expected, seed=9)


async def test_what_cannot_be_configured_changes_nothing_and_tells_all_faults(tmp_path):
    async with running_store(tmp_path / "store") as running:
        store = running.store
        await running.package("a:1", WEIGHTS)
        wrong = ModelSettings(
            context_size=4097, value_type=CacheType.Q8_0, flash_attention=FlashAttention.OFF
        )
        with pytest.raises(InvalidParameter) as caught:
            await store.configure(name("a:1"), wrong)
        assert [fault.path for fault in caught.value.faults] == ["set.context_size", "set.flash_attention"]
        assert (await store.resolve(name("a:1"))).settings == NOTHING
        with pytest.raises(ModelNotFound):
            await store.configure(name("b:1"), ModelSettings(pin=True))
        assert not any((tmp_path / "store" / "settings").iterdir())


async def test_changes_to_different_settings_at_the_same_time_all_count(tmp_path):
    changes = [
        ModelSettings(seed=1),
        ModelSettings(pin=True),
        ModelSettings(top_k=3),
        ModelSettings(threads=2),
    ]
    async with running_store(tmp_path / "store") as running:
        await running.package("a:1", WEIGHTS)
        async with trio.open_nursery() as nursery:
            for change in changes:
                nursery.start_soon(running.store.configure, name("a:1"), change)
        settings = (await running.store.resolve(name("a:1"))).settings
        assert settings == ModelSettings(seed=1, pin=True, top_k=3, threads=2)


@pytest.mark.parametrize("operation", ["create", "write", "sync", "close", "rename"])
async def test_S23_settings_that_could_not_be_kept_are_not_shown_and_the_same_succeeds_later(
    tmp_path, operation
):
    disk = CountingDisk()
    async with running_store(tmp_path / "store", disk=disk) as running:
        store = running.store
        await running.package("a:1", WEIGHTS)
        await store.configure(name("a:1"), ModelSettings(seed=1))
        disk.arm(fail_at(lambda number, reached: reached == operation, errno.ENOSPC))
        with pytest.raises(DiskFull):
            await store.configure(name("a:1"), ModelSettings(pin=True))
        assert (await store.resolve(name("a:1"))).settings == ModelSettings(seed=1)
        disk.arm(lambda number, reached: None)
        after = await store.configure(name("a:1"), ModelSettings(pin=True))
        assert after.settings == ModelSettings(seed=1, pin=True)


async def test_a_damaged_file_of_settings_is_told_to_whoever_looks_after_the_daemon(tmp_path):
    async with running_store(tmp_path / "store") as running:
        await running.package("a:1", WEIGHTS)
        await running.store.configure(name("a:1"), ModelSettings(seed=1))
    [path] = (tmp_path / "store" / "settings").iterdir()
    path.write_bytes(b"{")
    async with running_store(tmp_path / "store") as running:
        [notice] = running.notices
        assert f"settings/{path.stem}.damaged.json" in notice
        assert (await running.store.resolve(name("a:1"))).settings == NOTHING
