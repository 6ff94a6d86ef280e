"""Names of models: the table of normal forms, limits, and round trips."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from runner.errors import InvalidReference
from runner.oci.digest import Digest
from runner.oci.reference import LENGTH_MAX, ModelName, Reference

HEX = "ab" * 32
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("smollm2", "docker.io/ai/smollm2:latest", "ai/smollm2"),
        ("  smollm2 ", "docker.io/ai/smollm2:latest", "ai/smollm2"),
        ("smollm2:", "docker.io/ai/smollm2:latest", "ai/smollm2"),
        ("SmolLM2:360M-Q4_K_M", "docker.io/ai/smollm2:360M-Q4_K_M", "ai/smollm2:360M-Q4_K_M"),
        ("acme/tiny", "docker.io/acme/tiny:latest", "acme/tiny"),
        (
            "Registry.Example.com:5000/Team/Model",
            "registry.example.com:5000/team/model:latest",
            "registry.example.com:5000/team/model",
        ),
        (
            "hf.co/Org/Repo-GGUF:Q8_0",
            "huggingface.co/org/repo-gguf:Q8_0",
            "huggingface.co/org/repo-gguf:Q8_0",
        ),
        (f"ai/x@{DIGEST}", f"docker.io/ai/x@{DIGEST}", f"ai/x@{DIGEST}"),
        (f"x:v1@{DIGEST}", f"docker.io/ai/x:v1@{DIGEST}", f"ai/x:v1@{DIGEST}"),
        (f"x:latest@{DIGEST}", f"docker.io/ai/x:latest@{DIGEST}", f"ai/x:latest@{DIGEST}"),
        ("a1b2c3d4e5f6", "docker.io/ai/a1b2c3d4e5f6:latest", "ai/a1b2c3d4e5f6"),
        ("docker.io/x", "docker.io/ai/x:latest", "ai/x"),
        ("index.docker.io/acme/x", "docker.io/acme/x:latest", "acme/x"),
        ("docker.io/library/x", "docker.io/library/x:latest", "library/x"),
        ("docker.io/foo.bar/x", "docker.io/foo.bar/x:latest", "docker.io/foo.bar/x"),
        ("docker.io/localhost/x", "docker.io/localhost/x:latest", "docker.io/localhost/x"),
        ("example.com", "docker.io/ai/example.com:latest", "ai/example.com"),
        ("localhost/x", "localhost/x:latest", "localhost/x"),
        ("localhost:5000", "docker.io/ai/localhost:5000", "ai/localhost:5000"),
        ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x"),
        ("127.0.0.1:5000/a/b/c:d", "127.0.0.1:5000/a/b/c:d", "127.0.0.1:5000/a/b/c:d"),
        ("[::1]:5000/a/b:c", "[::1]:5000/a/b:c", "[::1]:5000/a/b:c"),
    ],
)
def test_a_name_has_one_normal_form_and_one_short_form(text, canonical, familiar):
    reference = Reference.parse(text)
    assert str(reference) == canonical
    assert reference.familiar() == familiar
    assert Reference.parse(canonical) == reference == Reference.parse(familiar)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ":", ":tag", "/x", "x/", "x//y", "a/../b", "..", "x:..", "x:1..2", "-x", "x\\y", "x%2fy",
        "x y", "x\ty", "x\n", "x\x00", "x\x7f", "x\x85", "é", "\u212a2",
        "x:é", "x:-v", "x:.v", "a/-b", "a/b-", "a/.b",
        "_x", "a/b..c", "a/b__.c", "x@", f"x@{HEX}", "x@sha512:" + "ab" * 64, f"x@{DIGEST}@{DIGEST}", "x@y",
        DIGEST, HEX, HEX.upper(), "sha256:abc", "sha512:" + "ab" * 64, "a_b.c/x", "exa mple.com/x",
        "example.com:/x", "example.com:0/x", "example.com:65536/x", "example.com:port/x", "[::1/x", "[x]:1/y",
        "http://example.com/x", "x:" + "t" * 129, "~/x", "./x", "x:a/b:c:d",
    ],
)  # fmt: skip
def test_N19_what_is_outside_the_grammar_is_refused(text):
    with pytest.raises(InvalidReference):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("length", "is_good"), [(LENGTH_MAX - 1, True), (LENGTH_MAX, True), (LENGTH_MAX + 1, False)]
)
def test_N19_a_name_has_at_most_255_characters(length, is_good):
    text = "docker.io/ai/x:latest".replace("x", "x" * (length - len("docker.io/ai/:latest")))
    assert len(text) == length
    if is_good:
        assert str(Reference.parse(text)) == text
    else:
        with pytest.raises(InvalidReference, match="longer"):
            Reference.parse(text)


@pytest.mark.parametrize(("length", "is_good"), [(235, True), (236, False)])
def test_N19_the_limit_holds_for_the_normal_form_too(length, is_good):
    if is_good:
        assert len(str(Reference.parse("x" * length))) == LENGTH_MAX
    else:
        with pytest.raises(InvalidReference, match="longer"):
            Reference.parse("x" * length)


@pytest.mark.parametrize(("length", "is_good"), [(127, True), (128, True), (129, False)])
def test_a_tag_has_at_most_128_characters(length, is_good):
    if is_good:
        assert Reference.parse("x:" + "t" * length).tag == "t" * length
    else:
        with pytest.raises(InvalidReference, match="tag"):
            Reference.parse("x:" + "t" * length)


def test_an_error_names_the_text_and_the_reason():
    with pytest.raises(InvalidReference, match=r"'a/\.\./b' is not a model name: \.\. is not allowed"):
        ModelName.parse("a/../b")


def test_a_reference_outside_the_grammar_cannot_be_built():
    good = {"registry": "docker.io", "repository": "ai/x", "tag": "v1"}
    assert str(Reference(**good)) == "docker.io/ai/x:v1"
    for wrong in ({"registry": "a b"}, {"repository": "../x"}, {"tag": "-"}, {"tag": None}):
        with pytest.raises(InvalidReference):
            Reference(**(good | wrong))


def test_a_bare_digest_is_a_digest_with_and_without_its_algorithm():
    assert ModelName.parse(DIGEST) == ModelName(text=DIGEST, digest=Digest(HEX))
    assert ModelName.parse(HEX) == ModelName(text=HEX, digest=Digest(HEX))


@pytest.mark.parametrize(("length", "is_short_id"), [(6, False), (7, True), (12, True), (63, True)])
def test_7_to_63_hex_digits_may_be_an_id_or_a_name(length, is_short_id):
    name = ModelName.parse(HEX[:length])
    assert name.short_id == (HEX[:length] if is_short_id else None)
    assert name.reference == Reference.parse(HEX[:length])
    assert name.digest is None


def test_an_id_is_lowercase_and_stands_alone():
    assert ModelName.parse("ABCDEF0").short_id is None
    assert ModelName.parse("ai/abcdef0").short_id is None
    assert ModelName.parse("abcdef0:latest").short_id is None


def test_a_digest_that_is_cut_off_is_not_taken_for_a_name():
    with pytest.raises(InvalidReference):
        ModelName.parse("sha256:abcdef0")


def test_names_of_parsed_values_print_in_short():
    assert str(ModelName.of(Reference.parse("smollm2:1B"))) == "ai/smollm2:1B"
    assert ModelName.of(Digest(HEX)).digest == Digest(HEX)


component = st.from_regex(r"[a-z0-9]{1,6}((\.|_|__|-)[a-z0-9]{1,6}){0,2}", fullmatch=True)
host = st.sampled_from(
    ["docker.io", "localhost", "huggingface.co", "a-b.example:5000", "[2001:db8::1]:443", "x:1"]
)
tag = st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,20}(\.[A-Za-z0-9_-]{1,5})?", fullmatch=True)
digest = st.none() | st.binary(max_size=4).map(Digest.of)


@given(host, st.lists(component, min_size=1, max_size=4), tag, digest)
@example("docker.io", ["foo.bar", "x"], "latest", None)
@example("docker.io", ["localhost", "x"], "latest", Digest(HEX))
def test_every_reference_round_trips_through_both_of_its_forms(registry, components, tag, digest):
    assume(tag is not None or digest is not None)
    assume(registry != "docker.io" or len(components) > 1)  # such a name cannot be written: it gets ai/
    reference = Reference(registry=registry, repository="/".join(components), tag=tag, digest=digest)
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar()) == reference
    assert len(reference.familiar()) <= len(str(reference))


@given(st.text(st.characters(codec="utf-8"), max_size=40) | st.text("aB0./:@-_%\\[] ", max_size=40))
def test_N19_any_text_is_a_name_in_normal_form_or_an_InvalidReference(text):
    try:
        name = ModelName.parse(text)
    except InvalidReference:
        return
    if name.reference is not None:
        assert Reference.parse(str(name.reference)) == name.reference
        assert ".." not in str(name.reference)
        assert str(name.reference).isascii()
