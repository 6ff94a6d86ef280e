"""What a worker is given."""

from __future__ import annotations

import attrs
import pytest

from runner.errors import InvalidModelFile, StoreDamaged, StoreError
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.store import loading
from runner.store.loading import ModelLoader
from tests.support import models

WEIGHTS = models.tiny_gguf()


@pytest.fixture
def store(tmp_path):
    with models.opened(tmp_path / "store") as store:
        models.publish(store, "a:1", WEIGHTS, models.LICENSE)
        yield store


@pytest.fixture
def stored(store):
    return store.catalog.resolve(models.name("a:1"))


def test_a_worker_gets_the_path_and_the_figures_of_its_weights(store, stored):
    files = ModelLoader(store.directory.blobs).files_of(stored)
    assert files.model == stored.model
    assert [path.read_bytes() for path in files.weights] == [WEIGHTS]
    assert files.weights_bytes == len(WEIGHTS)
    assert files.kv_bytes_per_cell == 2 * 2 * (16 + 16) * 2  # layers, heads, key and value lengths, f16
    assert files.chat_template is None


def test_a_configured_template_replaces_every_other(store):
    models.configure(store, "a:1", chat_template="{{ eos_token }}")
    files = ModelLoader(store.directory.blobs).files_of(store.catalog.resolve(models.name("a:1")))
    assert files.chat_template == "{{ eos_token }}"


def test_a_packaged_template_replaces_the_one_in_the_weights(store, stored):
    template = b"{{ bos_token }}"
    store.directory.blobs.put(template)
    layer = attrs.evolve(
        stored.manifest.layers[1],
        media_type=media_types.CHAT_TEMPLATE,
        size_bytes=len(template),
        digest=Digest.of(template),
    )
    manifest = attrs.evolve(stored.manifest, layers=(stored.manifest.layers[0], layer))
    files = ModelLoader(store.directory.blobs).files_of(attrs.evolve(stored, manifest=manifest))
    assert files.chat_template == "{{ bos_token }}"


def test_a_header_is_read_once_for_one_file(store, stored, monkeypatch):
    loader, read = ModelLoader(store.directory.blobs), []

    def counted(digest, blobs):
        read.append(digest)
        return original(digest, blobs)

    original = loading.read_weights_header
    monkeypatch.setattr(loading, "read_weights_header", counted)
    first = loader.files_of(stored)
    assert loader.files_of(stored) == first
    assert len(read) == 1
    store.directory.blobs.put(WEIGHTS)  # the same content in another file
    assert loader.files_of(stored) == first
    assert len(read) == 2


def test_only_so_many_headers_are_remembered(store, stored, monkeypatch):
    monkeypatch.setattr(loading, "_REMEMBERED_MAX", 2)
    loader = ModelLoader(store.directory.blobs)
    for _ in range(5):
        store.directory.blobs.put(WEIGHTS)
        loader.files_of(stored)
    assert len(loader._cell_bytes) <= 2


def test_a_disk_that_fails_while_the_header_is_read_is_told_as_such(store, stored, monkeypatch):
    def fail(file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(loading, "read_metadata", fail)
    with pytest.raises(StoreError, match="Input/output error"):
        ModelLoader(store.directory.blobs).files_of(stored)


def test_a_missing_or_shortened_part_is_named(store, stored):
    path = store.directory.blobs.path(Digest.of(WEIGHTS))
    path.chmod(0o600)
    path.write_bytes(WEIGHTS[:-1])
    with pytest.raises(StoreDamaged, match=str(Digest.of(WEIGHTS))):
        ModelLoader(store.directory.blobs).files_of(stored)
    path.unlink()
    with pytest.raises(StoreDamaged, match="missing"):
        ModelLoader(store.directory.blobs).files_of(stored)


def test_S24_weights_that_are_not_what_their_name_says_never_reach_the_engine(store, stored):
    path = store.directory.blobs.path(Digest.of(WEIGHTS))
    path.chmod(0o600)
    path.write_bytes(b"x" * len(WEIGHTS))
    for _ in range(2):  # also when it is known by then
        with pytest.raises(StoreDamaged, match=Digest.of(WEIGHTS).hex):
            ModelLoader(store.directory.blobs).files_of(stored)
    store.directory.blobs.put(WEIGHTS)
    ModelLoader(store.directory.blobs).files_of(stored)


def test_G02_weights_that_are_no_gguf_never_reach_the_engine(store, stored):
    junk = b"x" * len(WEIGHTS)
    store.directory.blobs.put(junk)
    layer = attrs.evolve(stored.manifest.layers[0], digest=Digest.of(junk))
    manifest = attrs.evolve(stored.manifest, layers=(layer,))
    with pytest.raises(InvalidModelFile):
        ModelLoader(store.directory.blobs).files_of(attrs.evolve(stored, manifest=manifest))


@pytest.mark.parametrize("count", [0, 2])
def test_a_model_without_exactly_one_gguf_cannot_be_loaded_yet(store, stored, count):
    weights = stored.manifest.layers[0]
    manifest = attrs.evolve(stored.manifest, layers=(weights,) * count)
    with pytest.raises(InvalidModelFile, match=f"{count} GGUF files"):
        ModelLoader(store.directory.blobs).files_of(attrs.evolve(stored, manifest=manifest))
