"""OCI distribution, both directions: what a registry is asked for, and what of its answers is believed.

Each method is one attempt: it raises RegistryUnavailable when another may help, and the caller decides with
`retrying.pause_before`. Everything blocks, for threads, and ends early through an Abort. Imports the door,
asking and oci. Pushing in detail: `pushing.py`; the protocol: the OCI distribution specification 1.1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

import attrs
import orjson

from runner.domain.transfer import RemoteCredentials
from runner.errors import (
    ContentMismatch,
    InvalidManifest,
    RegistryError,
    RegistryUnauthorized,
    RegistryUnavailable,
    UnsupportedArtifact,
)
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import MANIFEST_BYTES_MAX, Descriptor, Manifest
from runner.oci.model_config import CONFIG_BYTES_MAX
from runner.oci.reference import Reference
from runner.registry import platforms
from runner.registry.abort import Abort
from runner.registry.asking import RegistryRequests
from runner.registry.blob_body import BlobBody, checked_range, checked_whole
from runner.registry.pushing import OpenSource, RegistryPusher
from runner.registry.refusals import error_of
from runner.registry.rules import Endpoint
from runner.registry.tokens import FindsCredentials, Scopes
from runner.registry.transport import Door

_MANIFEST_TYPES: Final = f"{media_types.IMAGE_MANIFEST}, {media_types.IMAGE_INDEX}"
_MIRROR_REST_S: Final = 60.0  # so long a mirror that failed is left alone
_TAGS_MAX: Final = 10_000

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class RemoteManifest:
    """A manifest as a registry has it. `content` are its very bytes, whose digest is `digest`."""

    digest: Digest
    media_type: str
    content: bytes = attrs.field(repr=False)
    manifest: Manifest = attrs.field(repr=False)


class RegistryClient:
    """Talks to every registry, as whom the credentials say. Thread-safe.

    `given` on a method are credentials that came with one request and win over all others; they go to the
    registry itself, never to its mirrors.
    """

    def __init__(
        self, door: Door, credentials: FindsCredentials, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._door = door
        self._clock = clock
        self._requests = RegistryRequests(door, credentials, clock=clock)
        self._resting_mirrors: dict[Endpoint, float] = {}

    # Pulling

    def resolve(
        self, reference: Reference, *, given: RemoteCredentials | None = None, abort: Abort | None = None
    ) -> RemoteManifest:
        """The manifest a reference means now, verified; of an index, the one for this machine.

        Raises RemoteModelNotFound, UnsupportedArtifact for what is no model, InvalidManifest, ContentMismatch
        when the content is not what a digest announced or tag and digest disagree, and what a request raises.
        """
        try:
            return self._first_answering(
                reference,
                given,
                lambda endpoint, own: self._resolve_at(endpoint, reference, own, abort or Abort()),
            )
        except InvalidManifest as error:
            raise InvalidManifest(f"{reference.registry}: {reference.familiar()}: {error}") from None

    def read_small(
        self,
        reference: Reference,
        descriptor: Descriptor,
        limit_bytes: int,
        *,
        given: RemoteCredentials | None = None,
        abort: Abort | None = None,
    ) -> bytes:
        """The whole content of a small blob, such as a config, verified.

        Raises InvalidManifest when the descriptor announces more than the limit, ContentMismatch, and what a
        request raises.
        """
        if descriptor.size_bytes > limit_bytes:
            raise InvalidManifest(
                f"content of {descriptor.size_bytes} bytes where {limit_bytes} are the limit"
            )
        what = f"the content {descriptor.digest} of {reference.familiar()}"
        buffer = bytearray(descriptor.size_bytes)
        with self.open_blob(
            reference, descriptor.digest, descriptor.size_bytes, given=given, abort=abort
        ) as body:
            view = memoryview(buffer)
            while read_bytes := body.readinto(view):
                view = view[read_bytes:]
            body.readinto(bytearray(1))  # nothing more may come
        content = bytes(buffer)
        if Digest.of(content) != descriptor.digest:
            raise ContentMismatch(f"{reference.registry} sent other bytes than {what}")
        return content

    def open_blob(
        self,
        reference: Reference,
        digest: Digest,
        size_bytes: int,
        *,
        start: int = 0,
        end: int | None = None,
        given: RemoteCredentials | None = None,
        abort: Abort | None = None,
    ) -> BlobBody:
        """The bytes from `start` to before `end` of a blob of this size, the whole without both; close it.

        Raises RangeRefused when a range was asked for and something else came (ask for the whole then),
        ContentMismatch when the whole has another length, RemoteModelNotFound, and what a request raises. The
        bytes are not verified here.
        """
        end = size_bytes if end is None else end
        if not (0 <= start < end <= size_bytes or start == end == size_bytes == 0):
            raise ValueError(f"no range of {size_bytes} bytes: {start} to {end}")
        return self._first_answering(
            reference,
            given,
            lambda endpoint, own: self._open_blob_at(
                endpoint, reference, digest, size_bytes, start, end, own, abort or Abort()
            ),
        )

    def tags(
        self, reference: Reference, *, given: RemoteCredentials | None = None, abort: Abort | None = None
    ) -> tuple[str, ...]:
        """The tags of a repository, as many as fit into one small answer."""
        endpoint = self._door.rules.endpoint(reference.registry)
        path = f"/v2/{reference.repository}/tags/list"
        with self._requests.ask(
            endpoint, "GET", endpoint.url(path), pull_scope(reference), given=given, abort=abort
        ) as answer:
            if answer.status != 200:
                raise error_of(answer, reference.repository, login_name=reference.registry)
            content = answer.read_small()
        try:
            tags = orjson.loads(content)["tags"] or []
            return tuple(tag for tag in tags[:_TAGS_MAX] if isinstance(tag, str))
        except (ValueError, LookupError, TypeError):
            raise RegistryError(reference.registry, "its list of tags cannot be read") from None

    def check_login(
        self, registry: str, credentials: RemoteCredentials | None, *, abort: Abort | None = None
    ) -> None:
        """Returns when the registry takes these credentials (None: those that are found, or none).

        Raises RegistryUnauthorized when it does not, RegistryError when it is no registry, and what a request
        raises.
        """
        endpoint = self._door.rules.endpoint(registry)
        with self._requests.ask(
            endpoint, "GET", endpoint.url("/v2/"), (), given=credentials, abort=abort
        ) as answer:
            if answer.status == 401:
                raise RegistryUnauthorized(registry, "it does not accept the credentials")
            if answer.status == 404:
                raise RegistryError(registry, "there is no registry at this address (404 Not Found)")
            if answer.status != 200:
                raise error_of(answer, "the login", login_name=registry)
            answer.discard()

    # Pushing

    def has_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        *,
        given: RemoteCredentials | None = None,
        abort: Abort | None = None,
    ) -> bool:
        """Whether the reference's repository has this content already. Raises what a request raises."""
        return self._pusher(reference, given, abort).has_blob(descriptor)

    def mount_blob(
        self,
        reference: Reference,
        digest: Digest,
        from_repository: str,
        *,
        given: RemoteCredentials | None = None,
        abort: Abort | None = None,
    ) -> bool:
        """Whether the registry took the content over from another repository of its own, without an upload.

        False when it did not, for whatever reason of its own. Raises what a request raises.
        """
        return self._pusher(reference, given, abort).mount_blob(digest, from_repository)

    def upload_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        open_source: OpenSource,
        *,
        given: RemoteCredentials | None = None,
        on_progress: Callable[[int], None] | None = None,
        abort: Abort | None = None,
        chunk_bytes: int | None = None,
    ) -> None:
        """Send content of known digest and length, in one piece or, with `chunk_bytes`, in several.

        `open_source(offset)` gives the content as a file that stands at this offset; it may be asked for
        more than once, and is closed. `on_progress` is told the bytes sent so far, which fall when a piece is
        sent again. In pieces an upload that breaks is continued where the registry says, five times without
        progress at most; in one piece it raises RegistryUnavailable. Raises ContentMismatch when the registry
        finds another digest, and what a request raises.
        """
        self._pusher(reference, given, abort).upload_blob(
            descriptor, open_source, on_progress=on_progress, chunk_bytes=chunk_bytes
        )

    def put_manifest(
        self,
        reference: Reference,
        content: bytes,
        media_type: str,
        *,
        given: RemoteCredentials | None = None,
        abort: Abort | None = None,
    ) -> Digest:
        """Publish a manifest under the reference's tag, or under its digest without one; the digest.

        Raises ContentMismatch when the registry understood other bytes, and what a request raises.
        """
        return self._pusher(reference, given, abort).put_manifest(content, media_type)

    def _pusher(
        self, reference: Reference, given: RemoteCredentials | None, abort: Abort | None
    ) -> RegistryPusher:
        return RegistryPusher(self._requests, reference, given=given, abort=abort)

    def _first_answering(
        self,
        reference: Reference,
        given: RemoteCredentials | None,
        operation: Callable[[Endpoint, RemoteCredentials | None], T],
    ) -> T:
        """The result from the first mirror that gives one, else from the registry itself."""
        *mirrors, own = self._door.rules.pull_endpoints(reference.registry)
        for mirror in mirrors:
            if self._resting_mirrors.get(mirror, 0.0) > self._clock():
                continue
            try:
                return operation(mirror, None)
            except RegistryUnavailable:
                self._resting_mirrors[mirror] = self._clock() + _MIRROR_REST_S
            except (RegistryError, InvalidManifest, ContentMismatch):
                continue  # what a mirror lacks or has wrong, the registry may have right
        return operation(own, given)

    def _resolve_at(
        self, endpoint: Endpoint, reference: Reference, given: RemoteCredentials | None, abort: Abort
    ) -> RemoteManifest:
        content, media_type = self._read_manifest(endpoint, reference, reference.digest, given, abort)
        if reference.digest is not None and reference.tag is not None:
            self._raise_if_moved(endpoint, reference, given, abort)
        if media_type == media_types.IMAGE_INDEX:
            entry = platforms.choose(content, platforms.this_platform(), registry=reference.registry)
            content, media_type = self._read_manifest(endpoint, reference, entry.digest, given, abort)
            if len(content) != entry.size_bytes:
                raise ContentMismatch(
                    f"{endpoint.registry}: the manifest {entry.digest} has {len(content)} bytes, "
                    f"its index says {entry.size_bytes}"
                )
        if media_type != media_types.IMAGE_MANIFEST:
            raise UnsupportedArtifact(endpoint.registry, f"{reference.familiar()} is no OCI image manifest")
        manifest = Manifest.parse(content)
        _raise_unless_model(manifest, endpoint, reference)
        return RemoteManifest(
            digest=Digest.of(content), media_type=media_type, content=content, manifest=manifest
        )

    def _read_manifest(
        self,
        endpoint: Endpoint,
        reference: Reference,
        digest: Digest | None,
        given: RemoteCredentials | None,
        abort: Abort,
    ) -> tuple[bytes, str]:
        """The bytes of a manifest or index and its media type; by digest when there is one, else by tag."""
        url = endpoint.url(f"/v2/{reference.repository}/manifests/{digest or reference.tag}")
        headers = {"Accept": _MANIFEST_TYPES}
        with self._requests.ask(
            endpoint, "GET", url, pull_scope(reference), given=given, abort=abort, headers=headers
        ) as answer:
            if answer.status != 200:
                raise error_of(answer, reference.familiar(), login_name=endpoint.login_name)
            content = answer.read_small(MANIFEST_BYTES_MAX)
            announced = answer.headers.get("Docker-Content-Digest")
            content_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        found = Digest.of(content)
        if (digest is not None and found != digest) or (announced is not None and announced != str(found)):
            raise ContentMismatch(
                f"{endpoint.registry} sent a manifest with the digest {found} for {digest or 'another one'}"
            )
        return content, _media_type(content, content_type)

    def _raise_if_moved(
        self, endpoint: Endpoint, reference: Reference, given: RemoteCredentials | None, abort: Abort
    ) -> None:
        """A reference with tag and digest must agree on both."""
        content, _ = self._read_manifest(endpoint, reference, None, given, abort)
        if Digest.of(content) != reference.digest:
            raise ContentMismatch(
                f"{endpoint.registry}: the tag {reference.tag} means {Digest.of(content)} now, "
                f"not {reference.digest}; leave the tag out to get the latter"
            )

    def _open_blob_at(
        self,
        endpoint: Endpoint,
        reference: Reference,
        digest: Digest,
        size_bytes: int,
        start: int,
        end: int,
        given: RemoteCredentials | None,
        abort: Abort,
    ) -> BlobBody:
        is_range = (start, end) != (0, size_bytes)
        answer = self._requests.ask(
            endpoint,
            "GET",
            endpoint.url(f"/v2/{reference.repository}/blobs/{digest}"),
            pull_scope(reference),
            given=given,
            abort=abort,
            headers={"Range": f"bytes={start}-{end - 1}"} if is_range else None,
            is_small=False,
        )
        what = f"the content {digest}"
        if is_range and answer.status in (200, 206, 416):
            checked_range(answer, start=start, end=end, size_bytes=size_bytes)
        elif answer.status != 200:
            raise error_of(answer, what, login_name=endpoint.login_name)
        else:
            checked_whole(answer, size_bytes=size_bytes, what=what)
        return BlobBody(answer, what=what, start=start, end=end)


def pull_scope(reference: Reference) -> Scopes:
    return (f"repository:{reference.repository}:pull",)


def _media_type(content: bytes, content_type: str) -> str:
    """What the document says it is, which must be what the answer said; InvalidManifest."""
    try:
        own = orjson.loads(content).get("mediaType")
    except (ValueError, AttributeError):
        raise InvalidManifest("the manifest is not strict JSON") from None
    known = (media_types.IMAGE_MANIFEST, media_types.IMAGE_INDEX)
    if own is not None and content_type in known and own != content_type:
        raise InvalidManifest("the manifest is of another media type than the registry said")
    return str(own or content_type)


def _raise_unless_model(manifest: Manifest, endpoint: Endpoint, reference: Reference) -> None:
    if manifest.config.media_type not in media_types.READABLE_CONFIGS:
        raise UnsupportedArtifact(
            endpoint.registry,
            f"{reference.familiar()} is no model; its config is {manifest.config.media_type[:100]!r}, "
            f"and those of models are {', '.join(sorted(media_types.READABLE_CONFIGS))}",
        )
    if manifest.config.size_bytes > CONFIG_BYTES_MAX:
        raise InvalidManifest(
            f"a config of {manifest.config.size_bytes} bytes; the limit is {CONFIG_BYTES_MAX}"
        )
