"""The door out and what servers send: sizes, encodings, slowness (S04, S05), bodies sent, giving up."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from runner.errors import RegistryError, RegistryUnavailable, StoreError, TransferAborted
from runner.registry.abort import Abort
from runner.registry.rules import Endpoint, NetworkRules
from runner.registry.transport import SMALL_ANSWER_BYTES_MAX, Door, StreamedBody
from tests.support import hostile_registry as hostile
from tests.support.registry_client import open_door
from tests.support.scripted_http import Reply, Request, ScriptedServer, SteppingClock


@contextlib.contextmanager
def serving(answer: Callable[[Request], object] | object) -> Iterator[ScriptedServer]:
    make = answer if callable(answer) else lambda _request: answer
    with ScriptedServer(make) as server:
        yield server


def endpoint_of(server: ScriptedServer) -> Endpoint:
    return Endpoint.of_url(server.url)


def get(door: Door, server: ScriptedServer, path: str = "/") -> bytes:
    origin = endpoint_of(server)
    with door.request("GET", origin.url(path), origin=origin) as answer:
        return answer.read_small()


# S04: sizes and encodings


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("size_bytes", [SMALL_ANSWER_BYTES_MAX - 1, SMALL_ANSWER_BYTES_MAX])
def test_S04_a_small_answer_up_to_64_kib_is_read(size_bytes: int, is_chunked: bool) -> None:
    content = b"x" * size_bytes
    with serving(Reply(200, content, is_chunked=is_chunked)) as server, open_door() as door:
        assert get(door, server) == content


@pytest.mark.parametrize("is_chunked", [False, True])
def test_S04_a_small_answer_above_64_kib_is_refused(is_chunked: bool) -> None:
    content = b"x" * (SMALL_ANSWER_BYTES_MAX + 1)
    with serving(Reply(200, content, is_chunked=is_chunked)) as server, open_door() as door:
        with pytest.raises(RegistryError, match=str(SMALL_ANSWER_BYTES_MAX)):
            get(door, server)


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
)
def test_S04_a_small_answer_without_end_is_read_to_the_limit_only(head: bytes) -> None:
    piece = b"1000\r\n" + b"x" * 4096 + b"\r\n" if b"chunked" in head else b"x" * 4096
    with serving(lambda _request: hostile.endless(head, piece)) as server, open_door() as door:
        with pytest.raises(RegistryError, match=f"more than the limit of {SMALL_ANSWER_BYTES_MAX}"):
            get(door, server)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "identity, gzip", "x"])
def test_S04_compressed_answers_are_refused(encoding: str) -> None:
    with serving(Reply(200, b"x", (("Content-Encoding", encoding),))) as server, open_door() as door:
        with pytest.raises(RegistryError, match="compressed"):
            get(door, server)
        assert server.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_S04_identity_is_no_compression(encoding: str) -> None:
    with serving(Reply(200, b"x", (("Content-Encoding", encoding),))) as server, open_door() as door:
        assert get(door, server) == b"x"


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "9" * 19, "5, 5"])
def test_S04_a_length_that_is_no_number_is_refused(length: str) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nhello".encode()
    with serving(lambda _request: hostile.closing(head)) as server, open_door() as door:
        with pytest.raises(RegistryError):
            get(door, server)


def test_a_small_answer_that_is_cut_short_is_worth_another_attempt() -> None:
    with serving(Reply(200, b"hello", sent_bytes=2)) as server, open_door() as door:
        with pytest.raises(RegistryUnavailable, match="after 2 of 5 bytes"):
            get(door, server)


# S05: slowness

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "talk",
    [
        hostile.sending(b"HTTP/1.1 200 "),
        hostile.sending(OK, b"X-A: b\r\n"),
        hostile.endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["half a status line", "half a head", "interim answers for ever"],
)
def test_S05_a_head_that_never_ends_is_given_up(talk: Callable[[socket.socket], None]) -> None:
    with serving(lambda _request: talk) as server, open_door(clock=SteppingClock(step_s=61.0)) as door:
        with pytest.raises(RegistryUnavailable, match="no complete answer head within 60 s"):
            get(door, server)


def test_S05_a_head_of_endless_lines_is_given_up() -> None:
    talk = hostile.endless(OK, b"X-Header: value\r\n")
    with serving(lambda _request: talk) as server, open_door() as door:
        with pytest.raises(RegistryUnavailable, match="brought no HTTP"):
            get(door, server)


def test_S05_a_line_without_end_is_given_up() -> None:
    talk = hostile.endless(OK, b"x" * 4096)
    with serving(lambda _request: talk) as server, open_door() as door:
        with pytest.raises(RegistryUnavailable, match="brought no HTTP"):
            get(door, server)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Trailer: value\r\n" * 1000),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 60_000 + b"\r\nx\r\n"),
    ],
    ids=["interim answers", "trailers", "chunk extensions"],
)
def test_S05_framing_without_end_is_given_up_however_fast_it_comes(head: bytes, piece: bytes) -> None:
    with serving(lambda _request: hostile.endless(head, piece)) as server, open_door() as door:
        with pytest.raises(RegistryError, match="without end what is no content"):
            get(door, server)


def test_a_head_without_a_body_leaves_the_connection_for_the_next_request() -> None:
    with serving(Reply(200, b"hello")) as server, open_door() as door:
        origin = endpoint_of(server)
        for _ in range(3):
            door.request("HEAD", server.url, origin=origin).close()
        assert len(server._threads) == 1


def test_S05_a_server_that_never_answers_is_given_up() -> None:
    rules = NetworkRules(read_timeout_s=0.01)
    with serving(lambda _request: hostile.silence) as server, open_door(rules) as door:
        origin = endpoint_of(server)
        with pytest.raises(RegistryUnavailable, match="did not answer in time"):
            door.request("GET", origin.url("/"), origin=origin, head_s=0.01)


def test_S05_a_body_that_drips_is_given_up_and_counts_as_a_failed_attempt() -> None:
    go, clock = threading.Event(), SteppingClock()
    talk = hostile.sending_when(go, OK + b"Content-Length: 1000000\r\n\r\n", b"x" * 1000)
    with serving(lambda _request: talk) as server, open_door(clock=clock) as door:
        origin = endpoint_of(server)
        with door.request("GET", origin.url("/"), origin=origin, is_small=False) as answer:
            clock.step_s = 40.0
            go.set()
            with pytest.raises(RegistryUnavailable, match="less than 1024 bytes/s"):
                answer.readinto(memoryview(bytearray(100)))


def test_S05_a_small_answer_must_be_whole_within_two_minutes() -> None:
    go, clock = threading.Event(), SteppingClock()
    talk = hostile.sending_when(go, OK + b"Content-Length: 60000\r\n\r\n", b"x" * 100)
    with serving(lambda _request: talk) as server, open_door(clock=clock) as door:
        origin = endpoint_of(server)
        with door.request("GET", origin.url("/"), origin=origin) as answer:
            clock.step_s = 181.0
            go.set()
            with pytest.raises(RegistryUnavailable, match="not complete within 180 s"):
                answer.read_small()


# Sending


def body_of(content: bytes, sent: list[int]) -> StreamedBody:
    return StreamedBody(len(content), lambda: io.BytesIO(content), sent.append)


def echo(request: Request) -> Reply:
    return Reply(200, request.body)


def test_a_streamed_body_arrives_whole_with_its_length() -> None:
    content, sent = bytes(range(256)) * 1000, list[int]()
    with serving(lambda _request: Reply(201)) as server, open_door() as door:
        origin = endpoint_of(server)
        door.request("PUT", origin.url("/x"), origin=origin, body=body_of(content, sent)).close()
        assert server.requests[0].body == content
        assert server.requests[0].headers["content-length"] == str(len(content))
        assert "transfer-encoding" not in server.requests[0].headers
    assert sent[-1] == len(content)
    assert sent == sorted(sent)


def test_a_streamed_body_is_sent_anew_after_a_redirect_that_keeps_the_method() -> None:
    def answer(request: Request) -> Reply:
        return hostile.redirect("/there") if request.path == "/here" else echo(request)

    with serving(answer) as server, open_door() as door:
        origin = endpoint_of(server)
        with door.request("PUT", origin.url("/here"), origin=origin, body=body_of(b"hello", [])) as answered:
            assert answered.read_small() == b"hello"


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_would_turn_an_upload_into_a_download_is_refused(status: int) -> None:
    with serving(hostile.redirect("/there", status)) as server, open_door() as door:
        origin = endpoint_of(server)
        with pytest.raises(RegistryError, match=f"PUT with the redirect {status}"):
            door.request("PUT", origin.url("/here"), origin=origin, body=b"hello")
        assert len(server.requests) == 1


def test_a_file_that_became_shorter_is_no_fault_of_the_registry() -> None:
    with serving(echo) as server, open_door() as door:
        origin = endpoint_of(server)
        body = StreamedBody(10, lambda: io.BytesIO(b"hello"))
        with pytest.raises(StoreError, match="shorter"):
            door.request("PUT", origin.url("/x"), origin=origin, body=body)


# Giving up, connections, cookies


def test_nothing_is_sent_for_a_transfer_that_was_given_up() -> None:
    abort = Abort()
    abort.abort()
    with serving(Reply(200)) as server, open_door() as door:
        with pytest.raises(TransferAborted):
            door.request("GET", server.url, origin=endpoint_of(server), abort=abort)
        assert server.requests == []


def test_giving_up_one_transfer_leaves_a_connection_that_another_uses_now() -> None:
    first, second = Abort(), Abort()
    with serving(Reply(200, b"hello")) as server, open_door() as door:
        origin = endpoint_of(server)
        with door.request("GET", server.url, origin=origin, abort=first) as answer:
            answer.read_small()
        with door.request("GET", server.url, origin=origin, abort=second) as answer:
            first.abort()
            assert answer.read_small() == b"hello"


def test_a_door_at_rest_keeps_no_connection_and_can_be_used_again() -> None:
    with serving(Reply(200, b"hello")) as server, open_door() as door:
        door.rest()
        get(door, server)
        origin = endpoint_of(server)
        with door.request("GET", server.url, origin=origin) as answer:
            door.rest()  # one in use is left alone
            assert answer.read_small() == b"hello"
        door.rest()
        assert get(door, server) == b"hello"
        assert len(server._threads) > 1


def test_cookies_are_not_kept() -> None:
    with serving(Reply(200, b"", (("Set-Cookie", "canary=1; Path=/"),))) as server, open_door() as door:
        get(door, server)
        get(door, server)
        assert [request.headers.get("cookie") for request in server.requests] == [None, None]


def test_K01_nothing_of_a_url_but_its_host_is_told_when_a_request_fails() -> None:
    with serving(lambda _request: hostile.closing(b"")) as server, open_door() as door:
        with pytest.raises(RegistryUnavailable) as caught:
            get(door, server, "/blob?signature=canary")
        assert "canary" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_K01_signed_urls_reach_no_log(caplog: pytest.LogCaptureFixture) -> None:
    malformed = OK + b"Content-Length: 0\r\nno header at all\r\n\r\n"
    with caplog.at_level("DEBUG"):
        with serving(lambda _request: hostile.closing(malformed)) as server, open_door() as door:
            get(door, server, "/blob?signature=canary")
    assert "canary" not in caplog.text
