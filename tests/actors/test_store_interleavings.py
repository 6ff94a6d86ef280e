"""Pulls, packages, removals, collections, leases and checks in any interleaving (S26, L11)."""

from __future__ import annotations

import contextlib
import random
import time

import pytest
import trio

from runner.errors import BlobNotFound, Conflict, ModelNotFound
from runner.oci import media_types
from runner.oci.manifest import Descriptor, Manifest
from runner.store.partials import PartialBlob
from tests.support import models
from tests.support.models import RunningStore, name, reference, running_store

pytestmark = pytest.mark.anyio

SHARED = models.LICENSE
CONTENTS = [(models.tiny_gguf(str(number)), SHARED) for number in range(3)]
NAMES = ["a:1", "b:1", "c:1"]
TASKS, STEPS = 6, 25


async def pull(running: RunningStore, chance: random.Random) -> None:
    """As the puller does: hold what is needed, fetch what is missing, publish."""
    contents = chance.choice(CONTENTS)
    package = models.built(*contents)
    manifest = Manifest.binding(package.config, package.layers, media_types.DOCKER_CONFIG_V01).encode()
    with running.store.holding(layer.digest for layer in package.layers):
        for content, layer in zip(contents, package.layers, strict=True):
            await fetch(running, content, layer)
        tag = chance.choice([None, *map(reference, NAMES)])
        model = await running.store.publish_verbatim(manifest, package.config, tag)
        assert model.id == Descriptor.of(manifest, "any").digest


async def fetch(running: RunningStore, content: bytes, layer: Descriptor) -> None:
    while True:
        try:
            begun = await running.store.begin_download(layer)
        except Conflict:  # somebody else is at it
            await trio.lowlevel.checkpoint()
            continue
        if isinstance(begun, PartialBlob):
            for start, end in begun.missing():
                begun.write_at(start, content[start:end])
                await trio.lowlevel.checkpoint()
            await running.store.adopt_download(begun)
        return


async def package(running: RunningStore, chance: random.Random) -> None:
    await running.package(chance.choice(NAMES), *chance.choice(CONTENTS))


async def lease(running: RunningStore, chance: random.Random) -> None:
    model = await running.store.resolve(name(chance.choice(NAMES)))
    with await running.store.lease(model.id) as held:
        await trio.lowlevel.checkpoint()
        assert all(path.is_file() for path in held.files.weights)


async def remove(running: RunningStore, chance: random.Random) -> None:
    await running.store.remove(name(chance.choice(NAMES)))


async def tag(running: RunningStore, chance: random.Random) -> None:
    await running.store.tag(name(chance.choice(NAMES)), reference(chance.choice(NAMES)))


async def untag(running: RunningStore, chance: random.Random) -> None:
    await running.store.untag(reference(chance.choice(NAMES)))


async def collect(running: RunningStore, chance: random.Random) -> None:
    await running.store.gc(prune_untagged=chance.random() < 0.5)


async def check(running: RunningStore, chance: random.Random) -> None:
    assert (await running.store.verify()).findings == ()


OPERATIONS = [pull, pull, package, lease, lease, remove, remove, tag, untag, collect, check]


async def play(running: RunningStore, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(STEPS):
        # Removed or in use just now: answers like others. An upload stays until a model refers to it, so with
        # a twin that is packaged and removed in between it goes too, and is to be uploaded again.
        with contextlib.suppress(ModelNotFound, Conflict, BlobNotFound):
            await chance.choice(OPERATIONS)(running, chance)


@pytest.mark.parametrize("seed", range(2))
async def test_S26_nothing_in_use_or_in_progress_disappears_whatever_happens_at_once(tmp_path, seed):
    with trio.fail_after(60):
        async with running_store(tmp_path / "store", now_s=time.time) as running:
            async with trio.open_nursery() as nursery:
                for number in range(TASKS):
                    nursery.start_soon(play, running, 1000 * seed + number)
            before = await running.store.list()
            for model in before:
                (await running.store.lease(model.id)).release()
            assert (await running.store.verify()).findings == ()
            assert not running.pins.held()
        async with running_store(tmp_path / "store", now_s=time.time) as running:
            assert await running.store.list() == before
            for model in before:
                await running.store.remove(name(str(model.id)), force=True)
            await running.store.gc(prune_untagged=True)
            assert not any((tmp_path / "store" / "blobs" / "sha256").iterdir())
            assert not any((tmp_path / "store" / "partial").iterdir())
