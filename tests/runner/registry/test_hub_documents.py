"""What a hub answers, byte by byte: revisions, pages, links, hashes."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import InvalidManifest
from runner.oci.digest import Digest
from runner.oci.manifest import SIZE_MAX
from runner.registry.hub_documents import (
    CURSOR_CHARS_MAX,
    DOCUMENT_BYTES_MAX,
    GitHash,
    Revision,
    is_repository_name,
    next_cursor,
    read_page,
    read_revision,
)
from runner.registry.hub_selection import ListedFile

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OID = "ce013625030ba8dba906f756967f9e9ca394464a"  # what git calls a file that holds "hello\n"


def revision(**members: object) -> Revision:
    return read_revision(json.dumps({"sha": COMMIT, **members}).encode())


def page(*entries: object) -> tuple[ListedFile, ...]:
    return read_page(json.dumps(entries).encode())


def test_a_revision_tells_name_commit_and_time() -> None:
    told = revision(
        id="Org/Tiny-GGUF", lastModified="2026-03-04T05:06:07.000Z", tags=["x"], gguf={"total": 1}
    )
    assert told == Revision(name="Org/Tiny-GGUF", commit=COMMIT, created_s=1772600767)


def test_the_time_is_the_same_on_every_machine_and_0_when_unknown() -> None:
    assert revision(lastModified="2026-03-04T05:06:07").created_s == 1772600767
    for moment in "yesterday", "", "1969-01-01T00:00:00Z", "0001-01-01T00:00:00Z":
        assert revision(lastModified=moment).created_s == 0
    assert revision().created_s == 0


@pytest.mark.parametrize("sha", ["main", "", COMMIT.upper(), COMMIT[1:], COMMIT + "0", "../" + COMMIT])
def test_S16_what_is_no_commit_is_not_taken_for_one(sha: str) -> None:
    with pytest.raises(InvalidManifest, match="no commit"):
        revision(sha=sha)


@pytest.mark.parametrize("name", ["gpt2", "../x", "Org/..", "Org/a/b", "Org/a?x", "Org/ü", "-x/y", ""])
def test_what_is_no_repository_is_not_taken_for_one(name: str) -> None:
    assert not is_repository_name(name)
    assert revision(id=name).name is None


def test_a_page_lists_files_with_their_sizes_and_hashes() -> None:
    hexadecimal = "ab" * 32
    files = page(
        {"type": "directory", "path": "Q4_0", "oid": OID, "size": 0},
        {"type": "file", "path": "LICENSE", "oid": OID, "size": 6},
        {
            "type": "file",
            "path": "Q4_0/a.gguf",
            "oid": OID,
            "size": 123,
            "lfs": {"oid": hexadecimal, "size": 123, "pointerSize": 134},
            "xetHash": "cd" * 32,
        },
    )
    assert files == (
        ListedFile(path="LICENSE", size_bytes=6, git_oid=OID),
        ListedFile(path="Q4_0/a.gguf", size_bytes=123, sha256=Digest(hexadecimal)),
    )
    assert files[1].name == "a.gguf"


@pytest.mark.parametrize("size", [-1, SIZE_MAX + 1])
def test_S03_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(InvalidManifest, match="a size that is none"):
        page({"type": "file", "path": "a.gguf", "size": size})


def test_a_file_of_two_sizes_is_refused() -> None:
    with pytest.raises(InvalidManifest, match="a size that is none"):
        page({"type": "file", "path": "a.gguf", "size": 1, "lfs": {"oid": "ab" * 32, "size": 2}})


@pytest.mark.parametrize("oid", ["AB" * 32, "ab" * 31, "", "sha256:" + "ab" * 32])
def test_S01_a_hash_that_is_none_is_refused(oid: str) -> None:
    with pytest.raises(InvalidManifest, match=r"no SHA-256"):
        page({"type": "file", "path": "a.gguf", "size": 2, "lfs": {"oid": oid, "size": 2}})


def test_S03_a_page_beyond_the_limit_is_refused() -> None:
    assert read_page(b"[]".ljust(DOCUMENT_BYTES_MAX)) == ()
    with pytest.raises(InvalidManifest, match="limit"):
        read_page(b"[]".ljust(DOCUMENT_BYTES_MAX + 1))


_MEMBERS = st.sampled_from(["type", "path", "size", "lfs", "oid", "sha", "id", "lastModified"])
_JSON = st.recursive(
    st.none() | st.integers() | st.text() | st.just("file"),
    lambda inner: st.lists(inner) | st.dictionaries(_MEMBERS, inner),
    max_leaves=8,
)


@given(st.binary(max_size=64) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_value_or_the_one_error(content: bytes) -> None:
    for read in read_page, read_revision:
        try:
            read(content)
        except InvalidManifest:
            pass


def test_S07_only_the_cursor_is_taken_from_the_way_to_the_next_page() -> None:
    assert next_cursor('<http://10.0.0.1/steal?limit=2&cursor=ZXk%3D%3D>; rel="next"') == "ZXk=="
    assert next_cursor('<https://h/a?cursor=first>; rel="prev", <https://h/a?cursor=b>; rel="next"') == "b"
    assert next_cursor("<https://h/a?cursor=b>; rel=next") == "b"
    for last in None, "", "nonsense", '<https://h/a?cursor=b>; rel="prev"':
        assert next_cursor(last) is None


@pytest.mark.parametrize(
    "query", ["", "page=2", "cursor=a&cursor=b", "cursor=" + "x" * (CURSOR_CHARS_MAX + 1)]
)
def test_a_listing_that_goes_on_elsewhere_is_not_taken_for_its_end(query: str) -> None:
    with pytest.raises(InvalidManifest, match="goes on"):
        next_cursor(f'<https://h/a?{query}>; rel="next"')


def test_the_hash_is_the_one_of_git() -> None:
    hashing = GitHash(6)
    hashing.update(b"hel")
    hashing.update(b"lo\n")
    assert hashing.hexdigest() == OID
    assert hashing.hexdigest() == hashlib.sha1(b"blob 6\0hello\n", usedforsecurity=False).hexdigest()
