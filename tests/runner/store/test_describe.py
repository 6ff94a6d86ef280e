"""What people are shown of a model."""

from __future__ import annotations

import attrs
import pytest

from runner.errors import StoreDamaged
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store.describe import report_of
from runner.store.package import TEXT_LAYER_BYTES_MAX
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
    assert (report.labels, report.described_context_size) == ({}, None)


def with_layers(store, *contents):
    stored = store.catalog.resolve(models.name("a:1"))
    for content in contents:
        store.directory.blobs.put(content)
    layers = tuple(Descriptor.of(content, media_types.LICENSE) for content in contents)
    manifest = attrs.evolve(stored.manifest, layers=layers, annotations={"org.example.team": "blue"})
    return attrs.evolve(stored, manifest=manifest)


def test_annotations_of_the_manifest_are_shown_as_labels(store):
    assert report_of(with_layers(store), store.directory.blobs).labels == {"org.example.team": "blue"}


@pytest.mark.parametrize(("beyond", "is_shown"), [(-1, True), (0, True), (1, False)])
def test_a_licence_of_any_length_does_not_keep_a_model_from_being_shown(store, beyond, is_shown):
    content = b"x" * (TEXT_LAYER_BYTES_MAX + beyond)
    (text,) = report_of(with_layers(store, content), store.directory.blobs).licenses
    assert text == (content.decode() if is_shown else f"({len(content)} bytes, not shown)")


def test_of_many_long_licences_only_so_much_is_shown(store):
    contents = [bytes([65 + n]) * TEXT_LAYER_BYTES_MAX for n in range(5)]
    report = report_of(with_layers(store, *contents, b"short"), store.directory.blobs)
    assert [len(text) == TEXT_LAYER_BYTES_MAX for text in report.licenses] == [True] * 4 + [False] * 2


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
