"""The real serving layer on a free port and a socket, and a client that sends just the bytes it is told."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
import trio.testing

from runner.api.server import Server, ServerSettings
from runner.errors import RunnerError

LIMIT_S = 10


@attrs.frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error_code(self) -> str:
        """Of an error in our envelope, which is checked on the way."""
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-content-type-options"] == "nosniff"
        assert self.headers["x-request-id"]
        error = self.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return str(error["code"])


class ScriptedSource:
    """A `ByteSource` fed by a test: bytes are chunks, an exception is raised, closing `feed` is the end."""

    def __init__(self, *chunks: bytes) -> None:
        self.feed, self._chunks = trio.open_memory_channel[bytes | Exception](1024)
        for chunk in chunks:
            self.feed.send_nowait(chunk)
        self.taken_bytes = 0
        self.times_closed = 0
        self.aborted_with: RunnerError | None = None
        self.closed = trio.Event()

    async def next_chunk(self) -> bytes:
        try:
            chunk = await self._chunks.receive()
        except trio.EndOfChannel:
            return b""
        if isinstance(chunk, Exception):
            raise chunk
        self.taken_bytes += len(chunk)
        return chunk

    def abort(self, error: RunnerError) -> bytes:
        assert self.aborted_with is None
        self.aborted_with = error
        return f"data: {error.code}\n\n".encode()

    def close(self) -> None:
        self.times_closed += 1
        self.closed.set()


class RawClient:
    """One connection. Every wait is bounded, so that a test fails instead of hanging."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, data: bytes | str) -> None:
        with trio.fail_after(LIMIT_S):
            await self.stream.send_all(data if isinstance(data, bytes) else data.encode("latin-1"))

    async def request(self, method: str, path: str, *lines: str, body: bytes = b"") -> Answer:
        if body:
            lines = (*lines, f"Content-Length: {len(body)}")
        head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""])
        await self.send(head.encode("latin-1") + body)
        return await self.answer(without_body=method == "HEAD")

    async def answer(self, *, without_body: bool = False) -> Answer:
        """The next final answer; the body ends by length, by the last chunk, or with the connection."""
        status, headers = await self.head()
        if without_body or status in (204, 304):
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            pieces = []
            while piece := await self.chunk():
                pieces.append(piece)
            return Answer(status, headers, b"".join(pieces))
        if "content-length" in headers:
            return Answer(status, headers, await self.exactly(int(headers["content-length"])))
        return Answer(status, headers, await self.rest())

    async def head(self) -> tuple[int, dict[str, str]]:
        head = (await self.until(b"\r\n\r\n")).decode("latin-1")
        lines = head[:-4].split("\r\n")
        pairs = [line.split(": ", 1) for line in lines[1:]]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), f"a header is repeated: {pairs}"
        return int(lines[0].split(" ")[1]), headers

    async def chunk(self) -> bytes:
        size = int(await self.until(b"\r\n"), 16)
        data = await self.exactly(size + 2)
        assert data.endswith(b"\r\n")
        return data[:-2]

    async def until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            await self._more()
        data, _, self.buffer = self.buffer.partition(mark)
        return data + mark

    async def exactly(self, size_bytes: int) -> bytes:
        while len(self.buffer) < size_bytes:
            await self._more()
        data, self.buffer = self.buffer[:size_bytes], self.buffer[size_bytes:]
        return data

    async def rest(self) -> bytes:
        """Everything until the server closes. A reset is an error."""
        with trio.fail_after(LIMIT_S):
            while data := await self.stream.receive_some():
                self.buffer += data
        data, self.buffer = self.buffer, b""
        return data

    async def wait_closed(self) -> None:
        """The server closed or reset the connection without sending anything more."""
        try:
            assert await self.rest() == b""
        except trio.BrokenResourceError:
            pass

    async def aclose(self) -> None:
        await self.stream.aclose()

    async def _more(self) -> None:
        with trio.fail_after(LIMIT_S):
            data = await self.stream.receive_some()
        assert data, f"the connection ended after {self.buffer!r}"
        self.buffer += data


class RunningServer:
    def __init__(self, server: Server, addresses: tuple[str, ...], socket_path: Path) -> None:
        self.server = server
        self.addresses = addresses
        self.socket_path = socket_path
        self.port = int(addresses[0].rpartition(":")[2])
        self._clients: list[RawClient] = []

    async def connect(self) -> RawClient:
        return self._kept(await trio.open_tcp_stream("127.0.0.1", self.port))

    async def connect_unix(self) -> RawClient:
        return self._kept(await trio.open_unix_socket(str(self.socket_path)))

    async def get(self, path: str, *lines: str) -> Answer:
        """On a connection of its own."""
        client = await self.connect()
        try:
            return await client.request("GET", path, *lines)
        finally:
            await client.aclose()

    async def until(self, connections: int) -> None:
        """Wait until the server has so many connections."""
        with trio.fail_after(LIMIT_S):
            while self.server.statistics().connections != connections:
                await trio.testing.wait_all_tasks_blocked(0.001)

    def _kept(self, stream: trio.SocketStream) -> RawClient:
        self._clients.append(RawClient(stream))
        return self._clients[-1]

    async def close_clients(self) -> None:
        for client in self._clients:
            await client.aclose()


@asynccontextmanager
async def serving(app: Any, **settings: Any) -> AsyncIterator[RunningServer]:
    """A server for `app`; leaving the block cancels it. `settings` are those of `ServerSettings`."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "runner.sock"
        server = Server(app, ServerSettings(**{"port": 0, "socket_path": path, **settings}))
        async with trio.open_nursery() as nursery:
            addresses = await nursery.start(server.run)
            running = RunningServer(server, addresses, path)

            try:
                yield running
            finally:
                with trio.CancelScope(shield=True):
                    await running.close_clients()
                nursery.cancel_scope.cancel()
        assert not path.exists()
