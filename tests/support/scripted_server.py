"""An HTTP server in a thread that says just what a test tells it, over TCP or a unix socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from runner.client import Target

LIMIT_S = 10.0


@attrs.frozen
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


Respond = Callable[[Request], Iterable[bytes]]


class ScriptedServer:
    """Answers each connection's one request with the pieces of `respond`, sent as they come, and closes.

    `refuses_early` answers without having read the body. `requests` are in the order of their arrival;
    `client_left` is set when an answer could not be sent to its end.
    """

    def __init__(
        self, listening: socket.socket, target: Target, respond: Respond, refuses_early: bool
    ) -> None:
        self.target = target
        self.requests: list[Request] = []
        self.client_left = threading.Event()
        self._respond = respond
        self._refuses_early = refuses_early
        self._listening = listening
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="scripted server")
        self._acceptor.start()

    @property
    def paths(self) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.requests]

    def stop_listening(self) -> None:
        """Further connections are refused; answers that have begun go on."""
        with suppress(OSError):  # it did already
            self._listening.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.stop_listening()
        self._acceptor.join(LIMIT_S)
        self._listening.close()
        for thread in self._threads:
            thread.join(LIMIT_S)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # closed
                return
            connection.settimeout(LIMIT_S)
            thread = threading.Thread(target=self._serve, args=(connection,), name="scripted answer")
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as incoming:
            request = _read(incoming, with_body=not self._refuses_early)
            if request is None:
                return
            self.requests.append(request)
            try:
                for piece in self._respond(request):
                    connection.sendall(piece)
            except OSError:
                self.client_left.set()


def _read(incoming: Any, *, with_body: bool) -> Request | None:
    words = incoming.readline().decode("latin-1").split()
    if len(words) != 3:  # somebody only looked whether we listen
        return None
    headers = {}
    while line := incoming.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = incoming.read(int(headers.get("content-length", 0))) if with_body else b""
    return Request(words[0], words[1], headers, body)


@contextmanager
def scripted_server(
    respond: Respond, *, socket_path: Path | None = None, refuses_early: bool = False
) -> Iterator[ScriptedServer]:
    if socket_path is not None:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(socket_path))
        listening.listen()
        target = Target(socket_path)
    else:
        listening = socket.create_server(("127.0.0.1", 0))
        target = Target(None, "127.0.0.1", listening.getsockname()[1])
    server = ScriptedServer(listening, target, respond, refuses_early)
    try:
        yield server
    finally:
        server.close()


def answer(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Iterator[bytes]:
    """A JSON answer; values of `runner.domain.status` become their fields, as in the control API."""
    content = json.dumps(document, default=attrs.asdict).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    yield "\r\n".join([*lines, "", ""]).encode() + content


def refusal(status: int, code: str, message: str, **headers: str) -> Iterator[bytes]:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return answer({"error": error}, status, headers)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


def event(data: Any) -> bytes:
    """One chunk of a chunked body, holding one event."""
    text = data if isinstance(data, str) else json.dumps(data)
    return chunk(f"data: {text}\n\n".encode())


def chunk(content: bytes) -> bytes:
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


def delta(text: str, finish_reason: str | None = None, *, kind: str = "content") -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "delta": {kind: text}, "finish_reason": finish_reason}],
        "usage": None,
    }


def stream(*texts: str, finish_reason: str = "stop", **last: Any) -> Iterator[bytes]:
    """A whole streamed chat completion; `last` goes into its last chunk."""
    yield STREAM_HEAD
    for text in texts:
        yield event(delta(text))
    yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}], "usage": None})
    yield event({"choices": [], **last})
    yield event("[DONE]")
    yield STREAM_END
