"""Bodies of the control API: strict, closed, every fault at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from runner.api.control import convert, schema
from runner.domain.status import Removal, UnloadReport
from runner.errors import InvalidParameter
from runner.oci.digest import Digest
from runner.oci.reference import ModelName, Reference
from runner.store.package import PackageLayer, PackageSpec
from tests.support.fake_handles import fake_model, worker_status

DIGEST = f"sha256:{'0' * 64}"
LAYER = {"kind": "gguf", "digest": DIGEST, "filename": "model.gguf"}
PACKAGE = {"target": "acme/tiny:v1", "layers": [LAYER]}


def faults_of(parse: Callable[[bytes], object], document: object) -> list[str]:
    with pytest.raises(InvalidParameter) as caught:
        parse(orjson.dumps(document))
    return [fault.path for fault in caught.value.faults]


def test_requests_become_values() -> None:
    tag = schema.parse_tag(b'{"source": "0123456789ab", "target": "acme/tiny:v1"}')
    assert tag.source == ModelName.parse("0123456789ab")
    assert tag.target == Reference.parse("acme/tiny:v1")
    assert schema.parse_untag(b'{"target": "acme/tiny"}').target == Reference.parse("acme/tiny:latest")
    start = schema.parse_start(b'{"model": "ai/x", "keep_alive": -1}')
    assert (start.model.text, start.keep_alive) == ("ai/x", math.inf)
    assert schema.parse_start(b'{"model": "ai/x"}').keep_alive is None
    assert schema.parse_unload(b'{"all": true}').all
    assert [name.text for name in schema.parse_unload(b'{"models": ["ai/x"]}').models or ()] == ["ai/x"]


@pytest.mark.parametrize("field", ["path", "file", "url", "socket", "device"])
def test_N14_no_field_names_a_file_or_a_place(field: str) -> None:
    layer = {**LAYER, field: "/etc/passwd"}
    assert faults_of(schema.parse_package, {**PACKAGE, "layers": [layer]}) == [f"layers[0].{field}"]
    assert faults_of(schema.parse_package, {**PACKAGE, field: "/etc/passwd"}) == [field]
    assert faults_of(schema.parse_start, {"model": "ai/x", field: "/etc/passwd"}) == [field]


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.gguf", "file:///etc/passwd", "C:\\model.gguf"])
def test_N14_a_file_name_is_data_and_no_path(name: str) -> None:
    request = schema.parse_package(orjson.dumps({**PACKAGE, "layers": [{**LAYER, "filename": name}]}))
    with pytest.raises(InvalidParameter) as caught:
        convert.package_spec(request).check()
    assert [fault.path for fault in caught.value.faults] == ["layers[0].filename"]


def test_a_package_request_becomes_a_spec() -> None:
    request = schema.parse_package(orjson.dumps({**PACKAGE, "context_size": 4096}))
    assert convert.package_spec(request) == PackageSpec(
        target=Reference.parse("acme/tiny:v1"),
        layers=(PackageLayer(kind="gguf", digest=Digest.parse(DIGEST), filename="model.gguf"),),
        context_size=4096,
    )


def test_a_request_with_a_base_becomes_a_spec() -> None:
    document = {"target": "b:1", "base": "a:1", "labels": {"k": "v"}, "format": "cncf"}
    assert convert.package_spec(schema.parse_package(orjson.dumps(document))) == PackageSpec(
        target=Reference.parse("b:1"), base=ModelName.parse("a:1"), labels={"k": "v"}, format="cncf"
    )


@pytest.mark.parametrize(
    ("parse", "document", "paths"),
    [
        (schema.parse_tag, {}, ["source", "target"]),
        (schema.parse_tag, {"source": "a//b", "target": "x y", "extra": 1}, ["source", "target", "extra"]),
        (schema.parse_untag, {"target": DIGEST}, ["target"]),
        (schema.parse_start, {"model": 5, "keep_alive": []}, ["model", "keep_alive"]),
        (schema.parse_start, {"model": "ai/x", "options": {}}, ["options"]),
        (schema.parse_unload, {"models": ["..", 5]}, ["models[0]", "models[1]"]),
        (schema.parse_unload, {"models": "ai/x"}, ["models"]),
        (schema.parse_unload, {}, ["models"]),
        (schema.parse_unload, {"models": []}, ["models"]),
        (schema.parse_unload, {"all": False}, ["models"]),
        (schema.parse_unload, {"all": True, "models": ["ai/x"]}, ["models"]),
        (schema.parse_unload, {"all": "yes"}, ["all"]),
        (schema.parse_package, {"layers": []}, ["target"]),
        (schema.parse_package, {**PACKAGE, "labels": {"a": 1}}, ["labels"]),
        (schema.parse_package, {**PACKAGE, "labels": ["a"]}, ["labels"]),
        (schema.parse_package, {**PACKAGE, "format": "oci", "base": ".."}, ["base", "format"]),
        (schema.parse_package, {**PACKAGE, "layers": [{}]}, [f"layers[0].{n}" for n in LAYER]),
        (schema.parse_package, {**PACKAGE, "layers": [{**LAYER, "kind": "tar"}]}, ["layers[0].kind"]),
        (schema.parse_package, {**PACKAGE, "layers": [{**LAYER, "digest": "md5:0"}]}, ["layers[0].digest"]),
        (schema.parse_package, {**PACKAGE, "layers": [{**LAYER, "path": "/etc"}]}, ["layers[0].path"]),
        (schema.parse_nothing, {"now": True}, ["now"]),
        (schema.parse_nothing, [], ["body"]),
        (schema.parse_tag, [], ["body"]),
    ],
)
def test_every_fault_is_named_and_unknown_keys_are_faults(
    parse: Any, document: object, paths: list[str]
) -> None:
    assert faults_of(parse, document) == paths


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("context_size", [1, 2**31 - 1], [0, -1, 2**31, 1.0, "8192"]),
        ("layers", [[], [LAYER], [LAYER] * 1024], [[LAYER] * 1025]),
    ],
)
def test_limits_of_a_package_hold_at_below_and_above(field: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        schema.parse_package(orjson.dumps({**PACKAGE, field: value}))
    for value in bad:
        assert faults_of(schema.parse_package, {**PACKAGE, field: value}) == [field]


@pytest.mark.parametrize(("length", "is_good"), [(0, False), (1, True), (255, True), (256, False)])
def test_the_length_of_a_file_name_is_limited(length: int, is_good: bool) -> None:
    document = {**PACKAGE, "layers": [{**LAYER, "filename": "x" * length}]}
    if is_good:
        schema.parse_package(orjson.dumps(document))
    else:
        assert faults_of(schema.parse_package, document) == ["layers[0].filename"]


def test_the_number_of_models_to_unload_is_limited() -> None:
    assert len(schema.parse_unload(orjson.dumps({"models": ["ai/x"] * 256})).models or ()) == 256
    assert faults_of(schema.parse_unload, {"models": ["ai/x"] * 257}) == ["models"]


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_a_request_without_fields_needs_no_body(body: bytes) -> None:
    schema.parse_nothing(body)


@pytest.mark.parametrize("parse", [schema.parse_tag, schema.parse_package, schema.parse_nothing])
def test_N11_bodies_are_strict_json(parse: Any) -> None:
    for body in (b"{", b'{"target": NaN}', b'{"a": 1, "a": 2}', b'{"target": "\xff"}', b"[" * 65):
        with pytest.raises(InvalidParameter):
            parse(body)


def test_answers_carry_the_attributes_under_their_own_names() -> None:
    answer = orjson.loads(convert.encode((Removal(untagged="a"), Removal(deleted="b"))))
    assert answer == [{"untagged": "a", "deleted": None}, {"untagged": None, "deleted": "b"}]
    assert orjson.loads(convert.encode(UnloadReport(unloaded=("a",), in_use=()))) == {
        "unloaded": ["a"],
        "in_use": [],
    }


def test_a_duration_without_end_is_null() -> None:
    answer = orjson.loads(convert.encode(worker_status(fake_model())))
    assert answer["keep_alive_s"] is None
    assert answer["load_s"] == 0.4


def test_a_model_is_summed_up() -> None:
    answer = orjson.loads(convert.encode(convert.model_summary(fake_model())))
    assert answer["id"] == str(fake_model().id)
    assert answer["name"] == "ai/smollm2:135M-Q4_1"
    assert answer["tags"] == ["docker.io/ai/smollm2:135M-Q4_1"]
