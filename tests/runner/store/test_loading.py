"""What a worker is given."""

from __future__ import annotations

import attrs
import pytest

from runner.errors import InvalidModelFile, StoreDamaged, StoreError, UnsupportedModel
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store import loading
from runner.store.loading import ModelLoader
from scripts.tiny_gguf import write_tiny_split
from tests.support import models
from tests.support.gguf_writer import Tensor, gguf_bytes, text

WEIGHTS = models.tiny_gguf()
PROJECTOR = gguf_bytes({"general.architecture": text("clip")}, [Tensor("v.weight", (32, 4))])


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

    def counted(digests, blobs):
        read.append(digests)
        return original(digests, blobs)

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
    assert len(loader._figures) <= 2


def test_a_disk_that_fails_while_the_header_is_read_is_told_as_such(store, stored, monkeypatch):
    def fail(sources, n_parts):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(loading, "read_parts", fail)
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


def with_layers(stored, *layers, config=media_types.DOCKER_CONFIG_V01):
    config = attrs.evolve(stored.manifest.config, media_type=config)
    return attrs.evolve(stored, manifest=attrs.evolve(stored.manifest, layers=layers, config=config))


def put(store, content, media_type, path=None):
    store.directory.blobs.put(content)
    annotations = {} if path is None else {media_types.ANNOTATION_FILE_PATH: path}
    return attrs.evolve(Descriptor.of(content, media_type), annotations=annotations)


def test_all_parts_of_a_split_model_are_given_in_their_order(store, stored, tmp_path):
    paths = write_tiny_split(tmp_path / "tiny.gguf", tensors_per_part=7)
    parts = [put(store, path.read_bytes(), media_types.GGUF) for path in paths]
    files = ModelLoader(store.directory.blobs).files_of(with_layers(stored, *parts))
    assert [path.read_bytes() for path in files.weights] == [path.read_bytes() for path in paths]
    assert files.weights_digests == tuple(part.digest for part in parts)
    assert files.weights_bytes == sum(path.stat().st_size for path in paths)
    assert files.model.trained_context_size == 512  # as the header has it, whatever the config says


@pytest.mark.parametrize(
    "config", [media_types.DOCKER_CONFIG_V01, media_types.DOCKER_CONFIG_V02, media_types.CNCF_CONFIG]
)
@pytest.mark.parametrize(
    "media_type", [media_types.GGUF, media_types.CNCF_WEIGHT, media_types.CNCF_WEIGHT_GGUF]
)
def test_weights_of_every_format_are_found(store, stored, config, media_type):
    weights = put(store, WEIGHTS, media_type, "dir/model.gguf")
    other = put(store, b"{}", media_types.MODEL_FILE, "config.json")
    files = ModelLoader(store.directory.blobs).files_of(with_layers(stored, other, weights, config=config))
    assert [path.read_bytes() for path in files.weights] == [WEIGHTS]


@pytest.mark.parametrize("order", [(0,), (1, 0), (0, 1, 1), (0, 2)])
def test_G04_parts_that_do_not_fit_together_never_reach_the_engine(store, stored, tmp_path, order):
    paths = write_tiny_split(tmp_path / "tiny.gguf", tensors_per_part=10)
    contents = [*(path.read_bytes() for path in paths), WEIGHTS]
    parts = [put(store, contents[index], media_types.GGUF) for index in order]
    with pytest.raises(InvalidModelFile, match="part"):
        ModelLoader(store.directory.blobs).files_of(with_layers(stored, *parts))


def test_a_projector_is_given_beside_the_weights_and_checked_once(store, stored):
    projector = put(store, PROJECTOR, media_types.PROJECTOR, "mmproj.gguf")
    loader = ModelLoader(store.directory.blobs)
    for _ in range(2):
        files = loader.files_of(with_layers(stored, *stored.manifest.layers, projector))
        assert files.projector.read_bytes() == PROJECTOR
    assert loader.files_of(stored).projector is None


@pytest.mark.parametrize("content", [WEIGHTS, b"GGUF", PROJECTOR[:-1]])
def test_G04_a_file_that_is_no_projector_never_reaches_the_engine(store, stored, content):
    projector = put(store, content, media_types.PROJECTOR)
    with pytest.raises(InvalidModelFile):
        ModelLoader(store.directory.blobs).files_of(with_layers(stored, *stored.manifest.layers, projector))


@pytest.mark.parametrize(
    ("media_type", "told"),
    [
        (media_types.SAFETENSORS, "safetensors"),
        (media_types.DDUF, "dduf"),
        (media_types.DIRECTORY_TAR, "archive"),
        (media_types.CNCF_LAYERS + "weight.v1.tar+gzip", "archive"),
    ],
)
def test_weights_that_the_engine_does_not_read_are_refused_in_words(store, stored, media_type, told):
    weights = put(store, b"weights", media_type)
    with pytest.raises(UnsupportedModel, match=told):
        ModelLoader(store.directory.blobs).files_of(with_layers(stored, weights))


def test_a_model_without_weights_is_refused(store, stored):
    with pytest.raises(InvalidModelFile, match="no weights"):
        ModelLoader(store.directory.blobs).files_of(with_layers(stored, stored.manifest.layers[1]))
