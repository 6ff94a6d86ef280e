"""Packaging: uploaded parts become a model, or nothing does."""

from __future__ import annotations

import attrs
import pytest
import trio

from runner.errors import (
    BlobNotFound,
    DiskFull,
    InvalidModelFile,
    InvalidParameter,
    Unavailable,
)
from runner.oci.digest import Digest
from runner.store.package import TEXT_LAYER_BYTES_MAX, PackageLayer
from tests.support import models
from tests.support.cut_disk import CountingDisk, fail_at
from tests.support.gguf_writer import gguf_bytes, model_keys, text
from tests.support.models import LICENSE, NOW_S, name, running_store, spec_of

pytestmark = pytest.mark.anyio

WEIGHTS = models.tiny_gguf()


def with_layer(spec, kind, content, filename="x.txt"):
    layer = PackageLayer(kind=kind, digest=Digest.of(content), filename=filename)
    return attrs.evolve(spec, layers=(layer, *spec.layers))


async def test_parts_become_a_model_with_what_the_header_says(tmp_path):
    async with running_store(tmp_path / "store") as running:
        model = await running.package("Little:Q4", WEIGHTS, LICENSE, context_size=512)
        assert model.name == "ai/little:Q4"
        assert (model.format, model.architecture, model.quantization) == ("gguf", "llama", "MOSTLY_Q4_1")
        assert (model.context_size, model.trained_context_size) == (512, 4096)
        assert model.created_s == NOW_S
        report = await running.store.inspect(name("little:Q4"))
        assert [layer.filename for layer in report.layers] == ["model.gguf", "LICENSE-0"]
        assert report.metadata["general.name"] == "Little"


async def test_a_packaged_template_reaches_the_worker(tmp_path):
    template = b"{{ messages }}"
    async with running_store(tmp_path / "store") as running:
        await running.upload(WEIGHTS, template)
        spec = with_layer(spec_of("a:1", WEIGHTS), "chat_template", template)
        model = await running.puller.package(spec)
        with await running.store.lease(model.id) as lease:
            assert lease.files.chat_template == template.decode()


async def test_the_same_parts_at_the_same_time_are_the_same_model_in_any_store(tmp_path):
    ids = set()
    for number in range(2):
        async with running_store(tmp_path / str(number)) as running:
            ids.add((await running.package("a:1", WEIGHTS, LICENSE, created_s=1_700_000_000)).id)
    assert len(ids) == 1


async def test_packaging_the_same_again_later_changes_nothing(tmp_path):
    times = iter(range(1000, 2000))
    async with running_store(tmp_path / "store", now_s=lambda: next(times)) as running:
        first = await running.package("a:1", WEIGHTS, LICENSE)
        assert await running.package("a:1", WEIGHTS, LICENSE) == first
        assert await running.store.list() == (first,)
        other = await running.package("a:1", WEIGHTS, LICENSE, context_size=512)
        assert other.id != first.id
        assert [model.id for model in await running.store.list()] == [other.id, first.id]
        later = await running.package("a:1", WEIGHTS, LICENSE, created_s=5)
        assert later.created_s == 5


async def test_every_fault_of_a_spec_is_told_before_anything_is_looked_for(tmp_path):
    async with running_store(tmp_path / "store") as running:
        spec = attrs.evolve(spec_of("a:1", WEIGHTS), layers=(), context_size=-1)
        with pytest.raises(InvalidParameter) as caught:
            await running.puller.package(spec)
        assert [fault.path for fault in caught.value.faults] == ["layers", "context_size"]


async def test_a_part_that_was_never_uploaded_is_named(tmp_path):
    async with running_store(tmp_path / "store") as running:
        await running.upload(WEIGHTS)
        with pytest.raises(BlobNotFound, match=str(Digest.of(LICENSE))):
            await running.puller.package(spec_of("a:1", WEIGHTS, LICENSE))
        await running.upload(LICENSE)
        await running.puller.package(spec_of("a:1", WEIGHTS, LICENSE))


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"GGUF",
        b"not a model at all",
        WEIGHTS[:-1],
        gguf_bytes(model_keys({"llama.context_length": None})),
        gguf_bytes(model_keys({"general.architecture": text("clip")})),
    ],
)
async def test_G02_a_file_that_is_no_sound_model_is_refused_and_nothing_is_named(tmp_path, weights):
    async with running_store(tmp_path / "store") as running:
        with pytest.raises(InvalidModelFile):
            await running.package("a:1", weights)
        assert await running.store.list() == ()


@pytest.mark.parametrize("kind", ["license", "chat_template"])
@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * (TEXT_LAYER_BYTES_MAX + 1)])
async def test_a_text_that_is_too_long_or_no_text_is_refused(tmp_path, kind, content):
    async with running_store(tmp_path / "store") as running:
        await running.upload(WEIGHTS, content)
        with pytest.raises(InvalidModelFile, match=kind):
            await running.puller.package(with_layer(spec_of("a:1", WEIGHTS), kind, content))


async def test_S23_a_full_disk_fails_one_package_and_the_next_succeeds(tmp_path):
    disk = CountingDisk()
    async with running_store(tmp_path / "store", disk=disk) as running:
        await running.upload(WEIGHTS)
        disk.arm(fail_at(lambda number, reached: reached == "write", 28))
        with pytest.raises(DiskFull):
            await running.puller.package(spec_of("a:1", WEIGHTS))
        disk.arm(lambda number, reached: None)
        await running.puller.package(spec_of("a:1", WEIGHTS))


async def test_packages_side_by_side_all_arrive(tmp_path):
    async with running_store(tmp_path / "store") as running:
        await running.upload(WEIGHTS)
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(running.puller.package, spec_of(f"a:{number}", WEIGHTS))
        (model,) = await running.store.list()
        assert len(model.tags) == 8


async def test_asks_of_a_puller_that_has_ended_are_answered(tmp_path):
    async with running_store(tmp_path / "store") as running:
        puller = running.puller
    with pytest.raises(Unavailable):
        await puller.package(spec_of("a:1", WEIGHTS))


@pytest.mark.real_model
async def test_a_real_model_is_packaged(tmp_path, default_model_file):
    weights = default_model_file.read_bytes()
    async with running_store(tmp_path / "store") as running:
        model = await running.package("smollm2:135M-Q4_1", weights)
        assert (model.parameters, model.quantization) == ("134.52M", "MOSTLY_Q4_1")
        assert (model.trained_context_size, model.context_size) == (8192, None)
        with await running.store.lease(model.id) as lease:
            assert lease.files.kv_bytes_per_cell == 23040
