"""Event streams as a client sees them, over a raw socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs


@attrs.define
class Stream:
    """A chunked response that is read event by event. `data` is JSON, or the text `[DONE]`."""

    connection: socket.socket
    head: bytes = b""
    _rest: bytes = b""
    _is_at_end: bool = False

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    def read_head(self) -> None:
        while b"\r\n\r\n" not in self._rest:
            data = self.connection.recv(65536)
            if not data:
                raise ConnectionError("the connection ended within the head")
            self._rest += data
        self.head, _, self._rest = self._rest.partition(b"\r\n\r\n")

    def events(self) -> Iterator[Any]:
        """Events until the server ends the answer or the connection."""
        while True:
            while b"\n\n" in self._rest:
                block, _, self._rest = self._rest.partition(b"\n\n")
                for line in block.split(b"\n"):
                    if line.startswith(b"data: "):
                        text = line[6:].strip()
                        yield "[DONE]" if text == b"[DONE]" else json.loads(text)
            data = self.connection.recv(65536)
            if not data:
                return
            self._rest += data
            if self._rest.endswith(b"\r\n0\r\n\r\n") or self._rest == b"0\r\n\r\n":
                self._is_at_end = True
            if self._is_at_end and b"\n\n" not in self._rest:
                return

    def text_deltas(self) -> Iterator[str]:
        for event in self.events():
            if event != "[DONE]":
                for choice in event.get("choices", ()):
                    if choice.get("delta", {}).get("content"):
                        yield choice["delta"]["content"]


@contextmanager
def post_stream(port: int, path: str, body: Any) -> Iterator[Stream]:
    """POST over a connection of its own; the head is read on entry."""
    content = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        stream = Stream(connection)
        stream.read_head()
        yield stream
