"""Digests: one algorithm, one spelling."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import InvalidReference
from runner.oci.digest import Digest

HEX = "0123456789abcdef" * 4


def test_a_digest_prints_as_it_was_written_and_in_short():
    digest = Digest.parse(f"sha256:{HEX}")
    assert str(digest) == f"sha256:{HEX}"
    assert digest.short() == "0123456789ab"
    assert repr(digest) == "<Digest 0123456789ab>"


def test_the_digest_of_content_is_its_sha256():
    assert Digest.of(b"content").hex == hashlib.sha256(b"content").hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEX,
        f"SHA256:{HEX}",
        f"sha256:{HEX.upper()}",
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX}\n",
        f" sha256:{HEX}",
        f"sha512:{HEX}{HEX}",
        f"md5:{HEX[:32]}",
        f"sha256:../{HEX[:61]}",
        f"sha256:{HEX[:32]}/{HEX[:31]}",
        f"sha256:{HEX[:63]}é",
        f"sha256:{HEX[:63]}٣",  # a digit elsewhere
    ],
)
def test_S01_nothing_but_sha256_and_64_lowercase_hex_digits_is_a_digest(text):
    with pytest.raises(InvalidReference):
        Digest.parse(text)


@pytest.mark.parametrize(
    "hex_digits", ["", HEX.upper(), HEX[:-1], HEX + "0", "../../../etc/passwd", HEX + "\n"]
)
def test_S01_the_constructor_refuses_what_parse_refuses(hex_digits):
    with pytest.raises(InvalidReference):
        Digest(hex_digits)


@given(st.text())
def test_S01_any_text_is_a_digest_or_an_InvalidReference(text):
    try:
        digest = Digest.parse(text)
    except InvalidReference:
        return
    assert str(digest) == text
