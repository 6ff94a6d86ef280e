"""What people are shown of a model."""

from __future__ import annotations

import attrs
import pytest

from runner.errors import StoreDamaged
from runner.oci.digest import Digest
from runner.store.describe import report_of
from tests.support import models

WEIGHTS = models.tiny_gguf()


@pytest.fixture
def store(tmp_path):
    with models.opened(tmp_path / "store") as store:
        models.publish(store, "a:1", WEIGHTS, models.LICENSE, b"in latin-1: \xe9")
        yield store


def test_a_report_has_layers_licences_and_metadata(store):
    stored = store.catalog.resolve(models.name("a:1"))
    report = report_of(stored, store.directory.blobs)
    assert report.model.name == "ai/a:1"
    assert report.model.tags == ("docker.io/ai/a:1",)
    assert report.manifest_digest == report.model.id == str(stored.model.id)
    assert [(layer.filename, layer.size_bytes) for layer in report.layers] == [
        ("model.gguf", len(WEIGHTS)),
        ("LICENSE-0", len(models.LICENSE)),
        ("LICENSE-1", 13),
    ]
    assert report.licenses == (models.LICENSE.decode(), "in latin-1: \ufffd")
    assert report.metadata["general.name"] == "Little"
    assert report.metadata["llama.context_length"] == "4096"
    assert all(isinstance(value, str) for value in report.metadata.values())
    assert (report.model.architecture, report.model.trained_context_size) == ("llama", 4096)


def test_a_config_that_became_something_else_is_not_shown(store):
    stored = store.catalog.resolve(models.name("a:1"))
    digest = store.directory.blobs.put(b"[]")
    config = attrs.evolve(stored.manifest.config, digest=digest)
    broken = attrs.evolve(stored, manifest=attrs.evolve(stored.manifest, config=config))
    with pytest.raises(StoreDamaged, match="format"):
        report_of(broken, store.directory.blobs)


def test_a_part_that_changed_on_disk_is_not_shown(store):
    stored = store.catalog.resolve(models.name("a:1"))
    path = store.directory.blobs.path(Digest.of(models.LICENSE))
    path.chmod(0o600)
    path.write_bytes(b"x")
    with pytest.raises(StoreDamaged, match=str(Digest.of(models.LICENSE))):
        report_of(stored, store.directory.blobs)
