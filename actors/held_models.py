"""The documents and files of a model of the store, which stay there while somebody reads them.

No actor. For whatever takes a whole model elsewhere or derives another one from it. Imports the store's
handle; its files are read in threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import attrs
import trio

from actors.store_handle import StoreHandle
from runner.domain.model import Model
from runner.errors import BlobNotFound, ModelNotFound, StoreDamaged, StoreError
from runner.oci.digest import Digest
from runner.oci.manifest import MANIFEST_BYTES_MAX, Manifest
from runner.oci.model_config import CONFIG_BYTES_MAX
from runner.oci.reference import ModelName
from runner.store.blobs import StoredBlob
from runner.store.disk import Disk


@attrs.frozen(kw_only=True)
class HeldModel:
    """A model with its documents, verified, and where its blobs lie, config and manifest among them.
    They stay until `release`."""

    model: Model
    manifest_bytes: bytes
    manifest: Manifest
    config_bytes: bytes
    blobs: Mapping[Digest, StoredBlob]
    _holding: ExitStack

    def release(self) -> None:
        """Give the files up; doing so again changes nothing. Does not wait."""
        self._holding.close()


async def hold_model(store: StoreHandle, name: ModelName) -> HeldModel:
    """Hold a model until it is released. Raises like `StoreHandle.resolve`, and StoreDamaged when a part is
    missing or a document is not what its name says."""
    model = await store.resolve(name)
    with ExitStack() as holding:
        holding.enter_context(store.holding((model.id,)))
        try:
            (manifest_blob,) = await store.hold_blobs((model.id,))
        except BlobNotFound:  # it has just been removed
            raise ModelNotFound(name.text) from None
        manifest_bytes = await _document(manifest_blob, MANIFEST_BYTES_MAX)
        manifest = Manifest.parse(manifest_bytes)
        digests = tuple(dict.fromkeys(part.digest for part in manifest.descriptors()))
        holding.enter_context(store.holding(digests))
        try:
            found = await store.hold_blobs(digests)
        except BlobNotFound as error:
            raise StoreDamaged(f"{error.digest} of {model.name} is missing from the store") from None
        blobs = {blob.digest: blob for blob in (*found, manifest_blob)}
        config_bytes = await _document(blobs[manifest.config.digest], CONFIG_BYTES_MAX)
        return HeldModel(
            model=model,
            manifest_bytes=manifest_bytes,
            manifest=manifest,
            config_bytes=config_bytes,
            blobs=blobs,
            holding=holding.pop_all(),
        )


@contextmanager
def releasing(held: HeldModel) -> Iterator[HeldModel]:
    """Around everything that is done with a held model."""
    try:
        yield held
    finally:
        held.release()


async def _document(blob: StoredBlob, limit_bytes: int) -> bytes:
    return await trio.to_thread.run_sync(partial(_read, blob, limit_bytes))


def _read(blob: StoredBlob, limit_bytes: int) -> bytes:
    try:
        content = Disk().read(blob.path, limit_bytes=limit_bytes)
    except OSError as error:
        raise StoreError(f"reading {blob.digest} failed: {error.strerror}") from error
    if content is None or Digest.of(content) != blob.digest:
        raise StoreDamaged(f"the content of {blob.digest} in the store is not what its name says")
    return content
