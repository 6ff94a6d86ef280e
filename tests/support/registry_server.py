"""An OCI registry in memory, in threads, on loopback: ranges, uploads, mounts, tokens, passwords, faults.

Small, and as strict about what clients send as a registry may be. `before` sees every request first and may
answer it instead: that is how tests make it fail, lie, or send elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import ssl
from collections.abc import Callable

import attrs

from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.reference import Reference
from tests.support.scripted_http import Reply, Request, ScriptedServer, Talk
from tests.support.token_server import TokenServer

_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]+)")
_PATH = re.compile(r"/v2/(?P<repository>[a-z0-9/._-]+?)/(?P<kind>manifests|blobs|tags)/(?P<name>.+)")


@attrs.define
class _Upload:
    repository: str
    content: bytearray = attrs.field(factory=bytearray)


def json_reply(status: int, document: object, *headers: tuple[str, str]) -> Reply:
    return Reply(status, json.dumps(document).encode(), (("Content-Type", "application/json"), *headers))


def error_reply(status: int, code: str, *headers: tuple[str, str]) -> Reply:
    return json_reply(status, {"errors": [{"code": code, "message": "what a server says"}]}, *headers)


class RegistryServer(ScriptedServer):
    """`blobs` by digest, for all repositories; `linked` says which repository has which.

    `password` wants Basic authentication as `user`; `tokens` wants tokens of that server.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        password: str | None = None,
        tokens: TokenServer | None = None,
        has_ranges: bool = True,
    ) -> None:
        super().__init__(self._answer, tls=tls)
        self.password = password
        self.tokens = tokens
        self.has_ranges = has_ranges
        self.blobs: dict[str, bytes] = {}
        self.linked: set[tuple[str, str]] = set()
        self.manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self.before: Callable[[Request], Reply | Talk | None] = lambda _request: None
        self.least_chunk_bytes: int | None = None
        self._uploads: dict[str, _Upload] = {}
        self._numbers = itertools.count()

    # What tests put in

    def reference(self, name: str = "ai/tiny:1") -> Reference:
        return Reference.parse(f"{self.netloc}/{name}")

    def add_blob(self, content: bytes, repository: str = "ai/tiny") -> Digest:
        digest = Digest.of(content)
        self.blobs[str(digest)] = content
        self.linked.add((repository, str(digest)))
        return digest

    def add_manifest(
        self, content: bytes, media_type: str, *names: str, repository: str = "ai/tiny"
    ) -> Digest:
        digest = Digest.of(content)
        for name in (*names, str(digest)):
            self.manifests[repository, name] = (content, media_type)
        return digest

    def add_model(self, *layers: bytes, tag: str = "1", repository: str = "ai/tiny") -> Manifest:
        config = b'{"config":{"format":"gguf"},"descriptor":{},"rootfs":{"type":"rootfs","diff_ids":[]}}'
        for content in (config, *layers):
            self.add_blob(content, repository)
        descriptors = tuple(Descriptor.of(layer, media_types.GGUF) for layer in layers)
        manifest = Manifest.binding(config, descriptors, media_types.DOCKER_CONFIG_V01)
        self.add_manifest(manifest.encode(), media_types.IMAGE_MANIFEST, tag, repository=repository)
        return manifest

    def paths(self, method: str = "GET") -> list[str]:
        """The paths of the requests with this method, in order."""
        return [request.path for request in self.requests if request.method == method]

    # What it answers

    def _answer(self, request: Request) -> Reply | Talk:
        instead = self.before(request)
        if instead is not None:
            return instead
        refused = self._challenge(request)
        if refused is not None:
            return refused
        if request.path == "/v2/":
            return json_reply(200, {})
        found = _PATH.fullmatch(request.path)
        if found is None:
            return error_reply(404, "UNSUPPORTED")
        repository, kind, name = found["repository"], found["kind"], found["name"]
        if kind == "tags":
            return self._tags(repository)
        if kind == "manifests":
            return self._manifest(request, repository, name)
        if name == "uploads/":
            return self._begin(request, repository)
        if name.startswith("uploads/"):
            return self._upload(request, name.removeprefix("uploads/"))
        return self._blob(request, repository, name)

    def _challenge(self, request: Request) -> Reply | None:
        given = request.headers.get("authorization", "")
        if self.password is not None:
            wanted = "Basic " + base64.b64encode(f"user:{self.password}".encode()).decode()
            if given != wanted:
                return error_reply(401, "UNAUTHORIZED", ("WWW-Authenticate", 'Basic realm="a registry"'))
        if self.tokens is not None:
            scope = _scope(request)
            if not self.tokens.is_valid(given.removeprefix("Bearer "), scope):
                challenge = f'Bearer realm="{self.tokens.realm}",service="{self.tokens.service}"'
                challenge += f',scope="{scope}"' if scope else ""
                return error_reply(401, "UNAUTHORIZED", ("WWW-Authenticate", challenge))
        return None

    def _tags(self, repository: str) -> Reply:
        tags = [name for owner, name in self.manifests if owner == repository and ":" not in name]
        return json_reply(200, {"name": repository, "tags": tags})

    def _manifest(self, request: Request, repository: str, name: str) -> Reply:
        if request.method == "PUT":
            digest = self.add_manifest(
                request.body, request.headers["content-type"], name, repository=repository
            )
            return Reply(201, b"", (("Docker-Content-Digest", str(digest)),))
        found = self.manifests.get((repository, name))
        if found is None:
            return error_reply(404, "MANIFEST_UNKNOWN")
        content, media_type = found
        return Reply(
            200,
            content,
            (("Content-Type", media_type), ("Docker-Content-Digest", str(Digest.of(content)))),
        )

    def _blob(self, request: Request, repository: str, name: str) -> Reply:
        content = self.blobs.get(name)
        if content is None or (repository, name) not in self.linked:
            return error_reply(404, "BLOB_UNKNOWN")
        wanted = _RANGE.fullmatch(request.headers.get("range", ""))
        if wanted is None or not self.has_ranges:
            return Reply(200, content)
        start, last = int(wanted[1]), int(wanted[2])
        if start >= len(content):
            return error_reply(416, "RANGE_INVALID")
        piece = content[start : last + 1]
        told = f"bytes {start}-{start + len(piece) - 1}/{len(content)}"
        return Reply(206, piece, (("Content-Range", told),))

    def _begin(self, request: Request, repository: str) -> Reply:
        digest = request.query.get("mount")
        if digest is not None and (request.query["from"], digest) in self.linked:
            self.linked.add((repository, digest))
            return Reply(201, b"", (("Location", f"/v2/{repository}/blobs/{digest}"),))
        number = str(next(self._numbers))
        self._uploads[number] = _Upload(repository)
        least = self.least_chunk_bytes
        headers = [("Location", f"/v2/{repository}/blobs/uploads/{number}?state=0"), ("Range", "0-0")]
        if least is not None:
            headers.append(("OCI-Chunk-Min-Length", str(least)))
        return Reply(202, b"", tuple(headers))

    def _upload(self, request: Request, number: str) -> Reply:
        upload = self._uploads.get(number)
        if upload is None or request.query.get("state") != str(len(upload.content)):
            return error_reply(404, "BLOB_UPLOAD_UNKNOWN")
        match request.method:
            case "DELETE":
                del self._uploads[number]
                return Reply(204)
            case "PATCH":
                start = int(request.headers["content-range"].partition("-")[0])
                if start != len(upload.content):
                    return error_reply(416, "BLOB_UPLOAD_INVALID")
                upload.content += request.body
                return self._progress(202, number, upload)
            case "PUT":
                return self._commit(request, number, upload)
        return self._progress(204, number, upload)

    def progress_of(self, request: Request, content: bytes) -> None:
        """Let an upload have content that its sender does not know to have arrived."""
        upload = self._uploads[request.path.rpartition("/")[2]]
        upload.content += content

    def _progress(self, status: int, number: str, upload: _Upload) -> Reply:
        location = f"/v2/{upload.repository}/blobs/uploads/{number}?state={len(upload.content)}"
        return Reply(status, b"", (("Location", location), ("Range", f"0-{max(0, len(upload.content) - 1)}")))

    def _commit(self, request: Request, number: str, upload: _Upload) -> Reply:
        upload.content += request.body
        digest = f"sha256:{hashlib.sha256(upload.content).hexdigest()}"
        del self._uploads[number]
        if digest != request.query["digest"]:
            return error_reply(400, "DIGEST_INVALID")
        self.blobs[digest] = bytes(upload.content)
        self.linked.add((upload.repository, digest))
        return Reply(201, b"", (("Docker-Content-Digest", digest),))

    @property
    def open_uploads(self) -> int:
        return len(self._uploads)


def _scope(request: Request) -> str:
    found = _PATH.fullmatch(request.path)
    if found is None:
        return ""
    actions = "pull" if request.method in ("GET", "HEAD") and "uploads" not in request.path else "pull,push"
    return f"repository:{found['repository']}:{actions}"
