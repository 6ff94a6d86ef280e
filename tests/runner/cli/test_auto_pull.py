"""`run` and `start` pull a model that is not in the store."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.control import Cli, worker_status
from tests.support.scripted_server import Request, answer, refusal, stream
from tests.support.transfer_lines import ID, failure, layer, progress, success, told

FIND, CHAT, PULL = "GET /v1/models/m", "POST /v1/chat/completions", "POST /control/v1/pull"
START = "POST /control/v1/start"


@pytest.fixture
def absent(cli: Cli) -> Cli:
    """A registry has `m`, the store has it once it was pulled."""
    is_there = False

    def when_there(document: object) -> object:
        def respond(_: Request) -> Iterator[bytes]:
            if is_there:
                return answer(document)
            return refusal(404, "model_not_found", "model 'm' is not in the store")

        return respond

    def pull(_: Request) -> Iterator[bytes]:
        nonlocal is_there
        is_there = True
        return told(progress(layer(5)), success())

    cli.routes[FIND] = when_there({"id": "docker.io/ai/m:latest"})
    cli.routes[START] = when_there(worker_status(model="m"))
    cli.routes[CHAT] = lambda _: stream("Hi")
    cli.routes[PULL] = pull
    return cli


def test_run_pulls_and_then_asks(absent: Cli) -> None:
    ended = absent("run", "m", "hello")
    assert (ended.status, ended.stdout) == (0, "Hi\n")
    first, *_, last = ended.stderr.splitlines()
    assert first == "m is not in the store; pulling it"
    assert last.startswith("pulled m (")
    assert absent.server.paths == [FIND, PULL, FIND, CHAT]


def test_start_pulls_and_then_loads(absent: Cli) -> None:
    ended = absent("ctl", "start", "m")
    assert ended.status == 0
    assert absent.server.paths == [START, PULL, START]
    assert "m is loaded" in ended.stderr


def test_what_the_digest_of_an_index_led_to_is_asked_for_by_its_own_id(cli: Cli) -> None:
    index, find = f"m@sha256:{'a' * 64}", f"GET /v1/models/{ID}"
    cli.routes[f"GET /v1/models/{index}"] = lambda _: refusal(404, "model_not_found", "not here")
    cli.routes[find] = lambda _: answer({"id": ID})
    cli.routes[PULL] = lambda _: told(success())
    cli.routes[CHAT] = lambda _: stream("Hi")
    cli.routes[START] = lambda request: (
        answer(worker_status(model="m"))
        if json.loads(request.body)["model"] == ID
        else refusal(404, "model_not_found", "not here")
    )
    assert cli("run", index, "hello").stdout == "Hi\n"
    assert json.loads(cli.server.requests[-1].body)["model"] == ID
    assert cli("ctl", "start", index).status == 0


def test_what_is_there_is_not_pulled(absent: Cli) -> None:
    absent("ctl", "start", "m")
    absent.server.requests.clear()
    absent("run", "m", "hello")
    assert absent.server.paths == [FIND, CHAT]


@pytest.mark.parametrize("command", [("run", "m", "hello", "--no-pull"), ("ctl", "start", "m", "--no-pull")])
def test_pulling_can_be_switched_off(absent: Cli, command: tuple[str, ...]) -> None:
    ended = absent(*command)
    assert ended.status == 4
    assert PULL not in absent.server.paths


@pytest.mark.parametrize("name", ["sha256:" + "0" * 64, "0" * 64, "0123abc", "0123456789ab"])
def test_an_id_is_not_looked_for_in_registries(cli: Cli, name: str) -> None:
    cli.routes[f"GET /v1/models/{name}"] = lambda _: refusal(404, "model_not_found", "no such model")
    cli.routes[PULL] = lambda _: told(success())
    assert cli("run", name, "hello").status == 4
    assert PULL not in cli.server.paths


def test_other_errors_do_not_pull(cli: Cli) -> None:
    cli.routes[FIND] = lambda _: refusal(500, "store_damaged", "the model is damaged")
    assert cli("run", "m", "hello").status == 1
    assert cli.server.paths == [FIND]


def test_a_model_that_no_registry_has_ends_the_command(absent: Cli) -> None:
    absent.routes[PULL] = lambda _: told(failure("remote_model_not_found", "docker.io: no model ai/m"))
    ended = absent("run", "m", "hello")
    assert (ended.status, ended.stdout) == (4, "")
    assert CHAT not in absent.server.paths


def test_json_of_start_stays_one_document(absent: Cli) -> None:
    ended = absent("ctl", "start", "m", "--json")
    assert ended.stdout.startswith("{\n")
    assert ended.stderr == "m is not in the store; pulling it\n"
