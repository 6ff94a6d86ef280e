"""What an archive consists of, written and read without a store; whatever the model."""

from __future__ import annotations

import itertools
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.errors import RunnerError
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.model_config import ModelConfig
from runner.oci.reference import Reference
from runner.store.archive import ArchivedModel, ArchiveIntake, ArchivePlan
from runner.store.blobs import BlobStore
from runner.store.disk import Disk
from runner.store.layout import StoreLayout

CONFIG = ModelConfig(
    format="gguf", quantization="", parameters="1M", architecture="llama", size="", metadata={},
    context_size=None, created_s=0, diff_ids=(),
)  # fmt: skip
contents = st.lists(st.binary(max_size=1500), max_size=4)
names = st.sampled_from([None, Reference.parse("a:1"), Reference.parse("r.example:5000/x/y")])


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    layout = StoreLayout(tmp_path_factory.mktemp("store"))
    for path in layout.directories():
        path.mkdir()
    return BlobStore(layout, Disk())


def a_model(layers: list[bytes], *, is_pack: bool) -> tuple[Manifest, bytes, dict[Digest, bytes]]:
    config = (CONFIG.as_pack() if is_pack else CONFIG).encode()
    kind = media_types.CNCF_WEIGHT if is_pack else media_types.GGUF
    descriptors = tuple(Descriptor.of(content, kind) for content in layers)
    manifest = Manifest.binding(
        config, descriptors, media_types.CNCF_CONFIG if is_pack else media_types.DOCKER_CONFIG_V02
    )
    return manifest, config, {Digest.of(content): content for content in (*layers, config)}


def written(plan: ArchivePlan, held: dict[Digest, bytes]) -> bytes:
    parts = [piece.content if piece.blob is None else held[piece.blob] for piece in plan.pieces]
    assert [len(part) for part in parts] == [piece.size_bytes for piece in plan.pieces]
    return b"".join(parts)


def read(
    blobs: BlobStore, archive: bytes, cuts: list[int]
) -> tuple[tuple[ArchivedModel, ...], dict[Digest, bytes]]:
    intake = ArchiveIntake(lambda size, digest: blobs.begin(size_bytes=size, digest=digest), 1 << 40)
    try:
        edges = [0, *sorted(min(cut, len(archive)) for cut in cuts), len(archive)]
        for start, end in itertools.pairwise(edges):
            intake.feed(archive[start:end])
        found = intake.finish(lambda writer: writer.path.read_bytes())
        return found, {digest: writer.path.read_bytes() for digest, writer in intake.writers.items()}
    finally:
        intake.abandon()
        assert not any(Path(writer.path).exists() for writer in intake.writers.values())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(contents, names, st.booleans(), st.lists(st.integers(0, 20_000), max_size=6))
def test_every_model_comes_back_from_its_archive(
    blobs: BlobStore, layers: list[bytes], name: Reference | None, is_pack: bool, cuts: list[int]
) -> None:
    manifest, config, held = a_model(layers, is_pack=is_pack)
    plan = ArchivePlan.of(manifest.encode(), manifest, name)
    archive = written(plan, held)
    assert len(archive) == plan.size_bytes
    (found,), stored = read(blobs, archive, cuts)
    assert found == ArchivedModel(
        manifest_bytes=manifest.encode(), manifest=manifest, config_bytes=config, name=name
    )
    assert held.items() <= stored.items()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(contents, st.data())
def test_an_archive_that_was_altered_is_the_same_model_or_refused(
    blobs: BlobStore, layers: list[bytes], data: st.DataObject
) -> None:
    manifest, _, held = a_model(layers, is_pack=False)
    archive = bytearray(written(ArchivePlan.of(manifest.encode(), manifest, None), held))
    at = data.draw(st.integers(0, len(archive) - 1))
    archive[at] ^= data.draw(st.integers(1, 255))
    try:
        found, _ = read(blobs, bytes(archive), [])
    except RunnerError:
        return
    assert {Digest.of(model.manifest_bytes) for model in found} == {Digest.of(manifest.encode())}


def test_a_config_that_is_also_a_layer_is_written_once(blobs: BlobStore) -> None:
    config = CONFIG.encode()
    manifest, _, held = a_model([config, b"x", b"x"], is_pack=False)
    plan = ArchivePlan.of(manifest.encode(), manifest, None)
    assert len([piece for piece in plan.pieces if piece.blob is not None]) == 2
    (found,), _ = read(blobs, written(plan, held), [])
    assert found.manifest == manifest


def test_an_archive_differs_by_its_name_only_where_the_name_stands() -> None:
    manifest, _, held = a_model([b"x"], is_pack=False)
    plans = [ArchivePlan.of(manifest.encode(), manifest, name) for name in (None, Reference.parse("a:1"))]
    assert plans[0] != plans[1]
    assert plans[1] == ArchivePlan.of(manifest.encode(), manifest, Reference.parse("a:1"))
    assert attrs.asdict(plans[0])["pieces"][:8] == attrs.asdict(plans[1])["pieces"][:8]
    assert written(plans[0], held).startswith(b"blobs/")
