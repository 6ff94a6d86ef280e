"""Docker Model Runner's native endpoints through the whole application, over handles in memory."""

from __future__ import annotations

import html
from typing import Any

import attrs
import orjson
import pytest
from quart.wrappers import Response

from runner.domain.status import UnloadReport
from runner.domain.transfer import PullRequest, PushRequest, TransferDirection, TransferPhase
from runner.errors import (
    Conflict,
    DiskFull,
    RegistryUnauthorized,
    RegistryUnavailable,
    RemoteModelNotFound,
    UnsupportedArtifact,
)
from runner.oci.digest import Digest
from runner.oci.reference import ModelName, Reference
from tests.support.api import client_over
from tests.support.fake_handles import FakeParts, fake_model
from tests.support.fake_transfers import MIB, ended, moment

pytestmark = pytest.mark.anyio

MODEL = "ai/smollm2:135M-Q4_1"
ID = str(fake_model().id)
JSON = {"Accept": "application/json"}


async def text_of(response: Response, status: int) -> str:
    """The text of an error, with what holds for each of them checked."""
    content = (await response.get_data(as_text=False)).decode()
    assert response.status_code == status, content
    assert response.content_type == "text/plain; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert content.endswith("\n") and content.count("\n") == 1
    return content[:-1]


async def json_of(response: Response, status: int = 200) -> Any:
    content = await response.get_data(as_text=False)
    assert response.status_code == status, content
    assert response.content_type == "application/json"
    return orjson.loads(content)


async def create(parts: FakeParts, body: Any, headers: dict[str, str] | None = None) -> Response:
    return await client_over(parts).post("/models/create", data=orjson.dumps(body), headers=headers or {})


# pulling


async def test_a_pull_streams_json_to_who_accepts_exactly_json() -> None:
    parts = FakeParts.make()
    parts.puller.moments = [moment(phase=TransferPhase.RESOLVING), moment(5 * MIB, MIB)]
    response = await create(parts, {"from": MODEL}, JSON)
    assert (response.status_code, response.content_type) == (200, "application/json")
    assert response.headers["Cache-Control"] == "no-cache"
    lines = [orjson.loads(line) for line in (await response.get_data(as_text=False)).splitlines()]
    assert [(line["type"], line["message"]) for line in lines] == [
        ("progress", "Downloaded: 5.00 MB"),
        ("success", "Model pulled successfully"),
    ]


@pytest.mark.parametrize("accept", [None, "*/*", "application/json, text/plain", "application/json;q=1"])
async def test_everybody_else_gets_escaped_lines(accept: str | None) -> None:
    parts = FakeParts.make()
    parts.puller.moments = [moment(5 * MIB)]
    response = await create(parts, {"from": MODEL}, {} if accept is None else {"Accept": accept})
    assert (response.status_code, response.content_type) == (200, "text/plain")
    content = (await response.get_data(as_text=False)).decode()
    assert content.startswith("{&#34;type&#34;:&#34;progress&#34;")
    lines = [orjson.loads(html.unescape(line)) for line in content.splitlines()]
    assert [line["type"] for line in lines] == ["progress", "success"]


async def test_a_pull_is_asked_for_as_it_was_written() -> None:
    parts = FakeParts.make()
    await create(parts, {"from": "hf.co/Org/Repo:Q8_0", "bearer-token": "t", "whatever": [1]})
    [asked] = parts.puller.asked
    assert isinstance(asked, PullRequest) and asked.given is not None
    assert (asked.source_text, asked.reference) == (
        "hf.co/Org/Repo:Q8_0",
        Reference.parse("hf.co/org/repo:Q8_0"),
    )
    assert (asked.given.bearer_token, asked.given.username) == ("t", None)


async def test_a_model_that_is_there_has_one_line() -> None:
    parts = FakeParts.make()
    parts.puller.outcome = ended(was_cached=True, size_bytes=268_802_048)
    content = await (await create(parts, {"from": MODEL}, JSON)).get_data(as_text=False)
    assert orjson.loads(content)["message"] == "Using cached model: 256.35MiB"


@pytest.mark.parametrize(
    ("body", "status", "beginning"),
    [
        (b"nonsense", 400, "invalid request body"),
        (b"{}", 400, "invalid request body: from: is required"),
        (b'{"from": "../x"}', 400, "Invalid model reference"),
        (b'{"from": "sha256:' + b"0" * 64 + b'"}', 400, "Invalid model reference"),
    ],
)
async def test_N19_a_pull_that_makes_no_sense_is_refused(body: bytes, status: int, beginning: str) -> None:
    parts = FakeParts.make()
    response = await client_over(parts).post("/models/create", data=body)
    assert (await text_of(response, status)).startswith(beginning)
    assert parts.puller.asked == []


@pytest.mark.parametrize(
    ("error", "status", "beginning"),
    [
        (RegistryUnauthorized("docker.io", "log in"), 401, "Unauthorized: docker.io: log in"),
        (RemoteModelNotFound("docker.io", "no model"), 404, "Model not found: docker.io: no model"),
        (UnsupportedArtifact("docker.io", "an image"), 422, "docker.io: an image"),
        (RegistryUnavailable("docker.io", "too\nslow"), 502, "docker.io: too slow"),
        (DiskFull("no room"), 507, "no room"),
        (ValueError("/secret"), 500, "the request failed inside the server"),
    ],
)
async def test_what_fails_before_the_first_byte_has_its_status(
    error: Any, status: int, beginning: str
) -> None:
    parts = FakeParts.make()
    parts.puller.moments = [moment(phase=TransferPhase.RESOLVING)]
    parts.puller.outcome = error
    assert (await text_of(await create(parts, {"from": MODEL}), status)).startswith(beginning)


async def test_N21_who_accepts_json_gets_a_stable_code() -> None:
    parts = FakeParts.make()
    parts.puller.refusal = RemoteModelNotFound("docker.io", "no model")
    error = (await json_of(await create(parts, {"from": MODEL}, JSON), 404))["error"]
    assert error["code"] == "remote_model_not_found"


@pytest.mark.parametrize("headers", [{}, JSON])
async def test_what_fails_later_is_a_line_of_json_and_the_last_one(headers: dict[str, str]) -> None:
    parts = FakeParts.make()
    parts.puller.moments = [moment(5 * MIB)]
    parts.puller.outcome = RegistryUnauthorized("huggingface.co", "log in")
    content = (await (await create(parts, {"from": MODEL}, headers)).get_data(as_text=False)).decode()
    last = orjson.loads(html.unescape(content.splitlines()[-1]))
    assert (last["type"], last["message"]) == ("error", "Error: huggingface.co: log in")


# pushing


async def test_a_push_streams_like_a_pull() -> None:
    parts = FakeParts.make()
    parts.puller.moments = [moment(10 * MIB, 0, direction=TransferDirection.PUSH)]
    response = await client_over(parts).post(f"/models/{MODEL}/push", headers=JSON)
    lines = [orjson.loads(line) for line in (await response.get_data(as_text=False)).splitlines()]
    assert [(line["mode"], line["message"]) for line in lines] == [
        ("push", "Uploaded: 10.00 MB"),
        ("push", "Uploaded: 0.00 MB"),
        ("push", "Model pushed successfully"),
    ]
    [asked] = parts.puller.asked
    assert isinstance(asked, PushRequest)
    assert (asked.name, asked.target, asked.given) == (ModelName.parse(MODEL), None, None)


async def test_a_push_may_bring_a_token() -> None:
    parts = FakeParts.make()
    client = client_over(parts)
    await client.post(f"/models/{MODEL}/push", data=b'{"bearer-token": "t"}')
    [asked] = parts.puller.asked
    assert isinstance(asked, PushRequest) and asked.given is not None
    assert asked.given.bearer_token == "t"
    response = await client.post(f"/models/{MODEL}/push", data=b"nonsense")
    assert (await text_of(response, 400)).startswith("invalid request body")


# reading


async def test_models_are_listed() -> None:
    parts = FakeParts.make()
    [model] = await json_of(await client_over(parts).get("/models"))
    assert model == {
        "id": ID,
        "tags": [f"docker.io/{MODEL}"],
        "created": 1745777589,
        "config": {
            "format": "gguf",
            "quantization": "MOSTLY_Q4_1",
            "parameters": "134.52M",
            "architecture": "llama",
            "size": "93.46MiB",
            "gguf": {"general.name": "Smol"},
        },
    }
    parts.store.models = []
    assert await json_of(await client_over(parts).get("/models")) == []


@pytest.mark.parametrize("name", [MODEL, f"docker.io/{MODEL}", ID, "smollm2", "SmolLM2"])
async def test_a_model_is_found_by_name_by_id_and_by_the_last_part_of_a_name(name: str) -> None:
    model = await json_of(await client_over(FakeParts.make()).get(f"/models/{name}"))
    assert model["id"] == ID


async def test_a_part_of_a_name_that_means_several_models_is_ambiguous() -> None:
    parts = FakeParts.make()
    parts.store.models += [fake_model("acme/smollm2:v3", digest_of=b"another")]
    response = await client_over(parts).get("/models/smollm2")
    assert "acme/smollm2:v3" in await text_of(response, 409)


@pytest.mark.parametrize("name", ["absent", "ai/absent", "smollm2:v9", "sha256:" + "0" * 64])
async def test_a_model_that_is_not_there(name: str) -> None:
    response = await client_over(FakeParts.make()).get(f"/models/{name}")
    assert (await text_of(response, 404)).startswith("Model not found")


@pytest.mark.parametrize("query", ["remote", "remote=", "remote=true", "remote=1"])
async def test_a_registry_is_asked_on_request(query: str) -> None:
    parts = FakeParts.make()
    model = await json_of(await client_over(parts).get(f"/models/acme/m:v1?{query}"))
    assert "tags" not in model
    assert model["config"]["size"] == "11MiB"
    [asked] = parts.remote.asked
    assert (asked.reference, asked.source_text) == (Reference.parse("acme/m:v1"), "acme/m:v1")


@pytest.mark.parametrize("query", ["", "remote=false", "remote=0", "remote=maybe"])
async def test_no_registry_is_asked_otherwise(query: str) -> None:
    parts = FakeParts.make()
    await json_of(await client_over(parts).get(f"/models/{MODEL}?{query}"))
    assert parts.remote.asked == []


async def test_a_registry_that_refuses_a_look_is_told_as_it_is() -> None:
    parts = FakeParts.make()
    parts.remote.refusal = RegistryUnauthorized("r.example", "log in")
    response = await client_over(parts).get("/models/r.example/m?remote")
    assert (await text_of(response, 401)).startswith("Unauthorized")
    response = await client_over(parts).get(f"/models/{ID}?remote")
    assert (await text_of(response, 400)).startswith("Invalid model reference")


# changing


@pytest.mark.parametrize("name", [MODEL, ID, "smollm2"])
async def test_a_tag_is_added(name: str) -> None:
    parts = FakeParts.make()
    response = await client_over(parts).post(f"/models/{name}/tag?repo=acme/tiny&tag=v1")
    assert await json_of(response, 201) == {
        "message": 'Model tagged successfully with "acme/tiny:v1"',
        "target": "acme/tiny:v1",
    }
    assert parts.store.changes == [("tag", ID, "docker.io/acme/tiny:v1")]


@pytest.mark.parametrize("query", ["", "repo=a", "tag=a", "repo=&tag=a"])
async def test_a_tag_without_its_parts_is_refused(query: str) -> None:
    response = await client_over(FakeParts.make()).post(f"/models/{MODEL}/tag?{query}")
    assert await text_of(response, 400) == "missing repo or tag query parameter"


async def test_a_model_is_removed() -> None:
    parts = FakeParts.make()
    response = await client_over(parts).delete(f"/models/{MODEL}?force=true")
    assert await json_of(response) == [{"Untagged": f"docker.io/{MODEL}"}, {"Deleted": ID}]
    assert parts.store.changes == [("remove", MODEL, True)]


async def test_a_part_of_a_name_removes_nothing() -> None:
    parts = FakeParts.make()
    assert await text_of(await client_over(parts).delete("/models/smollm2"), 404)
    assert parts.store.changes == []


async def test_an_idle_model_is_unloaded_to_be_removed() -> None:
    parts = FakeParts.make()
    parts.store.in_use = True

    def let_go() -> None:
        parts.store.in_use = False

    parts.scheduler.on_unload = let_go
    assert await json_of(await client_over(parts).delete(f"/models/{MODEL}"))
    assert parts.scheduler.calls == [("unload", (fake_model().id,))]


async def test_S22_a_model_that_answers_is_not_removed() -> None:
    parts = FakeParts.make()
    parts.store.in_use = True
    parts.scheduler.unload_report = UnloadReport(unloaded=(), in_use=(MODEL,))
    assert "is loaded or loading" in await text_of(await client_over(parts).delete(f"/models/{MODEL}"), 409)


async def test_a_conflict_keeps_its_status() -> None:
    parts = FakeParts.make()
    parts.store.refusal = Conflict("it has several names; --force removes them all")
    assert "several names" in await text_of(await client_over(parts).delete(f"/models/{ID}"), 409)


async def test_purging_removes_everything_or_nothing() -> None:
    parts = FakeParts.make()
    response = await client_over(parts).delete("/models/purge")
    assert (response.status_code, await response.get_data(as_text=False)) == (200, b"")
    assert parts.store.changes == [("remove", ID, True), ("gc", True, False)]
    assert parts.scheduler.calls == [("unload", None)]
    parts = FakeParts.make()
    parts.scheduler.unload_report = UnloadReport(unloaded=(), in_use=(MODEL,))
    assert await text_of(await client_over(parts).delete("/models/purge"), 409)
    assert parts.store.changes == []


# what is not there


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ("POST", f"/models/{MODEL}/explode", 'unknown action "explode"'),
        ("POST", "/models/a/b/c%22d", 'unknown action "c\\"d"'),
        ("POST", "/models/smollm2", "not found"),
        ("PUT", f"/models/{MODEL}", "not found"),
        ("PATCH", f"/models/{MODEL}/tag", "not found"),
        ("DELETE", "/models", "not found"),
        ("POST", "/models", "not found"),
    ],
)
async def test_everything_else_is_not_found(method: str, path: str, text: str) -> None:
    parts = FakeParts.make()
    assert await text_of(await client_over(parts).open(path, method=method), 404) == text
    assert parts.store.changes == []


@pytest.mark.parametrize("name", ["a//b", "..%2Fx", "%2e%2e/x", "a%5Cb", "-x", "a%25b", "x" * 256, "a%00b"])
async def test_N19_names_outside_the_grammar_are_refused(name: str) -> None:
    parts = FakeParts.make()
    client = client_over(parts)
    for method, path in (
        ("GET", f"/models/{name}"),
        ("DELETE", f"/models/{name}"),
        ("POST", f"/models/{name}/tag?repo=a&tag=b"),
        ("POST", f"/models/{name}/push"),
    ):
        response = await client.open(path, method=method)
        assert (await text_of(response, 400)).startswith("Invalid model reference"), (method, path)
    assert parts.store.changes == []
    assert parts.puller.asked == []


async def test_N06_reading_changes_nothing() -> None:
    parts = FakeParts.make()
    client = client_over(parts)
    for path in ("/models/create", "/models/purge", f"/models/{MODEL}/push", f"/models/{MODEL}/tag"):
        for method in ("GET", "HEAD", "OPTIONS"):
            await client.open(f"{path}?repo=a&tag=b&force=true", method=method)
    assert parts.store.changes == []
    assert parts.puller.asked == []
    assert parts.scheduler.calls == []


async def test_head_is_answered_like_get() -> None:
    response = await client_over(FakeParts.make()).head(f"/models/{MODEL}")
    assert response.status_code == 200


async def test_models_that_cannot_be_read_are_left_out() -> None:
    parts = FakeParts.make()
    parts.store.unreadable = [attrs.evolve(fake_model("ai/gone"), id=Digest.of(b"gone"))]
    assert len(await json_of(await client_over(parts).get("/models"))) == 1
