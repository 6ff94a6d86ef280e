"""How a name finds a model."""

from __future__ import annotations

import pytest

from runner.domain.model import Model
from runner.errors import AmbiguousModel, ModelNotFound, StoreDamaged
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.reference import ModelName, Reference
from runner.store.catalog import Catalog, Fault, StoredModel
from runner.store.index import StoreIndex


def stored(hex_start: str) -> StoredModel:
    digest = Digest(hex_start.ljust(64, "0"))
    config = Descriptor(media_type=media_types.DOCKER_CONFIG_V01, size_bytes=2, digest=Digest.of(b"{}"))
    model = Model(
        id=digest,
        tags=(),
        created_s=0,
        size_bytes=0,
        format="",
        architecture="",
        quantization="",
        parameters="",
    )
    return StoredModel(
        descriptor=Descriptor(media_type=media_types.IMAGE_MANIFEST, size_bytes=1, digest=digest),
        manifest=Manifest(config=config, layers=()),
        model=model,
    )


ONE, TWO, TWIN = stored("aaaaaaa1"), stored("bbbbbbb2"), stored("aaaaaaa2")


def catalog(*named: tuple[StoredModel, str | None], faults: dict[Digest, Fault] | None = None) -> Catalog:
    index = StoreIndex()
    for model, text in named:
        index = index.with_model(model.descriptor, Reference.parse(text) if text else None)
    faulty = faults or {}
    usable = {model.model.id: model for model, _ in named if model.model.id not in faulty}
    return Catalog.of(index, usable, faulty)


def found(catalog: Catalog, text: str) -> Digest:
    return catalog.resolve(ModelName.parse(text)).model.id


BOTH = catalog((ONE, "one"), (ONE, "one:v1"), (TWO, "example.com/two:x"), (TWIN, None))


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("one", ONE),
        ("ai/one:latest", ONE),
        ("docker.io/ai/ONE:v1", ONE),
        ("example.com/two:x", TWO),
        (str(TWO.model.id), TWO),
        (TWO.model.id.hex, TWO),
        (TWO.model.id.short(), TWO),
        ("bbbbbbb", TWO),
        ("aaaaaaa2", TWIN),
        (f"one@{ONE.model.id}", ONE),
        (f"one:v1@{ONE.model.id}", ONE),
        (f"anything/else@{TWIN.model.id}", TWIN),
    ],
)
def test_a_name_a_digest_or_the_beginning_of_one_finds_the_model(text, model):
    assert found(BOTH, text) == model.model.id


@pytest.mark.parametrize(
    "text",
    [
        "two", "one:v2", "example.com/two", "bbbbbb", "ccccccc", "bbbbbbb3", "sha256:" + "c" * 64, "c" * 64,
        f"one:v1@sha256:{'c' * 64}", f"example.com/two:x@{ONE.model.id}",
    ],
)  # fmt: skip
def test_what_is_not_there_or_does_not_agree_is_not_found(text):
    with pytest.raises(ModelNotFound) as caught:
        found(BOTH, text)
    assert caught.value.name == text


def test_a_short_id_of_several_models_is_ambiguous_and_lists_them():
    with pytest.raises(AmbiguousModel) as caught:
        found(BOTH, "aaaaaaa")
    assert set(caught.value.candidates) == {str(ONE.model.id), str(TWIN.model.id)}


def test_an_exact_name_wins_over_an_id():
    both = catalog((TWO, "aaaaaaa"), (ONE, "one"), (TWIN, None))
    assert found(both, "aaaaaaa") == TWO.model.id
    assert found(both, "aaaaaaa1") == ONE.model.id


def test_models_carry_their_names_and_are_listed_by_them():
    assert [model.name for model in BOTH.models()] == ["ai/one", "example.com/two:x", TWIN.model.id.short()]
    assert [str(tag) for tag in BOTH.models()[0].tags] == ["docker.io/ai/one:latest", "docker.io/ai/one:v1"]


def test_a_damaged_model_is_found_and_told_but_not_listed():
    damaged = catalog((ONE, "one"), (TWO, "two"), faults={TWO.model.id: Fault(reason="gone", manifest=None)})
    assert [model.name for model in damaged.models()] == ["ai/one"]
    assert damaged.find(ModelName.parse("two")) == TWO.model.id
    with pytest.raises(StoreDamaged, match=r"gone; remove it"):
        found(damaged, "two")
    assert damaged.with_model(damaged.index, TWO).usable(TWO.model.id).model.name == "ai/two"
    assert damaged.with_index(damaged.index.without_model(TWO.model.id)).faults == {}


def test_only_a_name_counts_as_a_name():
    assert BOTH.is_found_by_name(ModelName.parse("one"))
    assert BOTH.is_found_by_name(ModelName.parse(f"one@{ONE.model.id}")) is False
    for text in ("nothing", "aaaaaaa1", ONE.model.id.hex, f"x@{ONE.model.id}"):
        assert not BOTH.is_found_by_name(ModelName.parse(text))
