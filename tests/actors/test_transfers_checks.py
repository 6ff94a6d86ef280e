"""What came from elsewhere is looked at as strictly as what is packaged here."""

from __future__ import annotations

import contextlib

import pytest

from actors.transfers_checks import check_model
from runner.errors import BlobNotFound, InvalidManifest, InvalidModelFile
from runner.oci import media_types
from runner.oci.manifest import Descriptor, Manifest
from tests.support.models import built, running_store, tiny_gguf

pytestmark = pytest.mark.anyio

WEIGHTS = tiny_gguf()
CONFIG = built(WEIGHTS).config


def manifest(*layers: tuple[bytes, str], config: bytes = CONFIG) -> Manifest:
    descriptors = tuple(Descriptor.of(content, media_type) for content, media_type in layers)
    return Manifest.binding(config, descriptors, media_types.DOCKER_CONFIG_V01)


async def check(
    tmp_path, *layers: tuple[bytes, str], config: bytes = CONFIG, refused: type[Exception] | None = None
) -> None:
    """That the model passes, or is refused so."""
    async with running_store(tmp_path / "store") as running:
        await running.upload(*(content for content, _ in layers))
        with pytest.raises(refused) if refused is not None else contextlib.nullcontext():
            await check_model(manifest(*layers, config=config), config, running.store)


async def test_a_sound_model_passes(tmp_path):
    await check(tmp_path, (WEIGHTS, media_types.GGUF), (b"{{ messages }}", media_types.CHAT_TEMPLATE))


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"GGUF" + bytes(2000), media_types.GGUF),
        (WEIGHTS, media_types.PROJECTOR),
        (b"no projector", media_types.PROJECTOR),
        (b"\xff\xfe", media_types.CHAT_TEMPLATE),
        (b"x" * ((1 << 20) + 1), media_types.CHAT_TEMPLATE),
    ],
)
async def test_G04_a_part_that_must_not_reach_the_engine_is_refused(tmp_path, content, media_type):
    await check(tmp_path, (WEIGHTS, media_types.GGUF), (content, media_type), refused=InvalidModelFile)


async def test_weights_that_the_engine_does_not_read_are_kept_as_they_are(tmp_path):
    config = b'{"config":{"format":"safetensors"},"descriptor":{},"rootfs":{"type":"rootfs","diff_ids":[]}}'
    await check(tmp_path, (b"tensors", media_types.SAFETENSORS), config=config)


async def test_S03_a_config_outside_the_format_is_refused(tmp_path):
    await check(tmp_path, (WEIGHTS, media_types.GGUF), config=b"[]", refused=InvalidManifest)


async def test_a_part_that_is_missing_is_told(tmp_path):
    async with running_store(tmp_path / "store") as running:
        with pytest.raises(BlobNotFound):
            await check_model(manifest((WEIGHTS, media_types.GGUF)), CONFIG, running.store)
