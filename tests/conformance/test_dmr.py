"""Recorded exchanges of Docker Model Runner's native endpoints: we answer as recorded, and a reader that does
what its command does reads that."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.exchanges import CONFORMANCE, answer, exchanges, load

STREAMS = [path for path in exchanges("dmr") if path.stem.startswith(("create", "push"))]


@pytest.mark.anyio
@pytest.mark.parametrize("path", exchanges("dmr"), ids=lambda path: path.stem)
async def test_the_application_answers_as_recorded(path: Path) -> None:
    exchange = load(path)
    assert await answer(exchange) == exchange["response"]


def recorded(name: str) -> dict[str, Any]:
    response: dict[str, Any] = load(CONFORMANCE / "dmr" / f"{name}.json")["response"]
    return response


def read(name: str) -> list[dict[str, Any]]:
    """Lines as the command reads them: unescaped, then parsed, whatever the content type."""
    return [json.loads(html.unescape(line)) for line in recorded(name)["body"] if line]


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_every_line_of_a_stream_has_the_members_that_clients_read(path: Path) -> None:
    if recorded(path.stem)["status"] != 200:
        [line, nothing] = recorded(path.stem)["body"]
        assert line and not nothing
        return
    lines = read(path.stem)
    for line in lines:
        assert line.keys() == {"type", "message", "total", "layer", "mode"}
        assert line["type"] in ("progress", "success", "error")
        assert line["mode"] == ("push" if path.stem == "push" else "pull")
        assert line["layer"].keys() - {"id"} == {"size", "current"}
        assert line["layer"]["current"] <= line["layer"]["size"] <= line["total"]
    assert [line["type"] for line in lines[:-1]] == ["progress"] * (len(lines) - 1)
    assert lines[-1]["type"] in ("success", "error")


def test_both_forms_of_a_stream_say_the_same() -> None:
    assert read("create_json") == read("create_text")
    assert recorded("create_json")["headers"]["Content-Type"] == "application/json"
    assert recorded("create_text")["headers"]["Content-Type"] == "text/plain"


def test_the_layers_of_a_pull_add_up_to_what_was_missing() -> None:
    latest: dict[str, int] = {}
    for line in read("create_json"):
        if "id" in line["layer"]:
            latest[line["layer"]["id"]] = line["layer"]["current"]
    assert list(latest.values()) == [270590880]  # the licence was there already


def test_a_model_that_is_there_is_one_line() -> None:
    [line] = read("create_cached")
    assert line["message"] == "Using cached model: 256.35MiB"


def test_a_pull_that_breaks_off_ends_with_an_error_line() -> None:
    *_, last = read("create_broken_off")
    assert (last["type"], last["message"][:7]) == ("error", "Error: ")


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("create_no_json", 400, "invalid request body"),
        ("create_no_reference", 400, "Invalid model reference"),
        ("create_unauthorized", 401, "Unauthorized"),
        ("create_not_found", 404, "Model not found"),
        ("create_unsupported", 422, ""),
        ("show_missing", 404, "Model not found"),
        ("delete_missing", 404, "Model not found"),
        ("delete_conflict", 409, ""),
        ("tag_incomplete", 400, "missing repo or tag query parameter"),
        ("repackage_no_target", 400, "target is required"),
        ("unknown_action", 404, 'unknown action "explode"'),
        ("unknown_method", 404, "not found"),
    ],
)
def test_errors_are_one_line_of_text_that_begins_as_known(name: str, status: int, words: str) -> None:
    response = recorded(name)
    assert response["status"] == status
    assert response["headers"]["Content-Type"] == "text/plain; charset=utf-8"
    line, nothing = response["body"]
    assert line.startswith(words) and nothing == ""


def test_models_are_read_as_the_command_reads_them() -> None:
    first, second = json.loads(recorded("list")["body"][0])
    assert first["id"].startswith("sha256:") and len(first["id"]) == len("sha256:") + 64
    assert [first["tags"], second["tags"]] == [
        ["docker.io/ai/smollm2:135M-Q4_1"],
        ["docker.io/acme/tiny:v1"],
    ]
    assert isinstance(first["created"], int)
    assert all(isinstance(value, str) for value in first["config"]["gguf"].values())
    assert recorded("list_empty")["body"] == ["[]"]
    assert recorded("show")["body"] == recorded("show_partial")["body"]
    assert "tags" not in json.loads(recorded("show_remote")["body"][0])


def test_changes_are_told_as_known() -> None:
    assert [list(action) for action in json.loads(recorded("delete")["body"][0])] == [
        ["Untagged"],
        ["Deleted"],
    ]
    assert recorded("purge")["body"] == [""]
    assert json.loads(recorded("tag")["body"][0])["target"] == "acme/tiny:v1"
    assert json.loads(recorded("repackage")["body"][0]).keys() == {"message", "source", "target"}
    assert (recorded("tag")["status"], recorded("repackage")["status"]) == (201, 201)


def test_every_recorded_exchange_is_read_by_one_of_these_tests() -> None:
    told = Path(__file__).read_text(encoding="utf-8")
    for path in exchanges("dmr"):
        assert path in STREAMS or f'"{path.stem}"' in told, path.stem
