"""Pulls and pushes over the control API, as streams of JSON lines."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
import trio
from quart.wrappers import Response

from runner.api.control.transfers import Lines
from runner.api.progress import HEAD_HELD_S, IDLE_S, Following, ProgressSource, following
from runner.domain.transfer import PullRequest, PushRequest, TransferPhase, TransferStatus
from runner.errors import Draining, RegistryUnauthorized, RegistryUnavailable, RemoteModelNotFound
from runner.oci.digest import Digest
from runner.oci.reference import ModelName, Reference
from tests.support.api import answer_of, client_over, error_of, leave, post
from tests.support.fake_handles import FakeParts
from tests.support.fake_transfers import MIB, ended, moment

pytestmark = pytest.mark.anyio

PULL, PUSH = "/control/v1/pull", "/control/v1/push"
ID = str(Digest.of(b"manifest"))


async def lines_of(response: Response) -> list[dict[str, Any]]:
    content = await response.get_data(as_text=False)
    assert response.status_code == 200
    assert response.content_type == "application/x-ndjson"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    return [orjson.loads(line) for line in content.splitlines()]


async def test_progress_then_success() -> None:
    parts = FakeParts.make()
    parts.puller.moments = [
        moment(phase=TransferPhase.QUEUED, position=1),
        moment(phase=TransferPhase.RESOLVING),
        moment(5 * MIB, 0, notes=("a note",)),
        moment(10 * MIB, MIB, phase=TransferPhase.VERIFYING),
    ]
    response = await post(client_over(parts), PULL, {"reference": "m"})
    *progress, success = await lines_of(response)
    assert [line["phase"] for line in progress] == ["queued", "resolving", "transferring", "verifying"]
    assert progress[0]["queue_position"] == 1
    assert progress[2] == {
        "type": "progress",
        "direction": "pull",
        "phase": "transferring",
        "queue_position": None,
        "layers": [
            {
                "digest": str(Digest.of(b"weights")),
                "kind": "gguf",
                "title": "m.gguf",
                "size_bytes": 10 * MIB,
                "done_bytes": 5 * MIB,
            },
            {
                "digest": str(Digest.of(b"license")),
                "kind": "license",
                "title": "LICENSE",
                "size_bytes": MIB,
                "done_bytes": 0,
            },
        ],
        "total_bytes": 11 * MIB,
        "done_bytes": 5 * MIB,
        "notes": ["a note"],
    }
    assert success == {
        "type": "success",
        "model_id": ID,
        "reference": "docker.io/ai/m:latest",
        "size_bytes": 11 * MIB,
        "transferred_bytes": 11 * MIB,
        "was_cached": False,
    }
    assert parts.puller.running == 0


async def test_a_model_that_is_there_is_just_a_success() -> None:
    parts = FakeParts.make()
    parts.puller.outcome = ended(was_cached=True, transferred_bytes=0)
    [success] = await lines_of(await post(client_over(parts), PULL, {"reference": "m"}))
    assert success["was_cached"] is True


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RemoteModelNotFound("docker.io", "no model ai/m"), 404),
        (RegistryUnauthorized("docker.io", "`runner ctl login docker.io`"), 401),
        (RegistryUnavailable("docker.io", "too slow"), 502),
    ],
)
@pytest.mark.parametrize("is_at_once", [True, False])
async def test_what_fails_before_there_is_anything_to_transfer_has_its_status(
    error: Any, status: int, is_at_once: bool
) -> None:
    parts = FakeParts.make()
    if is_at_once:
        parts.puller.refusal = error
    else:
        parts.puller.moments = [moment(phase=TransferPhase.RESOLVING)]
        parts.puller.outcome = error
    response = await post(client_over(parts), PULL, {"reference": "m"})
    assert response.status_code == status
    assert (await error_of(response))["code"] == error.code
    assert parts.puller.running == 0


async def test_what_fails_later_is_the_last_line() -> None:
    parts = FakeParts.make()
    parts.puller.moments = [moment(5 * MIB)]
    parts.puller.outcome = RegistryUnavailable("docker.io", "it broke off")
    progress, error = await lines_of(await post(client_over(parts), PULL, {"reference": "m"}))
    assert progress["type"] == "progress"
    assert error["type"] == "error"
    assert error["error"]["code"] == "registry_unavailable"
    assert error["error"]["message"] == "docker.io: it broke off"


async def test_N21_a_fault_of_ours_tells_nothing() -> None:
    parts = FakeParts.make()
    parts.puller.moments = [moment(5 * MIB)]
    parts.puller.outcome = ValueError("/secret/path")
    *_, error = await lines_of(await post(client_over(parts), PULL, {"reference": "m"}))
    assert error["error"]["code"] == "internal_error"
    assert "secret" not in error["error"]["message"]


async def test_what_is_asked_reaches_the_puller() -> None:
    parts = FakeParts.make()
    client = client_over(parts)
    body = {"reference": "hf.co/Org/Repo:Q8_0", "bearer_token": "hf_secret"}
    await post(client, PULL, body)
    await post(client, PUSH, {"reference": ID, "target": "r.example/m:v1", "username": "u", "password": "p"})
    pull, push = parts.puller.asked
    assert isinstance(pull, PullRequest) and pull.given is not None
    assert (pull.reference, pull.source_text) == (Reference.parse("hf.co/org/repo:Q8_0"), body["reference"])
    assert pull.given.bearer_token == "hf_secret"
    assert isinstance(push, PushRequest) and push.given is not None
    assert (push.name, push.target) == (ModelName.parse(ID), Reference.parse("r.example/m:v1"))
    assert (push.given.username, push.given.password) == ("u", "p")
    assert "hf_secret" not in repr(pull)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "reference"),
        ({"reference": "../x"}, "reference"),
        ({"reference": ID}, "reference"),
        ({"reference": "0" * 64}, "reference"),
        ({"reference": 1}, "reference"),
        ({"reference": "m", "insecure": True}, "insecure"),
        ({"reference": "m", "password": "p"}, "password"),
        ({"reference": "m", "bearer_token": "a\r\nb"}, "bearer_token"),
        ({"reference": "m", "bearer_token": ""}, "bearer_token"),
        ({"reference": "m", "bearer_token": "x" * 8193}, "bearer_token"),
    ],
)
async def test_N19_a_pull_that_makes_no_sense_is_refused(body: dict[str, Any], param: str) -> None:
    parts = FakeParts.make()
    error = await error_of(await post(client_over(parts), PULL, body))
    assert (error["code"], error["param"]) == ("invalid_parameter", param)
    assert parts.puller.asked == []


async def test_S21_a_client_that_leaves_leaves_the_transfer() -> None:
    parts = FakeParts.make()
    parts.puller.moments = [moment(5 * MIB), None]
    async with client_over(parts).request(
        PULL, method="POST", headers={"Content-Type": "application/json"}
    ) as connection:
        await connection.send(b'{"reference": "m"}')
        await connection.send_complete()
        await connection.receive()
        assert parts.puller.running == 1
        await leave(connection)
    with trio.fail_after(5):
        while parts.puller.running:
            await trio.lowlevel.checkpoint()
    assert parts.puller.left_early == 1


async def test_a_silent_transfer_tells_that_it_is_alive(virtual_clock: trio.testing.MockClock) -> None:
    parts = FakeParts.make()
    parts.puller.moments = [moment(5 * MIB), None]
    started_s = trio.current_time()
    async with client_over(parts).request(
        PULL, method="POST", headers={"Content-Type": "application/json"}
    ) as connection:
        await connection.send(b'{"reference": "m"}')
        await connection.send_complete()
        first = await connection.receive()
        assert await connection.receive() == first
        assert trio.current_time() - started_s == pytest.approx(IDLE_S)
        await leave(connection)


async def test_the_head_is_held_for_a_while_only(virtual_clock: trio.testing.MockClock) -> None:
    parts = FakeParts.make()
    parts.puller.moments = [moment(phase=TransferPhase.RESOLVING), None]
    started_s = trio.current_time()
    async with client_over(parts).request(
        PULL, method="POST", headers={"Content-Type": "application/json"}
    ) as connection:
        await connection.send(b'{"reference": "m"}')
        await connection.send_complete()
        assert orjson.loads(await connection.receive())["phase"] == "resolving"
        assert trio.current_time() - started_s == pytest.approx(HEAD_HELD_S)
        await leave(connection)


async def test_transfers_are_listed() -> None:
    parts = FakeParts.make()
    parts.puller.rows = (
        TransferStatus(
            reference="docker.io/ai/m:latest",
            model_id="",
            waiters=2,
            started_ago_s=1.5,
            progress=moment(phase=TransferPhase.QUEUED, position=3),
        ),
    )
    [row] = await answer_of(await client_over(parts).get("/control/v1/transfers"))
    assert (row["reference"], row["waiters"], row["progress"]["queue_position"]) == (
        "docker.io/ai/m:latest", 2, 3,
    )  # fmt: skip


@pytest.mark.parametrize("path", [PULL, PUSH])
async def test_N06_reading_starts_no_transfer(path: str) -> None:
    parts = FakeParts.make()
    for method in ("GET", "HEAD", "OPTIONS"):
        await client_over(parts).open(path, method=method)
    assert parts.puller.asked == []


async def test_a_daemon_that_ends_says_so_last() -> None:
    parts = FakeParts.make()
    parts.puller.moments = [moment(5 * MIB), None]
    asked = PullRequest(reference=Reference.parse("m"))
    work = Following(following(lambda: parts.puller.pull(asked)), lambda progress: True)
    source = ProgressSource(work, Lines())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.run)
        assert await source.next_chunk()
        last = orjson.loads(source.abort(Draining()))
        assert last["error"]["code"] == "draining"
        assert await source.next_chunk() == b""
        source.close()
    assert parts.puller.left_early == 1


async def test_S24_a_repair_streams_like_a_pull() -> None:
    parts = FakeParts.make()
    parts.puller.moments = [moment(5 * MIB)]
    *_, success = await lines_of(await post(client_over(parts), "/control/v1/repair", {"model": "m"}))
    assert success["type"] == "success"
    assert parts.puller.asked == [ModelName.parse("m")]


async def test_a_model_is_looked_at_where_it_is() -> None:
    parts = FakeParts.make()
    body = {"reference": "r.example/m", "username": "u", "password": "p"}
    report = await answer_of(await post(client_over(parts), "/control/v1/remote", body))
    assert report["model"]["parameters"] == "134.52M"
    [asked] = parts.remote.asked
    assert asked.given is not None and asked.given.password == "p"
    parts.remote.refusal = RemoteModelNotFound("r.example", "no model m")
    response = await post(client_over(parts), "/control/v1/remote", {"reference": "r.example/m"})
    assert (await error_of(response))["code"] == "remote_model_not_found"


async def test_what_takes_room_is_told() -> None:
    report = await answer_of(await client_over(FakeParts.make()).get("/control/v1/df"))
    assert (report["total_bytes"], report["models"][0]["own_bytes"]) == (98_000_000, 98_000_000)


@pytest.mark.parametrize(
    ("body", "prune", "dry_run"),
    [
        (b"", False, False),
        ({}, False, False),
        ({"prune": True}, True, False),
        ({"dry_run": True}, False, True),
    ],
)
async def test_garbage_is_collected(body: Any, prune: bool, dry_run: bool) -> None:
    parts = FakeParts.make()
    report = await answer_of(await post(client_over(parts), "/control/v1/gc", body))
    assert report["is_dry_run"] is dry_run
    assert parts.store.changes == [("gc", prune, dry_run)]


async def test_S24_a_check_tells_how_far_it_is_and_what_it_found() -> None:
    parts = FakeParts.make()
    progress, report = await lines_of(await post(client_over(parts), "/control/v1/verify", {"models": ["m"]}))
    assert (progress["type"], progress["done_bytes"], progress["total_bytes"]) == ("progress", 1, 2)
    assert (report["type"], report["findings"][0]["kind"]) == ("success", "wrong_content")
    assert parts.store.verified == [(ModelName.parse("m"),)]
    await lines_of(await post(client_over(parts), "/control/v1/verify", b""))
    assert parts.store.verified[1:] == [None]


@pytest.mark.parametrize(
    "body", [{"models": []}, {"models": ["../x"]}, {"models": ["m"] * 257}, {"all": True}]
)
async def test_a_check_that_makes_no_sense_is_refused(body: dict[str, Any]) -> None:
    parts = FakeParts.make()
    assert (await error_of(await post(client_over(parts), "/control/v1/verify", body)))["code"] == (
        "invalid_parameter"
    )
    assert parts.store.verified == []
