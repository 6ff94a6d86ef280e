"""Descriptors, manifests and indexes: strict reading, limits, and bytes that do not vary."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import InvalidManifest
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import (
    LAYERS_MAX,
    MANIFEST_BYTES_MAX,
    SIZE_MAX,
    Descriptor,
    ImageIndex,
    Manifest,
    Platform,
)

HEX = "ab" * 32


def document(**changes):
    config = {"mediaType": media_types.DOCKER_CONFIG_V01, "size": 2, "digest": f"sha256:{HEX}"}
    layer = {"mediaType": media_types.GGUF, "size": 5, "digest": f"sha256:{HEX}"}
    return {
        "schemaVersion": 2, "mediaType": media_types.IMAGE_MANIFEST, "config": config, "layers": [layer],
    } | changes  # fmt: skip


def layer(**changes):
    return {"mediaType": media_types.GGUF, "size": 5, "digest": f"sha256:{HEX}"} | changes


def parsed(**changes):
    return Manifest.parse(orjson.dumps(document(**changes)))


def test_a_manifest_reads_as_it_was_written():
    manifest = parsed()
    assert manifest.config == Descriptor(
        media_type=media_types.DOCKER_CONFIG_V01, size_bytes=2, digest=Digest(HEX)
    )
    assert [part.size_bytes for part in manifest.descriptors()] == [5, 2]
    assert orjson.loads(manifest.encode()) == document()


def test_bytes_follow_the_order_of_the_format_and_sort_annotations():
    part = Descriptor(media_type="t", size_bytes=1, digest=Digest(HEX), annotations={"b": "1", "a": "2"})
    content = Manifest(config=part, layers=(part,)).encode()
    assert content == Manifest(config=part, layers=(part,)).encode()
    assert content.startswith(
        b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"t",'
        b'"size":1,"digest":"sha256:' + HEX.encode() + b'","annotations":{"a":"2","b":"1"}}'
    )


def test_members_we_do_not_know_are_ignored():
    assert parsed(subject={"anything": 1}, layers=[layer(urls=["https://x"], data="")]) == parsed()


def test_old_artifacts_without_annotations_are_read():
    assert parsed().layers[0].file_path() is None


@pytest.mark.parametrize(
    "changes",
    [
        {"schemaVersion": 1},
        {"schemaVersion": "2"},
        {"schemaVersion": True},
        {"schemaVersion": 2.0},
        {"mediaType": media_types.IMAGE_INDEX},
        {"mediaType": None},
        {"config": None},
        {"config": []},
        {"config": {}},
        {"layers": None},
        {"layers": {}},
        {"layers": "ab"},
        {"layers": [None]},
        {"layers": [[]]},
        {"layers": [layer(size=-1)]},
        {"layers": [layer(size=None)]},
        {"layers": [layer(size="5")]},
        {"layers": [layer(size=5.0)]},
        {"layers": [layer(size=True)]},
        {"layers": [layer(digest=HEX)]},
        {"layers": [layer(digest=f"sha512:{HEX}{HEX}")]},
        {"layers": [layer(digest=5)]},
        {"layers": [layer(mediaType=None)]},
        {"layers": [layer(annotations=[])]},
        {"layers": [layer(annotations={"a": 1})]},
        {"layers": [layer(annotations={"a": None})]},
        {"artifactType": 5},
    ],
)
def test_S03_what_is_missing_or_of_another_type_is_refused(changes):
    with pytest.raises(InvalidManifest):
        parsed(**changes)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"null", b"[]", b"{", b"\xff", b'{"schemaVersion":NaN}', b'"\\ud800"', b"5",
        b"[" * 100_000, b'{"layers":' * 50_000, orjson.dumps(document()) + b"x",
    ],
)  # fmt: skip
def test_S03_what_is_no_strict_json_object_is_refused(content):
    with pytest.raises(InvalidManifest):
        Manifest.parse(content)


@pytest.mark.parametrize(
    ("size", "is_good"),
    [(SIZE_MAX - 1, True), (SIZE_MAX, True), (SIZE_MAX + 1, False), (2**63, False), (10**30, False)],
)
def test_S03_a_size_is_below_its_limit(size, is_good):
    content = orjson.dumps(document(layers=[layer(size="SIZE")])).replace(b'"SIZE"', str(size).encode())
    if is_good:
        assert Manifest.parse(content).layers[0].size_bytes == size
    else:
        with pytest.raises(InvalidManifest):
            Manifest.parse(content)


@pytest.mark.parametrize(
    ("count", "is_good"), [(LAYERS_MAX - 1, True), (LAYERS_MAX, True), (LAYERS_MAX + 1, False)]
)
def test_S03_a_manifest_has_at_most_1024_layers(count, is_good):
    if is_good:
        assert len(parsed(layers=[layer()] * count).layers) == count
    else:
        with pytest.raises(InvalidManifest, match="1024"):
            parsed(layers=[layer()] * count)


@pytest.mark.parametrize(("beyond", "is_good"), [(-1, True), (0, True), (1, False)])
def test_S03_a_manifest_has_at_most_4_MiB(beyond, is_good):
    content = orjson.dumps(document())
    content += b" " * (MANIFEST_BYTES_MAX + beyond - len(content))
    if is_good:
        assert Manifest.parse(content) == parsed()
    else:
        with pytest.raises(InvalidManifest, match="limit"):
            Manifest.parse(content)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a\\b", "C:\\x", "a\nb", "nul", "a//b", ""])
def test_S13_a_layer_that_names_a_dangerous_file_is_refused(path):
    with pytest.raises(InvalidManifest, match="names the file"):
        parsed(layers=[layer(annotations={media_types.ANNOTATION_FILE_PATH: path})])


def test_a_layer_tells_its_file():
    manifest = parsed(layers=[layer(annotations={media_types.ANNOTATION_FILE_PATH: "text/model.gguf"})])
    assert manifest.layers[0].file_path() == "text/model.gguf"


def test_an_index_reads_as_it_was_written():
    part = Descriptor(media_type=media_types.IMAGE_MANIFEST, size_bytes=1, digest=Digest(HEX))
    index = ImageIndex(manifests=(part, part))
    assert ImageIndex.parse(index.encode()) == index
    assert ImageIndex.parse(b'{"schemaVersion":2,"manifests":[]}').manifests == ()
    with pytest.raises(InvalidManifest):
        ImageIndex.parse(b'{"schemaVersion":3,"manifests":[]}')


LINUX = Platform(os="linux", architecture="amd64")


def an_index(*entries):
    manifests = [
        {"mediaType": media_types.IMAGE_MANIFEST, "size": 9, "digest": f"sha256:{n:064x}"} | entry
        for n, entry in enumerate(entries)
    ]
    content = orjson.dumps({"schemaVersion": 2, "mediaType": media_types.IMAGE_INDEX, "manifests": manifests})
    index = ImageIndex.parse(content)
    assert ImageIndex.parse(index.encode()) == index
    return index


def for_platform(os, architecture, **more):
    return {"platform": {"os": os, "architecture": architecture, "os.features": ["x"]} | more}


STATEMENT = for_platform("unknown", "unknown") | {"annotations": {"vnd.docker.reference.type": "attestation"}}


@pytest.mark.parametrize(
    ("entries", "chosen"),
    [
        ([for_platform("linux", "arm64"), for_platform("linux", "amd64")], 1),
        ([for_platform("linux", "amd64", variant="v3"), for_platform("linux", "amd64")], 0),
        ([for_platform("linux", "arm64")], 0),
        ([{}], 0),
        ([for_platform("windows", "amd64"), STATEMENT], 0),
        ([{"platform": {}}, {"mediaType": "application/json"}], 0),
        ([{"artifactType": media_types.CNCF_ARTIFACT}], 0),
    ],
)
def test_an_index_leads_to_the_manifest_of_the_platform_or_to_its_only_one(entries, chosen):
    index = an_index(*entries)
    assert index.manifest_for(LINUX) == index.manifests[chosen]


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([], "it has none"),
        ([STATEMENT], "it has none"),
        ([for_platform("linux", "arm64"), for_platform("windows", "amd64")], "linux/arm64, windows/amd64"),
        ([{}, {}], "it has any"),
    ],
)
def test_an_index_without_a_manifest_for_us_is_refused_with_what_it_has(entries, reason):
    with pytest.raises(InvalidManifest, match=reason):
        an_index(*entries).manifest_for(LINUX)


@pytest.mark.parametrize(
    "nested", [media_types.IMAGE_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"]
)
def test_S03_nested_indexes_are_refused(nested):
    index = an_index(for_platform("linux", "amd64"), {"mediaType": nested})
    with pytest.raises(InvalidManifest, match="another index"):
        index.manifest_for(LINUX)


def test_the_manifest_of_a_pack_says_that_it_is_one():
    pack = Manifest.binding(b"{}", (), media_types.CNCF_CONFIG, {"b": "2", "a": "1"})
    assert Manifest.parse(pack.encode()) == pack
    assert orjson.loads(pack.encode())["artifactType"] == media_types.CNCF_ARTIFACT
    assert list(orjson.loads(pack.encode())["annotations"]) == ["a", "b"]
    assert b"artifactType" not in Manifest.binding(b"{}", (), media_types.DOCKER_CONFIG_V02).encode()


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["schemaVersion", "mediaType", "config", "layers", "digest", "size", "annotations"]
                ),
                inner,
                max_size=5,
            )
        ),
    ).map(orjson.dumps)
)
def test_any_bytes_are_a_manifest_or_an_InvalidManifest(content):
    try:
        manifest = Manifest.parse(content)
    except InvalidManifest:
        return
    assert Manifest.parse(manifest.encode()) == manifest


@given(st.sampled_from(range(4)), st.sampled_from([None, 1, "x", [], {}, -1, 1.5, True]))
def test_a_manifest_with_one_member_replaced_is_read_or_refused(which, value):
    name = ("schemaVersion", "mediaType", "config", "layers")[which]
    try:
        parsed(**{name: value})
    except InvalidManifest:
        return
    assert value == [] or document()[name] == value
