"""The native object, and progress as lines."""

from __future__ import annotations

import html
import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.api.dmr.convert import (
    EVERY_BYTES,
    EVERY_S,
    ProgressLines,
    escaped,
    model_object,
    removal_object,
    size_text,
)
from runner.domain.status import ModelReport, ModelSummary, Removal
from runner.domain.transfer import (
    LayerProgress,
    TransferDirection,
    TransferPhase,
    TransferProgress,
    TransferResult,
)
from runner.errors import RemoteModelNotFound
from runner.oci.digest import Digest

PULL, PUSH = TransferDirection.PULL, TransferDirection.PUSH
WEIGHTS, LICENSE = str(Digest.of(b"weights")), str(Digest.of(b"license"))
SIZE = 10 * EVERY_BYTES


def report(**changes: Any) -> ModelReport:
    summary = ModelSummary(
        id=str(Digest.of(b"manifest")),
        name="ai/a",
        tags=("docker.io/ai/a:latest", "docker.io/acme/b:v1"),
        created_s=1745777589,
        size_bytes=268_802_048,
        format="gguf",
        architecture="llama",
        quantization="MOSTLY_Q4_K_M",
        parameters="361.82M",
        context_size=8192,
        trained_context_size=8192,
    )
    return ModelReport(
        model=attrs.evolve(summary, **changes),
        manifest_digest=summary.id,
        config_digest=str(Digest.of(b"config")),
        layers=(),
        licenses=(),
        metadata={"general.name": "Smol"},
        described_size="256.35MiB",
    )


def moment(
    *done: int, notes: tuple[str, ...] = (), sizes: tuple[int, ...] = (SIZE, 11358)
) -> TransferProgress:
    layers = tuple(
        LayerProgress(digest=digest, kind="gguf", title=None, size_bytes=size, done_bytes=there)
        for digest, size, there in zip((WEIGHTS, LICENSE), sizes, done, strict=False)
    )
    return TransferProgress(
        direction=PULL,
        phase=TransferPhase.TRANSFERRING,
        layers=layers,
        total_bytes=sum(layer.size_bytes for layer in layers),
        done_bytes=sum(layer.done_bytes for layer in layers),
        notes=notes,
    )


def documents(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.decode().splitlines()]


def json_lines(direction: TransferDirection = PULL) -> ProgressLines:
    return ProgressLines(direction, is_json=True)


def test_the_native_object() -> None:
    assert model_object(report()) == {
        "id": str(Digest.of(b"manifest")),
        "tags": ["docker.io/ai/a:latest", "docker.io/acme/b:v1"],
        "created": 1745777589,
        "config": {
            "format": "gguf",
            "quantization": "MOSTLY_Q4_K_M",
            "parameters": "361.82M",
            "architecture": "llama",
            "size": "256.35MiB",
            "gguf": {"general.name": "Smol"},
            "context_size": 8192,
        },
    }


def test_what_is_unknown_is_left_out() -> None:
    bare = attrs.evolve(report(tags=(), quantization="", context_size=None), metadata={}, described_size="")
    assert model_object(bare) == {
        "id": str(Digest.of(b"manifest")),
        "created": 1745777589,
        "config": {
            "format": "gguf",
            "parameters": "361.82M",
            "architecture": "llama",
            "size": "256.35MiB",
        },
    }
    assert "tags" not in model_object(report(), is_remote=True)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1KB"),
        (1024, "1KiB"),
        (270_590_880, "258.06MiB"),
        (1_050_000_000, "1.05GB"),
        (2**30, "1GiB"),
        (3 * 2**30 // 2, "1.50GiB"),
    ],
)
def test_sizes_are_written_as_packagers_write_them(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


def test_removals() -> None:
    assert removal_object(Removal(untagged="docker.io/ai/a:latest")) == {"Untagged": "docker.io/ai/a:latest"}
    assert removal_object(Removal(deleted=WEIGHTS)) == {"Deleted": WEIGHTS}


def test_a_line_has_every_member() -> None:
    [line] = documents(json_lines().progress(moment(3 * EVERY_BYTES, 11358), 0.0))
    assert line == {
        "type": "progress",
        "message": "Downloaded: 3.00 MB",
        "total": SIZE + 11358,
        "layer": {"id": WEIGHTS, "size": SIZE, "current": 3 * EVERY_BYTES},
        "mode": "pull",
    }


def test_layers_that_were_there_before_a_pull_have_no_line_and_before_a_push_one() -> None:
    assert json_lines().progress(moment(SIZE, 11358), 0.0) == b""
    lines = json_lines(PUSH)
    there = documents(lines.progress(moment(SIZE, 11358), 0.0))
    assert [(line["layer"]["id"], line["layer"]["current"]) for line in there] == [
        (WEIGHTS, SIZE),
        (LICENSE, 11358),
    ]
    assert there[0]["message"] == "Uploaded: 10.00 MB"
    assert lines.progress(moment(SIZE, 11358), 9.0) == b""


@pytest.mark.parametrize(
    ("more_bytes", "later_s", "is_told"),
    [
        (EVERY_BYTES - 1, EVERY_S - 0.01, False),
        (EVERY_BYTES, 0.0, True),
        (EVERY_BYTES + 1, 0.0, True),
        (1, EVERY_S, True),
        (0, 60.0, False),
        (SIZE - EVERY_BYTES, 0.0, True),
    ],
)
def test_a_layer_is_told_of_again_after_a_tenth_of_a_second_or_a_mib_or_when_complete(
    more_bytes: int, later_s: float, is_told: bool
) -> None:
    lines = json_lines()
    assert lines.progress(moment(EVERY_BYTES), 0.0)
    assert bool(lines.progress(moment(EVERY_BYTES + more_bytes), later_s)) is is_told


def test_the_last_small_step_of_a_layer_is_told() -> None:
    lines = json_lines()
    assert lines.progress(moment(SIZE - 1), 5.0)
    [line] = documents(lines.progress(moment(SIZE), 5.0))
    assert line["layer"]["current"] == SIZE


def test_notes_are_lines_without_a_layer_and_told_once() -> None:
    lines = json_lines()
    [note] = documents(lines.progress(moment(notes=("Fetching file list...",)), 0.0))
    assert note == {
        "type": "progress",
        "message": "Fetching file list...",
        "total": 0,
        "layer": {"size": 0, "current": 0},
        "mode": "pull",
    }
    told = documents(lines.progress(moment(notes=("Fetching file list...", "Found 3 files")), 0.0))
    assert [line["message"] for line in told] == ["Found 3 files"]


def test_a_sign_of_life_tells_of_the_largest_layer_under_way() -> None:
    [line] = documents(json_lines().repeated(moment(5, 0)))
    assert line["layer"] == {"id": WEIGHTS, "size": SIZE, "current": 5}
    [line] = documents(json_lines().repeated(moment()))
    assert line["layer"] == {"size": 0, "current": 0}


@pytest.mark.parametrize(
    ("direction", "was_cached", "text"),
    [
        (PULL, False, "Model pulled successfully"),
        (PULL, True, "Using cached model: 256.35MiB"),
        (PUSH, False, "Model pushed successfully"),
        (PUSH, True, "Model pushed successfully"),
    ],
)
def test_the_end(direction: TransferDirection, was_cached: bool, text: str) -> None:
    result = TransferResult(
        model_id=Digest.of(b"manifest"),
        reference="ai/a",
        size_bytes=268_802_048,
        transferred_bytes=0,
        was_cached=was_cached,
    )
    [line] = documents(json_lines(direction).result(result))
    assert line == {
        "type": "success",
        "message": text,
        "total": 0,
        "layer": {"size": 0, "current": 0},
        "mode": direction.value,
    }


def test_an_error_is_the_last_line_and_tells_nothing_of_what_is_not_ours() -> None:
    [line] = documents(json_lines().error(RemoteModelNotFound("registry.example", "no model ai/a")))
    assert (line["type"], line["message"]) == ("error", "Error: registry.example: no model ai/a")
    [line] = documents(json_lines().error(ValueError("/secret/path")))
    assert "secret" not in line["message"]


def test_text_mode_is_what_clients_unescape() -> None:
    content = ProgressLines(PULL, is_json=False).progress(moment(notes=("a <b> & 'c' \"d\"",)), 0.0).decode()
    assert content.startswith("{&#34;type&#34;:&#34;progress&#34;")
    assert not set("<>'\"") & set(content)
    [line] = documents(html.unescape(content).encode())
    assert line["message"] == "a <b> & 'c' \"d\""


@given(st.text())
def test_escaping_is_undone_by_any_reader_of_html(text: str) -> None:
    assert html.unescape(escaped(text)) == html.unescape(html.escape(text, quote=True))
    assert html.unescape(escaped("&" + text)).startswith("&")
