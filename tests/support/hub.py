"""A scripted hub of model repositories on loopback, with its content on another port, like the real one.

Names are matched with their case. Files in large storage are answered with a redirect to the second port,
whose addresses are signed; the others come directly. Every request is kept, so that tests see what was sent.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

import attrs

SIGNATURE = "signature-canary-5e1f"  # what makes an address of the second port a secret
_LARGE = (".gguf", ".safetensors")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@attrs.frozen(kw_only=True)
class SeenRequest:
    """`port` is `hub` or `content`; header names in lower case."""

    port: str
    method: str
    target: str
    headers: dict[str, str]


@attrs.define(kw_only=True)
class ScriptedRepository:
    """One repository. What is named `lying_…` or `false_…` differs from the truth, by path.

    `token`: what a request must carry; with `gated` the refusal says so. `moved_to`: its new name, which the
    hub redirects to. `plain`: paths outside large storage, whatever they end in.
    """

    name: str
    files: dict[str, bytes]
    revision: str = "0123456789abcdef0123456789abcdef01234567"
    last_modified: str = "2026-03-04T05:06:07.000Z"
    token: str | None = None
    gated: bool = False
    moved_to: str | None = None
    plain: frozenset[str] = frozenset()
    false_sizes: dict[str, int] = attrs.field(factory=dict)
    lying_content: dict[str, bytes] = attrs.field(factory=dict)
    ignores_ranges: bool = False
    listed: list[dict[str, object]] | None = None  # entries to list in place of the true ones

    def entries(self) -> list[dict[str, object]]:
        """The listing, folders included, as the hub writes it."""
        if self.listed is not None:
            return self.listed
        folders = sorted({path.rpartition("/")[0] for path in self.files} - {""})
        return [
            *({"type": "directory", "oid": _git_oid(f.encode()), "size": 0, "path": f} for f in folders),
            *(self._entry(path, content) for path, content in sorted(self.files.items())),
        ]

    def is_large(self, path: str) -> bool:
        return path.endswith(_LARGE) and path not in self.plain

    def _entry(self, path: str, content: bytes) -> dict[str, object]:
        size = self.false_sizes.get(path, len(content))
        entry: dict[str, object] = {"type": "file", "oid": _git_oid(content), "size": size, "path": path}
        if self.is_large(path):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 134}
        return entry


class ScriptedHub:
    """What the two servers answer from; change it while they run. Built by `scripted_hub`."""

    def __init__(self) -> None:
        self.repositories: dict[str, ScriptedRepository] = {}
        self.page_size = 1000
        self.next_link: str | None = None  # a Link target in place of the true one
        self.failures: list[tuple[int, dict[str, str]]] = []  # answers to give before the true ones
        self.content_failures: list[tuple[int, dict[str, str]]] = []
        self.redirect_to: str | None = None  # where large files are said to be
        self.requests: list[SeenRequest] = []
        self.url = ""
        self.content_url = ""

    def add(self, repository: ScriptedRepository) -> ScriptedRepository:
        self.repositories[repository.name] = repository
        return repository

    def seen(self, port: str = "hub") -> list[SeenRequest]:
        return [request for request in self.requests if request.port == port]


@contextmanager
def scripted_hub(tls: ssl.SSLContext | None = None) -> Iterator[ScriptedHub]:
    """A hub that runs until the block ends; no thread or socket is left. With `tls` both ports use it."""
    hub = ScriptedHub()
    with _served(hub, _HubAnswers, tls) as hub.url, _served(hub, _ContentAnswers, tls) as hub.content_url:
        yield hub


@contextmanager
def _served(hub: ScriptedHub, answers: type[_Answers], tls: ssl.SSLContext | None) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (answers,), {"hub": hub}))
    server.daemon_threads = False  # so that closing the server joins them
    scheme = "http"
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "https"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="scripted hub"
    )
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Answers(BaseHTTPRequestHandler):
    hub: ScriptedHub
    port: str
    protocol_version = "HTTP/1.1"
    timeout = 10.0

    def do_GET(self) -> None:
        self.close_connection = True
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append(
            SeenRequest(port=self.port, method=self.command, target=self.path, headers=headers)
        )
        failures = self.hub.failures if self.port == "hub" else self.hub.content_failures
        if failures:
            status, extra = failures.pop(0)
            self.answer(status, b"busy", **extra)
            return
        self.route()

    do_HEAD = do_GET

    def route(self) -> None:
        raise NotImplementedError

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            if self.command != "HEAD":
                self.wfile.write(body)
        except OSError:  # a client that stops reading is part of many tests
            return

    def answer_content(self, content: bytes, *, ignores_ranges: bool) -> None:
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted is None or ignores_ranges:
            self.answer(200, content)
            return
        start = int(wanted[1])
        end = min(int(wanted[2] or len(content) - 1), len(content) - 1)
        if start > end:
            self.answer(416, b"", Content_Range=f"bytes */{len(content)}")
            return
        self.answer(206, content[start : end + 1], Content_Range=f"bytes {start}-{end}/{len(content)}")

    def log_message(self, format: str, *args: object) -> None:
        return


class _HubAnswers(_Answers):
    port = "hub"

    def route(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        if api := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            self._api(*api.groups(), query=parse_qs(parts.query))
        elif file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*file.groups())
        else:
            self.answer(404, b"", X_Error_Code="EntryNotFound")

    def _api(self, name: str, what: str, revision: str, *, query: dict[str, list[str]]) -> None:
        repository = self._allowed(name, revision)
        if repository is None:
            return
        if repository.moved_to is not None:
            self.answer(307, b"", Location=f"/api/models/{repository.moved_to}/{what}/{revision}")
        elif what == "revision":
            facts = {"sha": repository.revision, "lastModified": repository.last_modified, "id": name}
            self._answer_json(facts)
        else:
            self._page(repository, name, revision, int(query.get("cursor", ["0"])[0]))

    def _page(self, repository: ScriptedRepository, name: str, revision: str, start: int) -> None:
        entries = repository.entries()
        end = start + self.hub.page_size
        base = f"{self.hub.url}/api/models/{quote(name)}/tree/{revision}"
        link = self.hub.next_link or f"{base}?recursive=true&cursor={end}"
        more = {"Link": f'<{link}>; rel="next"'} if end < len(entries) else {}
        self._answer_json(entries[start:end], **more)

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self._allowed(name, revision)
        if repository is None:
            return
        content = repository.lying_content.get(path, repository.files.get(path))
        if content is None:
            self.answer(404, b"", X_Error_Code="EntryNotFound")
        elif repository.is_large(path):
            where = f"{self.hub.content_url}/{quote(name)}/{quote(path)}?X-Signature={SIGNATURE}"
            self.answer(302, b"", Location=self.hub.redirect_to or where)
        else:
            self.answer_content(content, ignores_ranges=repository.ignores_ranges)

    def _allowed(self, name: str, revision: str) -> ScriptedRepository | None:
        """The repository, or None when the request has been refused."""
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.answer(401, b'{"error":"Repository not found"}', X_Error_Code="RepoNotFound")
            return None
        if repository.token is not None and self.headers["Authorization"] != f"Bearer {repository.token}":
            status = 403 if "Authorization" in self.headers else 401
            self.answer(status, b"{}", X_Error_Code="GatedRepo" if repository.gated else "RepoNotFound")
            return None
        if revision not in ("main", repository.revision):
            self.answer(404, b"", X_Error_Code="RevisionNotFound")
            return None
        return repository

    def _answer_json(self, value: object, **headers: str) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json", **headers)


class _ContentAnswers(_Answers):
    port = "content"

    def route(self) -> None:
        parts = urlsplit(self.path)
        organisation, repository_name, path = unquote(parts.path)[1:].split("/", 2)
        repository = self.hub.repositories[f"{organisation}/{repository_name}"]
        if parse_qs(parts.query).get("X-Signature") != [SIGNATURE] or "Authorization" in self.headers:
            self.answer(400, b"two ways to authenticate, or none")  # as stores of signed addresses do
            return
        content = repository.lying_content.get(path, repository.files[path])
        self.answer_content(content, ignores_ranges=repository.ignores_ranges)


def _git_oid(content: bytes) -> str:
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()
