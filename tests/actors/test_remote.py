"""Looks at models where they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from actors.remote import RemoteModels
from runner.domain.transfer import PullRequest, RemoteCredentials
from runner.errors import RegistryUnauthorized, RemoteModelNotFound
from runner.oci import media_types
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.model_config import ModelConfig
from runner.oci.reference import Reference
from runner.registry.client import RegistryClient
from runner.registry.huggingface import Hub
from runner.registry.rules import NetworkRules
from runner.registry.transport import Door
from tests.support.hub import ScriptedHub, ScriptedRepository, scripted_hub
from tests.support.registry_client import Logins
from tests.support.registry_server import RegistryServer
from tests.support.scripted_http import Request, Talk, wait_for_close

pytestmark = pytest.mark.anyio

WEIGHTS = b"GGUF" + bytes(1000)


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with RegistryServer() as server:
        yield server


@pytest.fixture
def scripted() -> Iterator[ScriptedHub]:
    with scripted_hub() as served:
        yield served


@pytest.fixture
def remote(scripted: ScriptedHub) -> Iterator[RemoteModels]:
    door = Door(NetworkRules())
    try:
        yield RemoteModels(RegistryClient(door, Logins()), Hub(door, endpoint=scripted.url))
    finally:
        door.close()


def add_model(server: RegistryServer) -> Manifest:
    weights = Descriptor.of(WEIGHTS, media_types.GGUF)
    config = ModelConfig(
        format="gguf",
        quantization="MOSTLY_Q4_0",
        parameters="1M",
        architecture="llama",
        size="1MiB",
        metadata={"llama.context_length": "512"},
        context_size=None,
        created_s=1700000000,
        diff_ids=(weights.digest,),
    ).encode()
    server.add_blob(config)
    manifest = Manifest.binding(config, (weights,), media_types.DOCKER_CONFIG_V01)
    server.add_manifest(manifest.encode(), media_types.IMAGE_MANIFEST, "1")
    return manifest


async def test_a_registry_is_asked_for_manifest_and_config_alone(
    remote: RemoteModels, registry: RegistryServer
) -> None:
    manifest = add_model(registry)
    report = await remote.inspect(PullRequest(reference=registry.reference()))
    assert (report.model.name, report.model.tags) == (f"{registry.netloc}/ai/tiny:1", ())
    assert (report.model.architecture, report.model.trained_context_size) == ("llama", 512)
    assert report.model.size_bytes == len(WEIGHTS) + manifest.config.size_bytes
    assert (report.described_size, report.metadata) == ("1MiB", {"llama.context_length": "512"})
    assert report.config_digest == str(manifest.config.digest)
    assert [layer.digest for layer in report.layers] == [str(manifest.layers[0].digest)]
    assert [path for path in registry.paths() if "/blobs/" in path] == [
        f"/v2/ai/tiny/blobs/{manifest.config.digest}"
    ]


async def test_what_a_registry_refuses_is_raised_as_it_is(remote: RemoteModels) -> None:
    with RegistryServer(password="p") as closed:
        add_model(closed)
        with pytest.raises(RegistryUnauthorized):
            await remote.inspect(PullRequest(reference=closed.reference()))
        given = RemoteCredentials(username="user", password="p")
        assert await remote.inspect(PullRequest(reference=closed.reference(), given=given))
        with pytest.raises(RemoteModelNotFound):
            await remote.inspect(PullRequest(reference=closed.reference("ai/none:1"), given=given))


async def test_a_hub_tells_which_files_would_be_taken(remote: RemoteModels, scripted: ScriptedHub) -> None:
    scripted.add(
        ScriptedRepository(
            name="Org/Tiny-GGUF",
            files={"tiny-Q4_0.gguf": WEIGHTS, "tiny-Q8_0.gguf": WEIGHTS * 2, "LICENSE": b"MIT"},
        )
    )
    asked = PullRequest(
        reference=Reference.parse("hf.co/org/tiny-gguf:Q4_0"), source_text="hf.co/Org/Tiny-GGUF:Q4_0"
    )
    report = await remote.inspect(asked)
    assert (report.model.id, report.model.quantization) == ("", "Q4_0")
    assert [layer.filename for layer in report.layers] == ["tiny-Q4_0.gguf", "LICENSE"]
    assert report.model.size_bytes == len(WEIGHTS) + 3
    assert report.metadata["repository"] == "Org/Tiny-GGUF"


async def test_a_look_that_nobody_waits_for_ends(remote: RemoteModels, registry: RegistryServer) -> None:
    async with trio.open_nursery() as nursery:
        token = trio.lowlevel.current_trio_token()
        was_asked = trio.Event()

        def stall(_: Request) -> Talk:
            token.run_sync_soon(was_asked.set)
            return wait_for_close

        registry.before = stall
        nursery.start_soon(remote.inspect, PullRequest(reference=registry.reference()))
        with trio.fail_after(10):
            await was_asked.wait()
        nursery.cancel_scope.cancel()
    with trio.fail_after(10):
        registry.before = lambda _: None
        add_model(registry)
        assert await remote.inspect(PullRequest(reference=registry.reference()))
