from __future__ import annotations

import json
from collections.abc import Iterator

import attrs
import pytest

from runner.domain.transfer import RemoteCredentials
from runner.errors import (
    ContentMismatch,
    InvalidManifest,
    RegistryDenied,
    RegistryError,
    RegistryUnauthorized,
    RegistryUnavailable,
    RemoteModelNotFound,
    RunnerError,
    UnsupportedArtifact,
)
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import MANIFEST_BYTES_MAX, Manifest
from runner.oci.model_config import CONFIG_BYTES_MAX
from runner.registry.client import RegistryClient
from runner.registry.platforms import this_platform
from runner.registry.rules import NetworkRules
from tests.support.registry_client import read_all, registry_client
from tests.support.registry_server import RegistryServer, error_reply
from tests.support.scripted_http import Reply


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as started:
        yield started


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    with registry_client() as made:
        yield made


# Resolving


def test_a_tag_is_resolved_to_the_very_bytes_of_its_manifest(
    server: RegistryServer, client: RegistryClient
) -> None:
    manifest = server.add_model(b"weights")
    found = client.resolve(server.reference())
    assert found.content == manifest.encode()
    assert found.digest == Digest.of(found.content)
    assert found.manifest == manifest
    assert found.media_type == media_types.IMAGE_MANIFEST


def test_S16_content_is_asked_for_by_digest_after_the_tag_was_resolved_once(
    server: RegistryServer, client: RegistryClient
) -> None:
    manifest = server.add_model(b"weights")
    found = client.resolve(server.reference())
    (layer,) = found.manifest.layers
    assert read_all(client, server.reference(), layer.digest, layer.size_bytes) == b"weights"
    client.read_small(server.reference(), manifest.config, CONFIG_BYTES_MAX)
    assert [path for path in server.paths() if path.endswith("/1")] == ["/v2/ai/tiny/manifests/1"]
    assert all("sha256:" in path for path in server.paths()[1:])


def test_a_digest_is_resolved_without_its_tag(server: RegistryServer, client: RegistryClient) -> None:
    manifest = server.add_model(b"weights")
    digest = Digest.of(manifest.encode())
    found = client.resolve(server.reference(f"ai/tiny@{digest}"))
    assert found.digest == digest
    assert server.paths() == [f"/v2/ai/tiny/manifests/{digest}"]


def test_tag_and_digest_must_agree(server: RegistryServer, client: RegistryClient) -> None:
    old = Digest.of(server.add_model(b"old").encode())
    new = Digest.of(server.add_model(b"new").encode())
    assert client.resolve(server.reference(f"ai/tiny:1@{new}")).digest == new
    with pytest.raises(ContentMismatch, match=f"the tag 1 means {new} now, not {old}"):
        client.resolve(server.reference(f"ai/tiny:1@{old}"))


def test_S02_a_manifest_that_is_not_its_digest_names_both_and_the_registry(
    server: RegistryServer, client: RegistryClient
) -> None:
    wanted = Digest.of(b"other")
    content = server.add_model(b"weights").encode()
    server.manifests["ai/tiny", str(wanted)] = (content, media_types.IMAGE_MANIFEST)
    with pytest.raises(ContentMismatch) as caught:
        client.resolve(server.reference(f"ai/tiny@{wanted}"))
    for named in (str(wanted), str(Digest.of(content)), server.netloc):
        assert named in str(caught.value)


def test_S02_a_manifest_whose_announced_digest_is_another_is_refused(
    server: RegistryServer, client: RegistryClient
) -> None:
    content = server.add_model(b"weights").encode()
    headers = (("Content-Type", media_types.IMAGE_MANIFEST), ("Docker-Content-Digest", str(Digest.of(b"x"))))
    server.before = lambda _request: Reply(200, content, headers)
    with pytest.raises(ContentMismatch):
        client.resolve(server.reference())


def padded_manifest(size_bytes: int) -> bytes:
    """A valid manifest of exactly this length."""
    manifest = Manifest.binding(b"{}", (), media_types.DOCKER_CONFIG_V01)
    document = json.loads(manifest.encode())
    document["annotations"] = {"padding": ""}
    empty = json.dumps(document)
    document["annotations"]["padding"] = "x" * (size_bytes - len(empty))
    return json.dumps(document).encode()


@pytest.mark.parametrize("excess", [-1, 0])
def test_S03_a_manifest_up_to_4_mib_is_read(
    server: RegistryServer, client: RegistryClient, excess: int
) -> None:
    content = padded_manifest(MANIFEST_BYTES_MAX + excess)
    server.add_manifest(content, media_types.IMAGE_MANIFEST, "1")
    assert client.resolve(server.reference()).content == content


@pytest.mark.parametrize("is_chunked", [False, True])
def test_S03_a_manifest_above_4_mib_is_refused(
    server: RegistryServer, client: RegistryClient, is_chunked: bool
) -> None:
    content = padded_manifest(MANIFEST_BYTES_MAX + 1)
    server.before = lambda _request: Reply(
        200, content, (("Content-Type", media_types.IMAGE_MANIFEST),), is_chunked=is_chunked
    )
    with pytest.raises(RegistryError, match=f"the limit (is|of) {MANIFEST_BYTES_MAX}|limit of"):
        client.resolve(server.reference())


def manifest_with(server: RegistryServer, **changes: object) -> None:
    document = json.loads(server.add_model(b"weights").encode())
    document.update(changes)
    server.add_manifest(json.dumps(document).encode(), media_types.IMAGE_MANIFEST, "1")


@pytest.mark.parametrize("size", [-1, 1 << 63, 1.5, "7", None, True])
def test_S03_a_layer_of_impossible_size_is_refused(
    server: RegistryServer, client: RegistryClient, size: object
) -> None:
    layer: dict[str, object] = {"mediaType": media_types.GGUF, "digest": str(Digest.of(b"x"))}
    if size is not None:
        layer["size"] = size
    manifest_with(server, layers=[layer])
    with pytest.raises(InvalidManifest):
        client.resolve(server.reference())


@pytest.mark.parametrize(("n_layers", "is_refused"), [(1023, False), (1024, False), (1025, True)])
def test_S03_more_than_1024_layers_are_refused(
    server: RegistryServer, client: RegistryClient, n_layers: int, is_refused: bool
) -> None:
    layer = {"mediaType": media_types.LICENSE, "digest": str(Digest.of(b"x")), "size": 1}
    manifest_with(server, layers=[layer] * n_layers)
    if is_refused:
        with pytest.raises(InvalidManifest, match="1025"):
            client.resolve(server.reference())
    else:
        assert len(client.resolve(server.reference()).manifest.layers) == n_layers


@pytest.mark.parametrize(
    ("size_bytes", "is_refused"),
    [(CONFIG_BYTES_MAX - 1, False), (CONFIG_BYTES_MAX, False), (CONFIG_BYTES_MAX + 1, True)],
)
def test_S03_a_config_above_1_mib_is_refused_before_anything_is_downloaded(
    server: RegistryServer, client: RegistryClient, size_bytes: int, is_refused: bool
) -> None:
    config = {"mediaType": media_types.DOCKER_CONFIG_V01, "digest": str(Digest.of(b"x")), "size": size_bytes}
    manifest_with(server, config=config)
    if is_refused:
        with pytest.raises(InvalidManifest, match=str(CONFIG_BYTES_MAX)):
            client.resolve(server.reference())
        assert not [path for path in server.paths() if "/blobs/" in path]
    else:
        client.resolve(server.reference())


def test_what_is_no_model_is_told_apart_from_what_is_not_there(
    server: RegistryServer, client: RegistryClient
) -> None:
    config = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": str(Digest.of(b"x")),
        "size": 1,
    }
    manifest_with(server, config=config)
    with pytest.raises(
        UnsupportedArtifact, match=r"no model; its config is 'application/vnd\.oci\.image.*v0\.2\+json"
    ):
        client.resolve(server.reference())
    with pytest.raises(RemoteModelNotFound, match="MANIFEST_UNKNOWN"):
        client.resolve(server.reference("ai/tiny:2"))


def test_a_manifest_of_another_media_type_than_the_registry_said_is_refused(
    server: RegistryServer, client: RegistryClient
) -> None:
    content = server.add_model(b"weights").encode()
    server.add_manifest(content, media_types.IMAGE_INDEX, "1")
    with pytest.raises(InvalidManifest, match="another media type"):
        client.resolve(server.reference())


@pytest.mark.parametrize("content", [b"", b"text", b"[]", b"null", b"\xff", b"{" * 100_000])
def test_what_is_no_manifest_is_refused(
    server: RegistryServer, client: RegistryClient, content: bytes
) -> None:
    server.add_manifest(content, media_types.IMAGE_MANIFEST, "1")
    with pytest.raises(InvalidManifest):
        client.resolve(server.reference())


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"tags": 5}', b"text"])
def test_a_list_of_tags_that_is_none_is_told(
    server: RegistryServer, client: RegistryClient, body: bytes
) -> None:
    server.before = lambda _request: Reply(200, body)
    with pytest.raises(RegistryError, match="tags cannot be read"):
        client.tags(server.reference())
    server.before = lambda _request: error_reply(404, "NAME_UNKNOWN")
    with pytest.raises(RemoteModelNotFound):
        client.tags(server.reference())


# Indexes


def add_index(server: RegistryServer, *entries: dict[str, object]) -> None:
    document = {"schemaVersion": 2, "mediaType": media_types.IMAGE_INDEX, "manifests": list(entries)}
    server.add_manifest(json.dumps(document).encode(), media_types.IMAGE_INDEX, "1")


def entry_of(manifest: Manifest, **more: object) -> dict[str, object]:
    content = manifest.encode()
    descriptor = {
        "mediaType": media_types.IMAGE_MANIFEST,
        "digest": str(Digest.of(content)),
        "size": len(content),
    }
    return {**descriptor, **more}


def test_of_an_index_the_manifest_for_this_machine_is_taken(
    server: RegistryServer, client: RegistryClient
) -> None:
    other, mine = server.add_model(b"other", tag="a"), server.add_model(b"mine", tag="b")
    wanted = attrs.asdict(this_platform())
    add_index(
        server,
        entry_of(other, platform={"os": "plan9", "architecture": "mips"}),
        entry_of(mine, platform=wanted),
    )
    assert client.resolve(server.reference()).content == mine.encode()


def test_of_an_index_the_only_manifest_is_taken_whatever_its_platform(
    server: RegistryServer, client: RegistryClient
) -> None:
    model = server.add_model(b"other", tag="a")
    attestation = server.add_model(b"attestation", tag="b")
    add_index(
        server,
        entry_of(model, platform={"os": "plan9", "architecture": "mips"}),
        entry_of(attestation, annotations={"vnd.docker.reference.type": "attestation-manifest"}),
    )
    assert client.resolve(server.reference()).content == model.encode()


def test_an_index_for_other_machines_only_tells_which(server: RegistryServer, client: RegistryClient) -> None:
    one, two = server.add_model(b"one", tag="a"), server.add_model(b"two", tag="b")
    add_index(
        server,
        entry_of(one, platform={"os": "plan9", "architecture": "mips"}),
        entry_of(two, platform={"os": "beos", "architecture": "ppc"}),
    )
    with pytest.raises(UnsupportedArtifact, match="it has beos/ppc, plan9/mips"):
        client.resolve(server.reference())


def test_S03_an_index_within_an_index_is_refused(server: RegistryServer, client: RegistryClient) -> None:
    entry = entry_of(server.add_model(b"one", tag="a"))
    add_index(server, {**entry, "mediaType": media_types.IMAGE_INDEX})
    with pytest.raises(InvalidManifest, match=rf"^{server.netloc}: {server.netloc}/.*another index"):
        client.resolve(server.reference())


def test_S03_an_index_behind_a_manifest_entry_is_not_followed(
    server: RegistryServer, client: RegistryClient
) -> None:
    inner = json.dumps({"schemaVersion": 2, "mediaType": media_types.IMAGE_INDEX, "manifests": []}).encode()
    digest = server.add_manifest(inner, media_types.IMAGE_INDEX)
    add_index(server, {"mediaType": media_types.IMAGE_MANIFEST, "digest": str(digest), "size": len(inner)})
    with pytest.raises(UnsupportedArtifact):
        client.resolve(server.reference())


@pytest.mark.parametrize(("n_entries", "is_refused"), [(1023, False), (1024, False), (1025, True)])
def test_S03_an_index_of_more_than_1024_entries_is_refused(
    server: RegistryServer, client: RegistryClient, n_entries: int, is_refused: bool
) -> None:
    model = server.add_model(b"one", tag="a")
    entry = entry_of(model, platform=attrs.asdict(this_platform()))
    add_index(server, *[entry] * n_entries)
    if is_refused:
        with pytest.raises(InvalidManifest, match="1025 entries"):
            client.resolve(server.reference())
    else:
        assert client.resolve(server.reference()).manifest == model


def test_S02_a_manifest_of_another_length_than_its_index_says_is_refused(
    server: RegistryServer, client: RegistryClient
) -> None:
    entry = entry_of(server.add_model(b"one", tag="a"))
    add_index(server, {**entry, "size": 7})
    with pytest.raises(ContentMismatch, match="its index says 7"):
        client.resolve(server.reference())


# Errors


@pytest.mark.parametrize(
    ("status", "code", "expected", "words"),
    [
        (401, "UNAUTHORIZED", RegistryUnauthorized, "runner ctl login 127.0.0.1"),
        (403, "DENIED", RegistryDenied, "runner ctl login 127.0.0.1"),
        (404, "NAME_UNKNOWN", RemoteModelNotFound, "NAME_UNKNOWN"),
        (400, "NAME_INVALID", RegistryError, "400 Bad Request, NAME_INVALID"),
        (408, "SLOW", RegistryError, "408"),
        (429, "TOOMANYREQUESTS", RegistryUnavailable, "429 Too Many Requests, TOOMANYREQUESTS"),
        (500, "UNKNOWN", RegistryUnavailable, "500 Internal Server Error, UNKNOWN"),
        (503, "UNAVAILABLE", RegistryUnavailable, "503 Service Unavailable"),
        (599, "UNAVAILABLE", RegistryUnavailable, "599"),
    ],
)
def test_each_status_has_its_error_and_the_registrys_reason(
    server: RegistryServer,
    client: RegistryClient,
    status: int,
    code: str,
    expected: type[RunnerError],
    words: str,
) -> None:
    server.before = lambda _request: error_reply(status, code)
    with pytest.raises(expected) as caught:
        client.resolve(server.reference())
    assert type(caught.value) is expected
    assert words in str(caught.value)
    assert server.netloc in str(caught.value)
    assert "what a server says" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'{"errors":[]}', b'{"errors":[{"code":"\\u001b[31mRED"}]}', b"{" * 100_000],
)
def test_an_error_without_a_proper_code_is_told_by_its_status(
    server: RegistryServer, client: RegistryClient, body: bytes
) -> None:
    server.before = lambda _request: Reply(404, body)
    with pytest.raises(RemoteModelNotFound, match=r"\(404 Not Found\)$"):
        client.resolve(server.reference())


@pytest.mark.parametrize(("status", "waits_s"), [(429, 7.0), (503, 7.0)])
def test_S06_what_the_registry_asks_to_wait_is_told_to_the_caller(
    server: RegistryServer, client: RegistryClient, status: int, waits_s: float
) -> None:
    server.before = lambda _request: error_reply(status, "TOOMANYREQUESTS", ("Retry-After", "7"))
    with pytest.raises(RegistryUnavailable) as caught:
        client.resolve(server.reference())
    assert caught.value.retry_after_s == waits_s
    assert len(server.requests) == 1


def test_a_registry_that_is_not_there_is_unavailable(client: RegistryClient) -> None:
    with RegistryServer() as server:
        reference = server.reference()
    with pytest.raises(RegistryUnavailable, match="Connection refused"):
        client.resolve(reference)


def test_tags_are_listed(server: RegistryServer, client: RegistryClient) -> None:
    server.add_model(b"one", tag="a")
    server.add_model(b"two", tag="b")
    assert client.tags(server.reference()) == ("a", "b")


# Mirrors


@pytest.fixture
def mirror() -> Iterator[RegistryServer]:
    with RegistryServer() as started:
        yield started


def test_a_mirror_is_asked_first_and_the_registry_for_what_it_lacks(
    server: RegistryServer, mirror: RegistryServer
) -> None:
    with registry_client(NetworkRules(mirrors={server.netloc: (mirror.url,)})) as client:
        manifest = server.add_model(b"weights")
        assert client.resolve(server.reference()).manifest == manifest
        mirror.add_model(b"weights")
        (layer,) = manifest.layers
        assert read_all(client, server.reference(), layer.digest, layer.size_bytes) == b"weights"
    assert len(mirror.requests) == 2
    assert server.paths() == ["/v2/ai/tiny/manifests/1"]


def test_a_mirror_that_fails_is_left_alone_for_a_while(
    server: RegistryServer, mirror: RegistryServer
) -> None:
    server.add_model(b"weights")
    mirror.before = lambda _request: error_reply(503, "UNAVAILABLE")
    with registry_client(NetworkRules(mirrors={server.netloc: (mirror.netloc,)})) as client:
        for _ in range(3):
            client.resolve(server.reference())
    assert len(mirror.requests) == 1
    assert len(server.requests) == 3


def test_a_mirror_never_sees_credentials_given_for_the_registry(mirror: RegistryServer) -> None:
    mirror.password = "else"
    with RegistryServer(password="secret") as server:
        server.add_model(b"weights")
        with registry_client(NetworkRules(mirrors={server.netloc: (f"{mirror.url}/v2/",)})) as client:
            given = RemoteCredentials(username="user", password="secret")
            client.resolve(server.reference(), given=given)
    assert [request.headers.get("authorization") for request in mirror.requests] == [None]


def test_a_mirror_gets_the_login_that_is_kept_for_it() -> None:
    login = RemoteCredentials(username="user", password="canary")
    with RegistryServer() as server, RegistryServer(password="canary") as mirror:
        mirror.add_model(b"weights")
        rules = NetworkRules(mirrors={server.netloc: (mirror.url,)})
        with registry_client(rules, logins={mirror.netloc: login}) as client:
            client.resolve(server.reference())
        assert server.requests == []


def test_a_lying_mirror_is_passed_over(server: RegistryServer, mirror: RegistryServer) -> None:
    digest = Digest.of(server.add_model(b"weights").encode())
    mirror.manifests["ai/tiny", str(digest)] = (b"{}", media_types.IMAGE_MANIFEST)
    with registry_client(NetworkRules(mirrors={server.netloc: (mirror.url,)})) as client:
        assert client.resolve(server.reference(f"ai/tiny@{digest}")).digest == digest
    assert len(mirror.requests) == 1
