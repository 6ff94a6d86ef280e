"""What a package may consist of, and the bytes it becomes."""

from __future__ import annotations

import io

import attrs
import orjson
import pytest

from runner.errors import InvalidModelFile, InvalidParameter
from runner.gguf.metadata import read_metadata
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Manifest
from runner.oci.model_config import ModelConfig
from runner.oci.reference import Reference
from runner.store.package import (
    CONTEXT_SIZE_MAX,
    LICENSES_MAX,
    TEXT_LAYER_BYTES_MAX,
    PackageLayer,
    PackageSpec,
    build,
    check_text_layer,
    check_weights,
)
from tests.support import models

WEIGHTS = PackageLayer(kind="gguf", digest=Digest.of(b"weights"), filename="model.gguf")
LICENSE = PackageLayer(kind="license", digest=Digest.of(b"license"), filename="LICENSE")
TEMPLATE = PackageLayer(kind="chat_template", digest=Digest.of(b"template"), filename="chat.jinja")
SPEC = PackageSpec(target=Reference.parse("a:1"), layers=(TEMPLATE, LICENSE, WEIGHTS), context_size=4096)
METADATA = read_metadata(io.BytesIO(models.tiny_gguf()))


def faults(**changes):
    with pytest.raises(InvalidParameter) as caught:
        attrs.evolve(SPEC, **changes).check()
    return [fault.path for fault in caught.value.faults]


def test_a_package_has_one_gguf_and_may_have_licences_and_a_template():
    SPEC.check()
    attrs.evolve(SPEC, layers=(WEIGHTS,), context_size=None).check()
    assert faults(layers=(LICENSE,)) == ["layers"]
    assert faults(layers=(WEIGHTS, WEIGHTS)) == ["layers"]
    assert faults(layers=()) == ["layers"]
    assert faults(layers=(WEIGHTS, TEMPLATE, TEMPLATE)) == ["layers"]
    assert faults(layers=(WEIGHTS, attrs.evolve(WEIGHTS, kind="mmproj"))) == ["layers[1].kind"]


@pytest.mark.parametrize(
    ("count", "is_good"), [(LICENSES_MAX - 1, True), (LICENSES_MAX, True), (LICENSES_MAX + 1, False)]
)
def test_a_package_has_at_most_16_licences(count, is_good):
    layers = (WEIGHTS, *[LICENSE] * count)
    if is_good:
        attrs.evolve(SPEC, layers=layers).check()
    else:
        assert faults(layers=layers) == ["layers"]


@pytest.mark.parametrize(
    ("context_size", "is_good"),
    [(0, False), (1, True), (CONTEXT_SIZE_MAX, True), (CONTEXT_SIZE_MAX + 1, False)],
)
def test_a_context_is_a_positive_int32(context_size, is_good):
    if is_good:
        attrs.evolve(SPEC, context_size=context_size).check()
    else:
        assert faults(context_size=context_size) == ["context_size"]


@pytest.mark.parametrize("filename", ["../model.gguf", "a/b", "a\\b", "C:model.gguf", "", "a\n", "nul"])
def test_S13_a_file_name_that_could_be_a_path_is_refused(filename):
    assert faults(layers=(attrs.evolve(WEIGHTS, filename=filename),)) == ["layers[0].filename"]


@pytest.mark.parametrize("target", [f"a@{WEIGHTS.digest}", f"a:1@{WEIGHTS.digest}"])
def test_a_target_is_a_tag(target):
    assert faults(target=Reference.parse(target)) == ["target"]


def test_every_fault_is_told_at_once():
    wrong = attrs.evolve(WEIGHTS, filename="../x")
    target = Reference.parse(f"a@{WEIGHTS.digest}")
    assert faults(target=target, layers=(wrong, wrong), context_size=0) == [
        "target", "layers[0].filename", "layers[1].filename", "layers", "context_size",
    ]  # fmt: skip


def test_a_package_becomes_a_docker_model_artifact():
    package = build(SPEC, [7, 8, 9], METADATA, created_s=1_784_707_200)
    config = orjson.loads(package.config)
    assert config["config"] == {
        "format": "gguf",
        "quantization": "MOSTLY_Q4_1",
        "parameters": METADATA.parameters,
        "architecture": "llama",
        "size": METADATA.size,
        "gguf": METADATA.as_text_map(),
        "context_size": 4096,
    }
    assert config["descriptor"] == {"created": "2026-07-22T08:00:00Z"}
    layers = [(layer.media_type, layer.size_bytes, layer.file_path()) for layer in package.layers]
    assert layers == [
        ("application/vnd.docker.ai.gguf.v3", 7, "model.gguf"),
        ("application/vnd.docker.ai.license", 8, "LICENSE"),
        ("application/vnd.docker.ai.chat.template.jinja", 9, "chat.jinja"),
    ]
    assert config["rootfs"]["diff_ids"] == [str(layer.digest) for layer in package.layers]


def test_the_same_parts_in_any_order_give_the_same_model():
    package = build(SPEC, [7, 8, 9], METADATA, created_s=1)
    reordered = attrs.evolve(SPEC, layers=(WEIGHTS, TEMPLATE, LICENSE))
    assert build(reordered, [7, 8, 9], METADATA, created_s=1) == package
    assert build(SPEC, [7, 8, 9], METADATA, created_s=2).model_id() != package.model_id()


def test_the_id_is_that_of_the_manifest():
    package = build(SPEC, [7, 8, 9], METADATA, created_s=1)
    manifest = Manifest.binding(package.config, package.layers, media_types.DOCKER_CONFIG_V01)
    assert package.model_id() == Digest.of(manifest.encode())
    assert manifest.config.media_type == "application/vnd.docker.ai.model.config.v0.1+json"


def test_without_a_wish_the_config_has_no_context_size():
    package = build(attrs.evolve(SPEC, context_size=None), [7, 8, 9], METADATA, created_s=1)
    config = ModelConfig.parse(package.config)
    assert (config.context_size, config.trained_context_size()) == (None, 4096)


def test_a_header_with_more_text_than_a_config_may_have_is_refused():
    metadata = attrs.evolve(METADATA, text_map={"general.description": "x" * (1 << 20)})
    with pytest.raises(InvalidModelFile, match="metadata"):
        build(SPEC, [7, 8, 9], metadata, created_s=1)


def test_only_a_whole_language_model_is_weights():
    check_weights(METADATA)
    check_weights(attrs.evolve(METADATA, text_map={"split.count": "1"}))
    with pytest.raises(InvalidModelFile, match="one part of several"):
        check_weights(attrs.evolve(METADATA, text_map={"split.count": "2"}))
    with pytest.raises(InvalidModelFile, match="no language model"):
        check_weights(attrs.evolve(METADATA, is_language_model=False))


@pytest.mark.parametrize(("beyond", "is_good"), [(-1, True), (0, True), (1, False)])
def test_a_text_has_at_most_1_MiB(beyond, is_good):
    content = b"x" * (TEXT_LAYER_BYTES_MAX + beyond)
    if is_good:
        assert check_text_layer("license", content) == content.decode()
    else:
        with pytest.raises(InvalidModelFile, match="larger"):
            check_text_layer("license", content)


def test_a_text_is_utf8():
    with pytest.raises(InvalidModelFile, match="chat_template layer is not UTF-8"):
        check_text_layer("chat_template", b"\xff")
