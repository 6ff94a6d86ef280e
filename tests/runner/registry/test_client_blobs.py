from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from runner.errors import (
    ContentMismatch,
    InvalidManifest,
    RangeRefused,
    RegistryUnavailable,
    TransferAborted,
)
from runner.oci.manifest import Descriptor
from runner.registry.abort import Abort
from runner.registry.client import RegistryClient
from tests.support.registry_client import read_all, registry_client
from tests.support.registry_server import RegistryServer
from tests.support.scripted_http import Reply, wait_for_close


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as started:
        yield started


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    with registry_client() as made:
        yield made


def test_a_blob_arrives_whole_and_in_ranges(server: RegistryServer, client: RegistryClient) -> None:
    content = os.urandom(300_000)
    digest = server.add_blob(content)
    reference = server.reference()
    assert read_all(client, reference, digest, len(content)) == content
    assert read_all(client, reference, digest, len(content), start=1000, end=70_000) == content[1000:70_000]
    assert read_all(client, reference, digest, len(content), start=299_999) == content[-1:]


def test_an_empty_blob_is_no_range(server: RegistryServer, client: RegistryClient) -> None:
    digest = server.add_blob(b"")
    assert read_all(client, server.reference(), digest, 0) == b""
    with pytest.raises(ValueError, match="no range"):
        client.open_blob(server.reference(), digest, 5, start=3, end=3)


CONTENT = bytes(range(100))


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, CONTENT),
        Reply(416),
        Reply(206, CONTENT[10:20]),
        Reply(206, CONTENT[10:20], (("Content-Range", "bytes 10-19/*"),)),
        Reply(206, CONTENT[10:20], (("Content-Range", "bytes 10-19/101"),)),
        Reply(206, CONTENT[10:20], (("Content-Range", "bytes 9-18/100"),)),
        Reply(206, CONTENT[10:21], (("Content-Range", "bytes 10-20/100"),)),
        Reply(206, CONTENT[10:19], (("Content-Range", "bytes 10-18/100"),)),
        Reply(206, CONTENT[10:21], (("Content-Range", "bytes 10-19/100"),)),
        Reply(206, CONTENT[10:20], (("Content-Range", "items 10-19/100"),)),
        Reply(
            206, CONTENT[10:20], (("Content-Range", "bytes 10-19/100"), ("Content-Range", "bytes 0-9/100"))
        ),
        Reply(206, CONTENT[10:20], (("Content-Type", "multipart/byteranges; boundary=x"),)),
    ],
    ids=[
        "the whole",
        "416",
        "no range told",
        "total unknown",
        "another total",
        "another start",
        "more",
        "fewer",
        "another length",
        "another unit",
        "two ranges told",
        "several parts",
    ],
)
def test_S20_only_a_206_of_exactly_the_range_and_total_is_taken(
    server: RegistryServer, client: RegistryClient, reply: Reply
) -> None:
    digest = server.add_blob(CONTENT)
    server.before = lambda _request: reply
    with pytest.raises(RangeRefused) as caught:
        client.open_blob(server.reference(), digest, 100, start=10, end=20)
    assert server.netloc in str(caught.value)


def test_S20_a_range_is_asked_for_in_bytes_and_checked_to_its_end(
    server: RegistryServer, client: RegistryClient
) -> None:
    digest = server.add_blob(CONTENT)
    assert read_all(client, server.reference(), digest, 100, start=10, end=20) == CONTENT[10:20]
    assert server.requests[-1].headers["range"] == "bytes=10-19"
    assert server.requests[-1].headers["accept-encoding"] == "identity"


def test_S20_a_registry_without_ranges_is_told_so_that_the_whole_can_be_asked_for(
    client: RegistryClient,
) -> None:
    with RegistryServer(has_ranges=False) as server:
        digest = server.add_blob(CONTENT)
        with pytest.raises(RangeRefused, match="it answered 200"):
            client.open_blob(server.reference(), digest, 100, start=1)
        assert read_all(client, server.reference(), digest, 100) == CONTENT


@pytest.mark.parametrize("size_bytes", [99, 101])
def test_S02_a_blob_of_another_announced_length_is_refused_before_it_is_read(
    server: RegistryServer, client: RegistryClient, size_bytes: int
) -> None:
    digest = server.add_blob(CONTENT)
    with pytest.raises(ContentMismatch) as caught:
        client.open_blob(server.reference(), digest, size_bytes)
    assert str(digest) in str(caught.value)
    assert server.netloc in str(caught.value)


def test_S02_the_first_byte_too_many_ends_a_blob_without_announced_length(
    server: RegistryServer, client: RegistryClient
) -> None:
    digest = server.add_blob(CONTENT)
    server.before = lambda _request: Reply(200, CONTENT, is_chunked=True)
    assert read_all(client, server.reference(), digest, 100) == CONTENT
    with pytest.raises(ContentMismatch, match=r"more than the 99 bytes of the content sha256:"):
        read_all(client, server.reference(), digest, 99)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_blob_that_is_cut_short_is_worth_another_attempt(
    server: RegistryServer, client: RegistryClient, is_chunked: bool
) -> None:
    digest = server.add_blob(CONTENT)
    server.before = lambda _request: (
        Reply(200, CONTENT[:40], is_chunked=True) if is_chunked else Reply(200, CONTENT, sent_bytes=40)
    )
    with pytest.raises(RegistryUnavailable, match="60 bytes before the end"):
        read_all(client, server.reference(), digest, 100)


def test_S02_small_content_is_verified(server: RegistryServer, client: RegistryClient) -> None:
    descriptor = Descriptor.of(b"config", "x")
    server.add_blob(b"config")
    assert client.read_small(server.reference(), descriptor, 6) == b"config"
    with pytest.raises(InvalidManifest, match="5 are the limit"):
        client.read_small(server.reference(), descriptor, 5)
    server.blobs[str(descriptor.digest)] = b"gifnoc"
    with pytest.raises(ContentMismatch, match=str(descriptor.digest)):
        client.read_small(server.reference(), descriptor, 6)


def test_a_blocked_read_ends_when_the_transfer_is_given_up(
    server: RegistryServer, client: RegistryClient
) -> None:
    abort = Abort()
    digest = server.add_blob(CONTENT)
    has_read = threading.Event()

    def stall(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        has_read.wait(10)
        abort.abort()
        wait_for_close(connection)

    server.before = lambda _request: stall
    with client.open_blob(server.reference(), digest, 100, abort=abort) as body:
        buffer = bytearray(10)
        assert body.readinto(buffer)
        has_read.set()
        with pytest.raises(TransferAborted):
            while body.readinto(buffer):
                pass


def test_waiting_for_an_answer_ends_when_the_transfer_is_given_up(
    server: RegistryServer, client: RegistryClient
) -> None:
    abort = Abort()

    def stall(connection: socket.socket) -> None:
        abort.abort()
        wait_for_close(connection)

    server.before = lambda _request: stall
    with pytest.raises(TransferAborted):
        client.resolve(server.reference(), abort=abort)
    with pytest.raises(TransferAborted):
        client.resolve(server.reference(), abort=abort)
    assert len(server.requests) == 1


def test_the_bytes_of_a_large_blob_hash_to_its_digest(server: RegistryServer, client: RegistryClient) -> None:
    content = os.urandom(5 << 20)
    digest = server.add_blob(content)
    hashed = hashlib.sha256(read_all(client, server.reference(), digest, len(content)))
    assert hashed.hexdigest() == digest.hex


def test_connections_are_used_again(server: RegistryServer, client: RegistryClient) -> None:
    digest = server.add_blob(CONTENT)
    for _ in range(3):
        read_all(client, server.reference(), digest, 100)
    assert len(server._threads) == 1
