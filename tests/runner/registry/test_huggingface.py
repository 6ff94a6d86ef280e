"""Models of a hub, against a scripted one on loopback: what is asked, with which secret, and the outcome."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

import attrs
import pytest

from runner.domain.transfer import RemoteCredentials
from runner.errors import (
    AddressRefused,
    ContentMismatch,
    CredentialsFailed,
    InvalidManifest,
    InvalidReference,
    RangeRefused,
    RegistryDenied,
    RegistryError,
    RegistryUnauthorized,
    RegistryUnavailable,
    RemoteModelNotFound,
    TransferAborted,
    UnsupportedArtifact,
)
from runner.oci.digest import Digest
from runner.oci.reference import Reference
from runner.registry.abort import Abort
from runner.registry.addresses import Place
from runner.registry.hub_documents import FILES_MAX, PAGES_MAX
from runner.registry.hub_selection import PLAIN_FILE_BYTES_MAX, HubFile
from runner.registry.huggingface import DEFAULT_ENDPOINT, Hub, HubSelection, is_hub, repository_as_typed
from runner.registry.rules import BadUrl, NetworkRules
from runner.registry.transport import Door
from tests.support.hub import SIGNATURE, ScriptedHub, ScriptedRepository, scripted_hub

NAME = "Org/Tiny-GGUF"
TYPED = "hf.co/Org/Tiny-GGUF:Q8_0"
WEIGHTS = bytes(range(256)) * 40
LICENSE = b"Do as you like.\n"
TOKEN = "hf_tokenCanary41"


@pytest.fixture
def hub() -> Iterator[ScriptedHub]:
    with scripted_hub() as running:
        yield running


@pytest.fixture
def door(hub: ScriptedHub) -> Iterator[Door]:
    content_host = urlsplit(hub.content_url).netloc
    opened = Door(NetworkRules(allowed_private=frozenset({content_host})))
    yield opened
    opened.close()


@pytest.fixture
def client(hub: ScriptedHub, door: Door) -> Hub:
    return Hub(door, endpoint=hub.url)


@pytest.fixture
def tiny(hub: ScriptedHub) -> ScriptedRepository:
    files = {
        "Tiny-Q8_0.gguf": WEIGHTS,
        "Tiny-Q4_0.gguf": WEIGHTS[:512],
        "LICENSE": LICENSE,
        "README.md": b"# Tiny",
        "sub/evil.py": b"import os",
    }
    return hub.add(ScriptedRepository(name=NAME, files=files))


def resolve(client: Hub, text: str = TYPED, given: RemoteCredentials | None = None) -> HubSelection:
    return client.resolve(Reference.parse(text), source_text=text, given=given)


def content(
    client: Hub, selection: HubSelection, file: HubFile, start: int = 0, end: int | None = None
) -> bytes:
    body = client.open_file(selection, file, start=start, end=end)
    received = bytearray()
    buffer = memoryview(bytearray(3000))
    try:
        while size_bytes := body.readinto(buffer):
            received += buffer[:size_bytes]
    finally:
        body.close()
    return bytes(received)


# what is chosen


def test_a_repository_becomes_files_with_hashes_of_one_commit(client: Hub, tiny: ScriptedRepository) -> None:
    selection = resolve(client)
    assert [file.path for file in selection.files] == ["Tiny-Q8_0.gguf", "LICENSE"]
    assert selection.files[0].sha256 == Digest.of(WEIGHTS)
    assert selection.size_bytes == len(WEIGHTS) + len(LICENSE)
    assert (selection.revision, selection.repository) == (tiny.revision, NAME)
    assert (selection.quantization, selection.created_s) == ("Q8_0", 1772600767)
    assert selection.annotations() == {
        "org.opencontainers.image.revision": tiny.revision,
        "org.opencontainers.image.source": "https://huggingface.co/Org/Tiny-GGUF",
    }


def test_S16_everything_comes_from_the_commit_that_the_branch_was_resolved_to(
    hub: ScriptedHub, client: Hub, tiny: ScriptedRepository
) -> None:
    selection = resolve(client)
    for file in selection.files:
        content(client, selection, file)
    asked = [request.target.partition("?")[0] for request in hub.seen()]
    assert asked == [
        f"/api/models/{NAME}/revision/main",
        f"/api/models/{NAME}/tree/{tiny.revision}",
        f"/{NAME}/resolve/{tiny.revision}/Tiny-Q8_0.gguf",
        f"/{NAME}/resolve/{tiny.revision}/LICENSE",
    ]


def test_S16_a_branch_that_moves_meanwhile_changes_nothing(client: Hub, tiny: ScriptedRepository) -> None:
    selection = resolve(client)
    tiny.revision = "f" * 40
    with pytest.raises(RemoteModelNotFound):
        content(client, selection, selection.files[0])


def test_the_same_revision_gives_the_same_selection(client: Hub, tiny: ScriptedRepository) -> None:
    assert resolve(client) == resolve(client)


def test_the_case_that_was_typed_reaches_the_hub(client: Hub, tiny: ScriptedRepository) -> None:
    reference = Reference.parse(TYPED)
    assert client.resolve(reference, source_text="huggingface.co/Org/Tiny-GGUF:Q8_0").repository == NAME
    with pytest.raises(RemoteModelNotFound, match="upper and lower case count"):
        client.resolve(reference, source_text=None)


@pytest.mark.parametrize(
    ("source_text", "repository"),
    [
        ("hf.co/Org/Tiny-GGUF:Q8_0", "Org/Tiny-GGUF"),
        ("HF.co/ORG/tiny-gguf", "ORG/tiny-gguf"),
        (" huggingface.co/org/Tiny-gguf", "org/Tiny-gguf"),
        ("hf.co/other/thing", "org/tiny-gguf"),
        (None, "org/tiny-gguf"),
    ],
)
def test_what_was_typed_is_used_when_it_is_that_repository(source_text: str | None, repository: str) -> None:
    assert repository_as_typed(Reference.parse("hf.co/org/tiny-gguf:Q8_0"), source_text) == repository


@pytest.mark.parametrize("text", ["hf.co/gpt2", "hf.co/a/b/c"])
def test_what_is_no_organisation_with_a_repository_is_refused_before_the_hub_is_asked(
    hub: ScriptedHub, client: Hub, text: str
) -> None:
    with pytest.raises(InvalidReference, match="organisation/repository"):
        resolve(client, text)
    assert hub.requests == []


def test_a_model_of_a_hub_cannot_be_asked_for_by_digest(hub: ScriptedHub, client: Hub) -> None:
    with pytest.raises(InvalidReference, match="no digest"):
        resolve(client, f"hf.co/Org/Tiny-GGUF@{Digest.of(b'')}")
    assert hub.requests == []


def test_a_repository_that_has_moved_is_found_and_that_is_told(hub: ScriptedHub, client: Hub) -> None:
    files = {"a-Q8_0.gguf": WEIGHTS}
    hub.add(ScriptedRepository(name="New/Tiny-GGUF", files=files))
    hub.add(ScriptedRepository(name=NAME, files={}, moved_to="New/Tiny-GGUF"))
    selection = resolve(client)
    assert selection.repository == "New/Tiny-GGUF"
    assert selection.notes == ("Org/Tiny-GGUF is called New/Tiny-GGUF now",)
    assert content(client, selection, selection.files[0]) == WEIGHTS


def test_references_of_the_hub_are_told_from_those_of_registries() -> None:
    assert is_hub(Reference.parse("hf.co/a/b"))
    assert is_hub(Reference.parse("huggingface.co/a/b"))
    assert not is_hub(Reference.parse("docker.io/a/b"))
    assert Hub(Door(NetworkRules())).endpoint == DEFAULT_ENDPOINT


def test_a_repository_of_safetensors_is_refused_with_what_can_be_loaded(
    hub: ScriptedHub, client: Hub
) -> None:
    hub.add(ScriptedRepository(name=NAME, files={"model.safetensors": b"x", "config.json": b"{}"}))
    with pytest.raises(UnsupportedArtifact, match=r"\.safetensors only; GGUF files can be loaded"):
        resolve(client)


def test_an_unknown_quantisation_lists_those_there_are(client: Hub, tiny: ScriptedRepository) -> None:
    with pytest.raises(RemoteModelNotFound, match="'Q5_K_M'; it has Q4_0, Q8_0"):
        resolve(client, "hf.co/Org/Tiny-GGUF:Q5_K_M")


# long listings


def test_a_listing_of_more_than_a_thousand_files_is_read_to_its_end(hub: ScriptedHub, client: Hub) -> None:
    many = {f"notes/{index:04}.txt": b"x" for index in range(2100)}
    hub.add(ScriptedRepository(name=NAME, files={**many, "z/Tiny-Q8_0.gguf": WEIGHTS}))
    assert [file.path for file in resolve(client).files] == ["z/Tiny-Q8_0.gguf"]
    assert len([request for request in hub.seen() if "/tree/" in request.target]) == 3


def test_S07_the_next_page_is_asked_of_the_users_own_endpoint_wherever_the_link_leads(
    hub: ScriptedHub, client: Hub, tiny: ScriptedRepository
) -> None:
    hub.page_size = 3
    hub.next_link = f"{hub.content_url}/steal?cursor=3"
    resolve(client, given=RemoteCredentials(bearer_token=TOKEN))
    assert hub.seen("content") == []
    assert [request.target for request in hub.seen()][-1].endswith("?recursive=true&cursor=3")


def test_a_listing_without_end_is_given_up(hub: ScriptedHub, client: Hub, tiny: ScriptedRepository) -> None:
    hub.page_size = 1
    hub.next_link = f"{hub.url}/x?cursor=0"
    with pytest.raises(InvalidManifest, match="more than 100 pages"):
        resolve(client)
    assert len(hub.requests) == 1 + PAGES_MAX


def test_S03_a_listing_of_too_many_files_is_given_up(hub: ScriptedHub, client: Hub) -> None:
    weights = [{"type": "file", "path": "a.gguf", "size": 1, "oid": "0" * 40}]
    many = [{"type": "file", "path": f"{index:05}"} for index in range(FILES_MAX - 1)]
    tiny = hub.add(ScriptedRepository(name=NAME, files={}, listed=[*many, *weights]))
    hub.page_size = 50_000
    assert [file.path for file in resolve(client, "hf.co/Org/Tiny-GGUF").files] == ["a.gguf"]
    tiny.listed = [*many, *weights, *weights]
    with pytest.raises(InvalidManifest, match=f"more than {FILES_MAX} files"):
        resolve(client, "hf.co/Org/Tiny-GGUF")


# content


def test_large_files_come_from_where_the_hub_redirects_to_and_ranges_with_them(
    hub: ScriptedHub, client: Hub, tiny: ScriptedRepository
) -> None:
    selection = resolve(client)
    weights = selection.files[0]
    assert content(client, selection, weights) == WEIGHTS
    assert content(client, selection, weights, 100, 5000) == WEIGHTS[100:5000]
    assert content(client, selection, weights, 5000, len(WEIGHTS)) == WEIGHTS[5000:]
    assert [request.headers.get("range") for request in hub.seen("content")] == [
        None,
        "bytes=100-4999",
        f"bytes=5000-{len(WEIGHTS) - 1}",
    ]


def test_S20_a_hub_that_ignores_ranges_is_not_read_as_one(client: Hub, tiny: ScriptedRepository) -> None:
    tiny.ignores_ranges = True
    selection = resolve(client)
    with pytest.raises(RangeRefused):
        client.open_file(selection, selection.files[0], start=100)


def test_S16_S02_a_small_file_is_checked_against_the_hash_the_hub_publishes(
    client: Hub, tiny: ScriptedRepository
) -> None:
    selection = resolve(client)
    license_file = selection.files[1]
    assert license_file.sha256 is None
    assert client.read_file(selection, license_file) == LICENSE
    tiny.lying_content["LICENSE"] = LICENSE.swapcase()
    with pytest.raises(ContentMismatch, match=r"huggingface\.co: 'LICENSE' is not what Org/Tiny-GGUF lists"):
        client.read_file(selection, license_file)


@pytest.mark.parametrize("lie", [LICENSE + b"x", LICENSE[:-1], b""])
def test_S02_content_of_another_length_is_refused(client: Hub, tiny: ScriptedRepository, lie: bytes) -> None:
    selection = resolve(client)
    tiny.lying_content["LICENSE"] = lie
    with pytest.raises(ContentMismatch, match=r"huggingface\.co announced"):
        client.read_file(selection, selection.files[1])


@pytest.mark.parametrize("lie", [WEIGHTS + b"x", WEIGHTS[:-1]])
def test_S02_weights_of_another_length_are_refused(client: Hub, tiny: ScriptedRepository, lie: bytes) -> None:
    selection = resolve(client)
    tiny.lying_content["Tiny-Q8_0.gguf"] = lie
    with pytest.raises(ContentMismatch, match=r"huggingface\.co announced"):
        content(client, selection, selection.files[0])


def test_weights_outside_large_storage_are_small_or_refused(hub: ScriptedHub, client: Hub) -> None:
    name = "a.gguf"
    tiny = hub.add(ScriptedRepository(name=NAME, files={name: WEIGHTS}, plain=frozenset({name})))
    selection = resolve(client, "hf.co/Org/Tiny-GGUF")
    assert client.read_file(selection, selection.files[0]) == WEIGHTS
    tiny.false_sizes[name] = PLAIN_FILE_BYTES_MAX
    resolve(client, "hf.co/Org/Tiny-GGUF")
    tiny.false_sizes[name] = PLAIN_FILE_BYTES_MAX + 1
    with pytest.raises(UnsupportedArtifact, match="without a SHA-256"):
        resolve(client, "hf.co/Org/Tiny-GGUF")


def test_S13_names_are_quoted_in_addresses(hub: ScriptedHub, client: Hub) -> None:
    hub.add(ScriptedRepository(name=NAME, files={"d e/Tiny#1 ü&-Q8_0.gguf": WEIGHTS}))
    selection = resolve(client)
    assert content(client, selection, selection.files[0]) == WEIGHTS
    assert "/d%20e/Tiny%231%20%C3%BC%26-Q8_0.gguf" in hub.seen()[-1].target


def test_a_transfer_that_was_given_up_asks_nothing(hub: ScriptedHub, client: Hub) -> None:
    abort = Abort()
    abort.abort()
    with pytest.raises(TransferAborted):
        client.resolve(Reference.parse(TYPED), abort=abort)
    assert hub.requests == []


# secrets and refusals


def test_S08_the_token_goes_to_the_hub_and_not_to_where_it_redirects(
    hub: ScriptedHub, door: Door, tiny: ScriptedRepository
) -> None:
    tiny.token = TOKEN
    client = Hub(door, endpoint=hub.url, token=f" {TOKEN}\n")
    selection = resolve(client)
    assert content(client, selection, selection.files[0]) == WEIGHTS
    assert {request.headers["authorization"] for request in hub.seen()} == {f"Bearer {TOKEN}"}
    assert all("authorization" not in request.headers for request in hub.seen("content"))
    assert len(hub.seen("content")) == 1


def test_a_token_of_the_request_goes_before_the_users_own(
    hub: ScriptedHub, door: Door, tiny: ScriptedRepository
) -> None:
    tiny.token = TOKEN
    client = Hub(door, endpoint=hub.url, token="hf_other")
    selection = resolve(client, given=RemoteCredentials(bearer_token=TOKEN))
    assert client.read_file(selection, selection.files[1]) == LICENSE


def test_S08_a_redirect_to_a_host_that_nobody_allowed_is_refused(
    hub: ScriptedHub, tiny: ScriptedRepository
) -> None:
    door = Door(NetworkRules())
    client = Hub(door, endpoint=hub.url)
    selection = resolve(client)
    with pytest.raises(AddressRefused):
        client.open_file(selection, selection.files[0])
    door.close()
    assert hub.seen("content") == []


def test_K08_a_token_is_not_sent_in_the_clear(hub: ScriptedHub) -> None:
    def never(place: Place, timeout_s: float) -> socket.socket:
        raise AssertionError("nothing may be sent")

    public = ip_address("93.184.216.34")
    door = Door(NetworkRules(), resolve=lambda host, port: (Place(public, port),), dial=never)
    with pytest.raises(AddressRefused, match="plain http"):
        resolve(Hub(door, endpoint="http://mirror.example", token=TOKEN))
    door.close()


@pytest.mark.parametrize(
    ("gated", "token", "error", "says"),
    [
        (
            True,
            None,
            RegistryUnauthorized,
            r"gated: ask for access at https://huggingface\.co/Org/Tiny-GGUF.*HF_TOKEN",
        ),
        (True, "hf_wrong", RegistryDenied, "not open to the owner of this HF_TOKEN"),
        (False, None, RemoteModelNotFound, "does not exist, or is private and needs HF_TOKEN"),
        (False, "hf_wrong", RegistryDenied, "not open to this HF_TOKEN"),
    ],
)
def test_a_refusal_says_what_to_do(
    hub: ScriptedHub,
    door: Door,
    tiny: ScriptedRepository,
    gated: bool,
    token: str | None,
    error: type[Exception],
    says: str,
) -> None:
    tiny.token, tiny.gated = TOKEN, gated
    with pytest.raises(error, match=says) as caught:
        resolve(Hub(door, endpoint=hub.url, token=token))
    assert "hf_wrong" not in str(caught.value)


def test_a_repository_that_is_not_there_is_not_found_with_or_without_a_token(
    hub: ScriptedHub, door: Door
) -> None:
    with pytest.raises(RemoteModelNotFound, match="does not exist"):
        resolve(Hub(door, endpoint=hub.url))
    with pytest.raises(RegistryUnauthorized, match="does not exist, or is not for this HF_TOKEN"):
        resolve(Hub(door, endpoint=hub.url, token=TOKEN))


def test_S06_an_overloaded_hub_is_worth_another_attempt_when_it_says(
    hub: ScriptedHub, client: Hub, tiny: ScriptedRepository
) -> None:
    for status, headers, pause_s in [(429, {"Retry-After": "7"}, 7.0), (503, {}, None)]:
        hub.failures.append((status, headers))
        with pytest.raises(RegistryUnavailable, match=f"it answered {status}") as caught:
            resolve(client)
        assert caught.value.retry_after_s == pause_s
    hub.failures.append((418, {}))
    with pytest.raises(RegistryError, match="it answered 418 for Org/Tiny-GGUF") as final:
        resolve(client)
    assert not isinstance(final.value, RegistryUnavailable)


@pytest.mark.parametrize("status", [403, 404, 429, 500])
def test_S06_what_the_content_host_refuses_is_worth_another_attempt_with_a_new_signature(
    hub: ScriptedHub, client: Hub, tiny: ScriptedRepository, status: int
) -> None:
    selection = resolve(client)
    hub.content_failures.append((status, {"Retry-After": "3"}))
    with pytest.raises(RegistryUnavailable, match=rf"127\.0\.0\.1:\d+, which answered {status}") as caught:
        content(client, selection, selection.files[0])
    assert caught.value.retry_after_s == 3
    assert SIGNATURE not in str(caught.value)
    assert content(client, selection, selection.files[0]) == WEIGHTS


def test_K01_no_secret_shows_in_what_is_printed(
    hub: ScriptedHub, door: Door, tiny: ScriptedRepository
) -> None:
    tiny.token = TOKEN
    client = Hub(door, endpoint=hub.url, token=TOKEN)
    selection = resolve(client, given=RemoteCredentials(bearer_token=TOKEN))
    for shown in client, selection, attrs.asdict(selection.files[0]):
        assert TOKEN not in repr(shown)


@pytest.mark.parametrize("token", ["hf_a b", "hf_\n\nX-Evil: 1", "hf_ü"])
def test_a_token_that_no_header_can_hold_is_refused_without_showing_it(door: Door, token: str) -> None:
    with pytest.raises(CredentialsFailed) as caught:
        Hub(door, token=token)
    assert token not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://h", "https://user:pw@h", ""])
def test_an_endpoint_that_is_no_plain_url_is_refused(door: Door, endpoint: str) -> None:
    with pytest.raises(BadUrl):
        Hub(door, endpoint=endpoint)


def test_an_endpoint_may_lie_below_a_path(hub: ScriptedHub, door: Door, tiny: ScriptedRepository) -> None:
    with pytest.raises(RemoteModelNotFound):
        resolve(Hub(door, endpoint=f"{hub.url}/mirror/"))
    assert hub.seen()[0].target.startswith("/mirror/api/models/Org/Tiny-GGUF/revision/main?")


def test_the_hash_of_the_scripted_hub_is_that_of_its_content(
    hub: ScriptedHub, tiny: ScriptedRepository
) -> None:
    listed = {str(entry["path"]): entry for entry in tiny.entries()}
    assert listed["Tiny-Q8_0.gguf"]["lfs"] == {
        "oid": hashlib.sha256(WEIGHTS).hexdigest(),
        "size": len(WEIGHTS),
        "pointerSize": 134,
    }
