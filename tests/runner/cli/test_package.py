"""`package`: what is read here, and what is sent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from runner.domain.status import UploadedBlob
from tests.support.control import ID, SHORT_ID, Cli, model_summary
from tests.support.scripted_server import Request, answer, refusal

GGUF = b"GGUF" + bytes(range(256)) * 20000  # several chunks


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(GGUF)
    return path


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def daemon(cli: Cli) -> Cli:
    def blobs(request: Request) -> Iterable[bytes]:
        return answer(UploadedBlob(digest=digest_of(request.body), size_bytes=len(request.body)), 201)

    cli.routes["POST /control/v1/blobs"] = blobs
    cli.routes["POST /control/v1/package"] = model_summary()
    return cli


def test_a_file_is_sent_and_becomes_a_model(daemon: Cli, file: Path) -> None:
    ended = daemon("ctl", "package", str(file), "me/tiny:v1")
    assert ended.status == 0
    assert ended.stdout == ""
    assert ended.stderr.splitlines()[-1] == f"packaged ai/smollm2:135M-Q4_1 ({SHORT_ID})"
    assert ended.stderr.splitlines()[-2] == "tiny.gguf: 100%"
    assert daemon.sent("POST /control/v1/package") == [
        {
            "target": "me/tiny:v1",
            "layers": [{"kind": "gguf", "filename": "tiny.gguf", "digest": digest_of(GGUF)}],
        }
    ]


def test_licences_template_and_context_size_go_with_it(daemon: Cli, file: Path, tmp_path: Path) -> None:
    for name in ("LICENSE", "NOTICE", "chat.jinja"):
        (tmp_path / name).write_text(name)
    ended = daemon(
        "ctl", "package", str(file), "m", "--license", str(tmp_path / "LICENSE"),
        "--license", str(tmp_path / "NOTICE"), "--chat-template", str(tmp_path / "chat.jinja"),
        "--context-size", "4096", "--json",
    )  # fmt: skip
    assert json.loads(ended.stdout)["id"] == ID
    assert ended.stderr == ""
    (body,) = daemon.sent("POST /control/v1/package")
    assert body["context_size"] == 4096
    assert [(layer["kind"], layer["filename"]) for layer in body["layers"]] == [
        ("gguf", "tiny.gguf"),
        ("license", "LICENSE"),
        ("license", "NOTICE"),
        ("chat_template", "chat.jinja"),
    ]
    assert body["layers"][3]["digest"] == digest_of(b"chat.jinja")


def layers_of(body: dict[str, object]) -> list[tuple[str, str]]:
    layers = body["layers"]
    assert isinstance(layers, list)
    return [(layer["kind"], layer["filename"]) for layer in layers]


@pytest.mark.parametrize("named", ["big-00001-of-00003.gguf", "big-00003-of-00003.gguf"])
def test_all_parts_of_a_split_file_go_in_their_order(daemon: Cli, tmp_path: Path, named: str) -> None:
    names = [f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for name in names:
        (tmp_path / name).write_bytes(GGUF + name.encode())
    for arguments in ((str(tmp_path / named), "m"), ("m", "--gguf", str(tmp_path / named))):
        assert daemon("ctl", "package", *arguments).status == 0
        assert layers_of(daemon.sent("POST /control/v1/package")[-1]) == [("gguf", name) for name in names]
    (tmp_path / names[1]).unlink()
    daemon.server.requests.clear()
    ended = daemon("ctl", "package", str(tmp_path / named), "m")
    assert ended.status == 2
    assert f"one part of 3; {names[1]} is not beside it" in ended.stderr
    assert daemon.server.requests == []


def test_a_projector_labels_and_a_format_go_with_it(daemon: Cli, file: Path, tmp_path: Path) -> None:
    (tmp_path / "mmproj.gguf").write_bytes(b"GGUF, eyes")
    daemon(
        "ctl", "package", str(file), "m", "--mmproj", str(tmp_path / "mmproj.gguf"), "--label", "a=b=c",
        "--label", "org.example.team=", "--format", "cncf",
    )  # fmt: skip
    (body,) = daemon.sent("POST /control/v1/package")
    assert layers_of(body) == [("gguf", "tiny.gguf"), ("mmproj", "mmproj.gguf")]
    assert body["labels"] == {"a": "b=c", "org.example.team": ""}
    assert body["format"] == "cncf"


def test_a_model_of_the_store_is_a_base_and_only_what_is_added_is_sent(daemon: Cli, tmp_path: Path) -> None:
    (tmp_path / "NOTICE").write_text("?")
    daemon("ctl", "package", "--from", "a:1", "b:1", "--context-size", "512")
    daemon("ctl", "package", "--from", "a:1", "b:1", "--license", str(tmp_path / "NOTICE"))
    first, second = daemon.sent("POST /control/v1/package")
    assert first == {"target": "b:1", "base": "a:1", "context_size": 512, "layers": []}
    assert layers_of(second) == [("license", "NOTICE")]


def test_a_model_is_pushed_once_it_is_packaged(daemon: Cli, file: Path) -> None:
    result = {"model_id": ID, "reference": "r.example/m:1", "size_bytes": 5, "transferred_bytes": 5,
              "was_cached": False}  # fmt: skip
    daemon.routes["POST /control/v1/push"] = lambda _: answer({"type": "success", **result})
    ended = daemon("ctl", "package", str(file), "r.example/m:1", "--push")
    assert ended.status == 0
    assert "pushed r.example/m:1" in ended.stderr
    assert daemon.sent("POST /control/v1/push") == [{"reference": "r.example/m:1"}]
    pushed = json.loads(daemon("ctl", "package", str(file), "r.example/m:1", "--push", "--json").stdout)
    assert pushed["type"] == "success"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("m",), "no weights"),
        ((), "expected FILE.gguf and NAME"),
        (("{file}", "m", "x"), "expected FILE.gguf and NAME"),
        (("{file}", "m", "--from", "a"), "FILE.gguf and --from exclude each other"),
        (("m", "--gguf", "{file}", "--from", "a"), "--gguf and --from exclude each other"),
        (("{file}", "m", "--label", "a"), "--label needs KEY=VALUE"),
        (("{file}", "m", "--label", "=a"), "--label needs KEY=VALUE"),
        (("{file}", "m", "--format", "oci"), "--format"),
        (("{file}", "m", "--format", "cncf", "--context-size", "5"), "no place in a ModelPack"),
        (("{file}", "m", "--mmproj", "{text}"), "is not a GGUF file"),
        (("{file}", "m", "--license", "{text}", "--license", "{other}"), "has text.txt twice"),
    ],
)
def test_what_cannot_be_meant_is_told_before_anything_is_sent(
    daemon: Cli, file: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    text, other = tmp_path / "text.txt", tmp_path / "more" / "text.txt"
    other.parent.mkdir()
    text.write_text("text")
    other.write_text("text")
    ended = daemon("ctl", "package", *(one.format(file=file, text=text, other=other) for one in arguments))
    assert ended.status == 2
    assert told in ended.stderr
    assert daemon.server.requests == []


def test_what_is_no_gguf_file_is_told_before_it_is_sent(daemon: Cli, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty").touch()
    for name in ("other", "empty"):
        ended = daemon("ctl", "package", str(tmp_path / name), "m")
        assert ended.status == 2
        assert ended.stderr.splitlines()[0] == f"error: {tmp_path / name} is not a GGUF file"
    assert daemon.server.requests == []


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_a_file_that_is_not_there_is_told(daemon: Cli, tmp_path: Path, name: str) -> None:
    ended = daemon("ctl", "package", str(tmp_path / name), "m")
    assert ended.status == 2
    assert ended.stderr.splitlines()[0].startswith("error: invalid value for 'FILE.gguf'")


@pytest.mark.parametrize("option", [(), ("--license",), ("--chat-template",)])
def test_a_pipe_is_no_file(daemon: Cli, file: Path, tmp_path: Path, option: tuple[str, ...]) -> None:
    """Opening it would wait for its writer, and its size is not known."""
    os.mkfifo(tmp_path / "pipe")
    arguments = [str(file), "m", *option, str(tmp_path / "pipe")] if option else [str(tmp_path / "pipe"), "m"]
    ended = daemon("ctl", "package", *arguments)
    assert ended.status == 2
    assert ended.stderr.splitlines()[0] == f"error: {tmp_path / 'pipe'} is not a regular file"
    assert daemon.server.requests == []


@pytest.mark.parametrize("name", ["a b", "../x", f"m@{digest_of(b'')}", digest_of(b"")])
def test_a_name_that_cannot_be_given_is_told_before_anything_is_sent(
    daemon: Cli, file: Path, name: str
) -> None:
    ended = daemon("ctl", "package", str(file), name)
    assert ended.status == 2
    assert daemon.sent("POST /control/v1/package") == []
    assert "%" not in ended.stderr


def test_a_refused_upload_is_told_with_a_hint(daemon: Cli, file: Path) -> None:
    daemon.routes["POST /control/v1/blobs"] = lambda _: refusal(507, "disk_full", "no space is left")
    ended = daemon("ctl", "package", str(file), "m", "--json")
    assert ended.status == 1
    assert ended.stderr.splitlines() == [
        "error: no space is left",
        "hint: `runner ctl df` tells what takes how much; `runner ctl rm` and `prune` make room",
    ]
    assert daemon.sent("POST /control/v1/package") == []


def test_K06_a_hostile_file_name_is_refused_before_anything_is_sent_and_shown_harmlessly(
    daemon: Cli, file: Path
) -> None:
    hostile = file.with_name("\x1b]0;x\x07.gguf")
    file.rename(hostile)
    ended = daemon("ctl", "package", str(hostile), "m")
    assert ended.status == 2
    assert "\x1b" not in ended.stderr
    assert r"\x1b]0;x\x07.gguf" in ended.stderr
    assert "rename it" in ended.stderr
    assert "%" not in ended.stderr
