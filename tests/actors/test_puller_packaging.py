"""Packages of split weights, with projectors, and derived from models of the store."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from actors.held_models import hold_model, releasing
from runner.domain.model import Model
from runner.errors import (
    BlobNotFound,
    InvalidModelFile,
    InvalidParameter,
    ModelNotFound,
    StoreDamaged,
)
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Manifest
from runner.store.package import LayerKind, PackageLayer, PackageSpec
from scripts.tiny_gguf import TinyModel, write_tiny_gguf, write_tiny_split
from tests.support import models
from tests.support.gguf_writer import Tensor, gguf_bytes, text
from tests.support.models import LICENSE, RunningStore, name, reference, running_store

pytestmark = pytest.mark.anyio

WEIGHTS = models.tiny_gguf()
PROJECTOR = gguf_bytes({"general.architecture": text("clip")}, [Tensor("v.weight", (32, 4))])
TEMPLATE = b"{{ messages }}"


def layer(kind: LayerKind, content: bytes, filename: str) -> PackageLayer:
    return PackageLayer(kind=kind, digest=Digest.of(content), filename=filename)


def parts_of(tmp_path: Path) -> list[tuple[PackageLayer, bytes]]:
    paths = write_tiny_split(tmp_path / "tiny.gguf", tensors_per_part=7)
    contents = [path.read_bytes() for path in paths]
    return [(layer("gguf", c, path.name), c) for path, c in zip(paths, contents, strict=True)]


async def derived(running: RunningStore, target: str, base: str, **changes: object) -> Model:
    spec = PackageSpec(target=reference(target), base=name(base))
    return await running.puller.package(attrs.evolve(spec, **changes))


# parts


@pytest.mark.parametrize("kind", ["docker", "cncf"])
async def test_all_parts_become_one_model_with_the_figures_of_the_whole(tmp_path: Path, kind: str) -> None:
    parts = parts_of(tmp_path)
    whole = write_tiny_gguf(tmp_path / "whole.gguf", TinyModel()).read_bytes()
    async with running_store(tmp_path / "store") as running:
        await running.upload(*(content for _, content in parts))
        spec = PackageSpec(target=reference("a:1"), layers=tuple(part for part, _ in parts), format=kind)
        model = await running.puller.package(spec)
        other = await running.package("b:1", whole)
        assert (model.parameters, model.quantization) == (other.parameters, other.quantization)
        with await running.store.lease(model.id) as lease, await running.store.lease(other.id) as one:
            assert [path.read_bytes() for path in lease.files.weights] == [content for _, content in parts]
            assert lease.files.kv_bytes_per_cell == one.files.kv_bytes_per_cell
            assert lease.files.model.trained_context_size == 512


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 1), (0,), (0, 2, 1)])
async def test_G04_parts_that_do_not_fit_together_are_refused(tmp_path: Path, order: tuple[int, ...]) -> None:
    parts = parts_of(tmp_path)
    async with running_store(tmp_path / "store") as running:
        await running.upload(*(content for _, content in parts))
        with pytest.raises(InvalidModelFile, match="part"):
            await running.puller.package(
                PackageSpec(target=reference("a:1"), layers=tuple(parts[index][0] for index in order))
            )
        assert await running.store.list() == ()


@pytest.mark.parametrize("content", [WEIGHTS, b"GGUF", PROJECTOR[:-1], TEMPLATE])
async def test_G04_a_projector_is_checked_like_weights(tmp_path: Path, content: bytes) -> None:
    async with running_store(tmp_path / "store") as running:
        await running.upload(WEIGHTS, content, PROJECTOR)
        layers = (layer("gguf", WEIGHTS, "m.gguf"), layer("mmproj", content, "mmproj.gguf"))
        with pytest.raises(InvalidModelFile):
            await running.puller.package(PackageSpec(target=reference("a:1"), layers=layers))
        good = (layers[0], layer("mmproj", PROJECTOR, "mmproj.gguf"))
        model = await running.puller.package(PackageSpec(target=reference("a:1"), layers=good))
        with await running.store.lease(model.id) as lease:
            assert lease.files.projector is not None
            assert lease.files.projector.read_bytes() == PROJECTOR


# variants


async def test_a_variant_copies_no_byte_of_its_base_and_outlives_it(tmp_path: Path) -> None:
    async with running_store(tmp_path / "store") as running:
        base = await running.package("a:1", WEIGHTS, LICENSE)
        blobs = tmp_path / "store" / "blobs" / "sha256"
        files = {path.name: path.stat().st_ino for path in blobs.iterdir()}
        variant = await derived(running, "b:1", "a:1", context_size=512, labels={"k": "v"})
        assert (variant.context_size, base.context_size) == (512, None)
        assert variant.created_s == base.created_s
        now = {path.name: path.stat().st_ino for path in blobs.iterdir()}
        assert files.items() <= now.items()
        assert len(now) == len(files) + 2  # config and manifest
        await running.store.remove(name("a:1"))
        with await running.store.lease(variant.id) as lease:
            assert [path.read_bytes() for path in lease.files.weights] == [WEIGHTS]


async def test_the_same_variant_is_the_same_model(tmp_path: Path) -> None:
    async with running_store(tmp_path / "store") as running:
        base = await running.package("a:1", WEIGHTS)
        first = await derived(running, "b:1", "a:1", context_size=512)
        assert (await derived(running, "b:1", base.id.hex, context_size=512)).id == first.id
        same = await derived(running, "c:1", "a:1")
        assert (same.id, len(same.tags)) == (base.id, 2)


async def test_a_trained_context_that_was_chosen_counts_as_chosen(tmp_path: Path) -> None:
    async with running_store(tmp_path / "store") as running:
        await running.package("a:1", WEIGHTS)
        assert (await derived(running, "b:1", "a:1", context_size=4096)).context_size == 4096


async def test_layers_are_added_to_a_variant_and_checked(tmp_path: Path) -> None:
    async with running_store(tmp_path / "store") as running:
        await running.package("a:1", WEIGHTS, LICENSE)
        added = (layer("chat_template", TEMPLATE, "t.jinja"), layer("mmproj", PROJECTOR, "mmproj.gguf"))
        with pytest.raises(BlobNotFound):
            await derived(running, "b:1", "a:1", layers=added)
        await running.upload(TEMPLATE, PROJECTOR)
        variant = await derived(running, "b:1", "a:1", layers=added)
        with await running.store.lease(variant.id) as lease:
            assert lease.files.chat_template == TEMPLATE.decode()
            assert lease.files.projector is not None
        bad = (layer("mmproj", TEMPLATE, "mmproj.gguf"),)
        with pytest.raises(InvalidModelFile):
            await derived(running, "c:1", "a:1", layers=bad)


async def test_a_model_is_turned_into_a_pack_and_stays_loadable(tmp_path: Path) -> None:
    async with running_store(tmp_path / "store") as running:
        base = await running.package("a:1", WEIGHTS, LICENSE)
        pack = await derived(running, "b:1", "a:1", format="cncf")
        report = await running.store.inspect(name("b:1"))
        assert report.licenses == (LICENSE.decode(),)
        assert {row.media_type for row in report.layers} == {
            media_types.CNCF_WEIGHT, media_types.CNCF_DOCUMENT,
        }  # fmt: skip
        assert (pack.parameters, pack.architecture, pack.format) == (base.parameters, "llama", "gguf")
        with await running.store.lease(pack.id) as lease:
            assert [path.read_bytes() for path in lease.files.weights] == [WEIGHTS]
        with pytest.raises(InvalidParameter):
            await derived(running, "c:1", "b:1", format="docker")


async def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with running_store(tmp_path / "store") as running:
        with pytest.raises(ModelNotFound, match="a:1"):
            await derived(running, "b:1", "a:1")


# holding


async def test_a_held_model_tells_where_all_of_it_lies(tmp_path: Path) -> None:
    async with running_store(tmp_path / "store") as running:
        model = await running.package("a:1", WEIGHTS, LICENSE)
        with releasing(await hold_model(running.store, name("a:1"))) as held:
            assert (held.model, Digest.of(held.manifest_bytes)) == (model, model.id)
            assert held.manifest == Manifest.parse(held.manifest_bytes)
            assert {blob.path.read_bytes() for blob in held.blobs.values()} == {
                WEIGHTS, LICENSE, held.config_bytes, held.manifest_bytes,
            }  # fmt: skip
            await running.store.remove(name("a:1"))
            assert all(blob.path.exists() for blob in held.blobs.values())
            held.release()
            held.release()  # twice is harmless


@pytest.mark.parametrize("which", ["weights", "config"])
async def test_S24_a_model_that_lacks_a_part_is_not_held(tmp_path: Path, which: str) -> None:
    async with running_store(tmp_path / "store") as running:
        await running.package("a:1", WEIGHTS)
        with releasing(await hold_model(running.store, name("a:1"))) as held:
            config, weights = held.manifest.config.digest, held.manifest.layers[0].digest
            path = held.blobs[config if which == "config" else weights].path
        path.unlink()
        with pytest.raises(StoreDamaged):
            await hold_model(running.store, name("a:1"))
