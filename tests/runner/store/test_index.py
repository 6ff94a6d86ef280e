"""The index against a plain dictionary of names, and what can be saved of a damaged one."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from runner.errors import InvalidManifest
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.oci.reference import Reference
from runner.store.index import IndexEntry, StoreIndex, salvage

MODELS = [
    Descriptor(media_type=media_types.IMAGE_MANIFEST, size_bytes=number, digest=Digest.of(b"%d" % number))
    for number in range(4)
]
NAMES = [Reference.parse(text) for text in ("a", "b:1", "example.com/c:2", "huggingface.co/d/e:Q8_0")]
A, B = MODELS[:2]
NAME_A, NAME_B = NAMES[:2]


class IndexAgainstADictionary(RuleBasedStateMachine):
    """`names` and `models` say what the index must show."""

    def __init__(self) -> None:
        super().__init__()
        self.index = StoreIndex()
        self.names: dict[Reference, Digest] = {}
        self.models: set[Digest] = set()

    @rule(model=st.sampled_from(MODELS), name=st.none() | st.sampled_from(NAMES))
    def publish_or_tag(self, model: Descriptor, name: Reference | None) -> None:
        self.index = self.index.with_model(model, name)
        self.models.add(model.digest)
        if name is not None:
            self.names[name] = model.digest

    @rule(name=st.sampled_from(NAMES))
    def untag(self, name: Reference) -> None:
        self.index = self.index.without_name(name)
        self.names.pop(name, None)

    @rule(model=st.sampled_from(MODELS))
    def remove(self, model: Descriptor) -> None:
        self.index = self.index.without_model(model.digest)
        self.models.discard(model.digest)
        self.names = {name: digest for name, digest in self.names.items() if digest != model.digest}

    @invariant()
    def names_and_models_agree(self) -> None:
        assert {name: self.index.model_of(name) for name in NAMES} == {
            name: self.names.get(name) for name in NAMES
        }
        assert self.index.manifests().keys() == self.models
        for model_id in self.models:
            names = {name for name, digest in self.names.items() if digest == model_id}
            assert set(self.index.names_of(model_id)) == names
            entries = [entry for entry in self.index.entries if entry.model_id == model_id]
            assert len(entries) == max(1, len(names)), "one entry per name, one for a model without a name"

    @invariant()
    def the_file_says_the_same(self) -> None:
        content = self.index.encode()
        assert StoreIndex.parse(content) == self.index
        assert salvage(content) == self.index
        shuffled = StoreIndex.of(reversed(self.index.entries))
        assert shuffled.encode() == content


TestIndexAgainstADictionary = IndexAgainstADictionary.TestCase


def test_the_file_is_an_oci_index_with_one_descriptor_per_name():
    index = StoreIndex().with_model(A, NAME_B).with_model(A, NAME_A).with_model(B, None)
    document = orjson.loads(index.encode())
    assert document["schemaVersion"] == 2
    assert document["mediaType"] == "application/vnd.oci.image.index.v1+json"
    assert [
        (entry["digest"], entry.get("annotations", {}).get("org.opencontainers.image.ref.name"))
        for entry in document["manifests"]
    ] == [
        (str(A.digest), "docker.io/ai/a:latest"),
        (str(A.digest), "docker.io/ai/b:1"),
        (str(B.digest), None),
    ]


def test_a_name_that_moves_leaves_its_model_without_one():
    index = StoreIndex().with_model(A, NAME_A).with_model(B, NAME_A)
    assert index.model_of(NAME_A) == B.digest
    assert index.names_of(A.digest) == ()
    assert A.digest in index.manifests()


def descriptor(**changes):
    return {"mediaType": media_types.IMAGE_MANIFEST, "size": 1, "digest": str(A.digest)} | changes


def named(text):
    return descriptor(annotations={media_types.ANNOTATION_REFERENCE: text})


def document(*descriptors):
    return orjson.dumps({"schemaVersion": 2, "manifests": list(descriptors)})


@pytest.mark.parametrize(
    "wrong",
    [
        descriptor(mediaType=media_types.IMAGE_INDEX),
        descriptor(digest="sha256:short"),
        descriptor(size=-1),
        named("smollm2"),
        named("docker.io/ai/SmolLM2:latest"),
        named("docker.io/ai/../x:latest"),
        named(f"docker.io/ai/x@{A.digest}"),
        named(f"docker.io/ai/x:latest@{A.digest}"),
        named(""),
        5,
    ],
)
def test_S27_one_wrong_entry_makes_an_index_damaged_and_the_others_are_saved(wrong):
    content = document(named("docker.io/ai/a:latest"), wrong)
    with pytest.raises(InvalidManifest):
        StoreIndex.parse(content)
    assert [entry.name for entry in salvage(content).entries] == [NAME_A]


def test_S27_a_name_that_occurs_twice_makes_an_index_damaged():
    twice = named("docker.io/ai/a:latest"), named("docker.io/ai/a:latest") | {"digest": str(B.digest)}
    with pytest.raises(InvalidManifest, match="twice"):
        StoreIndex.parse(document(*twice))
    assert salvage(document(*twice)).model_of(NAME_A) == A.digest


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"manifests":5}', b'{"manifests":{}}', b"\xff"]
)
def test_S27_of_anything_else_nothing_is_saved(content):
    assert salvage(content) == StoreIndex()


def test_an_unnamed_entry_beside_a_named_one_says_nothing_new():
    assert StoreIndex.parse(
        document(descriptor(), named("docker.io/ai/a:latest"))
    ) == StoreIndex().with_model(StoreIndex.parse(document(descriptor())).entries[0].manifest, NAME_A)


def test_two_indexes_join_and_the_left_one_counts():
    joined = StoreIndex().with_model(A, NAME_A) + StoreIndex().with_model(B, NAME_A).with_model(B, NAME_B)
    assert joined.model_of(NAME_A) == A.digest
    assert joined.model_of(NAME_B) == B.digest
    assert joined.only(lambda digest: digest == B.digest).entries == (IndexEntry(B, NAME_B),)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_index_or_an_InvalidManifest(content):
    salvage(content)
    try:
        StoreIndex.parse(content)
    except InvalidManifest:
        return


def test_where_a_model_without_a_name_came_from_is_kept_until_it_has_one():
    origin = Reference.parse(f"example.com/c@{A.digest}")
    index = StoreIndex().with_model(A, None, origin).with_model(A, None)
    again = StoreIndex.parse(index.encode())
    assert again == index
    assert again.origin_of(A.digest) == origin
    assert again.model_of(origin) is None
    named = again.with_model(A, NAME_A)
    assert named.origin_of(A.digest) is None
    assert named.names_of(A.digest) == (NAME_A,)
    assert again.without_model(A.digest).origin_of(A.digest) is None


@pytest.mark.parametrize("text", ["", "../x", "example.com/c:1", f"example.com/c@{B.digest}"])
def test_an_origin_that_cannot_be_one_is_none(text):
    entry = Descriptor(
        media_type=A.media_type,
        size_bytes=A.size_bytes,
        digest=A.digest,
        annotations={media_types.ANNOTATION_ORIGIN: text},
    )
    assert IndexEntry.of(entry) == IndexEntry(A, None)
