from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pytest

from runner.domain.transfer import RemoteCredentials
from runner.errors import (
    AddressRefused,
    ContentMismatch,
    RegistryDenied,
    RegistryError,
    RegistryUnauthorized,
    RegistryUnavailable,
    TransferAborted,
)
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.reference import Reference
from runner.registry.abort import Abort
from runner.registry.client import RegistryClient
from runner.registry.rules import NetworkRules
from tests.support.registry_client import registry_client
from tests.support.registry_server import RegistryServer, error_reply
from tests.support.scripted_http import FakeNetwork, Reply, Request, ScriptedServer
from tests.support.token_server import TokenServer

CONTENT = os.urandom(100_000)
BLOB = Descriptor.of(CONTENT, media_types.GGUF)


class Impatient(Abort):
    """Pauses take no time; they are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)


class Source:
    """The content, and the offsets it was opened at; every file must be closed."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.files: list[io.BytesIO] = []
        self.offsets: list[int] = []

    def __call__(self, offset: int) -> BinaryIO:
        file = io.BytesIO(self.content)
        file.seek(offset)
        self.files.append(file)
        self.offsets.append(offset)
        return file


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as started:
        yield started


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    with registry_client() as made:
        yield made


@pytest.mark.parametrize("chunk_bytes", [None, 100_001, 100_000, 99_999, 30_000, 1 << 12])
def test_content_arrives_in_one_piece_or_many(
    server: RegistryServer, client: RegistryClient, chunk_bytes: int | None
) -> None:
    source, progress = Source(), list[int]()
    client.upload_blob(server.reference(), BLOB, source, on_progress=progress.append, chunk_bytes=chunk_bytes)
    assert server.blobs[str(BLOB.digest)] == CONTENT
    assert progress[-1] == BLOB.size_bytes
    assert progress == sorted(progress)
    assert all(file.closed for file in source.files)
    assert server.open_uploads == 0


def test_the_memory_of_an_upload_is_one_small_piece(server: RegistryServer, client: RegistryClient) -> None:
    asked: list[int] = []

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            asked.append(size or 0)
            return super().read(size)

    client.upload_blob(server.reference(), BLOB, lambda _offset: Counted(CONTENT))
    assert max(asked) <= 1 << 16


@pytest.mark.parametrize("chunk_bytes", [None, 10])
def test_empty_content_is_uploaded(
    server: RegistryServer, client: RegistryClient, chunk_bytes: int | None
) -> None:
    empty = Descriptor.of(b"", "x")
    client.upload_blob(server.reference(), empty, Source(b""), chunk_bytes=chunk_bytes)
    assert server.blobs[str(empty.digest)] == b""


@pytest.mark.parametrize("size_bytes", [1, 2])
def test_the_first_byte_in_a_piece_of_its_own_is_not_sent_twice(
    server: RegistryServer, client: RegistryClient, size_bytes: int
) -> None:
    """`0-0` is how a registry tells of one byte, and of none."""
    tiny = Descriptor.of(b"ab"[:size_bytes], "x")
    client.upload_blob(server.reference(), tiny, Source(b"ab"[:size_bytes]), chunk_bytes=1)
    assert server.blobs[str(tiny.digest)] == b"ab"[:size_bytes]


def test_a_registry_that_wants_larger_pieces_gets_them(
    server: RegistryServer, client: RegistryClient
) -> None:
    server.least_chunk_bytes = 60_000
    client.upload_blob(server.reference(), BLOB, Source(), chunk_bytes=1000)
    sizes = [len(request.body) for request in server.requests if request.method == "PATCH"]
    assert sizes == [60_000, 40_000]


def failing(server: RegistryServer, *failures: Reply | Callable[[socket.socket], None]) -> None:
    """Answer the first pieces of an upload with these, and the others properly."""
    left = list(failures)
    server.before = lambda request: left.pop(0) if request.method == "PATCH" and left else None


def cut(connection: socket.socket) -> None:
    """No answer, and the end."""


def test_an_upload_in_pieces_goes_on_where_the_registry_says(
    server: RegistryServer, client: RegistryClient
) -> None:
    source, abort = Source(), Impatient()
    failing(server, cut, error_reply(503, "UNAVAILABLE", ("Retry-After", "7")), cut)
    client.upload_blob(server.reference(), BLOB, source, chunk_bytes=40_000, abort=abort)
    assert server.blobs[str(BLOB.digest)] == CONTENT
    assert len(abort.pauses) == 3
    assert abort.pauses[1] >= 7
    assert source.offsets == [0, 0, 0, 0, 40_000, 80_000]


def test_what_a_registry_did_not_keep_of_a_piece_is_sent_again(
    server: RegistryServer, client: RegistryClient
) -> None:
    source = Source()
    is_first = [True]

    def keep(request: Request) -> Reply | None:
        if request.method != "PATCH" or not is_first:
            return None
        is_first.clear()
        server.progress_of(request, request.body[:25_000])
        return Reply(202, b"", (("Location", f"{request.path}?state=25000"), ("Range", "0-24999")))

    server.before = keep
    client.upload_blob(server.reference(), BLOB, source, chunk_bytes=40_000)
    assert server.blobs[str(BLOB.digest)] == CONTENT
    assert source.offsets == [0, 25_000, 65_000]


@pytest.mark.parametrize("told", ["0-0", "0-40000"])
def test_S05_a_registry_that_keeps_nothing_is_not_sent_the_same_for_ever(
    server: RegistryServer, client: RegistryClient, told: str
) -> None:
    def before(request: Request) -> Reply | None:
        if request.method not in ("PATCH", "GET"):
            return None
        return Reply(
            202 if request.method == "PATCH" else 204, b"", (("Location", request.target), ("Range", told))
        )

    server.before = before
    abort = Impatient()
    with pytest.raises(RegistryError, match=r"kept nothing|more of the upload"):
        client.upload_blob(server.reference(), BLOB, Source(), chunk_bytes=40_000, abort=abort)
    assert len(abort.pauses) <= 4


def test_what_arrived_without_an_answer_is_not_sent_again(
    server: RegistryServer, client: RegistryClient
) -> None:
    source = Source()
    is_first = [True]

    def before(request: Request) -> Reply | Callable[[socket.socket], None] | None:
        if request.method == "PATCH" and is_first.pop() if is_first else False:
            server.progress_of(request, request.body[:25_000])
            return cut
        if request.method == "GET" and "uploads" in request.path:
            number = request.path.rpartition("/")[2]
            location = f"{request.path}?state=25000"
            assert number == "0"
            return Reply(204, b"", (("Location", location), ("Range", "0-24999")))
        return None

    server.before = before
    client.upload_blob(server.reference(), BLOB, source, chunk_bytes=40_000, abort=Impatient())
    assert server.blobs[str(BLOB.digest)] == CONTENT
    assert source.offsets == [0, 25_000, 65_000]


@pytest.mark.parametrize(("n_failures", "is_refused"), [(3, False), (4, False), (5, True)])
def test_S06_a_piece_is_sent_5_times_at_most(
    server: RegistryServer, client: RegistryClient, n_failures: int, is_refused: bool
) -> None:
    failing(server, *[error_reply(500, "UNKNOWN")] * n_failures)
    abort = Impatient()
    if is_refused:
        with pytest.raises(RegistryUnavailable, match="500"):
            client.upload_blob(server.reference(), BLOB, Source(), chunk_bytes=1 << 20, abort=abort)
        assert server.open_uploads == 0
    else:
        client.upload_blob(server.reference(), BLOB, Source(), chunk_bytes=1 << 20, abort=abort)
    assert len(abort.pauses) == min(n_failures, 4)


def test_a_piece_that_the_registry_has_already_is_skipped(
    server: RegistryServer, client: RegistryClient
) -> None:
    """Its answer was lost on the way: the next piece does not fit, and the registry says how far it is."""
    source = Source()
    failing(server, error_reply(416, "BLOB_UPLOAD_INVALID"))
    client.upload_blob(server.reference(), BLOB, source, chunk_bytes=40_000, abort=Impatient())
    assert server.blobs[str(BLOB.digest)] == CONTENT


def test_an_upload_that_the_registry_forgot_is_worth_another_attempt(
    server: RegistryServer, client: RegistryClient
) -> None:
    server.before = lambda request: (
        error_reply(404, "BLOB_UPLOAD_UNKNOWN") if request.method in ("PATCH", "GET") else None
    )
    with pytest.raises(RegistryUnavailable, match="forgotten the upload"):
        client.upload_blob(server.reference(), BLOB, Source(), chunk_bytes=40_000, abort=Impatient())


def test_a_400_that_does_not_speak_of_the_content_is_no_mismatch(
    server: RegistryServer, client: RegistryClient
) -> None:
    server.before = lambda request: error_reply(400, "NAME_INVALID") if request.method == "PUT" else None
    with pytest.raises(RegistryError, match="NAME_INVALID"):
        client.upload_blob(server.reference(), BLOB, Source())
    with pytest.raises(RegistryError, match="NAME_INVALID"):
        client.put_manifest(server.reference(), b"{}", media_types.IMAGE_MANIFEST)


def test_a_location_that_cannot_be_read_is_refused(server: RegistryServer, client: RegistryClient) -> None:
    server.before = lambda _request: Reply(202, b"", (("Location", "http://[::1/upload"),))
    with pytest.raises(RegistryError, match="cannot be read"):
        client.upload_blob(server.reference(), BLOB, Source())


def test_S06_a_piece_that_is_refused_is_not_sent_again(
    server: RegistryServer, client: RegistryClient
) -> None:
    failing(server, error_reply(403, "DENIED"))
    with pytest.raises(RegistryDenied):
        client.upload_blob(server.reference(), BLOB, Source(), chunk_bytes=1 << 20)
    assert server.open_uploads == 0


def test_S02_content_that_is_not_its_digest_is_refused_and_forgotten(
    server: RegistryServer, client: RegistryClient
) -> None:
    changed = b"x" + CONTENT[1:]
    for chunk_bytes in (None, 30_000):
        with pytest.raises(ContentMismatch, match=str(BLOB.digest)) as caught:
            client.upload_blob(server.reference(), BLOB, Source(changed), chunk_bytes=chunk_bytes)
        assert server.netloc in str(caught.value)
    assert server.blobs == {}
    assert server.open_uploads == 0


def test_a_transfer_that_is_given_up_leaves_no_upload(server: RegistryServer, client: RegistryClient) -> None:
    abort = Abort()

    def on_progress(sent_bytes: int) -> None:
        assert sent_bytes < BLOB.size_bytes
        abort.abort()

    with pytest.raises(TransferAborted):
        client.upload_blob(
            server.reference(), BLOB, Source(), on_progress=on_progress, chunk_bytes=1 << 20, abort=abort
        )
    assert server.open_uploads == 0


def test_what_the_repository_has_is_known(server: RegistryServer, client: RegistryClient) -> None:
    assert not client.has_blob(server.reference(), BLOB)
    server.add_blob(CONTENT)
    assert client.has_blob(server.reference(), BLOB)
    assert not client.has_blob(server.reference("ai/other:1"), BLOB)
    server.blobs[str(BLOB.digest)] = CONTENT[1:]
    assert not client.has_blob(server.reference(), BLOB)
    server.before = lambda _request: error_reply(500, "UNKNOWN")
    with pytest.raises(RegistryUnavailable):
        client.has_blob(server.reference(), BLOB)


def test_content_of_another_repository_is_mounted(server: RegistryServer, client: RegistryClient) -> None:
    server.add_blob(CONTENT, "ai/base")
    assert client.mount_blob(server.reference(), BLOB.digest, "ai/base")
    assert client.has_blob(server.reference(), BLOB)


def test_a_mount_that_becomes_an_upload_is_taken_back(server: RegistryServer, client: RegistryClient) -> None:
    assert not client.mount_blob(server.reference(), BLOB.digest, "ai/base")
    assert server.open_uploads == 0
    assert server.requests[-1].method == "DELETE"


@pytest.mark.parametrize("status", [400, 403, 404, 405, 500])
def test_a_mount_that_is_refused_is_no_failure(
    server: RegistryServer, client: RegistryClient, status: int
) -> None:
    server.before = lambda _request: error_reply(status, "NO")
    assert not client.mount_blob(server.reference(), BLOB.digest, "ai/base")


def test_a_manifest_is_published_under_its_tag_with_its_own_type(
    server: RegistryServer, client: RegistryClient
) -> None:
    content = Manifest.binding(b"{}", (), media_types.DOCKER_CONFIG_V01).encode()
    reference = server.reference()
    assert client.put_manifest(reference, content, media_types.IMAGE_MANIFEST) == Digest.of(content)
    assert server.manifests["ai/tiny", "1"] == (content, media_types.IMAGE_MANIFEST)
    assert client.resolve(reference).content == content


def test_a_manifest_without_a_tag_is_published_under_its_digest(
    server: RegistryServer, client: RegistryClient
) -> None:
    digest = Digest.of(b"manifest")
    reference = Reference(registry=server.netloc, repository="ai/tiny", tag=None, digest=digest)
    client.put_manifest(reference, b"manifest", media_types.IMAGE_MANIFEST)
    assert server.paths("PUT") == [f"/v2/ai/tiny/manifests/{digest}"]


def test_S02_a_manifest_that_the_registry_stored_otherwise_is_told(
    server: RegistryServer, client: RegistryClient
) -> None:
    other = Digest.of(b"other")
    server.before = lambda _request: Reply(201, b"", (("Docker-Content-Digest", str(other)),))
    with pytest.raises(ContentMismatch, match=str(other)):
        client.put_manifest(server.reference(), b"{}", media_types.IMAGE_MANIFEST)


def test_the_wrong_login_is_told_before_anything_is_sent() -> None:
    with RegistryServer(password="canary") as server, registry_client() as client:
        source = Source()
        with pytest.raises(RegistryUnauthorized, match="runner ctl login"):
            client.upload_blob(server.reference(), BLOB, source)
        assert source.offsets == []


def test_a_push_asks_for_a_token_that_may_push_and_a_mount_for_both_repositories() -> None:
    tokens = TokenServer()
    rules = NetworkRules(allowed_private=frozenset({"127.0.0.1"}))
    with tokens, RegistryServer(tokens=tokens) as server, registry_client(rules) as client:
        client.upload_blob(server.reference(), BLOB, Source(), chunk_bytes=30_000)
        client.mount_blob(server.reference(), BLOB.digest, "ai/base")
        assert sorted(tokens.scopes.values()) == [
            ("repository:ai/tiny:pull,push",),
            ("repository:ai/tiny:pull,push", "repository:ai/base:pull"),
        ]


@pytest.mark.parametrize("chunk_bytes", [None, 40_000])
def test_a_token_that_ends_in_mid_push_is_fetched_anew(chunk_bytes: int | None) -> None:
    tokens = TokenServer()
    rules = NetworkRules(allowed_private=frozenset({"127.0.0.1"}))
    with tokens, RegistryServer(tokens=tokens) as server, registry_client(rules) as client:

        def before(request: Request) -> None:
            if request.method == "POST":
                revoke_next.append(True)
            elif revoke_next and request.method in ("PATCH", "PUT"):
                revoke_next.clear()
                tokens.revoke()

        revoke_next: list[bool] = []
        server.before = before
        source = Source()
        client.upload_blob(server.reference(), BLOB, source, chunk_bytes=chunk_bytes)
        assert server.blobs[str(BLOB.digest)] == CONTENT
        assert source.offsets[:2] == [0, 0]


# S12: where registries want uploads


@pytest.mark.parametrize(
    "location",
    ["http://10.0.0.1/upload", "http://inner.example/upload", "http://127.0.0.1:1/upload", "file:///upload"],
)
def test_S12_an_upload_location_is_checked_like_a_redirect(server: RegistryServer, location: str) -> None:
    server.before = lambda _request: Reply(202, b"", (("Location", location),))
    network = FakeNetwork({"inner.example": ("10.0.0.1",)})
    with registry_client(network=network) as client:
        source = Source()
        with pytest.raises(RegistryError):
            client.upload_blob(server.reference(), BLOB, source)
        with pytest.raises(AddressRefused) if "file" not in location else pytest.raises(RegistryError):
            client.upload_blob(server.reference(), BLOB, source, chunk_bytes=1000)
        assert not client.mount_blob(server.reference(), BLOB.digest, "ai/base")
    assert source.offsets == []
    assert set(network.dialled) == {"127.0.0.1"}


def test_S12_an_upload_elsewhere_gets_the_content_and_no_credentials() -> None:
    with ScriptedServer(lambda _request: Reply(201)) as storage, RegistryServer(password="canary") as server:
        location = "http://storage.example/upload?signature=1"

        def before(request: Request) -> Reply | None:
            is_known = request.headers.get("authorization", "").startswith("Basic")
            return Reply(202, b"", (("Location", location),)) if is_known else None

        server.before = before
        network = FakeNetwork({"storage.example": ("93.184.216.34",)}, {"93.184.216.34": storage.port})
        logins = {server.netloc: RemoteCredentials(username="user", password="canary")}
        with registry_client(network=network, logins=logins) as client:
            client.upload_blob(server.reference(), BLOB, Source())
        (request,) = storage.requests
        assert request.body == CONTENT
        assert request.query == {"signature": "1", "digest": str(BLOB.digest)}
        assert "authorization" not in request.headers


def test_an_upload_without_a_location_is_refused(server: RegistryServer, client: RegistryClient) -> None:
    server.before = lambda _request: Reply(202)
    with pytest.raises(RegistryError, match="where to upload"):
        client.upload_blob(server.reference(), BLOB, Source())


@pytest.mark.parametrize("told", ["0-99999999", "bytes=0-100000", "0-100000"])
def test_a_registry_that_claims_to_have_more_than_was_sent_is_refused(
    server: RegistryServer, client: RegistryClient, told: str
) -> None:
    def before(request: Request) -> Reply | Callable[[socket.socket], None] | None:
        if request.method == "PATCH":
            return cut
        if request.method == "GET":
            return Reply(204, b"", (("Range", told),))
        return None

    server.before = before
    with pytest.raises(RegistryError, match="more of the upload than was sent"):
        client.upload_blob(server.reference(), BLOB, Source(), chunk_bytes=1000, abort=Impatient())
