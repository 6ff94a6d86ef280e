"""The client against a server that says just what a test tells it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.client import (
    ApiError,
    Client,
    DaemonUnreachable,
    Target,
    event_data,
    find_target,
    model_path,
    parse_target,
)
from runner.errors import StartRefused
from tests.support.scripted_server import (
    STREAM_END,
    STREAM_HEAD,
    Request,
    answer,
    chunk,
    delta,
    event,
    refusal,
    scripted_server,
    stream,
)
from tests.support.transfer_lines import failure, told

# where the daemon is


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("box", "http://box:12434"),
        ("box:80", "http://box:80"),
        ("http://box:80/", "http://box:80"),
        ("HTTP://Box", "http://box:12434"),
        ("[::1]:99", "http://[::1]:99"),
        ("unix:/run/r.sock", "unix:/run/r.sock"),
        ("unix:///run/r.sock", "unix:/run/r.sock"),
    ],
)
def test_forms_of_an_address(text: str, target: str) -> None:
    parsed = parse_target(text)
    assert str(parsed) == target
    assert parsed.is_explicit


@pytest.mark.parametrize(
    "text",
    [
        "https://box",
        "http://box/v1",
        "http://me@box",
        "box:port",
        "box:65536",
        "[::1",
        "unix:r.sock",
        "unix:",
        "http://",
    ],
)
def test_what_is_no_address_is_told_what_is_one(text: str) -> None:
    with pytest.raises(ValueError, match="unix"):
        parse_target(text)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Nothing named, no settings file, and a socket path at which nobody listens."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return {"RUNNER_SOCKET": str(tmp_path / "r.sock")}


def test_the_first_that_is_named_counts(environment: dict[str, str]) -> None:
    environment |= {"MODEL_RUNNER_HOST": "third:3", "RUNNER_HOST": "second:2"}
    assert str(find_target("first:1", environment)) == "http://first:1"
    assert str(find_target(None, environment)) == "http://second:2"
    del environment["RUNNER_HOST"]
    assert str(find_target(None, environment)) == "http://third:3"


def test_the_socket_comes_before_the_port_when_it_exists(environment: dict[str, str]) -> None:
    assert str(find_target(None, environment)) == "http://127.0.0.1:12434"
    assert not find_target(None, environment).is_explicit
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(environment["RUNNER_SOCKET"])
        assert str(find_target(None, environment)) == f"unix:{environment['RUNNER_SOCKET']}"


def test_a_plain_file_is_no_socket(environment: dict[str, str]) -> None:
    Path(environment["RUNNER_SOCKET"]).touch()
    assert find_target(None, environment).socket_path is None


def test_the_port_is_that_of_the_settings(environment: dict[str, str], tmp_path: Path) -> None:
    assert find_target(None, {**environment, "RUNNER_PORT": "999"}).port == 999
    (tmp_path / "config" / "runner").mkdir(parents=True)
    (tmp_path / "config" / "runner" / "config.toml").write_text('port = 888\nhost = "::1"\n')
    assert str(find_target(None, environment)) == "http://[::1]:888"


def test_the_socket_is_that_of_the_settings(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config" / "runner").mkdir(parents=True)
    (tmp_path / "config" / "runner" / "config.toml").write_text(f'socket = "{tmp_path}/other.sock"\n')
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{tmp_path}/other.sock")
        assert str(find_target(None, {})) == f"unix:{tmp_path}/other.sock"


def test_a_daemon_on_any_free_port_is_only_found_by_its_socket(environment: dict[str, str]) -> None:
    target = find_target(None, {**environment, "RUNNER_PORT": "0"})
    assert target.socket_path == Path(environment["RUNNER_SOCKET"])


def test_settings_that_are_not_usable_are_told(environment: dict[str, str]) -> None:
    with pytest.raises(StartRefused, match="RUNNER_PORT"):
        find_target(None, {**environment, "RUNNER_PORT": "many"})


# requests


@pytest.fixture(params=["tcp", "unix"])
def socket_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "r.sock" if request.param == "unix" else None


def test_documents_come_and_go_over_tcp_and_unix_sockets(socket_path: Path | None) -> None:
    with scripted_server(lambda request: answer({"got": request.path}), socket_path=socket_path) as server:
        client = Client(server.target)
        assert client.get("/a") == {"got": "/a"}
        assert client.post("/b", {"key": "ü"}) == {"got": "/b"}
        assert client.post("/c") == {"got": "/c"}
        assert client.delete("/d") == {"got": "/d"}
        assert server.paths == ["GET /a", "POST /b", "POST /c", "DELETE /d"]
        assert server.requests[1].json() == {"key": "ü"}
        assert server.requests[1].headers["content-type"] == "application/json"
        assert server.requests[2].body == b""


def test_an_error_carries_code_message_and_when_to_try_again() -> None:
    with scripted_server(
        lambda _: refusal(429, "queue_full", "64 wait already", **{"Retry-After": "3"})
    ) as server:
        with pytest.raises(ApiError, match="64 wait already") as error:
            Client(server.target).get("/")
    assert (error.value.status, error.value.error_code, error.value.retry_after_s) == (429, "queue_full", 3.0)


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"[]", b'{"error": "text"}', b'{"error": {"code": "x"}}', b"\xff"]
)
@pytest.mark.parametrize("status", [200, 302, 404, 500])
def test_the_answer_of_somebody_elses_server_is_an_error(content: bytes, status: int) -> None:
    if status == 200 and content in (b"[]", b'{"error": "text"}', b'{"error": {"code": "x"}}'):
        content = b"OK"  # JSON is believed

    def respond(request: Request) -> Iterator[bytes]:
        yield f"HTTP/1.1 {status} Strange\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content

    with scripted_server(respond) as server:
        with pytest.raises(ApiError, match=f"{status} Strange") as error:
            Client(server.target).get("/")
    assert error.value.error_code == "unknown"


def test_an_answer_that_ends_early_is_an_error() -> None:
    with scripted_server(lambda _: [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"]) as server:
        with pytest.raises(ApiError, match="broke off"):
            Client(server.target).get("/")


@pytest.mark.parametrize("piece", [b"", b"HTTP/1.1 2", b"SSH-2.0-OpenSSH\r\n"])
def test_a_connection_without_an_answer_is_an_unreachable_daemon(piece: bytes) -> None:
    with scripted_server(lambda _: [piece]) as server:
        with pytest.raises(DaemonUnreachable, match="closed the connection") as error:
            Client(server.target).get("/")
    assert not error.value.is_absent


def test_nobody_at_the_port_is_an_absent_daemon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(DaemonUnreachable, match="Connection refused") as error:
        Client(Target(None, port=port)).get("/")
    assert error.value.is_absent


def test_no_socket_and_a_socket_that_nobody_serves_are_absent_daemons(tmp_path: Path) -> None:
    client = Client(Target(tmp_path / "r.sock"))
    with pytest.raises(DaemonUnreachable, match="No such file") as missing:
        client.get("/")
    with socket.socket(socket.AF_UNIX) as once:
        once.bind(str(tmp_path / "r.sock"))
    with pytest.raises(DaemonUnreachable, match="refused") as stale:
        client.get("/")
    assert missing.value.is_absent
    assert stale.value.is_absent


def test_a_socket_path_beyond_the_limit_of_the_system_is_an_unreachable_daemon(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="too long"):
        Client(Target(tmp_path / ("x" * 120))).get("/")


def test_a_host_that_does_not_exist_is_an_unreachable_daemon_and_not_an_absent_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DaemonUnreachable, match="not known") as error:
        Client(Target(None, "name.invalid")).get("/")
    assert not error.value.is_absent


def test_whether_somebody_answers() -> None:
    with scripted_server(lambda _: answer({"status": "ok"})) as server:
        assert Client(server.target).is_reachable()
        assert server.paths == ["GET /health"]
    assert not Client(server.target).is_reachable()
    with scripted_server(lambda _: [b"HTTP/1.1 404 Not Found\r\n\r\n"]) as other:
        assert not Client(other.target).is_reachable()


def test_a_time_limit_ends_the_wait_for_a_daemon_that_says_nothing() -> None:
    release = threading.Event()

    def respond(request: Request) -> Iterator[bytes]:
        release.wait(10)
        yield b""

    with scripted_server(respond) as server:
        with pytest.raises(DaemonUnreachable, match="gives no answer") as error:
            Client(server.target).get("/", timeout_s=0.05)
        release.set()
    assert not error.value.is_absent


# uploads


def test_an_upload_is_sent_as_it_is_read(socket_path: Path | None) -> None:
    digest = "sha256:" + "0" * 64
    with scripted_server(
        lambda _: answer({"digest": digest, "size_bytes": 6}, 201), socket_path=socket_path
    ) as server:
        uploaded = Client(server.target).upload("/control/v1/blobs", iter([b"abc", b"def"]), 6)
    assert uploaded["digest"] == digest
    assert server.requests[0].body == b"abcdef"
    assert server.requests[0].headers["content-type"] == "application/octet-stream"
    assert "transfer-encoding" not in server.requests[0].headers


def test_an_empty_upload_is_one() -> None:
    with scripted_server(lambda _: answer({}, 201)) as server:
        assert Client(server.target).upload("/", iter(()), 0) == {}


@pytest.mark.parametrize("size_bytes", [5, 7])
def test_a_file_that_changes_while_it_is_read_is_not_uploaded(size_bytes: int) -> None:
    with scripted_server(lambda _: answer({})) as server:
        with pytest.raises(ValueError, match="changed"):
            Client(server.target).upload("/", iter([b"abc", b"def"]), size_bytes)


def test_what_is_refused_before_its_body_was_read_is_told(socket_path: Path | None) -> None:
    with scripted_server(
        lambda _: refusal(507, "disk_full", "the disk is full"), socket_path=socket_path, refuses_early=True
    ) as server:
        with pytest.raises(ApiError, match="disk is full") as error:
            Client(server.target).upload("/", (b"x" * 65536 for _ in range(256)), 256 * 65536)
    assert error.value.error_code == "disk_full"


# streams


def texts(client: Client) -> Iterator[str]:
    for part in client.stream("/v1/chat/completions", {"stream": True}):
        for choice in part["choices"]:
            yield choice["delta"].get("content", "")


def test_chunks_of_a_stream_arrive_one_by_one(socket_path: Path | None) -> None:
    was_seen = threading.Event()

    def respond(request: Request) -> Iterator[bytes]:
        yield STREAM_HEAD + event(delta("one"))
        assert was_seen.wait(10)
        yield event(delta("two")) + event("[DONE]") + STREAM_END

    with scripted_server(respond, socket_path=socket_path) as server:
        parts = texts(Client(server.target))
        assert next(parts) == "one"
        was_seen.set()
        assert list(parts) == ["two"]
    assert server.requests[0].json() == {"stream": True}


def test_comments_between_chunks_are_no_chunks() -> None:
    with scripted_server(
        lambda _: [STREAM_HEAD, chunk(b": waiting\n\n"), event(delta("x")), event("[DONE]"), STREAM_END]
    ) as server:
        assert list(texts(Client(server.target))) == ["x"]


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(STREAM_END, id="an end without the marker"),
        pytest.param(b"", id="a connection that ends"),
        pytest.param(b"fff\r\ndata: {", id="a connection that ends in mid-chunk"),
        pytest.param(event("{"), id="a chunk that is no JSON"),
        pytest.param(event([1]), id="a chunk that is no object"),
        pytest.param(chunk(b"data: \xff\n\n"), id="a chunk that is no UTF-8"),
        pytest.param(b"zz\r\n", id="broken framing"),
    ],
)
def test_half_an_answer_is_an_error(ending: bytes) -> None:
    with scripted_server(lambda _: [STREAM_HEAD, event(delta("half")), ending]) as server:
        parts = texts(Client(server.target))
        assert next(parts) == "half"
        with pytest.raises(ApiError, match="broke off") as error:
            list(parts)
    assert error.value.error_code == "incomplete"


def test_a_connection_that_is_reset_is_half_an_answer() -> None:
    was_read = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(STREAM_HEAD + event(delta("half")))
                was_read.wait(10)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        thread = threading.Thread(target=serve)
        thread.start()
        parts = texts(Client(Target(None, port=listening.getsockname()[1])))
        assert next(parts) == "half"
        was_read.set()
        with pytest.raises(ApiError, match="broke off"):
            list(parts)
        thread.join(10)


def test_an_error_event_is_an_error() -> None:
    failed = {"error": {"message": "the worker ended", "type": "server_error", "code": "worker_crashed"}}
    with scripted_server(lambda _: [STREAM_HEAD, event(delta("x")), event(failed), STREAM_END]) as server:
        with pytest.raises(ApiError, match="the worker ended") as error:
            list(texts(Client(server.target)))
    assert error.value.error_code == "worker_crashed"


def test_an_error_instead_of_a_stream_is_an_error() -> None:
    with scripted_server(lambda _: refusal(404, "model_not_found", "no such model")) as server:
        with pytest.raises(ApiError, match="no such model") as error:
            list(texts(Client(server.target)))
    assert error.value.error_code == "model_not_found"


def test_closing_a_stream_closes_the_connection() -> None:
    def respond(request: Request) -> Iterator[bytes]:
        yield STREAM_HEAD
        while True:
            yield event(delta("x" * 1000))

    with scripted_server(respond) as server:
        parts = Client(server.target).stream("/", {})
        next(parts)
        parts.close()
        assert server.client_left.wait(10)


def test_a_long_chunk_is_one_chunk() -> None:
    with scripted_server(lambda _: stream("x" * 1_000_000)) as server:
        assert "".join(texts(Client(server.target))) == "x" * 1_000_000


# pure parts


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=20), max_size=5
    )
)
def test_data_lines_of_one_event_are_joined(lines: list[str]) -> None:
    encoded = [f"data: {line}\n".encode() for line in lines]
    assert list(event_data([*encoded, b"\n"])) == (["\n".join(lines)] if lines else [])


def test_an_event_stream_has_fields_that_are_not_data() -> None:
    lines = [b": hello\n", b"id: 7\r\n", b"event: x\n", b"data:a\n", b"\r\n", b"\n", b"data: b\n"]
    assert list(event_data(lines)) == ["a"]


def test_names_in_paths_are_escaped() -> None:
    assert model_path("docker.io/ai/smollm2:135M-Q4_1") == "docker.io/ai/smollm2:135M-Q4_1"
    assert model_path("a b?c#d%e") == "a%20b%3Fc%23d%25e"
    assert model_path(os.fsdecode(b"\xff")) == "%FF"


# lines of long work


def test_lines_come_as_they_are_sent_and_end_with_success() -> None:
    lines = [{"type": "progress", "done": 1}, {"type": "progress", "done": 2}, {"type": "success"}]
    with scripted_server(lambda _: told(*lines, {"type": "progress"})) as server:
        assert list(Client(server.target).lines("/work", {"a": 1})) == lines
    assert server.requests[0].json() == {"a": 1}


@pytest.mark.parametrize("is_later", [False, True])
def test_a_line_that_is_an_error_is_raised(is_later: bool) -> None:
    lines = [{"type": "progress"}] * is_later + [failure("disk_full", "no room")]
    with (
        scripted_server(lambda _: told(*lines)) as server,
        pytest.raises(ApiError, match="no room") as caught,
    ):
        list(Client(server.target).lines("/work", {}))
    assert caught.value.error_code == "disk_full"


@pytest.mark.parametrize("content", [b"", b'{"type": "progress"}\n', b"nonsense\n", b"[1]\n", b"\xff\n"])
def test_lines_without_success_are_half_an_answer(content: bytes) -> None:
    def respond(_: Request) -> Iterator[bytes]:
        yield STREAM_HEAD
        if content:
            yield chunk(content)
        yield STREAM_END

    with (
        scripted_server(respond) as server,
        pytest.raises(ApiError, match="broke off") as caught,
    ):
        list(Client(server.target).lines("/work", {}))
    assert caught.value.error_code == "incomplete"


def test_a_refusal_before_the_first_line_keeps_its_status() -> None:
    with (
        scripted_server(lambda _: refusal(404, "remote_model_not_found", "not there")) as server,
        pytest.raises(ApiError, match="not there") as caught,
    ):
        list(Client(server.target).lines("/work", {}))
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("target", "is_local"),
    [
        (Target(None), True),
        (Target(None, "localhost"), True),
        (Target(None, "::1"), True),
        (Target(None, "127.9.9.9"), True),
        (Target(Path("/run/r.sock")), True),
        (Target(None, "127.0.0.1.evil.example"), False),
        (Target(None, "box"), False),
        (Target(None, "192.168.1.1"), False),
    ],
)
def test_K08_what_stays_on_this_machine(target: Target, is_local: bool) -> None:
    assert target.is_local is is_local
