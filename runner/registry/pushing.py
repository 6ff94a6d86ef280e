"""OCI distribution, pushing side: what is there already, uploads in one piece or many, manifests.

Imports `asking.py`, whose requests these are. Everything blocks, for threads. A location that a registry
gives for an upload is checked like a redirect, by the door (S12).
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable
from typing import BinaryIO, Final
from urllib.parse import urlencode, urljoin

import attrs

from runner.domain.transfer import RemoteCredentials
from runner.errors import ContentMismatch, RegistryError, RegistryUnavailable, RunnerError
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.oci.reference import Reference
from runner.registry.abort import Abort
from runner.registry.asking import RegistryRequests
from runner.registry.pace import HEADERS_S
from runner.registry.refusals import code_of, error_of
from runner.registry.retrying import pause_before
from runner.registry.tokens import Scopes
from runner.registry.transport import Answer, StreamedBody

_RECEIVED: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_COMMIT_BYTES_PER_S: Final = 20 << 20  # a registry may read all of an upload again before it answers
_COMMIT_S: Final = 120.0
_WRONG_CONTENT: Final = (None, "DIGEST_INVALID", "SIZE_INVALID")

OpenSource = Callable[[int], BinaryIO]
"""The content as a file that stands at this offset."""


class RegistryPusher:
    """Pushes to the registry of one reference, as whom `given` or the user's credentials say."""

    def __init__(
        self,
        requests: RegistryRequests,
        reference: Reference,
        *,
        given: RemoteCredentials | None = None,
        abort: Abort | None = None,
    ) -> None:
        self._requests = requests
        self._reference = reference
        self._endpoint = requests.door.rules.endpoint(reference.registry)
        self._given = given
        self._abort = abort or Abort()
        self._scopes: Scopes = (f"repository:{reference.repository}:pull,push",)

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the repository has this content already. Raises what a request raises."""
        with self._ask("HEAD", self._blobs(str(descriptor.digest))) as answer:
            if answer.status == 404:
                return False
            if answer.status != 200:
                raise self._error(answer, "the content of the repository")
            return answer.content_length in (None, descriptor.size_bytes)

    def mount_blob(self, digest: Digest, from_repository: str) -> bool:
        """Whether the registry took the content over from another repository of its own.

        False when it did not, for whatever reason of its own. Raises what a request raises.
        """
        query = urlencode({"mount": str(digest), "from": from_repository})
        scopes = (*self._scopes, f"repository:{from_repository}:pull")
        with self._ask("POST", self._blobs(f"uploads/?{query}"), body=b"", scopes=scopes) as answer:
            status = answer.status
            location = answer.headers.get("Location")
        if status == 202 and location is not None:  # it began an upload instead
            self._cancel(urljoin(self._endpoint.url("/v2/"), location))
        return status == 201

    def upload_blob(
        self,
        descriptor: Descriptor,
        open_source: OpenSource,
        *,
        on_progress: Callable[[int], None] | None = None,
        chunk_bytes: int | None = None,
    ) -> None:
        """Send content of known digest and length, in one piece or, with `chunk_bytes`, in several.

        `on_progress` is told the bytes sent so far, which fall when a piece is sent again. In pieces an
        upload that breaks is continued where the registry says; in one piece it raises RegistryUnavailable.
        Raises ContentMismatch when the registry finds another digest, and what a request raises.
        """
        upload = self._begin()
        try:
            if chunk_bytes is None:
                body = StreamedBody(descriptor.size_bytes, lambda: open_source(0), on_progress)
                self._commit(upload, descriptor, body if descriptor.size_bytes else None)
            else:
                pieces = _Pieces(open_source, on_progress, max(chunk_bytes, upload.least_bytes))
                self._send_pieces(upload, descriptor.size_bytes, pieces)
                self._commit(upload, descriptor, None)
        except BaseException:
            self._cancel(upload.url)
            raise

    def put_manifest(self, content: bytes, media_type: str) -> Digest:
        """Publish a manifest under the reference's tag, or its digest when it has none; the digest.

        Raises ContentMismatch when the registry understood other bytes, and what a request raises.
        """
        digest = Digest.of(content)
        name = self._reference.tag or str(digest)
        url = self._endpoint.url(f"/v2/{self._reference.repository}/manifests/{name}")
        with self._ask("PUT", url, body=content, headers={"Content-Type": media_type}) as answer:
            if answer.status not in (200, 201, 202):
                raise self._error(answer, self._reference.familiar())
            told = answer.headers.get("Docker-Content-Digest")
            answer.discard()
        if told is not None and told != str(digest):
            raise ContentMismatch(
                f"{self._reference.registry} stored a manifest {told[:80]!r} instead of {digest}"
            )
        return digest

    def _begin(self) -> _Upload:
        base_url = self._endpoint.url("/v2/")
        with self._ask("POST", self._blobs("uploads/"), body=b"") as answer:
            if answer.status != 202:
                raise self._error(answer, f"an upload to {self._reference.repository}")
            least_bytes = answer.headers.get("OCI-Chunk-Min-Length", "")
            upload = _Upload(
                self._location(answer, base_url),
                least_bytes=int(least_bytes) if _is_number(least_bytes) else 0,
            )
            answer.discard()
        return upload

    def _location(self, answer: Answer, base_url: str) -> str:
        location = answer.headers.get("Location")
        if location is None:
            raise RegistryError(self._reference.registry, "it did not say where to upload to")
        try:
            return urljoin(base_url, location)
        except ValueError:
            raise RegistryError(self._reference.registry, "it named a location that cannot be read") from None

    def _commit(self, upload: _Upload, descriptor: Descriptor, body: StreamedBody | None) -> None:
        with self._ask(
            "PUT",
            _with_query(upload.url, digest=str(descriptor.digest)),
            body=b"" if body is None else body,
            headers={"Content-Type": "application/octet-stream"},
            head_s=_COMMIT_S + descriptor.size_bytes / _COMMIT_BYTES_PER_S,
        ) as answer:
            if answer.status == 400:
                raise self._commit_error(code_of(answer), descriptor)
            if answer.status not in (201, 204):
                raise self._error(answer, f"the content {descriptor.digest}")
            answer.discard()

    def _commit_error(self, code: str | None, descriptor: Descriptor) -> RunnerError:
        registry = self._reference.registry
        if code in _WRONG_CONTENT:
            return ContentMismatch(f"{registry} found other content than {descriptor.digest}")
        return RegistryError(
            registry, f"it refused the content {descriptor.digest} (400 Bad Request, {code})"
        )

    def _send_pieces(self, upload: _Upload, size_bytes: int, pieces: _Pieces) -> None:
        attempt = 1
        while upload.received_bytes < size_bytes:
            try:
                self._send_piece(upload, size_bytes, pieces)
                attempt = 1
            except RegistryUnavailable as error:
                attempt += 1
                chance = random.random()  # noqa: S311  # no secret hangs on it
                pause_s = pause_before(attempt, error, chance=chance)
                if pause_s is None:
                    raise
                self._abort.wait(pause_s)
                self._ask_how_much(upload, size_bytes)

    def _send_piece(self, upload: _Upload, size_bytes: int, pieces: _Pieces) -> None:
        start = upload.received_bytes
        end = min(start + pieces.size_bytes, size_bytes)
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{start}-{end - 1}"}
        with self._ask("PATCH", upload.url, body=pieces.body(start, end), headers=headers) as answer:
            if answer.status == 416:
                answer.discard()
                raise RegistryUnavailable(
                    self._reference.registry, "it has another part of the upload than was sent"
                )
            if answer.status not in (202, 204):
                raise self._upload_error(answer)
            upload.url = self._location(answer, upload.url)
            received_bytes = _received_bytes(answer, end)
            answer.discard()
        if received_bytes > end:
            raise RegistryError(self._reference.registry, "it has more of the upload than was sent")
        upload.received_bytes = received_bytes
        if received_bytes <= start:  # else it could be sent the same for ever
            raise RegistryUnavailable(self._reference.registry, "it kept nothing of what was sent")

    def _ask_how_much(self, upload: _Upload, size_bytes: int) -> None:
        """How much of the upload the registry has, and where it goes on, after a piece that failed."""
        with self._ask("GET", upload.url) as answer:
            if answer.status not in (200, 204):
                raise self._upload_error(answer)
            if answer.headers.get("Location") is not None:
                upload.url = self._location(answer, upload.url)
            upload.received_bytes = _received_bytes(answer, 0)
            answer.discard()
        if upload.received_bytes > size_bytes:
            raise RegistryError(self._reference.registry, "it has more of the upload than was sent")

    def _cancel(self, url: str) -> None:
        """Let the registry forget a begun upload; it forgets by itself in the end, so nothing is raised."""
        with contextlib.suppress(RunnerError), self._ask("DELETE", url, abort=Abort()) as answer:
            answer.discard()

    def _blobs(self, path: str) -> str:
        return self._endpoint.url(f"/v2/{self._reference.repository}/blobs/{path}")

    def _ask(
        self,
        method: str,
        url: str,
        *,
        body: bytes | StreamedBody | None = None,
        headers: dict[str, str] | None = None,
        scopes: Scopes | None = None,
        head_s: float = HEADERS_S,
        abort: Abort | None = None,
    ) -> Answer:
        return self._requests.ask(
            self._endpoint,
            method,
            url,
            scopes or self._scopes,
            given=self._given,
            abort=abort or self._abort,
            headers=headers,
            body=body,
            head_s=head_s,
        )

    def _upload_error(self, answer: Answer) -> RegistryError:
        if answer.status == 404:
            answer.discard()
            return RegistryUnavailable(self._reference.registry, "it has forgotten the upload")
        return self._error(answer, f"an upload to {self._reference.repository}")

    def _error(self, answer: Answer, what: str) -> RegistryError:
        return error_of(answer, what, login_name=self._reference.registry)


@attrs.define
class _Upload:
    """An upload that the registry has begun: where it goes on, and how much of it is there."""

    url: str
    received_bytes: int = 0
    least_bytes: int = 0
    """What the registry wants a piece, but the last, to have at least."""


@attrs.frozen
class _Pieces:
    """How content is cut: `size_bytes` a piece, but the last."""

    open_source: OpenSource
    on_progress: Callable[[int], None] | None
    size_bytes: int

    def body(self, start: int, end: int) -> StreamedBody:
        return StreamedBody(end - start, lambda: self.open_source(start), self._telling_from(start))

    def _telling_from(self, start: int) -> Callable[[int], None] | None:
        on_progress = self.on_progress
        return None if on_progress is None else lambda sent_bytes: on_progress(start + sent_bytes)


def _with_query(url: str, **added: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(added)}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12


def _received_bytes(answer: Answer, sent_bytes: int) -> int:
    """How much the registry has; all that was sent when it does not tell.

    `0-0` may be the first byte or nothing at all: the form has no other way to say the latter.
    """
    told = _RECEIVED.fullmatch(answer.headers.get("Range", ""))
    if told is None:
        return sent_bytes
    return int(told[1]) + 1 if int(told[1]) or sent_bytes == 1 else 0
