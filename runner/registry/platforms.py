"""Which manifest of an OCI index is meant. Pure.

Owns the reading of indexes that come over the network: bounded, one level deep (S03). Imports errors and oci.
"""

from __future__ import annotations

import platform
from typing import Final

import attrs

from runner.errors import InvalidManifest, UnsupportedArtifact
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.documents import make_converter, read_document
from runner.oci.manifest import MANIFEST_BYTES_MAX

ENTRIES_MAX: Final = 1024
_ARCHITECTURES: Final = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_ATTESTATION: Final = "vnd.docker.reference.type"


@attrs.frozen(kw_only=True)
class Platform:
    """As the image specification names them: `linux`, `amd64`."""

    os: str = ""
    architecture: str = ""

    def __str__(self) -> str:
        return f"{self.os or 'any'}/{self.architecture or 'any'}"


@attrs.frozen(kw_only=True)
class IndexEntry:
    media_type: str
    digest: Digest
    size_bytes: int
    platform: Platform | None = None
    annotations: dict[str, str] = attrs.field(factory=dict, hash=False)


@attrs.frozen(kw_only=True)
class _Index:
    schema_version: int
    manifests: tuple[IndexEntry, ...]


_CONVERTER = make_converter(
    (Platform, {}),
    (IndexEntry, {"media_type": "mediaType", "size_bytes": "size"}),
    (_Index, {"schema_version": "schemaVersion"}),
)


def this_platform() -> Platform:
    """The platform that models are wanted for. Those for Linux serve everywhere: no system is asked."""
    machine = platform.machine().lower()
    return Platform(os="linux", architecture=_ARCHITECTURES.get(machine, machine))


def choose(content: bytes, wanted: Platform, *, registry: str) -> IndexEntry:
    """The entry of an index that is meant on this platform.

    1. An index within the index, or more than ENTRIES_MAX entries: InvalidManifest.
    2. The first manifest for the wanted platform.
    3. The only manifest, attestations not counted, whatever platform it names.
    4. Otherwise UnsupportedArtifact, with the platforms that there are.
    """
    index = read_document(content, _Index, _CONVERTER, limit_bytes=MANIFEST_BYTES_MAX)
    if len(index.manifests) > ENTRIES_MAX:
        raise InvalidManifest(f"the index has {len(index.manifests)} entries; the limit is {ENTRIES_MAX}")
    if any(entry.media_type != media_types.IMAGE_MANIFEST for entry in index.manifests):
        raise InvalidManifest("the index holds something else than manifests, such as another index")
    manifests = [entry for entry in index.manifests if _ATTESTATION not in entry.annotations]
    for entry in manifests:
        if entry.platform == wanted:
            return entry
    if len(manifests) == 1:
        return manifests[0]
    offered = (
        ", ".join(
            sorted(
                {
                    str(entry.platform or Platform())[:40].encode("ascii", "backslashreplace").decode()
                    for entry in manifests
                }
            )
        )
        or "nothing"
    )
    raise UnsupportedArtifact(registry, f"the index has no model for {wanted}; it has {offered}"[:500])
