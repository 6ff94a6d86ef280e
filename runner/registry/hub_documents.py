"""What a hub answers: a revision, a page of a listing, the way to the next page, a refusal. Pure: bytes in,
values out.

Owns the formats of the hub's API and their limits. Imports the error tree, oci and hub_selection. Everything
raises InvalidManifest for documents outside the format; members that are not used are not looked at.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import attrs

from runner.errors import InvalidManifest, InvalidReference
from runner.oci.digest import Digest
from runner.oci.documents import make_converter, read_document
from runner.oci.manifest import SIZE_MAX
from runner.registry.hub_selection import ListedFile

DOCUMENT_BYTES_MAX = 4 << 20  # a page of 1,000 files has 0.4 MB
PAGES_MAX = 100
FILES_MAX = 100_000  # of one repository, as the hub itself recommends at most
CURSOR_CHARS_MAX = 4096

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")  # of git, with either of its hashes
_GIT_OID = re.compile(r"[0-9a-f]{40}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,95})/[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,95})")
_NEXT_LINK = re.compile(r"<([^<>]{1,8192})>\s*;[^,<>]*\brel=\"?next\b")


@attrs.frozen(kw_only=True)
class Revision:
    """A repository at one commit. `name` has the hub's own case; `created_s` is Unix time, 0 when unknown."""

    name: str | None
    commit: str
    created_s: int


@attrs.frozen(kw_only=True)
class _RevisionDocument:
    commit: str
    name: str | None = None
    last_modified: str | None = None


@attrs.frozen(kw_only=True)
class _Large:
    oid: str
    size: int


@attrs.frozen(kw_only=True)
class _Entry:
    type: str
    path: str
    size: int = 0
    oid: str | None = None
    lfs: _Large | None = None


_CONVERTER = make_converter(
    (_RevisionDocument, {"commit": "sha", "name": "id", "last_modified": "lastModified"}),
    (_Large, {}),
    (_Entry, {}),
)


def read_revision(content: bytes) -> Revision:
    """The commit that a revision stands for; raises InvalidManifest."""
    document = read_document(content, _RevisionDocument, _CONVERTER, limit_bytes=DOCUMENT_BYTES_MAX)
    if not is_commit(document.commit):
        raise InvalidManifest("the hub names no commit for the revision")
    name = document.name if document.name and is_repository_name(document.name) else None
    return Revision(name=name, commit=document.commit, created_s=_seconds(document.last_modified))


def read_page(content: bytes) -> tuple[ListedFile, ...]:
    """The files on one page of a listing, folders left out; raises InvalidManifest.

    A file in large storage says its size twice, and the hash is of the content that has the second one.
    """
    entries = read_document(content, tuple[_Entry, ...], _CONVERTER, limit_bytes=DOCUMENT_BYTES_MAX)
    return tuple(_listed(entry) for entry in entries if entry.type == "file")


def next_cursor(link: str | None) -> str | None:
    """Where the next page starts, from a Link header; None on the last page. Raises InvalidManifest.

    Only the cursor is taken from the address: it names a host, and listings come from the user's own (S07).
    """
    found = _NEXT_LINK.search(link or "")
    if found is None:
        return None
    try:
        cursors = parse_qs(urlsplit(found[1]).query).get("cursor", [])
    except ValueError:
        cursors = []
    if len(cursors) != 1 or len(cursors[0]) > CURSOR_CHARS_MAX:
        raise InvalidManifest("the listing goes on, and does not say where")
    return cursors[0]


def is_commit(text: str) -> bool:
    """Whether this is a commit rather than a branch or a tag, which move."""
    return _COMMIT.fullmatch(text) is not None


def is_repository_name(text: str) -> bool:
    """Whether this is an organisation and a repository, safe to stand in a path."""
    return _NAME.fullmatch(text) is not None and ".." not in text


class GitHash:
    """The hash that git gives a file of `size_bytes`, while its content is read. Not for secrets: SHA-1."""

    def __init__(self, size_bytes: int) -> None:
        self._hash = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)

    def update(self, content: bytes | memoryview) -> None:
        self._hash.update(content)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _listed(entry: _Entry) -> ListedFile:
    size_bytes = entry.size if entry.lfs is None else entry.lfs.size
    if not 0 <= size_bytes <= SIZE_MAX or entry.size != size_bytes:
        raise InvalidManifest(f"the hub gives {entry.path!r:.120} a size that is none")
    try:
        sha256 = None if entry.lfs is None else Digest(entry.lfs.oid)
    except InvalidReference:
        raise InvalidManifest(f"the hub gives {entry.path!r:.120} a hash that is no SHA-256") from None
    git_oid = entry.oid if sha256 is None and _GIT_OID.fullmatch(entry.oid or "") else None
    return ListedFile(path=entry.path, size_bytes=size_bytes, sha256=sha256, git_oid=git_oid)


def _seconds(moment: str | None) -> int:
    try:
        parsed = datetime.fromisoformat(moment or "")
    except ValueError:
        return 0
    aware = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)  # else it would differ between machines
    return max(0, int((aware - _EPOCH).total_seconds()))
