"""`save` and `load`: files appear whole or not at all, and content is sent as it is read."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from runner.domain.status import ModelReport
from tests.support.control import SHORT_ID, Cli, model_summary
from tests.support.scripted_server import Request, answer, refusal

ARCHIVE = bytes(range(256)) * 20_000
MODEL = "GET /control/v1/models/ai/a:1"
SAVE = "GET /control/v1/save"
LOAD = "POST /control/v1/load"


def report() -> ModelReport:
    return ModelReport(
        model=model_summary(), manifest_digest="", config_digest="", layers=(), licenses=(), metadata={}
    )


def in_pieces(content: bytes) -> Iterable[bytes]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for start in range(0, len(content), 1_000_000):
        piece = content[start : start + 1_000_000]
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


@pytest.fixture
def daemon(cli: Cli) -> Cli:
    cli.routes[MODEL] = report()
    cli.routes[f"{SAVE}?model=ai%2Fa%3A1"] = lambda _: [*in_pieces(ARCHIVE), b"0\r\n\r\n"]
    cli.routes[LOAD] = lambda _: answer([model_summary()], 201)
    cli.routes[f"{LOAD}?name=b%3A2"] = lambda _: answer([model_summary()], 201)
    return cli


def test_a_model_is_written_into_a_file(daemon: Cli, tmp_path: Path) -> None:
    ended = daemon("ctl", "save", "ai/a:1", "-o", str(tmp_path / "a.tar"))
    assert ended.status == 0
    assert (tmp_path / "a.tar").read_bytes() == ARCHIVE
    assert ended.stderr.splitlines()[-1] == f"saved ai/a:1 as {tmp_path / 'a.tar'} (4.9 MiB)"
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_an_archive_that_breaks_off_leaves_the_file_that_was_there(daemon: Cli, tmp_path: Path) -> None:
    daemon.routes[f"{SAVE}?model=ai%2Fa%3A1"] = lambda _: in_pieces(ARCHIVE)
    (tmp_path / "a.tar").write_text("older")
    ended = daemon("ctl", "save", "ai/a:1", "-o", str(tmp_path / "a.tar"))
    assert ended.status == 1
    assert "broke off" in ended.stderr
    assert (tmp_path / "a.tar").read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_pipe_takes_the_archive_and_stays(daemon: Cli, tmp_path: Path) -> None:
    pipe, took = tmp_path / "pipe", tmp_path / "took"
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: took.write_bytes(pipe.read_bytes()))
    reader.start()
    ended = daemon("ctl", "save", "ai/a:1", "-o", str(pipe))
    reader.join()
    assert ended.status == 0
    assert took.read_bytes() == ARCHIVE
    assert pipe.is_fifo()


def test_a_link_stays_and_what_it_points_at_is_replaced(daemon: Cli, tmp_path: Path) -> None:
    (tmp_path / "link.tar").symlink_to("a.tar")
    assert daemon("ctl", "save", "ai/a:1", "-o", str(tmp_path / "link.tar")).status == 0
    assert (tmp_path / "link.tar").is_symlink()
    assert (tmp_path / "a.tar").read_bytes() == ARCHIVE


def test_a_model_that_is_not_there_leaves_no_file(daemon: Cli, tmp_path: Path) -> None:
    daemon.routes[MODEL] = lambda _: refusal(404, "model_not_found", "no such model")
    assert daemon("ctl", "save", "ai/a:1", "-o", str(tmp_path / "a.tar")).status == 4
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_told(daemon: Cli, tmp_path: Path) -> None:
    ended = daemon("ctl", "save", "ai/a:1", "-o", str(tmp_path / "none" / "a.tar"))
    assert ended.status == 1
    assert "cannot be written: No such file or directory" in ended.stderr


def test_models_of_a_file_are_loaded(daemon: Cli, tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(ARCHIVE)
    ended = daemon("ctl", "load", str(file))
    assert ended.status == 0
    assert ended.stderr.splitlines()[-1] == f"loaded ai/smollm2:135M-Q4_1 ({SHORT_ID}, 93.8 MiB)"
    assert daemon.server.requests[-1].body == ARCHIVE
    named = daemon("ctl", "load", str(file), "--name", "b:2", "--json")
    assert json.loads(named.stdout)[0]["name"] == "ai/smollm2:135M-Q4_1"
    assert daemon.server.requests[-1].path == "/control/v1/load?name=b%3A2"


@pytest.mark.parametrize("name", ["a b", "../x", f"a@sha256:{'0' * 64}"])
def test_a_name_that_cannot_be_given_is_told_before_anything_is_sent(
    daemon: Cli, tmp_path: Path, name: str
) -> None:
    (tmp_path / "a.tar").write_bytes(b"x")
    assert daemon("ctl", "load", str(tmp_path / "a.tar"), "--name", name).status == 2
    assert daemon.server.requests == []


def test_a_pipe_is_no_file(daemon: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    ended = daemon("ctl", "load", str(tmp_path / "pipe"))
    assert ended.status == 2
    assert "- reads standard input" in ended.stderr


def test_S14_what_the_daemon_refuses_is_told(daemon: Cli, tmp_path: Path) -> None:
    def refuse(_: Request) -> Iterable[bytes]:
        return refusal(400, "invalid_archive", "'x' is a symbolic link")

    daemon.routes[LOAD] = refuse
    (tmp_path / "a.tar").write_bytes(ARCHIVE)
    ended = daemon("ctl", "load", str(tmp_path / "a.tar"), "--json")
    assert ended.status == 1
    assert "is a symbolic link" in ended.stderr
