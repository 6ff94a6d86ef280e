"""What a package may consist of, and the checks of its parts."""

from __future__ import annotations

import io

import attrs
import pytest

from runner.errors import InvalidModelFile, InvalidParameter
from runner.gguf.metadata import read_metadata
from runner.gguf.split import PARTS_MAX
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.reference import ModelName, Reference
from runner.store.package import (
    CONTEXT_SIZE_MAX,
    LICENSES_MAX,
    TEXT_LAYER_BYTES_MAX,
    PackageLayer,
    PackageSpec,
    check_projector,
    check_text_layer,
    check_weights,
)
from tests.support import models

WEIGHTS = PackageLayer(kind="gguf", digest=Digest.of(b"weights"), filename="model.gguf")
LICENSE = PackageLayer(kind="license", digest=Digest.of(b"license"), filename="LICENSE")
PROJECTOR = PackageLayer(kind="mmproj", digest=Digest.of(b"eyes"), filename="mmproj-F16.gguf")
TEMPLATE = PackageLayer(kind="chat_template", digest=Digest.of(b"template"), filename="chat.jinja")
SPEC = PackageSpec(target=Reference.parse("a:1"), layers=(TEMPLATE, LICENSE, WEIGHTS), context_size=4096)
METADATA = read_metadata(io.BytesIO(models.tiny_gguf()))


def faults(**changes):
    with pytest.raises(InvalidParameter) as caught:
        attrs.evolve(SPEC, **changes).check()
    return [fault.path for fault in caught.value.faults]


def test_a_package_has_weights_and_may_have_licences_a_template_and_a_projector():
    SPEC.check()
    attrs.evolve(SPEC, layers=(WEIGHTS,), context_size=None).check()
    attrs.evolve(SPEC, layers=(WEIGHTS, TEMPLATE, PROJECTOR, LICENSE)).check()
    attrs.evolve(SPEC, layers=(WEIGHTS, attrs.evolve(WEIGHTS, filename="second.gguf"))).check()
    assert faults(layers=(LICENSE,)) == ["layers"]
    assert faults(layers=()) == ["layers"]
    assert faults(layers=(WEIGHTS, TEMPLATE, attrs.evolve(TEMPLATE, filename="b"))) == ["layers"]
    assert faults(layers=(WEIGHTS, PROJECTOR, attrs.evolve(PROJECTOR, filename="b"))) == ["layers"]
    assert faults(layers=(WEIGHTS, attrs.evolve(WEIGHTS, kind="tar", filename="b"))) == ["layers[1].kind"]
    assert faults(layers=(WEIGHTS, WEIGHTS)) == ["layers"]  # two files of one name


@pytest.mark.parametrize(("count", "is_good"), [(PARTS_MAX, True), (PARTS_MAX + 1, False)])
def test_weights_have_at_most_so_many_parts(count, is_good):
    parts = tuple(attrs.evolve(WEIGHTS, filename=f"{n}.gguf") for n in range(count))
    if is_good:
        attrs.evolve(SPEC, layers=parts).check()
    else:
        assert faults(layers=parts) == ["layers"]


def test_a_base_takes_the_place_of_weights():
    base = ModelName.parse("b")
    attrs.evolve(SPEC, layers=(), base=base).check()
    attrs.evolve(SPEC, layers=(LICENSE, TEMPLATE, PROJECTOR), base=base).check()
    assert faults(layers=(WEIGHTS,), base=base) == ["layers"]


def test_a_pack_has_no_place_for_a_context():
    attrs.evolve(SPEC, format="cncf", context_size=None).check()
    assert faults(format="cncf") == ["context_size"]


@pytest.mark.parametrize(
    ("labels", "is_good"),
    [
        ({"org.opencontainers.image.vendor": "Ä & Co"}, True),
        ({"k" * 255: "v" * 4096}, True),
        ({f"k{n}": "" for n in range(64)}, True),
        ({f"k{n}": "" for n in range(65)}, False),
        ({"": "v"}, False),
        ({"k" * 256: "v"}, False),
        ({"a b": "v"}, False),
        ({"ä": "v"}, False),
        ({"k": "v" * 4097}, False),
        ({"k": "a\nb"}, False),
        ({media_types.ANNOTATION_CONTEXT_SIZE: "5"}, False),
        ({media_types.ANNOTATION_REFERENCE: "docker.io/ai/x"}, False),
    ],
)
def test_labels_are_short_and_printable_and_none_of_ours(labels, is_good):
    if is_good:
        attrs.evolve(SPEC, labels=labels).check()
    else:
        assert faults(labels=labels) == ["labels"]


@pytest.mark.parametrize(
    ("count", "is_good"), [(LICENSES_MAX - 1, True), (LICENSES_MAX, True), (LICENSES_MAX + 1, False)]
)
def test_a_package_has_at_most_16_licences(count, is_good):
    layers = (WEIGHTS, *(attrs.evolve(LICENSE, filename=f"{n}") for n in range(count)))
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
    wrong = attrs.evolve(LICENSE, filename="../x")
    target = Reference.parse(f"a@{WEIGHTS.digest}")
    assert faults(target=target, layers=(wrong, wrong), context_size=0) == [
        "target", "layers[0].filename", "layers[1].filename", "layers", "layers", "context_size",
    ]  # fmt: skip


def test_only_a_whole_language_model_is_weights():
    check_weights(METADATA)
    projector = attrs.evolve(METADATA, is_language_model=False, architecture="clip")
    with pytest.raises(InvalidModelFile, match="no language model"):
        check_weights(projector)
    check_projector(projector)
    for other in (METADATA, attrs.evolve(projector, architecture="llama")):
        with pytest.raises(InvalidModelFile, match="no projector"):
            check_projector(other)


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
