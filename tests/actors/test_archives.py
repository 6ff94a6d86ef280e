"""Models out of the store as archives, and into it from those of ours and of others."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

import attrs
import orjson
import psutil
import pytest
import trio

from actors.archives import CHUNK_BYTES, SavedArchive, load_archive
from actors.store_handle import StoreHandle
from runner.domain.model import Model
from runner.errors import (
    ContentMismatch,
    DiskFull,
    InvalidArchive,
    InvalidModelFile,
    ModelNotFound,
    RunnerError,
    StoreDamaged,
    UnsupportedModel,
)
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.reference import Reference
from runner.store.archive import ArchivePlan
from runner.store.tar import END, MEMBERS_MAX, header_of, padding_of
from tests.support import models
from tests.support.cut_disk import CountingDisk, fail_at
from tests.support.gguf_writer import gguf_bytes, model_keys
from tests.support.models import LICENSE, RunningStore, in_chunks, name, reference, running_store

pytestmark = pytest.mark.anyio

WEIGHTS = models.tiny_gguf()
PACKAGE = models.built(WEIGHTS, LICENSE)
MANIFEST = PACKAGE.manifest


async def saved(running: RunningStore, which: str) -> bytes:
    archive = await SavedArchive.open(running.store, name(which))
    try:
        content = bytearray()
        while chunk := await archive.next_chunk():
            content += chunk
        assert len(content) == archive.size_bytes
        return bytes(content)
    finally:
        archive.close()


async def load(
    store: StoreHandle, chunks: AsyncIterator[bytes], *, name: Reference | None = None
) -> tuple[Model, ...]:
    """With a generator that is closed here, as it is not read to its end when something is wrong."""
    assert isinstance(chunks, AsyncGenerator)
    async with aclosing(chunks):
        return await load_archive(store, chunks, name=name)


def open_files() -> list[str]:
    return [file.path for file in psutil.Process().open_files()]


def tar(**members: bytes) -> bytes:
    """An archive of these files, by our own writer."""
    parts = []
    for path, content in members.items():
        parts += [header_of(path, len(content)), content, padding_of(len(content))]
    return b"".join(parts) + END


def blobs(*contents: bytes) -> dict[str, bytes]:
    return {f"blobs/sha256/{Digest.of(content).hex}": content for content in contents}


def index(*descriptors: Descriptor) -> dict[str, bytes]:
    entries = [
        {
            "mediaType": found.media_type,
            "size": found.size_bytes,
            "digest": str(found.digest),
            "annotations": dict(found.annotations),
        }
        for found in descriptors
    ]
    return {"index.json": orjson.dumps({"schemaVersion": 2, "manifests": entries})}


def named(content: bytes, ref: str | None = None, media_type: str = media_types.IMAGE_MANIFEST) -> Descriptor:
    annotations = {} if ref is None else {media_types.ANNOTATION_REFERENCE: ref}
    return attrs.evolve(Descriptor.of(content, media_type), annotations=annotations)


def with_manifest(*layers: Descriptor, config: bytes = PACKAGE.config, kind: str = "") -> bytes:
    return Manifest.binding(config, layers, kind or media_types.DOCKER_CONFIG_V01).encode()


GOOD = blobs(WEIGHTS, LICENSE, PACKAGE.config)


def is_empty(root: Path) -> bool:
    return not [*(root / "blobs" / "sha256").iterdir(), *(root / "partial").iterdir()]


# out and in


async def test_what_is_saved_is_loaded_elsewhere_with_the_same_id_and_name(tmp_path: Path) -> None:
    async with running_store(tmp_path / "one") as one, running_store(tmp_path / "two") as two:
        model = await one.package("a:1", WEIGHTS, LICENSE, context_size=512)
        await one.store.tag(name("a:1"), reference("b:2"))
        archive = await saved(one, "b:2")
        (loaded,) = await load(two.store, in_chunks(archive))
        assert (loaded.id, loaded.tags) == (model.id, (reference("b:2"),))
        with await two.store.lease(loaded.id) as lease:
            assert [path.read_bytes() for path in lease.files.weights] == [WEIGHTS]
        assert await saved(two, "b:2") == archive
        assert await saved(one, "a:1") != archive  # which says its name
        assert not list((tmp_path / "two" / "partial").iterdir())


async def test_a_saved_archive_does_not_vary(tmp_path: Path) -> None:
    archives = set()
    for number in range(2):
        async with running_store(tmp_path / str(number)) as running:
            await running.package("a:1", WEIGHTS, LICENSE, created_s=5)
            archives.add(await saved(running, "a:1"))
    assert len(archives) == 1


async def test_loading_again_changes_nothing_and_another_name_can_be_given(tmp_path: Path) -> None:
    async with running_store(tmp_path / "store") as running:
        model = await running.package("a:1", WEIGHTS, LICENSE)
        archive = await saved(running, "a:1")
        assert await load(running.store, in_chunks(archive)) == (model,)
        (renamed,) = await load(running.store, in_chunks(archive), name=reference("c:3"))
        assert renamed.tags == (reference("a:1"), reference("c:3"))
        assert len(await running.store.list()) == 1


async def test_nothing_is_left_of_a_loaded_model_that_is_removed(tmp_path: Path) -> None:
    async with running_store(tmp_path / "one") as one, running_store(tmp_path / "two") as two:
        model = await one.package("a:1", WEIGHTS, LICENSE)
        archive = await saved(one, "a:1")
        await load(two.store, in_chunks(archive))
        await load(two.store, in_chunks(archive))
        await two.store.remove(name(str(model.id)))
        assert is_empty(tmp_path / "two")


async def test_a_model_without_a_name_is_saved_and_loaded_by_its_id(tmp_path: Path) -> None:
    async with running_store(tmp_path / "one") as one, running_store(tmp_path / "two") as two:
        model = await one.package("a:1", WEIGHTS)
        await one.store.untag(reference("a:1"))
        (loaded,) = await load(two.store, in_chunks(await saved(one, model.id.hex)))
        assert (loaded.id, loaded.tags) == (model.id, ())


async def test_what_is_not_there_cannot_be_saved(tmp_path: Path) -> None:
    async with running_store(tmp_path / "store") as running:
        with pytest.raises(ModelNotFound):
            await SavedArchive.open(running.store, name("a:1"))


async def test_a_reader_that_leaves_early_leaves_no_open_file(tmp_path: Path) -> None:
    async with running_store(tmp_path / "store") as running:
        await running.package("a:1", WEIGHTS + bytes(4 << 20))
        archive = await SavedArchive.open(running.store, name("a:1"))
        assert await archive.next_chunk()
        archive.close()
        archive.close()
        assert not [path for path in open_files() if "blobs" in path]
        assert await archive.next_chunk() == b""


async def test_S22_a_model_that_is_being_saved_keeps_its_content(tmp_path: Path) -> None:
    async with running_store(tmp_path / "store") as running:
        await running.package("a:1", WEIGHTS, LICENSE)
        whole = await saved(running, "a:1")
        archive = await SavedArchive.open(running.store, name("a:1"))
        await running.store.remove(name("a:1"))
        content = bytearray()
        while chunk := await archive.next_chunk():
            content += chunk
        archive.close()
        assert content == whole


async def test_S24_content_that_became_shorter_ends_the_archive_instead_of_spoiling_it(
    tmp_path: Path,
) -> None:
    async with running_store(tmp_path / "store") as running:
        await running.package("a:1", WEIGHTS)
        path = tmp_path / "store" / "blobs" / "sha256" / Digest.of(WEIGHTS).hex
        path.chmod(0o600)
        os.truncate(path, len(WEIGHTS) - 1)
        with pytest.raises(StoreDamaged, match="shorter"):
            await saved(running, "a:1")


async def test_neither_way_holds_more_than_some_pieces_of_content(tmp_path: Path) -> None:
    weights = WEIGHTS + bytes(24 << 20)
    async with running_store(tmp_path / "one") as one, running_store(tmp_path / "two") as two:
        await one.package("a:1", weights)
        archive = await SavedArchive.open(one.store, name("a:1"))

        async def chunks() -> AsyncIterator[bytes]:
            while chunk := await archive.next_chunk():
                assert len(chunk) <= 2 * CHUNK_BYTES + 2048
                yield chunk

        tracemalloc.start()
        try:
            (loaded,) = await load(two.store, chunks())
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            archive.close()
        assert peak_bytes < 12 * CHUNK_BYTES
        assert loaded.size_bytes > len(weights)


# other programs


def skopeo(*arguments: str) -> str:
    command = ["skopeo", "--insecure-policy", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


async def test_skopeo_reads_a_saved_archive(tmp_path: Path) -> None:
    path, copy = tmp_path / "model.tar", tmp_path / "copy"
    async with running_store(tmp_path / "store") as running:
        model = await running.package("a:1", WEIGHTS, LICENSE)
        path.write_bytes(await saved(running, "a:1"))
    raw = await trio.to_thread.run_sync(skopeo, "inspect", "--raw", f"oci-archive:{path}")
    assert Digest.of(raw.encode()) == model.id
    await trio.to_thread.run_sync(skopeo, "copy", "--preserve-digests", f"oci-archive:{path}", f"oci:{copy}")
    found = {Digest.of(file.read_bytes()) for file in (copy / "blobs" / "sha256").iterdir()}
    assert found == {
        model.id,
        Digest.of(WEIGHTS),
        Digest.of(LICENSE),
        Manifest.parse(raw.encode()).config.digest,
    }


@pytest.mark.parametrize("kind", ["docker", "cncf"])
async def test_an_archive_that_skopeo_made_of_our_store_is_loaded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.tar"
    async with running_store(tmp_path / "one") as one, running_store(tmp_path / "two") as two:
        model = await one.package("a:1", WEIGHTS, LICENSE, format=kind)
        source = f"oci:{tmp_path / 'one'}:docker.io/ai/a:1"
        await trio.to_thread.run_sync(skopeo, "copy", source, f"oci-archive:{path}:docker.io/ai/z:9")
        (loaded,) = await load(two.store, in_chunks(path.read_bytes()))
        assert (loaded.id, loaded.tags) == (model.id, (reference("z:9"),))


async def test_docker_model_runner_finds_all_it_needs_before_the_manifest(tmp_path: Path) -> None:
    """It reads blobs until `manifest.json`, whose bytes are the model, and nothing behind that."""
    async with running_store(tmp_path / "store") as running:
        model = await running.package("a:1", WEIGHTS, LICENSE)
        archive = await saved(running, "a:1")
    seen: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        for info in found:
            if info.isfile():
                file = found.extractfile(info)
                assert file is not None
                seen[info.name] = file.read()
                if info.name == "manifest.json":
                    break
            else:
                assert info.name in ("blobs", "blobs/sha256")
    manifest = Manifest.parse(seen.pop("manifest.json"))
    assert Digest.of(manifest.encode()) == model.id
    assert list(seen) == [f"blobs/sha256/{part.digest.hex}" for part in manifest.descriptors()]


async def test_what_docker_model_runner_exports_is_loaded(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in ("blobs", "blobs/sha256"):
            info = tarfile.TarInfo(path)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
        for path, content in {**GOOD, "manifest.json": MANIFEST, "README": b"?"}.items():
            info = tarfile.TarInfo(path)
            info.size, info.mtime = len(content), 1_700_000_000
            archive.addfile(info, io.BytesIO(content))
    async with running_store(tmp_path / "store") as running:
        (loaded,) = await load(running.store, in_chunks(buffer.getvalue()))
        assert (loaded.id, loaded.tags) == (Digest.of(MANIFEST), ())
        (renamed,) = await load(running.store, in_chunks(buffer.getvalue(), 7777), name=reference("a:1"))
        assert renamed.tags == (reference("a:1"),)


async def test_several_models_of_one_archive_are_loaded_and_share_content(tmp_path: Path) -> None:
    other = models.built(WEIGHTS)
    archive = tar(
        **index(named(MANIFEST, "docker.io/ai/a:1"), named(other.manifest, "b:2"), named(MANIFEST, "ai/c:3")),
        **GOOD,
        **blobs(MANIFEST, other.manifest, other.config),
        **{"oci-layout": b"{}"},
    )
    async with running_store(tmp_path / "store") as running:
        loaded = await load(running.store, in_chunks(archive))
        assert [model.id for model in loaded] == [Digest.of(d) for d in (MANIFEST, other.manifest, MANIFEST)]
        assert {str(tag) for model in await running.store.list() for tag in model.tags} == {
            "docker.io/ai/a:1", "docker.io/ai/b:2", "docker.io/ai/c:3",
        }  # fmt: skip
        with pytest.raises(InvalidArchive, match="3 models"):
            await load(running.store, in_chunks(archive), name=reference("d:4"))


@pytest.mark.parametrize(
    ("ref", "tags"),
    [
        (None, ()),
        ("latest", ()),  # as tools write a bare tag
        ("not a name/:", ()),
        (f"ai/a@{Digest.of(b'x')}", ()),
        ("Registry.example:5000/x", (Reference.parse("registry.example:5000/x:latest"),)),
    ],
)
async def test_a_name_in_an_index_is_taken_when_it_is_one(
    tmp_path: Path, ref: str | None, tags: tuple[Reference, ...]
) -> None:
    archive = tar(**index(named(MANIFEST, ref)), **GOOD, **blobs(MANIFEST))
    async with running_store(tmp_path / "store") as running:
        (loaded,) = await load(running.store, in_chunks(archive))
        assert loaded.tags == tags


async def test_a_directory_of_safetensors_is_kept_with_its_paths_and_not_loaded(tmp_path: Path) -> None:
    files = {
        "model-00001-of-00002.safetensors": media_types.SAFETENSORS,
        "text_encoder/model.safetensors": media_types.SAFETENSORS,
        "config.json": media_types.MODEL_FILE,
        "LICENSE": media_types.LICENSE,
    }
    layers = tuple(
        attrs.evolve(Descriptor.of(path.encode(), kind), annotations={media_types.ANNOTATION_FILE_PATH: path})
        for path, kind in files.items()
    )
    config = b'{"config":{"format":"safetensors","safetensors":{"tensor_count":"3"}},"descriptor":{}}'
    manifest = with_manifest(*layers, config=config, kind=media_types.DOCKER_CONFIG_V02)
    archive = tar(**blobs(config, *(path.encode() for path in files)), **{"manifest.json": manifest})
    async with running_store(tmp_path / "store") as running:
        (model,) = await load(running.store, in_chunks(archive), name=reference("a:1"))
        assert (model.id, model.format) == (Digest.of(manifest), "safetensors")
        report = await running.store.inspect(name("a:1"))
        assert [row.filename for row in report.layers] == list(files)
        assert report.licenses == ("LICENSE",)
        with pytest.raises(UnsupportedModel, match="safetensors"):
            await running.store.lease(model.id)
        assert (await load(running.store, in_chunks(await saved(running, "a:1")))) == (model,)


async def test_the_format_of_a_pack_that_does_not_say_it_is_that_of_its_files(tmp_path: Path) -> None:
    config = b'{"config":{"paramSize":"1M"},"modelfs":{"type":"layers"},"descriptor":{"family":"x"}}'
    weights = attrs.evolve(
        Descriptor.of(WEIGHTS, media_types.CNCF_WEIGHT),
        annotations={media_types.ANNOTATION_FILE_PATH: "model.gguf"},
    )
    manifest = with_manifest(weights, config=config, kind=media_types.CNCF_CONFIG)
    archive = tar(**blobs(config, WEIGHTS), **{"manifest.json": manifest})
    async with running_store(tmp_path / "store") as running:
        (model,) = await load(running.store, in_chunks(archive))
        assert (model.format, model.parameters, model.context_size) == ("gguf", "1M", None)
        with await running.store.lease(model.id) as lease:
            assert lease.files.model.trained_context_size == 4096


# what is refused


GONE = next(iter(GOOD))
LESS = {path: content for path, content in GOOD.items() if path != GONE}
LONG = blobs(bytes((4 << 20) + 1))
LONG_CONFIG = b'{"config":{}}'.ljust((1 << 20) + 1)
NOT_GGUF = b"GGUF, but no more"
PART = Descriptor.of(WEIGHTS, media_types.GGUF)
CUT = gguf_bytes(model_keys({"llama.context_length": None}))


@pytest.mark.parametrize(
    ("archive", "error", "told"),
    [
        (b"", InvalidArchive, "cut off"),
        (tar(), InvalidArchive, "no model"),
        (tar(**GOOD), InvalidArchive, "no model"),
        (tar(**GOOD, **{"manifest.json": MANIFEST})[:-1024], InvalidArchive, "cut off"),
        (tar(**{**GOOD, GONE: WEIGHTS[:-1] + b"x"}), ContentMismatch, "instead of"),
        (tar(**LESS, **{"manifest.json": MANIFEST}), InvalidArchive, "lacks"),
        (tar(**GOOD, **index(named(MANIFEST))), InvalidArchive, "lacks the manifest"),
        (tar(**GOOD, **{"manifest.json": b"[]"}), UnsupportedModel, "docker save"),
        (tar(**GOOD, **{"manifest.json": b"{}"}), InvalidArchive, "no model"),
        (tar(**GOOD, **{"index.json": b"{"}), InvalidArchive, "no model"),
        (tar(**index(named(MANIFEST, None, media_types.IMAGE_INDEX))), UnsupportedModel, "something else"),
        (tar(**GOOD, **index(*[named(MANIFEST, f"a:{n}") for n in range(65)])), InvalidArchive, "65 models"),
        (
            tar(**GOOD, **{"manifest.json": with_manifest(PART, kind="application/json")}),
            UnsupportedModel,
            "holds no model",
        ),
        (
            tar(**GOOD, **{"manifest.json": with_manifest(attrs.evolve(PART, size_bytes=1))}),
            InvalidArchive,
            "instead of 1",
        ),
        (
            tar(
                **blobs(b"[]", WEIGHTS), **{"manifest.json": with_manifest(PART, config=b"[]")}
            ),
            InvalidArchive,
            "no model",
        ),
        (
            tar(
                **blobs(PACKAGE.config, NOT_GGUF),
                **{"manifest.json": with_manifest(Descriptor.of(NOT_GGUF, media_types.GGUF))},
            ),
            InvalidModelFile,
            "version",
        ),
        (
            tar(
                **blobs(PACKAGE.config, CUT),
                **{"manifest.json": with_manifest(Descriptor.of(CUT, media_types.GGUF))},
            ),
            InvalidModelFile,
            "context_length",
        ),
        (tar(**{"index.json": bytes((1 << 20) + 1)}), InvalidArchive, "limit"),
        (tar(**{"manifest.json": bytes((4 << 20) + 1)}), InvalidArchive, "limit"),
        (tar(**LONG, **index(named(next(iter(LONG.values()))))), InvalidArchive, "a manifest has 4194305"),
        (
            tar(**blobs(WEIGHTS, LONG_CONFIG), **{"manifest.json": with_manifest(PART, config=LONG_CONFIG)}),
            InvalidArchive,
            "a config has 1048577",
        ),
        (tar(**{"blobs/sha512/" + "ab" * 64: b""}), InvalidArchive, "only sha256"),
        (tar(**{"blobs/sha256/" + "AB" * 32: b""}), InvalidArchive, "only sha256"),
        (tar(**{"index.json": b"{}"})[:-1024] + tar(**{"index.json": b"{}"}), InvalidArchive, "twice"),
        (header_of("../x", 1) + b"x".ljust(512, b"\0") + END, InvalidArchive, "names a file"),
        (header_of("x", 5 << 40) + END, InvalidArchive, "holds more than"),
        (header_of(GONE, 3 << 40) + END, DiskFull, "free"),
        (b"\x1f\x8b" + bytes(600), InvalidArchive, "gzip"),
        (b"".join(header_of(f"{n}", 0) for n in range(MEMBERS_MAX + 1)) + END, InvalidArchive, "1000"),
    ],
)  # fmt: skip
async def test_S14_what_is_no_sound_model_is_refused_and_nothing_of_it_is_visible(
    tmp_path: Path, archive: bytes, error: type[RunnerError], told: str
) -> None:
    async with running_store(tmp_path / "store") as running:
        with pytest.raises(error, match=told):
            await load(running.store, in_chunks(archive, 999))
        assert await running.store.list() == ()
        assert not list((tmp_path / "store" / "partial").iterdir())
        if (
            error is not InvalidModelFile and told != "format"
        ):  # which is seen once all content is in its place
            assert is_empty(tmp_path / "store")


async def test_content_of_a_model_that_was_refused_goes_with_the_next_collection(tmp_path: Path) -> None:
    archive = tar(
        **blobs(PACKAGE.config, CUT),
        **{"manifest.json": with_manifest(Descriptor.of(CUT, media_types.GGUF))},
    )
    async with running_store(tmp_path / "store") as running:
        with pytest.raises(InvalidModelFile):
            await load(running.store, in_chunks(archive))
        await running.store.gc(prune_untagged=True)
        assert is_empty(tmp_path / "store")


async def test_S02_content_is_refused_at_its_end_whatever_follows(tmp_path: Path) -> None:
    sent = []

    async def chunks() -> AsyncIterator[bytes]:
        bad = {**GOOD, GONE: b"x" * len(WEIGHTS)}
        yield tar(**bad)[:-1024].ljust(CHUNK_BYTES, b"\0")[:CHUNK_BYTES]
        sent.append("first")
        yield bytes(CHUNK_BYTES)
        sent.append("second")

    async with running_store(tmp_path / "store") as running:
        with pytest.raises(ContentMismatch):
            await load(running.store, chunks())
        assert sent == []
        assert is_empty(tmp_path / "store")


async def test_a_client_that_leaves_leaves_nothing(tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield tar(**GOOD)[:-1024].ljust(CHUNK_BYTES, b"\0")[:CHUNK_BYTES]
        await trio.sleep_forever()

    async with running_store(tmp_path / "store") as running:
        with trio.move_on_after(0.5):
            await load(running.store, chunks())
        assert is_empty(tmp_path / "store")
        assert await running.store.list() == ()


async def test_S23_a_full_disk_fails_one_load_and_the_next_succeeds(tmp_path: Path) -> None:
    archive = tar(**GOOD, **{"manifest.json": MANIFEST})
    disk = CountingDisk()
    async with running_store(tmp_path / "store", disk=disk) as running:
        disk.arm(fail_at(lambda number, reached: reached == "write", 28))
        with pytest.raises(DiskFull):
            await load(running.store, in_chunks(archive))
        disk.arm(lambda number, reached: None)
        assert is_empty(tmp_path / "store")
        (loaded,) = await load(running.store, in_chunks(archive))
        assert loaded.id == Digest.of(MANIFEST)


def test_a_model_with_more_layers_than_an_archive_takes_is_not_saved() -> None:
    layers = tuple(attrs.evolve(PART, digest=Digest.of(b"%d" % n)) for n in range(MEMBERS_MAX - 5))
    manifest = Manifest.binding(b"{}", layers, media_types.DOCKER_CONFIG_V02)
    with pytest.raises(InvalidArchive, match="995 layers"):
        ArchivePlan.of(manifest.encode(), manifest, None)
    fewer = attrs.evolve(manifest, layers=layers[1:])
    assert len(ArchivePlan.of(fewer.encode(), fewer, None).pieces) > 994
