"""`pull`, `push` and `transfers`: what is asked, what is told, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from runner.cli import transfer
from runner.client import Client, Target
from tests.support.control import SHORT_ID, Cli
from tests.support.scripted_server import STREAM_END, Request, refusal
from tests.support.terminal import OnTerminal, on_terminal
from tests.support.transfer_lines import HEAD, ID, MIB, failure, layer, progress, sent_line, success, told

ROOT = Path(__file__).parents[3]
PULL, PUSH = "POST /control/v1/pull", "POST /control/v1/push"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "DOCKER_USERNAME", "DOCKER_PASSWORD", "DOCKER_HUB_USER", "DOCKER_HUB_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


def test_a_pull_tells_its_stages_and_its_end(cli: Cli) -> None:
    cli.routes[PULL] = lambda _: told(
        progress(phase="queued", position=2),
        progress(phase="queued", position=1),
        progress(phase="resolving"),
        progress(layer(0)),
        progress(layer(100 * MIB), phase="verifying"),
        success(),
    )
    ended = cli("ctl", "pull", "m")
    assert (ended.status, ended.stdout) == (0, "")
    *stages, last = ended.stderr.splitlines()
    assert stages == [
        "m waits for 2 other transfers to end",
        "m waits for another transfer to end",
        "resolving m",
        "pulling m: 0%, 0 B of 100.0 MiB",
        "verifying m",
    ]
    assert last.startswith(f"pulled m ({SHORT_ID}, 100.0 MiB in ")
    assert cli.sent(PULL) == [{"reference": "m"}]


def test_what_is_there_already_is_said_so(cli: Cli) -> None:
    cli.routes[PULL] = lambda _: told(success(was_cached=True, transferred_bytes=0))
    assert cli("ctl", "pull", "m").stderr == (
        f"m ({SHORT_ID}, 100.0 MiB) is in the store; nothing had to be fetched\n"
    )
    cli.routes[PUSH] = lambda _: told(success(was_cached=True, transferred_bytes=0))
    assert cli("ctl", "push", "m").stderr == (
        f"m ({SHORT_ID}, 100.0 MiB) is in the registry; nothing had to be sent\n"
    )


def test_a_pull_that_went_on_says_how_much_was_fetched(cli: Cli) -> None:
    cli.routes[PULL] = lambda _: told(success(transferred_bytes=30 * MIB))
    assert f"pulled m ({SHORT_ID}, 30.0 MiB of 100.0 MiB in" in cli("ctl", "pull", "m").stderr


def test_quiet_prints_the_id_alone(cli: Cli) -> None:
    cli.routes[PULL] = lambda _: told(progress(layer(5)), success())
    ended = cli("ctl", "pull", "m", "--quiet")
    assert (ended.status, ended.stdout, ended.stderr) == (0, f"{ID}\n", "")


def test_json_prints_events_as_they_are(cli: Cli) -> None:
    lines = [progress(layer(5, title="\u202e\x1b[31m")), success()]
    cli.routes[PULL] = lambda _: told(*lines)
    ended = cli("ctl", "pull", "m", "--json")
    assert [json.loads(line) for line in ended.stdout.splitlines()] == lines
    assert ended.stdout.isascii() and "\x1b" not in ended.stdout
    assert ended.stderr == ""


def test_json_prints_a_failure_as_an_event_too(cli: Cli) -> None:
    cli.routes[PULL] = lambda _: told(progress(layer(5)), failure("registry_unavailable", "r: too slow"))
    ended = cli("ctl", "pull", "m", "--json")
    assert ended.status == 1
    assert json.loads(ended.stdout.splitlines()[-1]) == {
        "type": "error",
        "error": {"code": "registry_unavailable", "message": "r: too slow"},
    }
    assert "r: too slow" in ended.stderr


@pytest.mark.parametrize("as_line", [True, False])
def test_a_model_that_the_registry_does_not_have_has_the_status_of_missing_models(
    cli: Cli, as_line: bool
) -> None:
    def respond(_: Request) -> Iterator[bytes]:
        if as_line:
            return told(failure("remote_model_not_found", "docker.io: no model ai/m"))
        return refusal(404, "remote_model_not_found", "docker.io: no model ai/m")

    cli.routes[PULL] = respond
    ended = cli("ctl", "pull", "m")
    assert ended.status == 4
    assert "error: docker.io: no model ai/m" in ended.stderr


def test_a_failure_on_the_way_tells_what_is_kept(cli: Cli) -> None:
    cli.routes[PULL] = lambda _: told(progress(layer(30 * MIB)), failure("disk_full", "no room"))
    ended = cli("ctl", "pull", "m")
    assert ended.status == 1
    assert ended.stderr.splitlines()[1:3] == [
        "not finished at 30.0 MiB of 100.0 MiB; what was fetched is kept, and `runner ctl pull m` goes on "
        "from there",
        "error: no room",
    ]


def test_a_push_that_failed_tells_what_is_not_sent_again(cli: Cli) -> None:
    cli.routes[PUSH] = lambda _: told(progress(layer(30 * MIB)), failure("registry_unavailable", "too slow"))
    assert "whole are not sent again by the same command" in cli("ctl", "push", "m").stderr


def test_S02_nothing_is_said_to_be_kept_of_wrong_content(cli: Cli) -> None:
    cli.routes[PULL] = lambda _: told(progress(layer(30 * MIB)), failure("content_mismatch", "other bytes"))
    assert "kept, and" not in cli("ctl", "pull", "m").stderr


def test_a_stream_that_ends_without_success_is_an_error(cli: Cli) -> None:
    cli.routes[PULL] = lambda _: told(progress(layer(MIB)))
    ended = cli("ctl", "pull", "m")
    assert ended.status == 1
    assert "the answer broke off" in ended.stderr and "goes on from there" in ended.stderr


@pytest.mark.parametrize("name", ["sha256:" + "0" * 64, "0" * 64])
def test_a_digest_alone_is_no_place_to_pull_from(cli: Cli, name: str) -> None:
    ended = cli("ctl", "pull", name)
    assert ended.status == 2
    assert f"write NAME@sha256:{'0' * 64}" in ended.stderr
    assert cli.server.requests == []


@pytest.mark.parametrize("name", ["../x", "a//b", "a b"])
def test_N19_a_name_outside_the_grammar_is_not_sent(cli: Cli, name: str) -> None:
    assert cli("ctl", "pull", name).status == 2
    assert cli.server.requests == []


def test_a_name_with_a_digest_is_pulled(cli: Cli) -> None:
    name = f"registry.example/team/m@{ID}"
    cli.routes[PULL] = lambda _: told(success())
    ended = cli("ctl", "pull", name)
    assert ended.status == 0
    assert ended.stderr.startswith("pulled registry.example/team/m@sha256:0123456789ab… (")
    assert cli.sent(PULL) == [{"reference": name}]


def test_the_token_of_hugging_face_goes_to_hugging_face_only(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    cli.routes[PULL] = lambda _: told(success())
    cli.routes[PUSH] = lambda _: told(success())
    for name in (
        "hf.co/Org/Repo:Q8_0",
        "huggingface.co/org/repo",
        "ai/huggingface.co",
        "hf.co.example/a/b",
        "m",
    ):
        cli("ctl", "pull", name)
    cli("ctl", "push", "m", "registry.example/m")
    tokens = [body.get("bearer_token") for body in cli.sent(PULL) + cli.sent(PUSH)]
    assert tokens == ["hf_canary", "hf_canary", None, None, None, None]


def test_logins_of_the_environment_go_to_the_registry_they_name_only(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "RUNNER_REGISTRY": "r.example:5000",
        "RUNNER_REGISTRY_USERNAME": "u",
        "RUNNER_REGISTRY_PASSWORD": "p",
        "DOCKER_USERNAME": "hub-user",
        "DOCKER_PASSWORD": "hub-pass",
    }.items():
        monkeypatch.setenv(name, value)
    cli.routes[PULL] = lambda _: told(success())
    for name in ("r.example:5000/m", "m", "r.example/m", "hf.co/a/b"):
        cli("ctl", "pull", name)
    logins = [(body.get("username"), body.get("password")) for body in cli.sent(PULL)]
    assert logins == [("u", "p"), ("hub-user", "hub-pass"), (None, None), (None, None)]


def test_K08_secrets_are_not_sent_to_a_daemon_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    body = {"reference": "m", "bearer_token": "t", "username": "u", "password": "p"}
    elsewhere = Client(Target(None, "box.example"))
    assert transfer.without_secrets(Client(Target(None, "127.0.0.1.evil.example")), body) == {
        "reference": "m"
    }
    assert transfer.without_secrets(elsewhere, body) == {"reference": "m"}
    assert "not sent unencrypted to http://box.example:12434" in capsys.readouterr().err
    assert transfer.without_secrets(elsewhere, {"reference": "m"}) == {"reference": "m"}
    for here in (Target(None), Target(None, "::1"), Target(None, "127.1.2.3"), Target(Path("/r.sock"))):
        assert transfer.without_secrets(Client(here), body) == body
    assert capsys.readouterr().err == ""


def test_a_push_may_have_a_target(cli: Cli) -> None:
    cli.routes[PUSH] = lambda _: told(progress(layer(MIB), direction="push"), success())
    ended = cli("ctl", "push", SHORT_ID, "registry.example/team/m:v1")
    assert cli.sent(PUSH) == [{"reference": SHORT_ID, "target": "registry.example/team/m:v1"}]
    assert ended.stderr.startswith("pushing registry.example/team/m:v1: 1%")
    assert "pushed registry.example/team/m:v1 (" in ended.stderr


def test_K06_names_and_notes_and_errors_of_strangers_are_harmless(cli: Cli) -> None:
    evil = "\x1b]52;c;x\x07\u202e[bold]"
    cli.routes[PULL] = lambda _: told(
        progress(layer(MIB, title=evil), notes=(evil,)), failure("registry_error", evil)
    )
    ended = cli("ctl", "pull", "m")
    assert not set("\x1b\x07\u202e") & set(ended.stderr)
    assert ended.stderr.count("[bold]") == 2


def test_transfers_are_listed(cli: Cli) -> None:
    cli.routes["GET /control/v1/transfers"] = [
        {
            "reference": "docker.io/ai/m:latest",
            "model_id": ID,
            "waiters": 2,
            "started_ago_s": 65.0,
            "progress": progress(layer(25 * MIB)),
        },
        {
            "reference": "registry.example/b:v1",
            "model_id": "",
            "waiters": 1,
            "started_ago_s": 1.0,
            "progress": progress(phase="queued", position=1),
        },
    ]
    header, *rows = cli("ctl", "transfers").stdout.splitlines()
    assert header.split() == ["NAME", "DIRECTION", "STAGE", "DONE", "SIZE", "WAITING", "SINCE"]
    assert rows[0].split() == ["ai/m", "pull", "transferring", "25%", "100.0", "MiB", "2", "1m5s"]
    assert rows[1].split() == ["registry.example/b:v1", "pull", "queued", "(1)", "1", "1.00s"]


# on a terminal


def environment(cli: Cli, tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "RUNNER_HOST": str(cli.server.target),
        "PYTHONPATH": str(ROOT),
        "LANG": "C.UTF-8",
    }


def on_pty(cli: Cli, tmp_path: Path, *arguments: str) -> AbstractContextManager[OnTerminal]:
    return on_terminal([sys.executable, "-m", "runner", *arguments], environment(cli, tmp_path), cwd=tmp_path)


def test_a_terminal_shows_a_bar_for_each_part_and_one_for_all(cli: Cli, tmp_path: Path) -> None:
    moved_on = threading.Event()

    def respond(_: Request) -> Iterator[bytes]:
        yield HEAD
        yield sent_line(progress(layer(25 * MIB), layer(0, MIB, "LICENSE", 1)))
        assert moved_on.wait(20)
        yield sent_line(progress(layer(100 * MIB), layer(MIB, MIB, "LICENSE", 1), phase="publishing"))
        yield sent_line(success())
        yield STREAM_END

    cli.routes[PULL] = respond
    with on_pty(cli, tmp_path, "ctl", "pull", "m") as terminal:
        for text in ("m.gguf", "25.0/100.0 MiB", "LICENSE", "all parts", "25.0/101.0 MiB"):
            terminal.wait_for(text)
        moved_on.set()
        terminal.wait_for("100.0/100.0 MiB")
        terminal.wait_for("done")
        terminal.wait_for("pulled m (")
        assert terminal.wait_for_end() == 0


def test_ctrl_c_leaves_a_pull_that_can_go_on_and_says_so(cli: Cli, tmp_path: Path) -> None:
    over = threading.Event()

    def respond(_: Request) -> Iterator[bytes]:
        yield HEAD
        yield sent_line(progress(layer(25 * MIB)))
        while not over.wait(0.05):  # until the client has left
            yield sent_line(progress(layer(26 * MIB)))

    cli.routes[PULL] = respond
    with on_pty(cli, tmp_path, "ctl", "pull", "m") as terminal:
        terminal.wait_for("26.0/100.0 MiB")
        terminal.interrupt()
        terminal.wait_for("interrupted at 26.0 MiB of 100.0 MiB; what was fetched is kept")
        terminal.wait_for("`runner ctl pull m` goes on from there")
        status = terminal.wait_for_end()
        assert terminal.screen.rfind("\x1b[?25h") > terminal.screen.rfind("\x1b[?25l"), "the cursor is hidden"
    assert cli.server.client_left.wait(20)
    over.set()
    assert status in (130, -2)


def test_a_dumb_terminal_gets_lines(cli: Cli, tmp_path: Path) -> None:
    cli.routes[PULL] = lambda _: told(progress(layer(25 * MIB)), success())
    with on_terminal(
        [sys.executable, "-m", "runner", "ctl", "pull", "m"],
        {**environment(cli, tmp_path), "TERM": "dumb"},
        cwd=tmp_path,
    ) as terminal:
        assert terminal.wait_for_end() == 0
    assert "\x1b" not in terminal.screen
    assert "pulling m: 25%, 25.0 MiB of 100.0 MiB" in terminal.screen


def test_rich_is_not_imported_where_no_bar_is_drawn() -> None:
    code = (
        "import sys, runner.cli.transfer, runner.cli.auto_pull\n"
        "from runner.cli.transfer_display import display\n"
        "with display('pull', 'm'): pass\n"
        "print(*{'rich', 'trio', 'requests', 'attr', 'runner.oci'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
