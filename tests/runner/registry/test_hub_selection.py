"""The choice of files in a hub repository: quantisations, parts, projectors, and what is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import (
    AmbiguousModel,
    InvalidManifest,
    RemoteModelNotFound,
    RunnerError,
    UnsupportedArtifact,
)
from runner.oci.filename import PATH_BYTES_MAX
from runner.registry.hub_selection import (
    LICENSES_MAX,
    NAMED_MAX,
    TEXT_FILE_BYTES_MAX,
    ListedFile,
    Selection,
    quantization_of,
    select,
)


def choose(tag: str | None, *paths: str | tuple[str, int]) -> Selection:
    files = [
        ListedFile(path=path, size_bytes=100)
        if isinstance(path, str)
        else ListedFile(path=path[0], size_bytes=path[1])
        for path in paths
    ]
    return select(files, tag, repository="Org/Repo", registry="huggingface.co")


def weights(selection: Selection) -> list[str]:
    return [file.path for file in selection.files if file.kind == "gguf"]


def of_kind(selection: Selection, kind: str) -> list[str]:
    return [file.path for file in selection.files if file.kind == kind]


@pytest.mark.parametrize(
    ("path", "quantization"),
    [
        ("Tiny-1B-Q4_K_M.gguf", "Q4_K_M"),
        ("tiny.q4_k_m.gguf", "Q4_K_M"),
        ("tiny_Q8_0.gguf", "Q8_0"),
        ("Tiny-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Tiny-UD-IQ2_XXS.gguf", "UD-IQ2_XXS"),
        ("Tiny.i1-IQ3_XS.gguf", "IQ3_XS"),
        ("Tiny-Q4_0_4_8.gguf", "Q4_0_4_8"),
        ("tiny-fp16.gguf", "F16"),
        ("tiny-bf16.gguf", "BF16"),
        ("gpt-20b-mxfp4.gguf", "MXFP4"),
        ("gpt-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("Tiny-TQ1_0.gguf", "TQ1_0"),
        ("Q4_K_M/model.gguf", "Q4_K_M"),
        ("UD-Q2_K_XL/model-00001-of-00002.gguf", "UD-Q2_K_XL"),
        ("Q8_0/Tiny-Q4_0.gguf", "Q4_0"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("qwen2.5-7b-instruct-fp16-00001-of-00004.gguf", "F16"),
        ("Qwen3-30B-A3B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Mixtral-8x7B.Q4_K_M-00001-of-00002.gguf", "Q4_K_M"),
        ("BF16/Qwen3-235B-BF16-00001-of-00010.gguf", "BF16"),
        ("mmproj-model-f16.gguf", "F16"),
        ("model.gguf", None),
        ("Tiny-Q4_K_MAGIC.gguf", None),
        ("FAQ4_0.gguf", None),
    ],
)
def test_a_quantisation_is_a_whole_token_of_the_name(path: str, quantization: str | None) -> None:
    assert quantization_of(path) == quantization


def test_a_tag_means_exactly_its_quantisation() -> None:
    assert weights(choose("Q4_K_S", "a-Q4_K_M.gguf", "a-Q4_K_S.gguf", "a-Q4_K.gguf")) == ["a-Q4_K_S.gguf"]
    assert weights(choose("Q4_K", "a-Q4_K_M.gguf", "a-Q4_K_S.gguf", "a-Q4_K.gguf")) == ["a-Q4_K.gguf"]
    assert weights(choose("q4_k_m", "a-Q4_K_M.gguf", "a-Q8_0.gguf")) == ["a-Q4_K_M.gguf"]
    assert weights(choose("FP16", "a-F16.gguf", "a-BF16.gguf")) == ["a-F16.gguf"]


def test_an_unknown_quantisation_is_an_error_that_lists_what_there_is() -> None:
    with pytest.raises(RemoteModelNotFound, match=r"'Q5_K_M'.*it has Q4_0, Q8_0") as caught:
        choose("Q5_K_M", ("a-Q8_0.gguf", 8), ("a-Q4_0.gguf", 4))
    assert "Org/Repo" in str(caught.value)


def test_the_only_model_is_not_taken_for_another_quantisation() -> None:
    with pytest.raises(RemoteModelNotFound, match="it has Q8_0"):
        choose("Q4_K_M", "a-Q8_0.gguf")


@pytest.mark.parametrize("tag", [None, "latest", "main"])
def test_without_a_tag_the_preferred_quantisation_is_taken(tag: str | None) -> None:
    assert weights(choose(tag, "a-Q8_0.gguf", "a-Q4_0.gguf", "a-Q4_K_M.gguf")) == ["a-Q4_K_M.gguf"]
    assert weights(choose(tag, "a-Q8_0.gguf", "a-Q4_0.gguf", "a-F16.gguf")) == ["a-Q4_0.gguf"]
    assert weights(choose(tag, "a-Q8_0.gguf", "a-F16.gguf")) == ["a-Q8_0.gguf"]
    assert weights(choose(tag, ("a-F16.gguf", 16), ("a-Q2_K.gguf", 2))) == ["a-Q2_K.gguf"]
    assert weights(choose(tag, "only.gguf")) == ["only.gguf"]


def test_of_two_variants_the_plain_one_is_taken_and_the_other_by_its_name() -> None:
    both = ("X-UD-Q4_K_M.gguf", "X-Q4_K_M.gguf")
    assert weights(choose("Q4_K_M", *both)) == ["X-Q4_K_M.gguf"]
    assert weights(choose("UD-Q4_K_M", *both)) == ["X-UD-Q4_K_M.gguf"]
    assert weights(choose("Q4_K_XL", "X-UD-Q4_K_XL.gguf", "X-Q8_0.gguf")) == ["X-UD-Q4_K_XL.gguf"]


def test_the_shortest_stem_wins_and_another_is_taken_by_its_whole_stem() -> None:
    both = ("tiny-instruct-Q4_0.gguf", "tiny-Q4_0.gguf")
    assert weights(choose("Q4_0", *both)) == ["tiny-Q4_0.gguf"]
    assert weights(choose("tiny-instruct-q4_0", *both)) == ["tiny-instruct-Q4_0.gguf"]


def test_stems_of_one_length_are_not_guessed_between() -> None:
    with pytest.raises(AmbiguousModel, match=r"Org/Repo:a-4b-Q4_0, Org/Repo:a-8b-Q4_0"):
        choose("Q4_0", "a-8b-Q4_0.gguf", "a-4b-Q4_0.gguf")


def test_what_is_listed_in_a_message_is_bounded() -> None:
    many = [f"a-{index:05}-Q4_0.gguf" for index in range(1000)]
    with pytest.raises(AmbiguousModel) as ambiguous:
        choose("Q4_0", *many)
    assert len(ambiguous.value.candidates) == NAMED_MAX
    with pytest.raises(RemoteModelNotFound, match="and 960 more"):
        choose("Q8_0", *(f"{index:05}.gguf" for index in range(1000)))


def test_the_parts_of_a_split_model_come_in_order_and_alone() -> None:
    paths = [f"a-Q4_0-{index:05}-of-00003.gguf" for index in (3, 1, 2)]
    chosen = choose("Q4_0", *paths, "a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf")
    assert weights(chosen) == sorted(paths)


def test_a_folder_names_the_quantisation_of_its_parts() -> None:
    paths = ["Q4_K_M/big-00001-of-00002.gguf", "Q4_K_M/big-00002-of-00002.gguf"]
    others = ["Q8_0/big-00001-of-00002.gguf", "Q8_0/big-00002-of-00002.gguf"]
    assert weights(choose(None, *others, *paths)) == paths
    assert weights(choose("q8_0", *others, *paths)) == others


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_split_model_without_one_of_its_parts_is_refused(missing: int) -> None:
    paths = [f"a-Q4_0-{index:05}-of-00003.gguf" for index in (1, 2, 3) if index != missing]
    with pytest.raises(UnsupportedArtifact, match="lacks parts of 'a-Q4_0'"):
        choose("Q4_0", *paths)


def test_a_model_is_preferred_whole_when_it_is_there_whole_and_split() -> None:
    chosen = choose("Q4_0", "a-Q4_0-00001-of-00002.gguf", "a-Q4_0-00002-of-00002.gguf", "a-Q4_0.gguf")
    assert weights(chosen) == ["a-Q4_0.gguf"]


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["mmproj-F32.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf"], "mmproj-F16.gguf"),
        (["mmproj-F32.gguf", "mmproj-BF16.gguf"], "mmproj-BF16.gguf"),
        (["mmproj-Q8_0.gguf", "mmproj-f32.gguf"], "mmproj-f32.gguf"),
        (["tiny.mmproj-Q8_0.gguf"], "tiny.mmproj-Q8_0.gguf"),
    ],
)
def test_one_projector_comes_with_the_weights_and_is_never_taken_for_them(
    names: list[str], taken: str
) -> None:
    chosen = choose(None, *names, "a-Q8_0.gguf", "a-Q4_0.gguf")
    assert of_kind(chosen, "mmproj") == [taken]
    assert weights(chosen) == ["a-Q4_0.gguf"]
    assert bool(chosen.notes) == (len(names) > 1)


def test_calibration_data_is_not_a_model() -> None:
    assert weights(choose(None, ("imatrix_x.gguf", 1), "a-F16.gguf")) == ["a-F16.gguf"]
    assert weights(choose(None, "a-Q4_0-imatrix.gguf")) == ["a-Q4_0-imatrix.gguf"]


def test_S15_only_weights_templates_and_licences_are_chosen() -> None:
    wanted = [
        "a-Q4_0.gguf",
        "LICENSE",
        "NOTICE.txt",
        "llama-license.md",
        "x_licence-2.txt",
        "chat_template.jinja",
    ]
    unwanted = ["README.md", "config.json", "tokenizer_config.json", "chat_template.json", ".gitattributes"]
    unwanted += ["modeling_evil.py", "license.py", "setup.sh", "LICENSE.html", "pytorch_model.bin"]
    unwanted += ["other/LICENSE", "other/x.jinja", "unlicensed.txt", "license notes.txt", "license.md.py"]
    chosen = choose(None, *unwanted, *reversed(wanted))
    assert [file.path for file in chosen.files] == wanted


def test_of_several_templates_none_is_guessed() -> None:
    chosen = choose(None, "a-Q4_0.gguf", "one.jinja", "two.jinja")
    assert of_kind(chosen, "chat_template") == []
    assert "none of 2 templates" in chosen.notes[0]
    assert of_kind(choose(None, "a-Q4_0.gguf", "one.jinja"), "chat_template") == ["one.jinja"]


def test_a_template_beyond_the_limit_is_refused_and_one_at_it_is_not() -> None:
    choose(None, "a-Q4_0.gguf", ("chat_template.jinja", TEXT_FILE_BYTES_MAX))
    with pytest.raises(UnsupportedArtifact, match="larger than"):
        choose(None, "a-Q4_0.gguf", ("chat_template.jinja", TEXT_FILE_BYTES_MAX + 1))


def test_licences_that_are_too_large_or_too_many_are_left_out_and_told() -> None:
    many = [f"LICENSE-{index:02}" for index in range(LICENSES_MAX + 1)]
    chosen = choose(None, "a-Q4_0.gguf", *many)
    assert len(of_kind(chosen, "license")) == LICENSES_MAX
    assert "1 licence files" in chosen.notes[0]
    assert of_kind(choose(None, "a-Q4_0.gguf", ("LICENSE", TEXT_FILE_BYTES_MAX + 1)), "license") == []


def test_weights_in_another_format_are_refused_with_what_can_be_loaded() -> None:
    with pytest.raises(UnsupportedArtifact, match=r"weights as \.safetensors only; GGUF files can be loaded"):
        choose(None, "model-00001-of-00002.safetensors", "config.json")
    with pytest.raises(UnsupportedArtifact, match="no model weights"):
        choose(None, "README.md", "mmproj-F16.gguf")


@pytest.mark.parametrize(
    "path", ["../a-Q4_0.gguf", "x\\a-Q4_0.gguf", "C:a-Q4_0.gguf", "a\x1b[2J-Q4_0.gguf", "/a-Q4_0.gguf"]
)
def test_S13_a_chosen_file_with_a_surprising_name_is_refused_not_repaired(path: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        choose(None, path)
    assert "\x1b" not in str(caught.value)


def test_S13_a_path_beyond_the_limit_is_passed_over() -> None:
    folder = "d" * (PATH_BYTES_MAX - len("/a.gguf"))
    assert weights(choose(None, "b.gguf", ("d" + folder + "/a.gguf", 1))) == ["b.gguf"]
    with pytest.raises(UnsupportedArtifact, match="no model weights"):
        choose(None, "d" + folder + "/a.gguf", "-" * 4_000_000 + "license-" * 10)


def test_S13_names_that_no_tag_can_hold_are_not_printed() -> None:
    with pytest.raises(RemoteModelNotFound) as caught:
        choose("Q4_0", "a\x1b[2J.gguf", "b.gguf")
    assert str(caught.value).endswith("it has b")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "d/", "Q4_0/", "../"]),
            st.text("aQ4_0KMF16.-o\x1b", max_size=12),
            st.sampled_from(["", "-00001-of-00002", "-00002-of-00002"]),
            st.sampled_from([".gguf", ".GGUF", ".jinja", "", ".safetensors"]),
        ).map("".join),
        max_size=8,
        unique=True,
    ),
    st.sampled_from([None, "latest", "Q4_0", "a", "F16", "0"]),
)
def test_S15_whatever_is_listed_the_choice_is_complete_and_listed_or_a_known_error(
    paths: list[str], tag: str | None
) -> None:
    try:
        chosen = choose(tag, *paths)
    except RunnerError as error:
        assert str(error).isprintable()
        return
    assert weights(chosen)
    assert {file.path for file in chosen.files} <= set(paths)
    assert all(".." not in file.path.split("/") and file.path.isprintable() for file in chosen.files)
