"""The control API through the whole application, over handles in memory."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import orjson
import pytest
import trio

from runner.domain.quarantine import FailedLoads
from runner.domain.status import CrashReport
from runner.errors import Conflict, Draining
from runner.oci.digest import Digest
from tests.support.api import answer_of, client_over, error_of, leave, post
from tests.support.fake_handles import FakeParts, fake_model

pytestmark = pytest.mark.anyio

MODEL = "ai/smollm2:135M-Q4_1"
API = "/control/v1"
OTHER_ID = str(Digest.of(b"another manifest"))
LAYER = {"kind": "gguf", "digest": f"sha256:{'0' * 64}", "filename": "model.gguf"}


def crash_report(model_id: str) -> CrashReport:
    return CrashReport(
        at_s=1.0,
        model="ai/a",
        model_id=model_id,
        engine_version="scripted 1",
        pid=17,
        kind="segmentation_fault",
        cause="signal SIGSEGV",
        exit_code=None,
        signal="SIGSEGV",
        phase="serving",
        lived_s=3.0,
        request_ids=("r1",),
        output_tail="last words",
    )


async def test_what_there_is_can_be_asked() -> None:
    client = client_over(FakeParts.make())
    assert (await answer_of(await client.get(f"{API}/version")))["api"] == "1"
    assert (await answer_of(await client.get(f"{API}/status")))["uptime_s"] == 2.0
    assert (await answer_of(await client.get(f"{API}/ps")))["workers"][0]["state"] == "ready"
    [model] = await answer_of(await client.get(f"{API}/models"))
    assert model["name"] == MODEL
    report = await answer_of(await client.get(f"{API}/models/{MODEL}"))
    assert report["model"]["id"] == str(fake_model().id)
    assert report["metadata"] == {"general.name": "Smol"}


async def test_L02_deaths_of_workers_are_told_of_all_models_or_of_one() -> None:
    parts = FakeParts.make()
    parts.daemon.crash_reports = [crash_report(str(fake_model().id)), crash_report(OTHER_ID)]
    client = client_over(parts)
    every = await answer_of(await client.get(f"{API}/crashes"))
    assert [one["model_id"] for one in every] == [str(fake_model().id), OTHER_ID]
    assert every[0]["kind"] == "segmentation_fault"
    [one] = await answer_of(await client.get(f"{API}/crashes?model={MODEL}"))
    assert one["model_id"] == str(fake_model().id)
    [gone] = await answer_of(await client.get(f"{API}/crashes?model={OTHER_ID}"))
    assert gone["model_id"] == OTHER_ID
    refused = await error_of(await client.get(f"{API}/crashes?model=nowhere"))
    assert refused["code"] == "model_not_found"


async def test_L06_quarantine_is_shown_and_lifted() -> None:
    parts = FakeParts.make()
    client = client_over(parts)
    assert (await answer_of(await client.get(f"{API}/models")))[0]["quarantine"] is None
    parts.scheduler.failed_loads = (
        FailedLoads(model_id=OTHER_ID, model="x", engine="e", crashes=3, cause="signal SIGBUS"),
        FailedLoads(model_id=str(fake_model().id), model="x", engine="e", crashes=2, cause="exit code 3"),
    )
    why = "2 loads crashed the engine, the last by exit code 3"
    assert (await answer_of(await client.get(f"{API}/models")))[0]["quarantine"] == why
    report = await answer_of(await client.get(f"{API}/models/{MODEL}"))
    assert report["model"]["quarantine"] == why
    freed = await answer_of(await post(client, f"{API}/unquarantine", {"model": MODEL}))
    assert freed == {"model": MODEL, "was_quarantined": True, "crashes": 2}
    assert parts.scheduler.calls == [("unquarantine", MODEL)]


async def test_models_are_tagged_and_untagged() -> None:
    parts = FakeParts.make()
    client = client_over(parts)
    answer = await answer_of(await post(client, f"{API}/tag", {"source": MODEL, "target": "acme/tiny"}))
    assert answer["name"] == MODEL
    await answer_of(await post(client, f"{API}/untag", {"target": MODEL}))
    assert parts.store.changes == [
        ("tag", MODEL, "docker.io/acme/tiny:latest"),
        ("untag", f"docker.io/{MODEL}"),
    ]


@pytest.mark.parametrize(
    ("query", "force"),
    [
        ("", False),
        ("?force=true", True),
        ("?force=1", True),
        ("?force", True),
        ("?force=FALSE", False),
        ("?force=0", False),
    ],
)
async def test_models_are_removed_by_force_or_without(query: str, force: bool) -> None:
    parts = FakeParts.make()
    answer = await answer_of(await client_over(parts).delete(f"{API}/models/{MODEL}{query}"))
    assert answer == [
        {"untagged": f"docker.io/{MODEL}", "deleted": None},
        {"untagged": None, "deleted": str(fake_model().id)},
    ]
    assert parts.store.changes == [("remove", MODEL, force)]


async def test_force_is_true_or_false() -> None:
    response = await client_over(FakeParts.make()).delete(f"{API}/models/{MODEL}?force=maybe")
    assert (response.status_code, (await error_of(response))["param"]) == (400, "force")


async def test_a_model_in_use_is_not_removed() -> None:
    parts = FakeParts.make()
    parts.store.in_use = True
    response = await client_over(parts).delete(f"{API}/models/{MODEL}")
    assert (response.status_code, (await error_of(response))["code"]) == (409, "model_in_use")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_unknown_models_are_not_found(method: str) -> None:
    response = await client_over(FakeParts.make()).open(f"{API}/models/ai/absent", method=method)
    assert (response.status_code, (await error_of(response))["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("name", ["..", "a//b", "%252e", "ai%5Cx", "-x", "x" * 256])
async def test_N19_names_in_paths_are_held_to_the_grammar(method: str, name: str) -> None:
    parts = FakeParts.make()
    response = await client_over(parts).open(f"{API}/models/{name}", method=method)
    assert (response.status_code, (await error_of(response))["code"]) == (400, "invalid_reference")
    assert parts.store.changes == []


async def test_a_model_is_started_and_unloaded() -> None:
    parts = FakeParts.make()
    client = client_over(parts)
    worker = await answer_of(await post(client, f"{API}/start", {"model": MODEL, "keep_alive": "-1"}))
    assert (worker["model"], worker["state"], worker["keep_alive_s"]) == (MODEL, "ready", None)
    await answer_of(await post(client, f"{API}/start", {"model": MODEL}))
    report = await answer_of(await post(client, f"{API}/unload", {"models": [MODEL]}))
    assert report == {"unloaded": [MODEL], "in_use": []}
    await answer_of(await post(client, f"{API}/unload", {"all": True}))
    assert parts.scheduler.calls == [
        ("start", (MODEL, math.inf)),
        ("start", (MODEL, None)),
        ("unload", (fake_model().id,)),
        ("unload", None),
    ]


@pytest.mark.parametrize(("path", "body"), [("start", {"model": "ai/x"}), ("unload", {"models": ["ai/x"]})])
async def test_starting_and_unloading_what_is_unknown_is_not_found(path: str, body: Any) -> None:
    parts = FakeParts.make()
    response = await post(client_over(parts), f"{API}/{path}", body)
    assert (response.status_code, (await error_of(response))["code"]) == (404, "model_not_found")
    assert parts.scheduler.calls == []


async def test_while_the_daemon_ends_nothing_is_started() -> None:
    parts = FakeParts.make()
    parts.scheduler.refusal = Draining()
    response = await post(client_over(parts), f"{API}/start", {"model": MODEL})
    assert (response.status_code, (await error_of(response))["code"]) == (503, "draining")
    assert response.headers["Retry-After"] == "5"


async def test_a_start_is_given_up_when_its_client_goes_away() -> None:
    parts = FakeParts.make()
    parts.scheduler.gate = trio.Event()
    with trio.fail_after(5):
        async with client_over(parts).request(f"{API}/start", method="POST") as connection:
            await connection.send(orjson.dumps({"model": MODEL}))
            await connection.send_complete()
            while not parts.scheduler.calls:
                await trio.lowlevel.checkpoint()
            await leave(connection)
    assert parts.scheduler.cancelled_acquires == 1


async def test_uploaded_parts_are_packaged() -> None:
    parts = FakeParts.make()
    body = {"target": "acme/tiny:v1", "layers": [LAYER], "context_size": 4096}
    response = await post(client_over(parts), f"{API}/package", body)
    assert response.status_code == 201
    assert (await answer_of(response))["name"] == "acme/tiny:v1"
    [spec] = parts.puller.packaged
    assert (str(spec.target), spec.context_size) == ("docker.io/acme/tiny:v1", 4096)


async def test_a_part_that_was_never_uploaded_is_not_found() -> None:
    parts = FakeParts.make()
    parts.puller.missing = str(LAYER["digest"])
    response = await post(client_over(parts), f"{API}/package", {"target": "a/b", "layers": [LAYER]})
    assert (response.status_code, (await error_of(response))["code"]) == (404, "blob_not_found")


async def test_what_a_package_may_hold_is_checked_with_the_paths_of_this_api() -> None:
    layers = [{**LAYER, "filename": "a/b"}, {**LAYER, "filename": "../x"}]
    response = await post(
        client_over(FakeParts.make()), f"{API}/package", {"target": "a/b", "layers": layers}
    )
    error = await error_of(response)
    assert response.status_code == 400
    assert "layers[1].filename" in error["message"]
    assert "layers[0].filename" in error["message"]


@pytest.mark.parametrize(
    "path", ["/version", "/models", "/tag", "/untag", "/start", "/unload", "/package", "/shutdown"]
)
async def test_bodies_are_strict_and_closed(path: str) -> None:
    client = client_over(FakeParts.make())
    if path in ("/version", "/models"):
        assert (await client.post(API + path)).status_code == 405
        return
    for body in (b'{"nobody_knows": 1}', b"[]", b"{", b'{"a": NaN}'):
        response = await post(client, API + path, body)
        assert (response.status_code, (await error_of(response))["code"]) == (400, "invalid_parameter")


async def test_content_is_received_with_what_was_announced_of_it() -> None:
    parts = FakeParts.make()
    client = client_over(parts)
    content = b"x" * 300_000
    digest = hashlib.sha256(content).hexdigest()
    response = await client.post(
        f"{API}/blobs",
        data=content,
        headers={"Content-Length": "300000", "X-Content-Digest": f"sha256:{digest}"},
    )
    assert response.status_code == 201
    assert await answer_of(response) == {"digest": f"sha256:{digest}", "size_bytes": 300_000}
    assert parts.store.received == [content]
    assert parts.store.changes == [("blob", 300_000, Digest(digest))]


async def test_content_of_unknown_length_is_received_piece_by_piece() -> None:
    parts = FakeParts.make()
    async with client_over(parts).request(f"{API}/blobs", method="POST") as connection:
        for piece in (b"one", b"two", b"three"):
            await connection.send(piece)
        await connection.send_complete()
    assert connection.status_code == 201
    assert parts.store.received == [b"onetwothree"]
    assert parts.store.changes[0][1:] == (None, None)


@pytest.mark.parametrize("digest", ["", "sha256:0", f"md5:{'0' * 64}", f"sha256:{'A' * 64}"])
async def test_S01_an_announced_digest_is_held_to_its_grammar(digest: str) -> None:
    parts = FakeParts.make()
    response = await client_over(parts).post(f"{API}/blobs", data=b"x", headers={"X-Content-Digest": digest})
    assert (response.status_code, (await error_of(response))["param"]) == (400, "X-Content-Digest")
    assert parts.store.changes == []


async def test_a_shutdown_is_accepted_and_requested_once() -> None:
    parts = FakeParts.make()
    response = await client_over(parts).post(f"{API}/shutdown")
    assert (response.status_code, parts.daemon.shutdowns) == (202, 1)
    assert (await client_over(parts).get(f"{API}/shutdown")).status_code == 405
    assert parts.daemon.shutdowns == 1


async def test_a_conflict_in_the_store_is_a_409() -> None:
    parts = FakeParts.make()

    class Undecided:
        async def remove(self, name: object, *, force: bool) -> None:
            await trio.lowlevel.checkpoint()
            raise Conflict("it has several names; force removes them all")

    parts.store = Undecided()  # type: ignore[assignment]
    response = await client_over(parts).delete(f"{API}/models/{MODEL}")
    assert (response.status_code, (await error_of(response))["code"]) == (409, "conflict")
