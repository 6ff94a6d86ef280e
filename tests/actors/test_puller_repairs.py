"""Damaged models made whole again from registries on loopback."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from runner.errors import InvalidParameter, ModelNotFound, RemoteModelNotFound, StoreDamaged
from runner.oci.digest import Digest
from runner.oci.reference import ModelName, Reference
from runner.registry.transfer import RangeRules
from runner.store.pieces import PIECE_BYTES
from tests.support.models import tiny_gguf
from tests.support.registry_server import RegistryServer
from tests.support.transfers import Pulls, pulls

pytestmark = pytest.mark.anyio

WEIGHTS = tiny_gguf() + random.Random(6).randbytes(3 * PIECE_BYTES)
SMALL = tiny_gguf()


@pytest.fixture
def server():
    with RegistryServer() as running:
        yield running


async def pushed(into: Pulls, server: RegistryServer, weights: bytes = WEIGHTS) -> str:
    """A model that is in the store and in the registry; its name."""
    name = f"{server.netloc}/ai/tiny:1"
    await into.running.package(name, weights)
    await into.push(name)
    server.requests.clear()
    return name


def file_of(into: Pulls, content: bytes) -> Path:
    return into.root / "blobs" / "sha256" / Digest.of(content).hex


def damage(path: Path, offset: int) -> None:
    """One byte is another; nothing else of the file changes."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    path.chmod(0o400)


async def is_sound(into: Pulls, name: str) -> bool:
    return not (await into.store.verify((ModelName.parse(name),))).findings


async def test_S24_only_the_bad_piece_of_a_damaged_file_is_fetched(tmp_path, server):
    async with pulls(tmp_path / "store", rules=RangeRules()) as into:
        name = await pushed(into, server)
        damage(file_of(into, WEIGHTS), PIECE_BYTES + 17)
        assert not await is_sound(into, name)
        result = await into.repair(name)
        assert result.transferred_bytes == PIECE_BYTES
        assert not result.was_cached
        assert file_of(into, WEIGHTS).read_bytes() == WEIGHTS
        assert await is_sound(into, name)


async def test_S24_a_missing_file_is_fetched_whole(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        name = await pushed(into, server, SMALL)
        file_of(into, SMALL).unlink()
        assert (await into.repair(name)).transferred_bytes == len(SMALL)
        assert file_of(into, SMALL).read_bytes() == SMALL


async def test_S24_a_model_that_could_not_be_used_for_want_of_a_file_is_repaired(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        name = await pushed(into, server, SMALL)
        file_of(into, SMALL).unlink()
    async with pulls(tmp_path / "store") as into:
        with pytest.raises(StoreDamaged):
            await into.store.resolve(ModelName.parse(name))
        await into.repair(name)
        await into.store.resolve(ModelName.parse(name))
        assert await is_sound(into, name)


async def test_S24_a_model_that_was_pulled_by_its_digest_is_repaired_from_there(tmp_path, server):
    model_id = Digest.of(server.add_model(SMALL).encode())
    async with pulls(tmp_path / "store") as into:
        await into.pull(Reference.parse(f"{server.netloc}/ai/tiny@{model_id}"))
        file_of(into, SMALL).unlink()
    async with pulls(tmp_path / "store") as into:
        await into.repair(str(model_id))
        assert file_of(into, SMALL).read_bytes() == SMALL
        assert await into.names() == [model_id.short()]


async def test_S24_a_repeated_pull_heals_what_was_found_damaged(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        name = await pushed(into, server, SMALL)
        damage(file_of(into, SMALL), 5)
        assert not await is_sound(into, name)
        await into.pull(Reference.parse(name))
        assert await is_sound(into, name)


async def test_a_sound_model_costs_no_request(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        result = await into.repair(await pushed(into, server, SMALL))
        assert result.was_cached
        assert server.requests == []


async def test_without_a_name_nobody_knows_where_to_ask(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        name = await pushed(into, server, SMALL)
        model = await into.store.untag(Reference.parse(name))
        file_of(into, SMALL).unlink()
        with pytest.raises(InvalidParameter, match="came from"):
            await into.repair(str(model.id))


async def test_places_are_asked_one_after_another(tmp_path, server):
    with RegistryServer() as other:
        async with pulls(tmp_path / "store") as into:
            name = await pushed(into, server, SMALL)
            elsewhere = Reference.parse(f"{other.netloc}/ai/tiny:1")
            await into.store.tag(ModelName.parse(name), elsewhere)
            file_of(into, SMALL).unlink()
            assert (await into.repair(name)).transferred_bytes == len(SMALL)
            file_of(into, SMALL).unlink()
            server.blobs.clear()
            with pytest.raises(RemoteModelNotFound):
                await into.repair(name)


async def test_a_model_that_is_not_there_is_told(tmp_path, server):
    async with pulls(tmp_path / "store") as into:
        with pytest.raises(ModelNotFound):
            await into.repair("nothing")
