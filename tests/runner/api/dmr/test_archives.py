"""Models as archives over HTTP, with a real store, and variants of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from actors.archives import SavedArchive
from runner.api.archives import ArchiveSource
from runner.errors import Draining
from runner.oci.reference import ModelName, Reference
from tests.support import models
from tests.support.api import client_over
from tests.support.fake_handles import FakeParts, fake_model
from tests.support.models import LICENSE, name, running_store

pytestmark = pytest.mark.anyio

WEIGHTS = models.tiny_gguf()


def parts_over(store: Any) -> FakeParts:
    parts = FakeParts.make()
    parts.store = store
    return parts


async def test_an_export_loads_elsewhere_as_the_same_model(tmp_path: Path) -> None:
    async with running_store(tmp_path / "one") as one, running_store(tmp_path / "two") as two:
        model = await one.package("ai/one:v1", WEIGHTS, LICENSE)
        response = await client_over(parts_over(one.store)).get("/models/ai/one:v1/export")
        assert (response.status_code, response.content_type) == (200, "application/x-tar")
        assert response.headers["Content-Disposition"] == 'attachment; filename="ai/one:v1.tar"'
        archive = cast(bytes, await response.get_data(as_text=False))
        client = client_over(parts_over(two.store))
        response = await client.post("/models/load", data=archive)
        assert response.status_code == 200
        assert orjson.loads(await response.get_data(as_text=False)) == {
            "type": "success",
            "message": "Model loaded successfully",
            "total": 0,
            "layer": {"size": 0, "current": 0},
            "mode": "pull",
        }
        assert (await two.store.resolve(name(str(model.id)))).id == model.id


async def test_an_export_of_what_is_not_there(tmp_path: Path) -> None:
    async with running_store(tmp_path) as running:
        client = client_over(parts_over(running.store))
        response = await client.get("/models/absent/export")
        assert (response.status_code, response.content_type) == (404, "text/plain; charset=utf-8")
        assert "Content-Disposition" not in response.headers
        assert (await client.get("/models/a%22b/export")).status_code == 400


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100])
async def test_S14_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    async with running_store(tmp_path) as running:
        client = client_over(parts_over(running.store))
        response = await client.post("/models/load", data=content)
        assert (response.status_code, response.content_type) == (400, "text/plain; charset=utf-8")
        assert await running.store.list() == ()


async def test_an_archive_that_is_cut_off_has_no_end(tmp_path: Path) -> None:
    async with running_store(tmp_path) as running:
        await running.package("ai/one", WEIGHTS)

        source = ArchiveSource(await SavedArchive.open(running.store, name("ai/one")))
        assert await source.next_chunk()
        with pytest.raises(Draining):
            source.abort(Draining())
        source.close()


async def test_a_variant_shares_everything_but_its_config() -> None:
    parts = FakeParts.make()
    response = await client_over(parts).post(
        "/models/ai/smollm2:135M-Q4_1/repackage", data=b'{"target": "acme/tiny:4k", "context_size": 4096}'
    )
    assert response.status_code == 201
    assert orjson.loads(await response.get_data(as_text=False)) == {
        "message": 'Model repackaged successfully as "acme/tiny:4k"',
        "source": "ai/smollm2:135M-Q4_1",
        "target": "acme/tiny:4k",
    }
    [spec] = parts.puller.packaged
    assert (spec.target, spec.context_size, spec.layers) == (Reference.parse("acme/tiny:4k"), 4096, ())
    assert spec.base == ModelName.of(fake_model().id)


@pytest.mark.parametrize(
    ("name", "body", "status", "text"),
    [
        ("ai/smollm2:135M-Q4_1", b"{}", 400, "target is required"),
        ("ai/smollm2:135M-Q4_1", b"", 400, "invalid request body"),
        ("ai/smollm2:135M-Q4_1", b'{"target": "a b"}', 400, "Invalid model reference"),
        ("absent", b'{"target": "a"}', 404, "Model not found"),
    ],
)
async def test_a_variant_that_makes_no_sense(name: str, body: bytes, status: int, text: str) -> None:
    parts = FakeParts.make()
    response = await client_over(parts).post(f"/models/{name}/repackage", data=body)
    assert response.status_code == status
    assert cast(bytes, await response.get_data(as_text=False)).decode().startswith(text)
    assert parts.puller.packaged == []
