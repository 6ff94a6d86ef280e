"""The open store directory: reads what is there, writes the index, repairs a damaged one.

Owns the content of the directory while `runner/store/opening.py` holds its lock. Imports the layout, disk,
blobs, settings, index and catalog. Everything here blocks and belongs in a thread, one call at a time.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import attrs

from runner.errors import BlobNotFound, DiskFull, InvalidManifest, StoreError
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import INDEX_BYTES_MAX, MANIFEST_BYTES_MAX, Descriptor, Manifest
from runner.oci.model_config import CONFIG_BYTES_MAX, ModelConfig
from runner.store.blobs import BlobStore
from runner.store.catalog import Catalog, Fault, StoredModel
from runner.store.disk import Disk
from runner.store.downloads import KEEP_FREE_BYTES, Downloads
from runner.store.index import IndexEntry, StoreIndex, salvage
from runner.store.layout import StoreLayout
from runner.store.settings import SettingsFiles

RESERVE_BYTES = 1 << 20  # an index of some 3000 names


@attrs.frozen(kw_only=True)
class LoadedCatalog:
    """What was found. `notices` are sentences for the log; `was_rebuilt`: the index had to be made anew."""

    catalog: Catalog
    notices: tuple[str, ...] = ()
    was_rebuilt: bool = False


class StoreDirectory:
    """The files of one store, for the one process that holds its lock."""

    def __init__(self, layout: StoreLayout, disk: Disk, *, keep_free_bytes: int = KEEP_FREE_BYTES) -> None:
        self.layout = layout
        self.disk = disk
        self.blobs = BlobStore(layout, disk)
        self.downloads = Downloads(layout, disk, self.blobs, keep_free_bytes=keep_free_bytes)
        self.settings = SettingsFiles(layout, disk, self.replace)
        self._synced_index: StoreIndex | None = (
            None  # None: unknown whether a power cut would keep what is there
        )

    # reading

    def load(self) -> LoadedCatalog:
        """Index, manifests and settings as they lie on disk. Rebuilds an index that is missing or damaged.

        Raises StartRefused when a newer version wrote settings.
        """
        content = self.disk.read(self.layout.index, limit_bytes=INDEX_BYTES_MAX)
        if content is None:
            return self._rebuild(b"", "is missing")
        try:
            index = StoreIndex.parse(content)
        except InvalidManifest as error:
            return self._rebuild(content, f"is damaged ({error})")
        catalog, notices = self._look_up(index)
        faults = (f"model {model_id.short()}: {fault.reason}" for model_id, fault in catalog.faults.items())
        return LoadedCatalog(catalog=catalog, notices=(*faults, *notices))

    def _look_up(self, index: StoreIndex) -> tuple[Catalog, tuple[str, ...]]:
        """What the index leads to, and what is to be said of settings."""
        stored: dict[Digest, StoredModel] = {}
        faults: dict[Digest, Fault] = {}
        for descriptor in index.manifests().values():
            found = self._read_model(descriptor)
            if isinstance(found, Fault):
                faults[descriptor.digest] = found
            else:
                stored[descriptor.digest] = found
        found_settings = self.settings.read_all()
        return Catalog.of(index, stored, faults, found_settings.settings), found_settings.notices

    def healed(self, catalog: Catalog, digest: Digest) -> Catalog:
        """The catalog once this content has been replaced: models that lacked it can be used."""
        for model_id, fault in catalog.faults.items():
            parts = () if fault.manifest is None else fault.manifest.descriptors()
            if digest == model_id or any(digest == part.digest for part in parts):
                found = self._read_model(catalog.index.manifests()[model_id])
                if isinstance(found, StoredModel):
                    catalog = catalog.with_model(catalog.index, found)
        return catalog

    def _read_model(self, descriptor: Descriptor) -> StoredModel | Fault:
        manifest = None
        try:
            manifest = Manifest.parse(self.blobs.read(descriptor.digest, limit_bytes=MANIFEST_BYTES_MAX))
            if manifest.config.media_type not in media_types.READABLE_CONFIGS:
                raise InvalidManifest("its config is of a kind that this version does not read")
            config = ModelConfig.parse(self.blobs.read(manifest.config.digest, limit_bytes=CONFIG_BYTES_MAX))
            for layer in manifest.layers:
                self.blobs.check(layer)
        except (InvalidManifest, StoreError) as error:  # one bad sector must not cost the other models
            return Fault(reason=str(error), manifest=manifest)
        return StoredModel.of(descriptor, manifest, config)

    # writing

    def require(self, descriptors: tuple[Descriptor, ...]) -> None:
        """Raise BlobNotFound unless all of this lies in the store."""
        for descriptor in descriptors:
            facts = self.blobs.facts(descriptor.digest)
            if facts is None or facts.size_bytes != descriptor.size_bytes:
                raise BlobNotFound(str(descriptor.digest))

    def commit(self, index: StoreIndex, *, may_use_reserve: bool = False) -> None:
        """Replace the index. After an error the disk may show either one.

        The copy is written first: as long as `index.json` is good nobody reads it, and when it is damaged,
        the copy is as new. What makes room may write in the room that is held for it.
        """
        if index == self._synced_index:
            return
        self._synced_index = None
        content = index.encode()
        try:
            self._replace_index(content)
        except DiskFull:
            if not may_use_reserve:
                raise
            self.disk.unlink(self.layout.reserve)
            self._replace_index(content)
        self._synced_index = index

    def _replace_index(self, content: bytes) -> None:
        self.replace(self.layout.index_copy, content)
        self.replace(self.layout.index, content)

    def hold_reserve(self) -> None:
        """Take room that nothing but a removal may use, so that a full disk can be emptied by our own means.

        That there is no room to hold is no error: there will be after the next removal.
        """
        path = self.layout.reserve
        try:
            facts = self.disk.facts(path)
            if facts is not None and facts.size_bytes == RESERVE_BYTES:
                return
            self.disk.unlink(path)  # taking the room was cut off
            descriptor = self.disk.create(path)
            try:
                self.disk.allocate(descriptor, RESERVE_BYTES)
            finally:
                self.disk.close(descriptor)
        except StoreError:
            self._unlink_if_possible(path)

    def condemn(self, digests: tuple[Digest, ...]) -> None:
        """Say that these are about to go: what is left of them after a kill goes when the store is opened.

        As long as the index leads to one it stays, and is read once more before it is loaded.
        """
        for digest in digests:
            self.blobs.age(digest)

    def drop(self, digests: tuple[Digest, ...]) -> None:
        """Remove blobs that the committed index does not lead to."""
        self.blobs.remove(digests)

    def replace(self, target: Path, content: bytes) -> None:
        """Write a small file whole: temporary file, sync, rename, sync directory (S17)."""
        path = self.layout.partial / f"{secrets.token_hex(8)}.json"
        descriptor = self.disk.create(path)
        try:
            try:
                self.disk.write(descriptor, content)
                self.disk.sync(descriptor)
            finally:
                self.disk.close(descriptor)
            self.disk.rename(path, target)
        except StoreError:
            self._unlink_if_possible(path)
            raise
        self.disk.sync_directory(target.parent)

    def _unlink_if_possible(self, path: Path) -> None:
        try:
            self.disk.unlink(path)
        except StoreError:  # the error that led here is the one to tell; the file goes at the next start
            pass

    # repairing

    def _rebuild(self, damaged: bytes, reason: str) -> LoadedCatalog:
        """An index of every manifest in the store (S27), with the names that can still be read.

        1. Names come from what is left of the damaged index, then from its copy.
        2. Manifests without a name become untagged models; names without a manifest are lost.
        3. The damaged file is kept beside the new one.
        """
        copy = self.disk.read(self.layout.index_copy, limit_bytes=INDEX_BYTES_MAX)
        named = salvage(damaged) + salvage(copy or b"")
        found = {descriptor.digest: descriptor for descriptor in self._manifests_on_disk()}
        index = named.only(found.__contains__) + StoreIndex.of(
            IndexEntry(descriptor, None) for descriptor in found.values()
        )
        if damaged:
            self.replace(self.layout.damaged_index, damaged)
        self.commit(index)
        catalog, notices = self._look_up(index)
        named_now = [entry for entry in index.entries if entry.name is not None]
        lost = [str(entry.name) for entry in named.entries if entry.model_id not in found]
        return LoadedCatalog(
            catalog=catalog,
            notices=(
                f"index.json {reason}; it was rebuilt from {len(found)} manifests, "
                f"and {len(named_now)} names were recovered",
                *(f"the manifest of {name} is gone" for name in lost),
                *notices,
            ),
            was_rebuilt=True,
        )

    def _manifests_on_disk(self) -> list[Descriptor]:
        found = []
        for digest in self.blobs.digests():
            try:
                facts = self.blobs.facts(digest)
                if facts is None or facts.size_bytes > MANIFEST_BYTES_MAX:
                    continue
                content = self.blobs.read(digest, limit_bytes=MANIFEST_BYTES_MAX)
                manifest = Manifest.parse(content)
            except (InvalidManifest, StoreError):  # some other content, or nothing that can be read
                continue
            if manifest.config.media_type in media_types.READABLE_CONFIGS:
                found.append(Descriptor.of(content, media_types.IMAGE_MANIFEST))
        return found
