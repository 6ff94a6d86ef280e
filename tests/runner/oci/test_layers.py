"""What layers are for: by media type, by name where the type leaves it open, and which make the model."""

from __future__ import annotations

import pytest

from runner.errors import InvalidManifest
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.layers import ArtifactLayers, LayerKind, kind_of_layer, kind_of_name
from runner.oci.manifest import Descriptor, Manifest

DOCKER = "application/vnd.docker.ai."
CNCF = "application/vnd.cncf.model."


def layer(media_type: str, path: str | None = None) -> Descriptor:
    annotations = {} if path is None else {media_types.ANNOTATION_FILE_PATH: path}
    digest = Digest.of(f"{media_type} {path}".encode())
    return Descriptor(media_type=media_type, size_bytes=1, digest=digest, annotations=annotations)


def sort(*layers: Descriptor, config: str = media_types.DOCKER_CONFIG_V02) -> ArtifactLayers:
    manifest = Manifest.binding(b"{}", layers, config)
    return ArtifactLayers.of(manifest)


def paths(layers: tuple[Descriptor, ...]) -> list[str | None]:
    return [each.file_path() for each in layers]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.gguf", LayerKind.GGUF),
        ("Model.GGUF", LayerKind.GGUF),
        ("dir/mmproj-model-f16.gguf", LayerKind.PROJECTOR),
        ("mmproj/model.gguf", LayerKind.GGUF),  # the directory does not count
        ("model.mmproj", LayerKind.PROJECTOR),
        ("model.safetensors", LayerKind.SAFETENSORS),
        ("model.dduf", LayerKind.DDUF),
        ("chat.jinja", LayerKind.CHAT_TEMPLATE),
        ("chat_template", LayerKind.CHAT_TEMPLATE),
        ("chat_template.json", LayerKind.DOCUMENT),  # which is no Jinja
        ("LICENSE", LayerKind.LICENSE),
        ("Licence.txt", LayerKind.LICENSE),
        ("COPYING", LayerKind.LICENSE),
        ("NOTICE.md", LayerKind.LICENSE),
        ("README.md", LayerKind.DOCUMENT),
        ("tokenizer.model", LayerKind.DOCUMENT),
        ("evil.py", LayerKind.DOCUMENT),
    ],
)
def test_a_name_says_what_a_file_is(name: str, kind: LayerKind) -> None:
    assert kind_of_name(name) is kind


@pytest.mark.parametrize(
    ("media_type", "path", "kind"),
    [
        (DOCKER + "gguf.v3", None, LayerKind.GGUF),
        (DOCKER + "gguf.v3", "weights.bin", LayerKind.GGUF),
        (DOCKER + "gguf.v3", "mmproj-F16.gguf", LayerKind.PROJECTOR),  # v0.2 has no type for it
        (DOCKER + "mmproj", "vision.gguf", LayerKind.PROJECTOR),
        (DOCKER + "gguf.v3.mmproj", None, LayerKind.PROJECTOR),
        (DOCKER + "gguf.v3.lora", None, LayerKind.ADAPTER),
        (DOCKER + "safetensors", None, LayerKind.SAFETENSORS),
        (DOCKER + "dduf", None, LayerKind.DDUF),
        (DOCKER + "chat.template.jinja", "x.txt", LayerKind.CHAT_TEMPLATE),
        (DOCKER + "license", "x.gguf", LayerKind.LICENSE),
        (DOCKER + "model.file", "tokenizer.json", LayerKind.DOCUMENT),
        (DOCKER + "model.file", None, LayerKind.DOCUMENT),
        (DOCKER + "vllm.config.tar", None, LayerKind.PACKED),
        (DOCKER + "dir.tar", "model.gguf", LayerKind.PACKED),
        (CNCF + "weight.v1.raw", "m.gguf", LayerKind.GGUF),
        (CNCF + "weight.v1.raw", "mmproj.gguf", LayerKind.PROJECTOR),
        (CNCF + "weight.v1.raw", "m.safetensors", LayerKind.SAFETENSORS),
        (CNCF + "weight.v1.raw", "m.bin", LayerKind.DOCUMENT),
        (CNCF + "weight.v1.gguf", None, LayerKind.GGUF),
        (CNCF + "weight.v1.safetensors", None, LayerKind.SAFETENSORS),
        (CNCF + "weight.v1.tar", "m.gguf", LayerKind.PACKED),
        (CNCF + "weight.v1.tar+gzip", None, LayerKind.PACKED),
        (CNCF + "weight.v1.tar+zstd", None, LayerKind.PACKED),
        (CNCF + "weight.config.v1.raw", "chat.jinja", LayerKind.CHAT_TEMPLATE),
        (CNCF + "weight.config.v1.raw", "config.json", LayerKind.DOCUMENT),
        (CNCF + "weight.config.v1.raw", "m.gguf", LayerKind.DOCUMENT),
        (CNCF + "doc.v1.raw", "LICENSE", LayerKind.LICENSE),
        (CNCF + "doc.v1.raw", "README.md", LayerKind.DOCUMENT),
        (CNCF + "doc.v1.raw", None, LayerKind.DOCUMENT),
        (CNCF + "dataset.v1.tar", None, LayerKind.PACKED),
        ("application/octet-stream", "m.gguf", LayerKind.GGUF),
        ("application/octet-stream", None, LayerKind.DOCUMENT),
    ],
)
def test_a_media_type_decides_where_it_says_enough(
    media_type: str, path: str | None, kind: LayerKind
) -> None:
    assert kind_of_layer(layer(media_type, path)) is kind


def test_weights_of_a_pack_without_a_name_are_what_the_config_says() -> None:
    nameless = layer(media_types.CNCF_WEIGHT)
    assert kind_of_layer(nameless, model_format="GGUF") is LayerKind.GGUF
    assert kind_of_layer(nameless, model_format="safetensors") is LayerKind.SAFETENSORS
    assert kind_of_layer(nameless) is LayerKind.DOCUMENT


@pytest.mark.parametrize("path", ["../m.gguf", "/m.gguf", "a\\m.gguf", "C:m.gguf", "a//b", "nul.gguf"])
def test_S13_a_name_that_must_not_be_one_is_refused_and_not_repaired(path: str) -> None:
    with pytest.raises(InvalidManifest):
        kind_of_layer(layer(media_types.GGUF, path))


def test_all_gguf_layers_of_the_first_format_are_parts_in_the_order_of_the_manifest() -> None:
    layers = [layer(media_types.GGUF, name) for name in ("b.gguf", "a.gguf", "c.gguf")]
    found = sort(*layers, config=media_types.DOCKER_CONFIG_V01)
    assert (found.format, paths(found.weights)) == ("gguf", ["b.gguf", "a.gguf", "c.gguf"])


def test_of_a_directory_the_first_model_is_taken_with_all_its_parts() -> None:
    names = (
        "Q8_0/m-00002-of-00002.gguf", "Q8_0/m-00001-of-00002.gguf", "Q4_0/m-00002-of-00002.gguf",
        "Q4_0/m-00001-of-00002.gguf", "README.md",
    )  # fmt: skip
    layers = [layer(media_types.GGUF if n.endswith("gguf") else media_types.MODEL_FILE, n) for n in names]
    for config in (media_types.DOCKER_CONFIG_V02, media_types.CNCF_CONFIG):
        found = sort(*layers, config=config)
        assert paths(found.weights) == ["Q4_0/m-00001-of-00002.gguf", "Q4_0/m-00002-of-00002.gguf"]
    shallow = layer(media_types.GGUF, "z.gguf")
    assert sort(*layers, shallow).weights == (shallow,)


def test_files_without_names_are_all_taken() -> None:
    one, two = layer(media_types.GGUF), layer(media_types.CNCF_WEIGHT_GGUF)
    assert sort(one, two).weights == (one, two)


def test_projector_template_and_licences_are_found() -> None:
    found = sort(
        layer(media_types.GGUF, "m.gguf"),
        layer(media_types.GGUF, "mmproj-F32.gguf"),
        layer(media_types.GGUF, "mmproj-BF16.gguf"),
        layer(media_types.GGUF, "mmproj-model-f16.gguf"),
        layer(media_types.CHAT_TEMPLATE, "other/b.jinja"),
        layer(media_types.MODEL_FILE, "a.jinja"),
        layer(media_types.LICENSE, "LICENSE"),
        layer(media_types.CNCF_DOCUMENT, "NOTICE"),
    )
    assert paths(found.weights) == ["m.gguf"]
    assert found.projector == layer(media_types.GGUF, "mmproj-model-f16.gguf")
    assert found.chat_template == layer(media_types.MODEL_FILE, "a.jinja")
    assert paths(found.licenses) == ["LICENSE", "NOTICE"]


@pytest.mark.parametrize(
    ("layers", "model_format", "has_packed"),
    [
        ([layer(media_types.SAFETENSORS, "m"), layer(media_types.VLLM_CONFIG_TAR)], "safetensors", True),
        ([layer(media_types.DDUF)], "dduf", False),
        ([layer(media_types.CNCF_LAYERS + "weight.v1.tar")], "", True),
        ([], "", False),
        ([layer(media_types.GGUF, "m.gguf"), layer(media_types.SAFETENSORS, "m.safetensors")], "gguf", False),
    ],
)  # fmt: skip
def test_the_format_is_that_of_the_weights(
    layers: list[Descriptor], model_format: str, has_packed: bool
) -> None:
    found = sort(*layers)
    assert (found.format, found.has_packed) == (model_format, has_packed)
