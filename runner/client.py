"""HTTP client of the daemon for the commands: http.client over TCP or the unix socket.

Imports little, since every command pays for it. Where the daemon is: `--host`, `RUNNER_HOST`,
`MODEL_RUNNER_HOST`, then the unix socket, then the default port.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import attrs

from runner.errors import RunnerError

_CONNECT_TIMEOUT_S = 5.0


class DaemonUnreachable(RunnerError):
    """Nothing answers where the daemon should be."""

    code = "daemon_unreachable"

    def __init__(self, target: Target, reason: str) -> None:
        super().__init__(f"no daemon answers at {target} ({reason})")
        self.target = target


class ApiError(RunnerError):
    """The daemon refused. `code` is the API's; `faults` pairs field paths with what is wrong."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = code
        self.retry_after_s = retry_after_s


@attrs.frozen
class Target:
    """Where a daemon is: a unix socket, or host and port. `is_explicit` when somebody named it."""

    socket_path: Path | None
    host: str = "127.0.0.1"
    port: int = 12434
    is_explicit: bool = False

    @property
    def is_local(self) -> bool:
        """The daemon runs on this machine."""
        return self.socket_path is not None or self.host in ("localhost", "127.0.0.1", "::1")

    def __str__(self) -> str:
        if self.socket_path is not None:
            return f"unix:{self.socket_path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def parse_target(text: str) -> Target:
    """A target from `http://host:port`, `host:port`, `host` or `unix:/path`; ValueError tells these forms."""
    if text.startswith("unix:"):
        path = text[len("unix:") :].removeprefix("//")
        if not path.startswith("/"):
            raise ValueError(f"{text!r}: a unix socket is named by its absolute path")
        return Target(Path(path), is_explicit=True)
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
        raise ValueError(f"{text!r} is not an address; write host:port, http://host:port or unix:/path")
    return Target(None, parts.hostname, parts.port or 12434, is_explicit=True)


def find_target(host: str | None, socket_path: Path, environment: Mapping[str, str] = os.environ) -> Target:
    """The first of `host`, `RUNNER_HOST`, `MODEL_RUNNER_HOST`, an existing socket, the default port."""
    named = host or environment.get("RUNNER_HOST") or environment.get("MODEL_RUNNER_HOST")
    if named:
        return parse_target(named)
    if socket_path.is_socket():
        return Target(socket_path)
    return Target(None, port=int(environment.get("RUNNER_PORT", "12434")))


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """One daemon. A connection per call: commands make one or two."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def get(self, path: str) -> Any:
        return self._json("GET", path)

    def post(self, path: str, body: Any = None) -> Any:
        return self._json("POST", path, body)

    def delete(self, path: str) -> Any:
        return self._json("DELETE", path)

    def is_reachable(self) -> bool:
        try:
            self.get("/health")
        except (DaemonUnreachable, ApiError):  # nobody, or somebody else's server
            return False
        return True

    def upload(self, path: str, chunks: Iterable[bytes], size_bytes: int, headers: Mapping[str, str]) -> Any:
        """POST content of known size as it is read."""
        sent = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes), **headers}
        with closing(self._connect()) as connection:
            return _decoded(self._exchange(connection, "POST", path, chunks, sent))

    def stream(self, path: str, body: Any) -> Iterator[str]:
        """POST, then the data of each server-sent event as it arrives.

        Raises `ApiError` when the answer is an error, and when the stream ends without `[DONE]`, so that
        nobody takes half an answer for a whole one. Closing the generator closes the connection, which
        cancels the generation.
        """
        with closing(self._connect()) as connection:
            response = self._exchange(connection, "POST", path, json.dumps(body).encode(), _JSON)
            if response.status >= 400:
                _decoded(response)
            try:
                for line in response:
                    text = line.decode("utf-8").rstrip("\r\n")
                    if text == "data: [DONE]":
                        return
                    if text.startswith("data: "):
                        yield text[len("data: ") :]
            except (http.client.HTTPException, OSError) as error:
                reason = str(error) or type(error).__name__
                raise ApiError(502, "incomplete", f"the answer broke off: {reason}") from error
            raise ApiError(502, "incomplete", "the answer broke off")

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        with closing(self._connect()) as connection:
            return _decoded(self._exchange(connection, method, path, content, {} if body is None else _JSON))

    def _connect(self) -> http.client.HTTPConnection:
        if self.target.socket_path is not None:
            connection: http.client.HTTPConnection = _UnixConnection(
                self.target.socket_path, _CONNECT_TIMEOUT_S
            )
        else:
            connection = http.client.HTTPConnection(
                self.target.host, self.target.port, timeout=_CONNECT_TIMEOUT_S
            )
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise DaemonUnreachable(self.target, error.strerror or str(error)) from error
        connection.sock.settimeout(None)  # generations and loads may take minutes; the user has Ctrl-C
        return connection

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None,
        headers: Mapping[str, str],
    ) -> http.client.HTTPResponse:
        with suppress(
            BrokenPipeError, ConnectionResetError
        ):  # refused before the body was read: the answer tells
            connection.request(method, path, body=body, headers=dict(headers))
        try:
            return connection.getresponse()
        except (http.client.HTTPException, OSError) as error:
            raise DaemonUnreachable(
                self.target, f"it closed the connection: {type(error).__name__}"
            ) from error


_JSON = {"Content-Type": "application/json"}


def model_path(name: str) -> str:
    """A model name inside a path: slashes, colons and `@` stay as they are, all else is escaped."""
    return quote(name, safe="/:@")


def _decoded(response: http.client.HTTPResponse) -> Any:
    content = response.read()
    try:
        document = json.loads(content) if content else None
    except ValueError:
        document = None
    if response.status < 400:
        return document
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        raise ApiError(response.status, "unknown", f"the daemon answered {response.status} {response.reason}")
    retry_after = response.getheader("Retry-After")
    raise ApiError(
        response.status,
        str(error.get("code") or "unknown"),
        str(error.get("message") or response.reason),
        float(retry_after) if retry_after and retry_after.isdigit() else None,
    )
