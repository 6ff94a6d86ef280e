"""Documents of models, and who refers to which content."""

from __future__ import annotations

import pytest

from runner.errors import StoreDamaged
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store.documents import read_documents, used_content
from tests.support import models

WEIGHTS, OTHER, LICENSE = models.tiny_gguf(), models.tiny_gguf("Other"), models.LICENSE


@pytest.fixture
def store(tmp_path):
    with models.opened(tmp_path / "store") as store:
        models.publish(store, "a:1", WEIGHTS, LICENSE)
        models.publish(store, None, OTHER, LICENSE)
        yield store


def test_content_comes_once_with_all_models_that_have_it_and_manifests_first(store):
    index = store.catalog.index
    named = store.catalog.find(models.name("a:1"))
    (untagged,) = index.manifests().keys() - {named}
    used = used_content(store.catalog, index.manifests())
    assert {one.descriptor.digest for one in used[:2]} == {named, untagged}
    names = {one.descriptor.digest: set(one.models) for one in used}
    assert names[Digest.of(WEIGHTS)] == {"ai/a:1"}
    assert names[Digest.of(OTHER)] == {untagged.short()}
    assert names[Digest.of(LICENSE)] == {"ai/a:1", untagged.short()}
    only = used_content(store.catalog, [named])
    assert {one.descriptor.digest for one in only} == names.keys() - {
        untagged, Digest.of(OTHER), store.catalog.usable(untagged).manifest.config.digest,
    }  # fmt: skip


def test_documents_are_what_was_published(store):
    model_id = store.catalog.find(models.name("a:1"))
    found = read_documents(store.catalog, model_id, store.directory.blobs)
    assert (found.model_id, [tag.familiar() for tag in found.tags]) == (model_id, ["ai/a:1"])
    assert Digest.of(found.manifest_bytes) == model_id
    assert Digest.of(found.config_bytes) == found.manifest.config.digest


def test_a_manifest_that_is_none_is_damage(store):
    digest = store.directory.blobs.put(b"{}")
    entry = Descriptor(media_type=media_types.IMAGE_MANIFEST, size_bytes=2, digest=digest)
    catalog = store.catalog.with_index(store.catalog.index.with_model(entry, None))
    with pytest.raises(StoreDamaged, match="no manifest"):
        read_documents(catalog, digest, store.directory.blobs)
