"""Models in every format, split or whole, packaged, saved, loaded and served by a real daemon and engine."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.oci import media_types
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.model_config import ModelConfig
from runner.store.archive import ArchivePlan
from scripts.tiny_gguf import TinyModel, write_tiny_gguf, write_tiny_split
from tests.support.daemon import RunningDaemon, running_daemon

pytestmark = pytest.mark.real_model

TINY = TinyModel(n_layers=3)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path_factory.mktemp("daemon"), RUNNER_ENGINE="llama") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("whole") / "tiny.gguf", TINY)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_tiny_split(tmp_path_factory.mktemp("parts") / "tiny.gguf", TINY, tensors_per_part=9)


def said(daemon: RunningDaemon, model: str) -> str:
    answer = daemon.post(
        "/v1/completions", {"model": model, "prompt": "once", "max_tokens": 12, "temperature": 0, "seed": 1}
    )
    text: str = answer["choices"][0]["text"]
    return text


def footprint(daemon: RunningDaemon, model: str) -> Any:
    return json.loads(daemon.runner("ctl", "plan", model, "--json").stdout)


def test_a_split_model_is_packaged_loaded_and_says_what_the_whole_one_says(
    daemon: RunningDaemon, whole: Path, parts: list[Path]
) -> None:
    assert len(parts) == 4
    one = daemon.package("whole:1", whole)
    several = daemon.package("split:1", parts[2])
    report = daemon.get("/control/v1/models/split:1")
    assert [layer["filename"] for layer in report["layers"]] == [path.name for path in parts]
    for field in ("parameters", "quantization", "architecture", "trained_context_size"):
        assert several[field] == one[field]
    assert said(daemon, "split:1") == said(daemon, "whole:1") != ""


@pytest.mark.parametrize("split", [False, True])
def test_a_pack_is_served_and_its_archive_too(
    daemon: RunningDaemon, whole: Path, parts: list[Path], tmp_path: Path, split: bool
) -> None:
    name = f"pack-{split}:1".lower()
    packed = daemon.package(name, parts[0] if split else whole, "--format", "cncf", "--label", "a=b")
    expected = said(daemon, name)
    daemon.runner("ctl", "save", name, "-o", str(tmp_path / "pack.tar"))
    daemon.runner("ctl", "unload", name)
    daemon.runner("ctl", "rm", name)
    daemon.runner("ctl", "load", str(tmp_path / "pack.tar"))
    (again,) = [model for model in daemon.get("/control/v1/models") if model["name"] == f"ai/{name}"]
    assert again["id"] == packed["id"]
    assert said(daemon, name) == expected != ""


def test_an_archive_goes_through_pipes(daemon: RunningDaemon, whole: Path) -> None:
    model = daemon.package("piped:1", whole)
    command = [sys.executable, "-m", "runner", "ctl"]
    done = subprocess.run(
        [*command, "save", "piped:1", "-o", "-"],
        env=daemon.environment,
        capture_output=True,
        check=True,
        timeout=60,
    )
    loaded = subprocess.run(
        [*command, "load", "-", "--name", "piped:2", "--json"],
        env=daemon.environment, input=done.stdout, capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    (summary,) = json.loads(loaded.stdout)
    assert summary["id"] == model["id"]
    assert {"docker.io/ai/piped:1", "docker.io/ai/piped:2"} <= set(summary["tags"])  # a twin may have more


def test_a_variant_shares_the_blobs_of_its_base_and_is_served(
    daemon: RunningDaemon, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "plain.jinja").write_text("{{ messages[0]['content'] }}")
    daemon.package("base:1", whole)
    done = daemon.runner(
        "ctl", "package", "--from", "base:1", "variant:1", "--context-size", "128", "--json",
        "--chat-template", str(tmp_path / "plain.jinja"),
    )  # fmt: skip
    variant = json.loads(done.stdout)
    assert variant["context_size"] == 128
    base, derived = (daemon.get(f"/control/v1/models/{name}:1") for name in ("base", "variant"))
    assert [layer["digest"] for layer in derived["layers"]][:1] == [
        layer["digest"] for layer in base["layers"]
    ]
    assert said(daemon, "variant:1") == said(daemon, "base:1")
    (loaded,) = [
        model for model in daemon.get("/control/v1/ps")["workers"] if model["model"].endswith("variant:1")
    ]
    assert loaded["context_size"] == 128


def test_weights_of_another_format_are_kept_and_refused_at_load_in_words(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    weights = b"safetensors"
    config = ModelConfig(
        format="safetensors", quantization="", parameters="", architecture="", size="", metadata={},
        context_size=None, created_s=0, diff_ids=(),
    ).encode()  # fmt: skip
    layer = Descriptor.of(weights, media_types.SAFETENSORS)
    manifest = Manifest.binding(config, (layer,), media_types.DOCKER_CONFIG_V02)
    plan = ArchivePlan.of(manifest.encode(), manifest, None)
    contents = {layer.digest: weights, manifest.config.digest: config}
    archive = b"".join(piece.content if piece.blob is None else contents[piece.blob] for piece in plan.pieces)
    (tmp_path / "other.tar").write_bytes(archive)
    daemon.runner("ctl", "load", str(tmp_path / "other.tar"), "--name", "other:1")
    with pytest.raises(urllib.error.HTTPError) as caught:
        said(daemon, "other:1")
    with caught.value as answer:
        assert answer.code == 422
        error = json.loads(answer.read())["error"]
    assert error["code"] == "unsupported_artifact"
    assert "safetensors" in error["message"]
