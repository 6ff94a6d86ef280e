"""The bytes that a package becomes, built of parts or derived from a model that is there."""

from __future__ import annotations

import io

import attrs
import orjson
import pytest

from runner.errors import InvalidManifest, InvalidModelFile, InvalidParameter
from runner.gguf.metadata import read_metadata
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.layers import ArtifactLayers
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.model_config import ModelConfig
from runner.oci.reference import ModelName, Reference
from runner.store.package import PackageLayer, PackageSpec
from runner.store.packaging import BaseModel, BuiltPackage, build, derive
from tests.support import models

WEIGHTS = PackageLayer(kind="gguf", digest=Digest.of(b"weights"), filename="model.gguf")
LICENSE = PackageLayer(kind="license", digest=Digest.of(b"license"), filename="LICENSE")
TEMPLATE = PackageLayer(kind="chat_template", digest=Digest.of(b"template"), filename="chat.jinja")
PROJECTOR = PackageLayer(kind="mmproj", digest=Digest.of(b"eyes"), filename="vision.gguf")
SPEC = PackageSpec(target=Reference.parse("a:1"), layers=(TEMPLATE, LICENSE, WEIGHTS), context_size=4096)
METADATA = read_metadata(io.BytesIO(models.tiny_gguf()))
CREATED_S = 1_784_707_200


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
    assert package.model_id() == Digest.of(package.manifest)
    manifest = Manifest.parse(package.manifest)
    assert manifest.layers == package.layers
    assert manifest.config.digest == Digest.of(package.config)
    assert manifest.config.media_type == "application/vnd.docker.ai.model.config.v0.1+json"


def test_without_a_wish_the_config_has_no_context_size():
    package = build(attrs.evolve(SPEC, context_size=None), [7, 8, 9], METADATA, created_s=1)
    config = ModelConfig.parse(package.config)
    assert (config.context_size, config.trained_context_size()) == (None, 4096)


def test_a_header_with_more_text_than_a_config_may_have_is_refused():
    metadata = attrs.evolve(METADATA, text_map={"general.description": "x" * (1 << 20)})
    with pytest.raises(InvalidModelFile, match="metadata"):
        build(SPEC, [7, 8, 9], metadata, created_s=1)


# other formats


def as_pack(**changes) -> BuiltPackage:
    spec = attrs.evolve(SPEC, format="cncf", context_size=None, **changes)
    return build(spec, [9] * len(spec.layers), METADATA, created_s=CREATED_S)


def types_and_paths(layers):
    return [(layer.media_type.removeprefix(media_types.CNCF_LAYERS), layer.file_path()) for layer in layers]


def test_a_package_becomes_a_pack():
    package = as_pack()
    manifest = Manifest.parse(package.manifest)
    assert manifest.artifact_type == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest.config.media_type == "application/vnd.cncf.model.config.v1+json"
    assert types_and_paths(manifest.layers) == [
        ("weight.v1.raw", "model.gguf"), ("doc.v1.raw", "LICENSE"), ("weight.config.v1.raw", "chat.jinja"),
    ]  # fmt: skip
    assert orjson.loads(package.config)["modelfs"]["diffIds"] == [
        str(layer.digest) for layer in package.layers
    ]
    assert ModelConfig.parse(package.config).parameters == METADATA.parameters


def test_in_a_pack_names_say_what_media_types_leave_open():
    parts = tuple(
        attrs.evolve(WEIGHTS, digest=Digest.of(name.encode()), filename=name) for name in ("b.bin", "a.gguf")
    )
    others = (
        PROJECTOR,
        attrs.evolve(TEMPLATE, filename="template.txt"),
        attrs.evolve(LICENSE, filename="MIT.txt"),
    )
    package = as_pack(layers=(*parts, *others))
    assert types_and_paths(package.layers) == [
        ("weight.v1.raw", "model-00001-of-00002.gguf"),
        ("weight.v1.raw", "model-00002-of-00002.gguf"),
        ("doc.v1.raw", "LICENSE.MIT.txt"),
        ("weight.config.v1.raw", "template.txt.jinja"),
        ("weight.v1.raw", "vision.gguf.mmproj"),
    ]
    found = ArtifactLayers.of(Manifest.parse(package.manifest))
    assert [layer.digest for layer in found.weights] == [part.digest for part in parts]
    assert (found.projector.digest, found.chat_template.digest) == (PROJECTOR.digest, TEMPLATE.digest)
    assert [layer.digest for layer in found.licenses] == [LICENSE.digest]


def test_names_of_parts_that_say_their_order_stay():
    names = ("big-00001-of-00002.gguf", "big-00002-of-00002.gguf")
    layers = tuple(attrs.evolve(WEIGHTS, digest=Digest.of(n.encode()), filename=n) for n in names)
    assert [layer.file_path() for layer in as_pack(layers=layers).layers] == list(names)


def test_labels_and_a_chosen_context_become_annotations_of_the_manifest():
    spec = attrs.evolve(SPEC, labels={"org.example.team": "blue"})
    manifest = Manifest.parse(build(spec, [7, 8, 9], METADATA, created_s=1).manifest)
    assert manifest.annotations == {
        "org.example.team": "blue", media_types.ANNOTATION_CONTEXT_SIZE: "4096",
    }  # fmt: skip
    plain = attrs.evolve(SPEC, context_size=None)
    assert Manifest.parse(build(plain, [7, 8, 9], METADATA, created_s=1).manifest).annotations == {}


# derived


def base_of(package: BuiltPackage) -> BaseModel:
    return BaseModel.read(package.manifest, package.config)


BASE = base_of(build(attrs.evolve(SPEC, context_size=None), [7, 8, 9], METADATA, created_s=CREATED_S))


def derived(base: BaseModel = BASE, *layers: PackageLayer, **changes) -> BuiltPackage:
    spec = PackageSpec(target=Reference.parse("b:1"), base=ModelName.parse("a:1"), layers=layers, **changes)
    return derive(spec, base, [5] * len(layers))


def test_nothing_that_changes_gives_the_base():
    assert derived() == BuiltPackage(
        manifest=BASE.manifest.encode(), config=BASE.config_bytes, layers=BASE.manifest.layers
    )


def test_another_context_changes_the_config_and_not_one_layer():
    package = derived(context_size=512)
    assert package.layers == BASE.manifest.layers
    config = ModelConfig.parse(package.config)
    assert attrs.evolve(config, context_size=None) == BASE.config
    manifest = Manifest.parse(package.manifest)
    assert config.chosen_context_size(manifest.annotations, default=8192) == 512
    again = derived(base_of(package), context_size=4096)  # the trained one, and still chosen
    annotations = Manifest.parse(again.manifest).annotations
    assert ModelConfig.parse(again.config).chosen_context_size(annotations, default=8192) == 4096


def test_labels_are_added_to_those_of_the_base_and_leave_its_config_alone():
    first = derived(labels={"a": "1", "b": "2"})
    assert first.config == BASE.config_bytes
    second = derived(base_of(first), labels={"b": "3"})
    assert Manifest.parse(second.manifest).annotations == {"a": "1", "b": "3"}


def test_a_template_and_a_projector_replace_those_of_the_base_and_licences_are_added():
    other = attrs.evolve(TEMPLATE, digest=Digest.of(b"other"))
    notice = PackageLayer(kind="license", digest=Digest.of(b"notice"), filename="NOTICE")
    package = derived(BASE, other, notice, PROJECTOR)
    assert [layer.digest for layer in package.layers] == [
        WEIGHTS.digest, LICENSE.digest, notice.digest, other.digest, PROJECTOR.digest,
    ]  # fmt: skip
    assert ModelConfig.parse(package.config).diff_ids == tuple(layer.digest for layer in package.layers)
    third = attrs.evolve(PROJECTOR, digest=Digest.of(b"third"))
    assert [layer.digest for layer in derived(base_of(package), third).layers][-1] == third.digest
    assert len(derived(base_of(package), third).layers) == 5


def test_a_licence_that_is_there_is_not_added_and_another_one_of_its_name_is_refused():
    assert derived(BASE, LICENSE).layers == BASE.manifest.layers
    with pytest.raises(InvalidParameter, match="LICENSE"):
        derived(BASE, attrs.evolve(LICENSE, digest=Digest.of(b"other")))


def test_members_that_we_do_not_know_stay_in_the_config():
    document = orjson.loads(BASE.config_bytes)
    document["config"]["gguf"]["x"], document["files"], document["descriptor"]["family"] = "1", [], "f"
    config = orjson.dumps(document)
    manifest = Manifest.binding(config, BASE.manifest.layers, media_types.DOCKER_CONFIG_V02)
    base = BaseModel.read(manifest.encode(), config)
    package = derived(base, context_size=512, created_s=1_700_000_000)
    document["config"]["context_size"] = 512
    document["descriptor"]["created"] = "2023-11-14T22:13:20Z"
    assert orjson.loads(package.config) == document
    assert Manifest.parse(package.manifest).config.media_type == media_types.DOCKER_CONFIG_V02


def test_a_base_is_turned_into_a_pack_with_the_same_blobs():
    package = derived(BASE, PROJECTOR, format="cncf", labels={"a": "1"})
    manifest = Manifest.parse(package.manifest)
    assert types_and_paths(manifest.layers) == [
        ("weight.v1.raw", "model.gguf"), ("doc.v1.raw", "LICENSE"), ("weight.config.v1.raw", "chat.jinja"),
        ("weight.v1.raw", "vision.gguf.mmproj"),
    ]  # fmt: skip
    assert [layer.digest for layer in manifest.layers][:3] == [layer.digest for layer in BASE.manifest.layers]
    assert manifest.annotations == {"a": "1"}
    assert ModelConfig.parse(package.config) == attrs.evolve(
        BASE.config.as_pack(), diff_ids=tuple(layer.digest for layer in manifest.layers)
    )


def test_layers_of_old_artifacts_get_names_in_a_pack():
    def nameless(media_type: str, content: bytes) -> Descriptor:
        return Descriptor.of(content, media_type)

    layers = (
        nameless(media_types.GGUF, b"1"), nameless(media_types.GGUF, b"2"),
        nameless(media_types.LICENSE, b"3"),
        nameless(media_types.LICENSE, b"4"), nameless(media_types.VLLM_CONFIG_TAR, b"5"),
    )  # fmt: skip
    manifest = Manifest.binding(BASE.config_bytes, layers, media_types.DOCKER_CONFIG_V01)
    package = derived(BaseModel.read(manifest.encode(), BASE.config_bytes), format="cncf")
    assert [layer.file_path() for layer in package.layers] == [
        "model-00001-of-00002.gguf", "model-00002-of-00002.gguf", "LICENSE", "2-LICENSE", "file",
    ]  # fmt: skip


def test_a_pack_stays_one_and_takes_more_layers():
    pack = base_of(as_pack())
    notice = PackageLayer(kind="license", digest=Digest.of(b"notice"), filename="NOTICE")
    package = derived(pack, notice)
    manifest = Manifest.parse(package.manifest)
    assert manifest.artifact_type == media_types.CNCF_ARTIFACT
    assert types_and_paths(manifest.layers)[-1] == ("doc.v1.raw", "NOTICE")
    assert orjson.loads(package.config)["modelfs"]["diffIds"][-1] == str(notice.digest)
    assert derived(pack, format="cncf").manifest == pack.manifest.encode()


@pytest.mark.parametrize(
    ("base", "changes", "field"),
    [
        ("pack", {"format": "docker"}, "format"),
        ("pack", {"context_size": 512}, "context_size"),
    ],
)
def test_what_the_base_has_no_place_for_is_refused(base, changes, field):
    with pytest.raises(InvalidParameter) as caught:
        derived(base_of(as_pack()), **changes)
    assert [fault.path for fault in caught.value.faults] == [field]


@pytest.mark.parametrize("config", [b"[]", b'{"config":[]}', b'{"config":{},"descriptor":[]}'])
def test_a_base_that_is_no_model_is_refused(config):
    with pytest.raises(InvalidManifest):
        BaseModel.read(BASE.manifest.encode(), config)
