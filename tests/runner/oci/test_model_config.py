"""The config document: Docker's schema, read strictly and written reproducibly."""

from __future__ import annotations

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import InvalidManifest
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.model_config import CONFIG_BYTES_MAX, ModelConfig

HEX = "ab" * 32
CONFIG = ModelConfig(
    format="gguf",
    quantization="MOSTLY_Q4_K_M",
    parameters="361.82M",
    architecture="llama",
    size="258.06MiB",
    metadata={"llama.context_length": "8192", "general.architecture": "llama"},
    context_size=4096,
    created_s=1_784_707_200,
    diff_ids=(Digest(HEX),),
)


def test_a_config_is_written_as_the_format_has_it():
    assert orjson.loads(CONFIG.encode()) == {
        "config": {
            "format": "gguf",
            "quantization": "MOSTLY_Q4_K_M",
            "parameters": "361.82M",
            "architecture": "llama",
            "size": "258.06MiB",
            "gguf": {"general.architecture": "llama", "llama.context_length": "8192"},
            "context_size": 4096,
        },
        "descriptor": {"created": "2026-07-22T08:00:00Z"},
        "rootfs": {"type": "rootfs", "diff_ids": [f"sha256:{HEX}"]},
    }


def test_equal_configs_give_equal_bytes_whatever_the_order_of_their_metadata():
    reversed_metadata = dict(reversed(CONFIG.metadata.items()))
    assert attrs.evolve(CONFIG, metadata=reversed_metadata).encode() == CONFIG.encode()


def test_a_wish_that_nobody_has_is_not_written():
    content = attrs.evolve(CONFIG, context_size=None).encode()
    assert "context_size" not in orjson.loads(content)["config"]
    assert ModelConfig.parse(content).context_size is None


@given(
    st.builds(
        ModelConfig,
        format=st.sampled_from(["", "gguf", "safetensors"]),
        quantization=st.text(max_size=5),
        parameters=st.text(max_size=5),
        architecture=st.text(max_size=5),
        size=st.text(max_size=5),
        metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
        context_size=st.none() | st.integers(1, 2**31 - 1),
        created_s=st.integers(0, 4_000_000_000),
        diff_ids=st.lists(st.just(Digest(HEX)), max_size=2).map(tuple),
    )
)
def test_a_config_round_trips(config):
    assert ModelConfig.parse(config.encode()) == config
    pack = config.as_pack()
    assert ModelConfig.parse(pack.encode()) == pack
    assert pack.as_pack() == pack


def test_a_pack_is_written_as_the_format_has_it():
    pack = CONFIG.as_pack()
    assert (CONFIG.media_type, pack.media_type) == (media_types.DOCKER_CONFIG_V01, media_types.CNCF_CONFIG)
    assert orjson.loads(pack.encode()) == {
        "config": {
            "format": "gguf",
            "quantization": "MOSTLY_Q4_K_M",
            "paramSize": "361.82M",
            "architecture": "llama",
        },
        "descriptor": {"createdAt": "2026-07-22T08:00:00Z", "family": "llama"},
        "modelfs": {"type": "layers", "diffIds": [f"sha256:{HEX}"]},
    }


@pytest.mark.parametrize(
    ("document", "is_pack"),
    [
        ({"config": {"paramSize": "1B"}}, True),
        ({"config": {}, "modelfs": {"type": "layers", "diffIds": []}}, True),
        # the published text of Docker's format has this member as well
        ({"config": {"parameters": "1B"}, "descriptor": {"createdAt": "2026-07-22T08:00:00Z"}}, False),
        ({"config": {"parameters": "1B"}, "files": [{"diffID": "x"}]}, False),
    ],
)
def test_a_pack_is_told_by_what_only_packs_have(document, is_pack):
    found = ModelConfig.parse(orjson.dumps(document))
    assert found.is_pack is is_pack
    assert found.parameters in ("1B", "")


def test_all_members_of_a_pack_are_read_past():
    content = orjson.dumps(
        {
            "descriptor": {
                "createdAt": "2026-07-22T08:00:00Z", "authors": ["A"], "family": "llama", "name": "x",
                "docURL": "u", "licenses": ["MIT"], "title": "t", "datasetsURL": [], "vendor": "v",
            },
            "config": {
                "format": "GGUF", "paramSize": "8B", "precision": "bf16", "architecture": "transformer",
                "capabilities": {"inputTypes": ["text"], "reasoning": True, "languages": ["en"]},
            },
            "modelfs": {"type": "layers", "diffIds": [f"sha256:{HEX}"]},
        }
    )  # fmt: skip
    config = ModelConfig.parse(content)
    assert (config.format, config.parameters, config.size, config.created_s) == (
        "gguf",
        "8B",
        "",
        1_784_707_200,
    )
    assert config.diff_ids == (Digest(HEX),)


def test_metadata_of_other_weights_is_kept_apart():
    content = orjson.dumps(
        {"config": {"format": "safetensors", "safetensors": {"tensor_count": "3"}, "diffusers": {}}}
    )
    assert ModelConfig.parse(content).other_metadata == {"safetensors": {"tensor_count": "3"}}


@pytest.mark.parametrize(
    ("trained", "written", "annotation", "chosen"),
    [
        ("8192", 8192, None, None),  # as every tool writes it
        ("8192", 8192, "8192", 8192),
        ("8192", 4096, None, 4096),
        ("8192", 16384, None, 16384),
        ("8192", None, None, None),
        ("8192", 8192, "all of it", None),
        ("8192", 8192, "0", None),
        ("8192", 8192, "2147483648", None),
        (None, 131072, None, None),
        (None, 4096, None, 4096),
        (None, 8192, None, 8192),
        (None, 8193, None, None),
        (None, None, None, None),
    ],
)
def test_a_context_counts_as_chosen_only_where_it_cannot_be_the_trained_one(
    trained, written, annotation, chosen
):
    metadata = {} if trained is None else {"llama.context_length": trained}
    annotations = {} if annotation is None else {media_types.ANNOTATION_CONTEXT_SIZE: annotation}
    config = attrs.evolve(CONFIG, metadata=metadata, context_size=written)
    assert config.chosen_context_size(annotations, default=8192) == chosen


@pytest.mark.parametrize(
    ("created", "unix_s"),
    [
        ("2026-07-22T08:00:00Z", 1_784_707_200),
        ("2026-07-22T10:00:00+02:00", 1_784_707_200),
        ("2026-07-22T08:00:00.123456789Z", 1_784_707_200),
        ("2026-07-22T08:00:00", 1_784_707_200),
        ("1969-01-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00Z", 0),
        ("yesterday", 0),
        (None, 0),
    ],
)
def test_a_date_is_read_in_every_usual_form_and_never_a_reason_to_refuse(created, unix_s):
    content = orjson.dumps({"config": {}, "descriptor": {"created": created}})
    assert ModelConfig.parse(content).created_s == unix_s


def test_everything_but_config_may_be_missing():
    config = ModelConfig.parse(b'{"config":{}}')
    assert (config.format, config.metadata, config.created_s, config.diff_ids) == ("", {}, 0, ())


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b'{"config":null}', b'{"config":{"format":1}}', b'{"config":{"gguf":{"a":1}}}',
        b'{"config":{"gguf":[]}}',
        b'{"config":{"context_size":0}}', b'{"config":{"context_size":2147483648}}',
        b'{"config":{"context_size":"4096"}}', b'{"config":{"context_size":true}}',
        b'{"config":{},"rootfs":{"diff_ids":["x"]}}',
        b'{"config":{},"rootfs":{"diff_ids":"ab"}}', b"\xff\xfe", b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_missing_or_of_another_type_is_refused(content):
    with pytest.raises(InvalidManifest):
        ModelConfig.parse(content)


@pytest.mark.parametrize("context_size", [1, 2**31 - 1])
def test_a_context_at_its_limits_is_read(context_size):
    assert ModelConfig.parse(b'{"config":{"context_size":%d}}' % context_size).context_size == context_size


@pytest.mark.parametrize(("beyond", "is_good"), [(-1, True), (0, True), (1, False)])
def test_S03_a_config_has_at_most_1_MiB(beyond, is_good):
    content = b'{"config":{}}'
    content += b" " * (CONFIG_BYTES_MAX + beyond - len(content))
    if is_good:
        ModelConfig.parse(content)
    else:
        with pytest.raises(InvalidManifest, match="limit"):
            ModelConfig.parse(content)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8192", 8192), ("0", None), ("-1", None), ("8192.0", None), ("", None), ("²", None), ("9" * 30, None)],
)
def test_the_trained_context_is_a_positive_number_of_the_header_or_unknown(text, size):
    assert attrs.evolve(CONFIG, metadata={"llama.context_length": text}).trained_context_size() == size
    assert attrs.evolve(CONFIG, metadata={}).trained_context_size() is None
