"""Models from a scripted hub into a real store: one commit is one model, and nothing unverified stays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from runner.domain.transfer import PullRequest, RemoteCredentials, TransferPhase, TransferResult
from runner.errors import ContentMismatch, RegistryUnauthorized, RemoteModelNotFound
from runner.oci.digest import Digest
from runner.oci.reference import ModelName, Reference
from scripts.tiny_gguf import write_tiny_split
from tests.support.hub import ScriptedHub, ScriptedRepository, scripted_hub
from tests.support.models import tiny_gguf
from tests.support.transfers import Pulls, pulls

pytestmark = pytest.mark.anyio

NAME = "Org/Tiny-GGUF"
TYPED = f"hf.co/{NAME}:Q4_0"
WEIGHTS = tiny_gguf()
LICENSE = b"Do as you like.\n"
TEMPLATE = b"{{ messages[0].content }}"
TOKEN = "hf_tokenCanary41"


@pytest.fixture
def hub() -> Iterator[ScriptedHub]:
    with scripted_hub() as running:
        yield running


@pytest.fixture
def tiny(hub: ScriptedHub) -> ScriptedRepository:
    files = {
        "Tiny-Q4_0.gguf": WEIGHTS,
        "Tiny-Q8_0.gguf": tiny_gguf("Larger"),
        "LICENSE": LICENSE,
        "chat_template.jinja": TEMPLATE,
        "modeling.py": b"import os",
    }
    return hub.add(ScriptedRepository(name=NAME, files=files))


def pulling(root: Path, hub: ScriptedHub):
    return pulls(root, hub_url=hub.url, private=frozenset({urlsplit(hub.content_url).netloc}))


async def pull(to: Pulls, text: str = TYPED, token: str | None = None) -> TransferResult:
    given = RemoteCredentials(bearer_token=token) if token else None
    return await to.pull(Reference.parse(text), source_text=text, given=given)


async def manifest_of(to: Pulls, model_id: Digest) -> dict:
    content = (to.root / "blobs" / "sha256" / model_id.hex).read_bytes()
    return json.loads(content)


async def test_a_quantisation_becomes_a_model_under_its_reference(tmp_path, hub, tiny):
    async with pulling(tmp_path, hub) as to:
        result = await pull(to)
        assert await to.names() == ["huggingface.co/org/tiny-gguf:Q4_0"]
        report = await to.store.inspect(ModelName.parse("hf.co/org/tiny-gguf:Q4_0"))
        assert [layer.filename for layer in report.layers] == [
            "Tiny-Q4_0.gguf",
            "LICENSE",
            "chat_template.jinja",
        ]
        manifest = await manifest_of(to, result.model_id)
    assert manifest["layers"][0]["digest"] == str(Digest.of(WEIGHTS))
    assert manifest["annotations"] == {
        "org.opencontainers.image.revision": tiny.revision,
        "org.opencontainers.image.source": f"https://huggingface.co/{NAME}",
    }
    assert result.size_bytes > len(WEIGHTS)


async def test_S16_the_same_commit_is_the_same_model_everywhere(tmp_path, hub, tiny):
    async with pulling(tmp_path / "one", hub) as one, pulling(tmp_path / "two", hub) as two:
        assert (await pull(one)).model_id == (await pull(two)).model_id


async def test_a_model_that_is_there_is_not_fetched_again_and_a_newer_commit_is(tmp_path, hub, tiny):
    async with pulling(tmp_path, hub) as to:
        first = await pull(to)
        again = await pull(to)
        assert (again.model_id, again.was_cached) == (first.model_id, True)
        ranges = [request.headers.get("range") for request in hub.seen("content")]
        assert len(ranges) == len(set(ranges))
        tiny.files["LICENSE"] = b"Ask first.\n"
        tiny.revision = "f" * 40
        newer = await pull(to)
        assert newer.model_id != first.model_id
        assert (await to.store.resolve(ModelName.parse(TYPED))).id == newer.model_id


async def test_the_parts_of_a_split_model_in_a_folder_become_its_layers_in_order(tmp_path, hub):
    parts = write_tiny_split(tmp_path / "big.gguf", tensors_per_part=4)
    assert len(parts) > 2
    names = [f"Q4_0/big-Q4_0-{number:05}-of-{len(parts):05}.gguf" for number in range(1, len(parts) + 1)]
    contents = [part.read_bytes() for part in parts]
    files = dict(reversed(list(zip(names, contents, strict=True))))
    hub.add(ScriptedRepository(name=NAME, files={**files, "Q8_0/big-Q8_0-00001-of-00009.gguf": b"x"}))
    async with pulling(tmp_path / "store", hub) as to:
        result = await pull(to)
        manifest = await manifest_of(to, result.model_id)
    assert [layer["digest"] for layer in manifest["layers"]] == [str(Digest.of(each)) for each in contents]


async def test_every_phase_is_told_and_every_byte_counted(tmp_path, hub, tiny):
    async with pulling(tmp_path, hub) as to:
        _, told = await to.follow(PullRequest(reference=Reference.parse(TYPED), source_text=TYPED))
    assert told[0].phase is TransferPhase.RESOLVING
    last = told[-1]
    assert last.phase is TransferPhase.PUBLISHING
    assert last.done_bytes == last.total_bytes >= len(WEIGHTS)


async def test_S02_weights_other_than_the_hub_lists_leave_nothing_visible(tmp_path, hub, tiny):
    tiny.lying_content["Tiny-Q4_0.gguf"] = WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])
    async with pulling(tmp_path, hub) as to:
        with pytest.raises(ContentMismatch, match=r"huggingface\.co") as caught:
            await pull(to)
        assert Digest.of(WEIGHTS).hex in str(caught.value)
        assert await to.names() == []
        assert Digest.of(WEIGHTS).hex not in to.files()
        tiny.lying_content.clear()
        await pull(to)


async def test_S02_a_small_file_other_than_the_hub_lists_makes_no_model(tmp_path, hub, tiny):
    tiny.lying_content["LICENSE"] = LICENSE.swapcase()
    async with pulling(tmp_path, hub) as to:
        with pytest.raises(ContentMismatch, match="LICENSE"):
            await pull(to)
        assert await to.names() == []


async def test_a_gated_model_comes_with_a_token_and_says_so_without(tmp_path, hub, tiny):
    tiny.token, tiny.gated = TOKEN, True
    async with pulling(tmp_path, hub) as to:
        with pytest.raises(RegistryUnauthorized, match="HF_TOKEN"):
            await pull(to)
        await pull(to, token=TOKEN)
        assert all("authorization" not in request.headers for request in hub.seen("content"))


async def test_an_overloaded_hub_is_asked_again(tmp_path, hub, tiny):
    hub.failures += [(503, {"Retry-After": "0"})]
    hub.content_failures += [(500, {"Retry-After": "0"})]
    async with pulling(tmp_path, hub) as to:
        await pull(to)


async def test_what_is_damaged_is_repaired_from_the_commit_it_came_from(tmp_path, hub, tiny):
    async with pulling(tmp_path, hub) as to:
        result = await pull(to)
        _damage(to, Digest.of(WEIGHTS))
        asked_before = len(hub.requests)
        repaired = await to.repair("hf.co/org/tiny-gguf:Q4_0")
        assert repaired.model_id == result.model_id
        assert repaired.transferred_bytes > 0
        assert (to.root / "blobs" / "sha256" / Digest.of(WEIGHTS).hex).read_bytes() == WEIGHTS
        asked = [request.target for request in hub.requests[asked_before:] if request.port == "hub"]
    assert asked[0].startswith(f"/api/models/{NAME}/revision/{tiny.revision}?")
    assert all(re.search(tiny.revision, target) for target in asked)


async def test_what_the_hub_no_longer_has_cannot_be_repaired(tmp_path, hub, tiny):
    async with pulling(tmp_path, hub) as to:
        await pull(to)
        _damage(to, Digest.of(WEIGHTS))
        hub.repositories.clear()
        with pytest.raises(RemoteModelNotFound):
            await to.repair("hf.co/org/tiny-gguf:Q4_0")


def _damage(to: Pulls, digest: Digest) -> None:
    path = to.root / "blobs" / "sha256" / digest.hex
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    path.chmod(0o400)
