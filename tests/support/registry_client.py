"""A registry client for tests, which logs in nowhere unless told otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import attrs

from runner.domain.transfer import RemoteCredentials
from runner.oci.digest import Digest
from runner.oci.reference import Reference
from runner.registry.client import RegistryClient
from runner.registry.rules import NetworkRules
from runner.registry.transport import Door
from tests.support.scripted_http import FakeNetwork, SteppingClock


@attrs.frozen
class Logins:
    """The logins of this mapping, by registry."""

    of: Mapping[str, RemoteCredentials] = attrs.field(factory=dict)

    def find(self, registry: str) -> RemoteCredentials | None:
        return self.of.get(registry)


@contextlib.contextmanager
def open_door(
    rules: NetworkRules | None = None,
    network: FakeNetwork | None = None,
    clock: SteppingClock | None = None,
) -> Iterator[Door]:
    """A door on the real loopback, or on a network of names that the test makes up."""
    clock = clock or SteppingClock()
    if network is None:
        door = Door(rules or NetworkRules(), clock=clock)
    else:
        door = Door(rules or NetworkRules(), resolve=network.resolve, dial=network.dial, clock=clock)
    try:
        yield door
    finally:
        door.close()


@contextlib.contextmanager
def registry_client(
    rules: NetworkRules | None = None,
    network: FakeNetwork | None = None,
    clock: SteppingClock | None = None,
    logins: Mapping[str, RemoteCredentials] | None = None,
) -> Iterator[RegistryClient]:
    clock = clock or SteppingClock()
    with open_door(rules, network, clock) as door:
        yield RegistryClient(door, Logins(logins or {}), clock=clock)


def read_all(
    client: RegistryClient, reference: Reference, digest: Digest, size_bytes: int, **between: int
) -> bytes:
    """All bytes of a blob, or those from `start` to `end`."""
    content = b""
    buffer = bytearray(1 << 16)
    with client.open_blob(reference, digest, size_bytes, **between) as body:
        while read_bytes := body.readinto(buffer):
            content += buffer[:read_bytes]
    return content
