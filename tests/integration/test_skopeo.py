"""Other tools read the store as it lies on disk: skopeo inspects and copies what we wrote."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import models

NAME = "docker.io/ai/little:Q4_1"
WEIGHTS = models.tiny_gguf()


@pytest.fixture(scope="module")
def skopeo() -> str:
    found = shutil.which("skopeo")
    if found is None:
        pytest.fail("skopeo is missing; install the package `skopeo` (apt-get install skopeo)")
    return found


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "store"
    with models.opened(root) as store:
        models.publish(store, "little:Q4_1", WEIGHTS, models.LICENSE)
        models.publish(store, "other", models.tiny_gguf("Other"), models.LICENSE)
        models.publish(store, None, models.tiny_gguf("Unnamed"))
        models.tag(store, "little:Q4_1", "registry.example.com:5000/team/little:v1")
    return root


def run(*command: str) -> bytes:
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def model_id(root: Path, text: str) -> str:
    with models.opened(root) as store:
        return store.catalog.find(models.name(text)).hex


@pytest.mark.parametrize(
    "name", [NAME, "registry.example.com:5000/team/little:v1", "docker.io/ai/other:latest"]
)
def test_skopeo_reads_the_manifest_of_every_name(skopeo, root, name):
    raw = run(skopeo, "inspect", "--raw", f"oci:{root}:{name}")
    assert sha256(raw) == model_id(root, name)
    manifest = json.loads(raw)
    assert manifest["config"]["mediaType"] == "application/vnd.docker.ai.model.config.v0.1+json"
    assert manifest["layers"][0]["mediaType"] == "application/vnd.docker.ai.gguf.v3"


def test_skopeo_copies_a_model_into_another_layout_with_the_same_digests(skopeo, root, tmp_path):
    run(skopeo, "--insecure-policy", "copy", f"oci:{root}:{NAME}", f"oci:{tmp_path}/copy:{NAME}")
    (descriptor,) = json.loads((tmp_path / "copy" / "index.json").read_bytes())["manifests"]
    assert descriptor["digest"] == f"sha256:{model_id(root, NAME)}"
    copied = {path.name: path.read_bytes() for path in (tmp_path / "copy" / "blobs" / "sha256").iterdir()}
    assert len(copied) == 4  # manifest, config, weights, licence
    for digest, content in copied.items():
        assert sha256(content) == digest
        assert (root / "blobs" / "sha256" / digest).read_bytes() == content


def test_skopeo_unpacks_a_model_into_a_directory_with_the_same_digests(skopeo, root, tmp_path):
    run(skopeo, "--insecure-policy", "copy", f"oci:{root}:{NAME}", f"dir:{tmp_path}/copy")
    assert sha256((tmp_path / "copy" / "manifest.json").read_bytes()) == model_id(root, NAME)
    assert (tmp_path / "copy" / sha256(WEIGHTS)).read_bytes() == WEIGHTS
    assert (tmp_path / "copy" / sha256(models.LICENSE)).read_bytes() == models.LICENSE


def test_a_copy_by_skopeo_holds_the_very_blobs_that_we_publish(skopeo, root, tmp_path):
    """Our own store takes the copied blobs, publishes the model anew, and arrives at the same id."""
    run(skopeo, "--insecure-policy", "copy", f"oci:{root}:{NAME}", f"dir:{tmp_path}/copy")
    with models.opened(tmp_path / "second") as store:
        weights = (tmp_path / "copy" / sha256(WEIGHTS)).read_bytes()
        found = models.publish(store, NAME, weights, models.LICENSE)
    assert found.hex == model_id(root, NAME)
