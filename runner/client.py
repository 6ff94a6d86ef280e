"""HTTP client of the daemon for the commands: http.client over TCP or the unix socket.

Imports little, since every command pays for it: no attrs, and `runner.config` only where settings say
something about the address. Read on in `runner/cli/connect.py`.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import socket
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from runner.errors import RunnerError
from runner.places import config_file, default_socket

DEFAULT_PORT = 12434
_CONNECT_TIMEOUT_S = 5.0
_DOWNLOAD_BYTES = 1 << 20
_PROBE_TIMEOUT_S = 5.0
_JSON = {"Content-Type": "application/json"}
_LOCAL_HOST = re.compile(r"localhost|::1|127(?:\.[0-9]{1,3}){3}")
_ABSENT = frozenset({errno.ECONNREFUSED, errno.ENOENT})


class DaemonUnreachable(RunnerError):
    """Nothing answers where the daemon should be. `is_absent`: nobody listens there; one may be started."""

    code = "daemon_unreachable"

    def __init__(self, target: Target, reason: str, *, is_absent: bool = False) -> None:
        super().__init__(f"no daemon answers at {target} ({reason})")
        self.target = target
        self.is_absent = is_absent


class ApiError(RunnerError):
    """The daemon refused, or broke off. `error_code` is the API's, `status` HTTP's."""

    def __init__(
        self, status: int, error_code: str, message: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = error_code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Target:
    """Where a daemon is: a unix socket, or host and port. `is_explicit` when somebody named it."""

    socket_path: Path | None
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    is_explicit: bool = False

    @property
    def is_local(self) -> bool:
        """What is sent there does not leave this machine; connections are not encrypted."""
        return self.socket_path is not None or _LOCAL_HOST.fullmatch(self.host) is not None

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
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if (
        not host
        or parts.scheme != "http"
        or parts.path.strip("/")
        or parts.query
        or parts.username is not None
    ):
        raise ValueError(f"{text!r} is not an address; write host:port, http://host:port or unix:/path")
    return Target(None, host, DEFAULT_PORT if port is None else port, is_explicit=True)


def find_target(host: str | None, environment: Mapping[str, str] = os.environ) -> Target:
    """The first of `host`, `RUNNER_HOST`, `MODEL_RUNNER_HOST`, the daemon's socket when it exists, its port.

    Raises ValueError when a name is no address, and `StartRefused` when the settings are not usable.
    """
    named = host or environment.get("RUNNER_HOST") or environment.get("MODEL_RUNNER_HOST")
    if named:
        return parse_target(named)
    path, target = _listening_at(environment)
    if path.is_socket() or target.port == 0:  # on any free port it can only be found by its socket
        return Target(path)
    return target


def _listening_at(environment: Mapping[str, str]) -> tuple[Path, Target]:
    """Socket and TCP address of a daemon with these settings; reads them only where they can differ."""
    if not any(environment.get(name) for name in ("RUNNER_PORT", "RUNNER_LISTEN_HOST")) and not (
        config_file().exists()
    ):
        named = environment.get("RUNNER_SOCKET")
        return Path(named).expanduser().absolute() if named else default_socket(), Target(None)
    from runner.config import resolve

    settings = resolve({}, environment).settings
    return settings.socket, Target(None, settings.host, settings.port)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """One daemon. A connection per call: commands make one or two. May be used by several threads.

    Every call raises `DaemonUnreachable` when nobody answers and `ApiError` when the answer is an error.
    Answers may take minutes (loads, generations) and are waited for, unless a call takes `timeout_s`.
    """

    def __init__(self, target: Target) -> None:
        self.target = target

    def get(self, path: str, *, timeout_s: float | None = None) -> Any:
        return self._json("GET", path, timeout_s=timeout_s)

    def post(self, path: str, body: Any = None) -> Any:
        return self._json("POST", path, body)

    def delete(self, path: str) -> Any:
        return self._json("DELETE", path)

    def is_reachable(self) -> bool:
        """Whether a daemon answers. Raises `DaemonUnreachable` when something is there and says nothing."""
        try:
            self.get("/health", timeout_s=_PROBE_TIMEOUT_S)
        except DaemonUnreachable as error:
            if error.is_absent:
                return False
            raise
        except ApiError:  # somebody else's server
            return False
        return True

    def upload(self, path: str, chunks: Iterable[bytes], size_bytes: int | None) -> Any:
        """POST content as it is read; None for content of unknown length. Raises ValueError when `chunks` do
        not hold just `size_bytes`."""
        headers = {"Content-Type": "application/octet-stream"}
        if size_bytes is not None:
            headers["Content-Length"] = str(size_bytes)
            chunks = _exactly(chunks, size_bytes)
        with closing(self._connect()) as connection:
            return _decoded(self._exchange(connection, "POST", path, iter(chunks), headers))

    def download(self, path: str) -> Generator[bytes, None, None]:
        """GET content as it arrives, in pieces of up to a MiB. Raises `ApiError` when the answer is an error,
        and when it breaks off. Closing the generator closes the connection."""
        with closing(self._connect()) as connection:
            response = self._exchange(connection, "GET", path, None, {})
            if response.status != 200:
                raise _error_of(response, _content(response))
            try:
                while content := response.read(_DOWNLOAD_BYTES):
                    yield content
            except (http.client.HTTPException, OSError, ValueError) as error:
                raise _broken_off(str(error) or type(error).__name__) from error

    def stream(self, path: str, body: Any) -> Generator[dict[str, Any], None, None]:
        """POST, then the chunks of the answer as they arrive.

        Raises `ApiError` when the answer is an error, when a chunk is one, and when the stream ends without
        `[DONE]`, so that nobody takes half an answer for a whole one. Closing the generator closes the
        connection, which cancels the generation.
        """
        with closing(self._connect()) as connection:
            response = self._exchange(connection, "POST", path, json.dumps(body).encode(), _JSON)
            if response.status != 200:
                raise _error_of(response, _content(response))
            try:
                for data in event_data(response):
                    if data == "[DONE]":
                        return
                    yield _chunk(data)
            except (http.client.HTTPException, OSError, ValueError) as error:
                raise _broken_off(str(error) or type(error).__name__) from error
            raise _broken_off("the connection ended")

    def lines(self, path: str, body: Any) -> Generator[dict[str, Any], None, None]:
        """POST, then the JSON lines of the answer as they arrive, the one that tells of success included.

        Raises `ApiError` when the answer is an error, when a line is one, and when the lines end without
        success. Closing the generator closes the connection, and whatever is waited for goes on without us.
        """
        with closing(self._connect()) as connection:
            response = self._exchange(connection, "POST", path, json.dumps(body).encode(), _JSON)
            if response.status != 200:
                raise _error_of(response, _content(response))
            try:
                for content in response:
                    line = _chunk(content.decode())
                    yield line
                    if line.get("type") == "success":
                        return
            except (http.client.HTTPException, OSError, ValueError) as error:
                raise _broken_off(str(error) or type(error).__name__) from error
            raise _broken_off("the connection ended")

    def _json(self, method: str, path: str, body: Any = None, *, timeout_s: float | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        with closing(self._connect()) as connection:
            connection.sock.settimeout(timeout_s)
            return _decoded(self._exchange(connection, method, path, content, {} if body is None else _JSON))

    def _connect(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection
        if self.target.socket_path is not None:
            connection = _UnixConnection(self.target.socket_path, _CONNECT_TIMEOUT_S)
        else:
            connection = http.client.HTTPConnection(
                self.target.host, self.target.port, timeout=_CONNECT_TIMEOUT_S
            )
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise DaemonUnreachable(
                self.target, error.strerror or str(error), is_absent=error.errno in _ABSENT
            ) from error
        connection.sock.settimeout(None)
        return connection

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None,
        headers: Mapping[str, str],
    ) -> http.client.HTTPResponse:
        # Refused before the whole body was sent: the answer, which is there already, tells why.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, path, body=body, headers=dict(headers))
        try:
            return connection.getresponse()
        except TimeoutError as error:
            raise DaemonUnreachable(self.target, "something is there but gives no answer") from error
        except (http.client.HTTPException, OSError) as error:
            raise DaemonUnreachable(
                self.target, f"it closed the connection: {type(error).__name__}"
            ) from error


def model_path(name: str) -> str:
    """A model name inside a path: slashes, colons and `@` stay as they are, all else is escaped."""
    return quote(name, safe="/:@", errors="surrogateescape")


def event_data(lines: Iterable[bytes]) -> Iterator[str]:
    """The data of each event of an event stream; its lines are joined, comments and other fields left out.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation; an event
    without its final empty line is dropped. Raises UnicodeDecodeError.
    """
    data: list[str] = []
    for line in lines:
        text = line.decode("utf-8").rstrip("\r\n")
        if text.startswith("data:"):
            data.append(text[len("data:") :].removeprefix(" "))
        elif not text and data:
            yield "\n".join(data)
            data = []


def _chunk(data: str) -> dict[str, Any]:
    chunk = json.loads(data)
    if not isinstance(chunk, dict):
        raise ValueError("a chunk is not an object")
    error = chunk.get("error")
    if isinstance(error, dict):
        raise ApiError(502, str(error.get("code") or "unknown"), str(error.get("message") or "unknown error"))
    return chunk


def _broken_off(reason: str) -> ApiError:
    return ApiError(502, "incomplete", f"the answer broke off: {reason}")


def _exactly(chunks: Iterable[bytes], size_bytes: int) -> Iterator[bytes]:
    """Raises ValueError when there is more or less: the daemon would wait for the rest for ever."""
    left = size_bytes
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            break
        yield chunk
    if left != 0:
        raise ValueError("the file changed while it was read")


def _content(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read()
    except (http.client.HTTPException, OSError) as error:
        raise _broken_off(str(error) or type(error).__name__) from error


def _decoded(response: http.client.HTTPResponse) -> Any:
    content = _content(response)
    if 200 <= response.status < 300:
        try:
            return json.loads(content)
        except ValueError:
            pass  # somebody else's server
    raise _error_of(response, content)


def _error_of(response: http.client.HTTPResponse, content: bytes) -> ApiError:
    try:
        error = json.loads(content)["error"]
        code, message = str(error["code"] or "unknown"), str(error["message"])
    except (ValueError, TypeError, KeyError):
        return ApiError(
            response.status,
            "unknown",
            f"the answer is not that of a daemon: {response.status} {response.reason}",
        )
    retry_after = response.getheader("Retry-After")
    is_number = retry_after is not None and retry_after.isdecimal()
    return ApiError(response.status, code, message, float(retry_after or 0) if is_number else None)
