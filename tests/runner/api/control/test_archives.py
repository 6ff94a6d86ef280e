"""Archives over the control API, with a real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from tests.support import models
from tests.support.api import client_over
from tests.support.fake_handles import FakeParts
from tests.support.models import LICENSE, RunningStore, running_store

pytestmark = pytest.mark.anyio

API = "/control/v1"
WEIGHTS = models.tiny_gguf()


def over(running: RunningStore) -> Any:
    parts = FakeParts.make()
    parts.store = cast(Any, running.store)
    return client_over(parts)


async def body_of(response: Any) -> bytes:
    return cast(bytes, await response.get_data(as_text=False))


async def test_an_archive_tells_its_length_and_is_loaded_under_its_own_or_another_name(
    tmp_path: Path,
) -> None:
    async with running_store(tmp_path / "one") as one, running_store(tmp_path / "two") as two:
        model = await one.package("a:1", WEIGHTS, LICENSE)
        response = await over(one).get(f"{API}/save?model=a:1")
        archive = await body_of(response)
        assert (response.status_code, response.content_type) == (200, "application/x-tar")
        assert response.headers["X-Archive-Length"] == str(len(archive))
        for query, names in (("", ["ai/a:1"]), ("?name=b:2", ["ai/a:1", "ai/b:2"])):
            response = await over(two).post(f"{API}/load{query}", data=archive)
            assert response.status_code == 201
            (summary,) = orjson.loads(await body_of(response))
            assert summary["id"] == str(model.id)
            assert [tag.removeprefix("docker.io/") for tag in summary["tags"]] == names


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/save", 400, "invalid_parameter"),
        ("/save?model=", 400, "invalid_reference"),
        ("/save?model=../a", 400, "invalid_reference"),
        ("/save?model=absent", 404, "model_not_found"),
    ],
)
async def test_what_cannot_be_saved_has_a_status(tmp_path: Path, target: str, status: int, code: str) -> None:
    async with running_store(tmp_path) as running:
        response = await over(running).get(API + target)
        assert response.status_code == status
        assert orjson.loads(await body_of(response))["error"]["code"] == code


@pytest.mark.parametrize(
    ("query", "content", "code"),
    [
        ("", b"", "invalid_archive"),
        ("", b"no archive" * 100, "invalid_archive"),
        ("", b"\x1f\x8b" + bytes(600), "invalid_archive"),
        ("?name=a//b", b"", "invalid_reference"),
    ],
)
async def test_S14_what_is_no_archive_has_a_status_and_leaves_nothing(
    tmp_path: Path, query: str, content: bytes, code: str
) -> None:
    async with running_store(tmp_path) as running:
        response = await over(running).post(f"{API}/load{query}", data=content)
        assert response.status_code == 400
        assert orjson.loads(await body_of(response))["error"]["code"] == code
        assert await running.store.list() == ()


async def test_N06_reading_an_archive_loads_nothing(tmp_path: Path) -> None:
    async with running_store(tmp_path) as running:
        assert (await over(running).get(f"{API}/load")).status_code == 405
        assert (await over(running).post(f"{API}/save?model=a")).status_code == 405
