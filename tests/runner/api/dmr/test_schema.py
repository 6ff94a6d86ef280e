"""Bodies and queries of Docker Model Runner's clients."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from runner.api.dmr.schema import (
    CONTEXT_SIZE_MAX,
    TOKEN_LENGTH_MAX,
    boolean,
    is_last_part,
    parse_create,
    parse_push,
    parse_repackage,
    tag_target,
)
from runner.errors import BadInput, InvalidParameter, InvalidReference
from runner.oci.reference import Reference


def body(**fields: Any) -> bytes:
    return orjson.dumps({name.replace("_", "-").strip("-"): value for name, value in fields.items()})


def test_a_pull_names_a_model_and_may_bring_a_token() -> None:
    asked = parse_create(body(from_="hf.co/Org/Repo:Q8_0", bearer_token="hf_secret", unknown=1))
    assert (asked.written, str(asked.reference)) == ("hf.co/Org/Repo:Q8_0", "huggingface.co/org/repo:Q8_0")
    assert asked.bearer_token == "hf_secret"
    assert "hf_secret" not in repr(asked)
    assert parse_create(body(from_="smollm2", bearer_token="")).bearer_token is None


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"from": 1}', b'{"from": ""}', b"{}", b'{"from": "a", "from": "b"}']
)
def test_N11_what_is_no_object_with_a_name_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidParameter):
        parse_create(content)


@pytest.mark.parametrize("name", ["../up", "a//b", "a%2fb", "-x", "a\\b", "sha256:" + "0" * 64, "a" * 256])
def test_N19_a_name_outside_the_grammar_is_refused(name: str) -> None:
    with pytest.raises(InvalidReference):
        parse_create(body(from_=name))


@pytest.mark.parametrize(
    ("token", "is_taken"),
    [
        ("x" * (TOKEN_LENGTH_MAX - 1), True),
        ("x" * TOKEN_LENGTH_MAX, True),
        ("x" * (TOKEN_LENGTH_MAX + 1), False),
        ("a\r\nHost: b", False),
        ("ä", False),
        (1, False),
    ],
)
def test_a_token_is_bounded_and_cannot_break_out_of_a_header(token: object, is_taken: bool) -> None:
    if is_taken:
        assert parse_push(body(bearer_token=token)) == token
    else:
        with pytest.raises(InvalidParameter, match="bearer-token"):
            parse_push(body(bearer_token=token))


def test_a_push_needs_no_body() -> None:
    assert parse_push(b"") is None
    assert parse_push(b"{}") is None
    with pytest.raises(InvalidParameter):
        parse_push(b"nonsense")


def test_a_repackage_names_its_target() -> None:
    asked = parse_repackage(b'{"target": "acme/tiny:4k", "context_size": 4096}')
    assert (asked.written, str(asked.target), asked.context_size) == (
        "acme/tiny:4k",
        "docker.io/acme/tiny:4k",
        4096,
    )
    with pytest.raises(BadInput, match="target is required"):
        parse_repackage(b'{"context_size": 4096}')


@pytest.mark.parametrize(
    ("size", "is_taken"),
    [
        (0, False),
        (1, True),
        (CONTEXT_SIZE_MAX, True),
        (CONTEXT_SIZE_MAX + 1, False),
        (True, False),
        ("8", False),
    ],
)
def test_N12_a_context_size_is_in_range(size: object, is_taken: bool) -> None:
    content = orjson.dumps({"target": "a", "context_size": size})
    if is_taken:
        assert parse_repackage(content).context_size == size
    else:
        with pytest.raises(InvalidParameter, match="context_size"):
            parse_repackage(content)


def test_a_tag_comes_in_two_parts() -> None:
    written, target = tag_target("acme/tiny", "v1")
    assert (written, str(target)) == ("acme/tiny:v1", "docker.io/acme/tiny:v1")
    for repository, tag in ((None, "v1"), ("acme/tiny", None), ("", "v1"), ("acme/tiny", "")):
        with pytest.raises(InvalidParameter, match="missing repo or tag query parameter"):
            tag_target(repository, tag)
    with pytest.raises(InvalidReference):
        tag_target("acme/tiny", "a b")


@pytest.mark.parametrize(
    ("text", "value"),
    [(None, False), ("", True), ("1", True), ("t", True), ("TRUE", True), ("True", True), ("true", True)]
    + [(text, False) for text in ("0", "f", "false", "yes", "tRUE", "2")],
)
def test_truth_in_a_query(text: str | None, value: bool) -> None:
    assert boolean(text) is value


def test_a_partial_name_is_the_last_part_without_its_tag() -> None:
    tag = Reference.parse("acme/team/Tiny:v3")
    assert is_last_part("tiny", tag)
    assert is_last_part("Tiny", tag)
    assert not is_last_part("team/tiny", tag)
    assert not is_last_part("tiny:v3", tag)
