"""Many clients who come, leave and return, at a registry that fails now and then."""

from __future__ import annotations

import random

import pytest
import trio

from runner.domain.transfer import PullRequest, PushRequest
from runner.errors import ModelNotFound, RegistryUnavailable
from runner.oci import media_types
from runner.oci.manifest import Manifest
from runner.oci.reference import ModelName, Reference
from tests.support.models import built, tiny_gguf
from tests.support.registry_server import RegistryServer, error_reply
from tests.support.transfers import Pulls, pulls, until

pytestmark = pytest.mark.anyio

TAGS = ("1", "2", "3")
SHARED = random.Random(7).randbytes(30_000)


@pytest.fixture
def server():
    with RegistryServer() as running:
        for tag in TAGS:
            weights = tiny_gguf(f"Model {tag}")
            package = built(weights, SHARED)
            for content in (package.config, weights, SHARED):
                running.add_blob(content)
            manifest = Manifest.binding(package.config, package.layers, media_types.DOCKER_CONFIG_V01)
            running.add_manifest(manifest.encode(), media_types.IMAGE_MANIFEST, tag)
        yield running


async def act(into: Pulls, server: RegistryServer, chance: random.Random, ended: list[str]) -> None:
    """One client: pulls or pushes, and leaves after a while, or stays to the end."""
    tag = chance.choice(TAGS)
    reference = server.reference(f"ai/tiny:{tag}")
    if chance.random() < 0.2:
        target = Reference.parse(f"{server.netloc}/ai/copy:{tag}")
        feed = into.puller.push(PushRequest(name=ModelName.of(reference), target=target))
    else:
        feed = into.puller.pull(PullRequest(reference=reference))
    looks = chance.choice([0, 1, 2, 1000, 1000])
    async with feed:
        async for _ in feed:
            looks -= 1
            if looks < 0:
                return
        try:
            feed.result()
        except (RegistryUnavailable, ModelNotFound) as error:
            ended.append(type(error).__name__)
        else:
            ended.append("success")


@pytest.mark.parametrize("seed", range(4))
async def test_S21_whatever_clients_do_nothing_hangs_and_the_store_is_whole(tmp_path, server, seed):
    chance = random.Random(seed)

    def before(request):
        fails = request.method == "GET" and chance.random() < 0.05
        return error_reply(503, "UNAVAILABLE", ("Retry-After", "0")) if fails else None

    server.before = before
    ended: list[str] = []
    async with pulls(tmp_path / "store") as into:
        for _ in range(4):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(act, into, server, chance, ended)
        await until(lambda: into.puller.status() == ())
        server.before = lambda request: None
        for tag in TAGS:
            await into.pull(server.reference(f"ai/tiny:{tag}"))
        assert len(await into.names()) == len(TAGS)
        assert not (await into.store.verify()).findings
        assert not list((into.root / "partial").glob("*.part"))
    assert "success" in ended
