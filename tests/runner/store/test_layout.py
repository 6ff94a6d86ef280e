"""Paths of the store."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from runner.oci.digest import Digest
from runner.store.layout import StoreLayout

LAYOUT = StoreLayout(Path("/store"))
DIGEST = Digest.of(b"manifest")


@given(st.binary().map(Digest.of))
def test_S01_every_digest_leads_to_one_file_of_the_blobs_directory(digest):
    path = LAYOUT.blob(digest)
    assert path.parent == Path("/store/blobs/sha256")
    assert path.name == digest.hex


def test_every_path_lies_in_the_root():
    paths = (
        LAYOUT.image_layout,
        LAYOUT.index,
        LAYOUT.index_copy,
        LAYOUT.damaged_index,
        LAYOUT.version,
        LAYOUT.lock,
    )
    assert len(set(paths)) == len(paths)
    assert {path.parent for path in paths} == {Path("/store")}
    assert LAYOUT.directories() == (
        Path("/store/blobs"),
        Path("/store/blobs/sha256"),
        Path("/store/settings"),
        Path("/store/partial"),
        Path("/store/pieces"),
    )
    assert LAYOUT.names_of_a_beginning() == {"lock", "partial", "pieces", "settings", "blobs"}
    assert {path.parent for path in (LAYOUT.settings_of(DIGEST), LAYOUT.damaged_settings(DIGEST))} == {
        LAYOUT.settings
    }
    assert {path.parent for path in (LAYOUT.partial_of(DIGEST), LAYOUT.journal_of(DIGEST))} == {
        LAYOUT.partial
    }
    assert LAYOUT.pieces_of(DIGEST).parent == LAYOUT.pieces
    assert LAYOUT.settings_of(DIGEST) != LAYOUT.damaged_settings(DIGEST)
