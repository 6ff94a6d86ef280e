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

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    def read_head(self) -> None:
        while b"\r\n\r\n" not in self._rest:
            self._receive()
        self.head, _, self._rest = self._rest.partition(b"\r\n\r\n")

    def events(self) -> Iterator[Any]:
        """Events until the server ends the answer or the connection."""
        body = b""
        for chunk in self._chunks():
            *blocks, body = (body + chunk).split(b"\n\n")
            for line in b"\n".join(blocks).split(b"\n"):
                if line.startswith(b"data: "):
                    text = line[6:].strip()
                    yield "[DONE]" if text == b"[DONE]" else json.loads(text)

    def _chunks(self) -> Iterator[bytes]:
        try:
            while size := int(self._take_line(), 16):
                yield self._take(size)
                self._take(2)
        except ConnectionError:
            return

    def _take_line(self) -> bytes:
        while b"\r\n" not in self._rest:
            self._receive()
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def _take(self, size: int) -> bytes:
        while len(self._rest) < size:
            self._receive()
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def _receive(self) -> None:
        data = self.connection.recv(65536)
        if not data:
            raise ConnectionError("the connection ended")
        self._rest += data

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
