"""File names from outside are refused unless they are plain everywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.oci.filename import NAME_BYTES_MAX, PATH_BYTES_MAX, file_name_fault, relative_path_fault


@pytest.mark.parametrize(
    "name", ["model.gguf", "LICENSE", "a b.txt", ".hidden", "ü.md", "console", "com", "x.con"]
)
def test_plain_names_pass(name):
    assert file_name_fault(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "...", "/", "a/b", "/a", "a\\b", "..\\a", "C:", "C:x", "a:stream",
        "a\nb", "a\x00", "a\x1b[2J", "a\x85", "a\u202eb", "a\u2028b", "\ud800", "CON", "con", "Nul.txt",
        "com1", "LPT9.tar.gz", "com¹", "CONIN$",
        "a.", "a ", " a", "a*", "a?", 'a"b', "a<b", "a|b",
    ],
)  # fmt: skip
def test_S13_separators_drives_dots_controls_and_reserved_names_are_refused(name):
    assert file_name_fault(name) is not None
    assert relative_path_fault(f"dir/{name}/x" if name != "a/b" else "../a/b") is not None


def test_paths_join_plain_names():
    assert relative_path_fault("text_encoder/model-00001-of-00002.safetensors") is None


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "a/../b", "./a", "a/b\\c", "nul/x"])
def test_S13_a_path_with_one_wrong_part_is_refused(path):
    assert relative_path_fault(path) is not None


@pytest.mark.parametrize(
    ("length", "is_good"), [(NAME_BYTES_MAX - 1, True), (NAME_BYTES_MAX, True), (NAME_BYTES_MAX + 1, False)]
)
def test_a_name_has_at_most_255_bytes(length, is_good):
    assert (file_name_fault("x" * length) is None) == is_good
    assert (file_name_fault("é" * (length // 2) + "x" * (length % 2)) is None) == is_good


@pytest.mark.parametrize(
    ("length", "is_good"), [(PATH_BYTES_MAX - 1, True), (PATH_BYTES_MAX, True), (PATH_BYTES_MAX + 1, False)]
)
def test_a_path_has_at_most_1024_bytes(length, is_good):
    path = ("x" * 99 + "/") * 20
    assert (relative_path_fault(path[: length - 1] + "x") is None) == is_good


@given(st.text())
def test_S13_what_passes_cannot_leave_its_directory(name):
    if file_name_fault(name) is None:
        assert "/" not in name
        assert "\\" not in name
        assert name not in ("", ".", "..")
        assert name.isprintable()
