"""Taking away what nothing needs, and telling what takes how much room. Belongs in a thread, between changes.

Owns the order: models first, then content, then unfinished downloads. Imports the directory, changes and gc.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runner.domain.disk import DiskReport, GcReport, ModelDisk
from runner.errors import StoreDamaged
from runner.oci.digest import Digest
from runner.store.catalog import Catalog
from runner.store.changes import Change, carry_out
from runner.store.directory import StoreDirectory
from runner.store.disk import FileFacts
from runner.store.downloads import UnfinishedDownload
from runner.store.gc import GarbageRules, leftovers, reachable


def collect(
    directory: StoreDirectory,
    catalog: Catalog,
    rules: GarbageRules,
    *,
    removals: Sequence[Change] = (),
    is_dry_run: bool = False,
) -> GcReport:
    """Carry out these removals, one planned on the other, then remove what may go by the rules.

    `catalog` is what there is before. No content goes while it is unknown what belongs to a model.
    """
    blobs = facts_of_all(directory)
    unfinished = [one for one in directory.downloads.unfinished() if rules.may_go(one.digest, one.modified_s)]
    after = removals[-1].catalog if removals else catalog
    going = {digest for change in removals for digest in change.unneeded if digest in blobs}
    unneeded = _unneeded(blobs, after)
    garbage = tuple(
        digest for digest in unneeded if digest in going or rules.may_go(digest, blobs[digest].modified_s)
    )
    kept = tuple(digest for digest in unneeded if digest not in garbage)
    if not is_dry_run:
        for change in removals:
            carry_out(change, directory)
        directory.drop(tuple(digest for digest in garbage if digest not in going))
        unfinished = [one for one in unfinished if directory.downloads.remove(one.digest)]
    return GcReport(
        is_dry_run=is_dry_run,
        removed_models=tuple(str(change.model_id) for change in removals),
        removed=tuple(map(str, garbage)),
        removed_downloads=tuple(str(one.digest) for one in unfinished),
        freed_bytes=_size(blobs, garbage) + sum(one.size_bytes for one in unfinished),
        kept_leftovers=tuple(map(str, kept)),
        kept_bytes=_size(blobs, kept),
    )


def disk_report(directory: StoreDirectory, catalog: Catalog) -> DiskReport:
    """What takes how much room."""
    blobs = facts_of_all(directory)
    needed_by: dict[Digest, int] = {}
    parts = {model_id: _parts(catalog, model_id) for model_id in catalog.index.manifests()}
    for digests in parts.values():
        for digest in digests:
            needed_by[digest] = needed_by.get(digest, 0) + 1
    unfinished = directory.downloads.unfinished()
    return DiskReport(
        models=tuple(_model_disk(catalog, model_id, parts[model_id], blobs, needed_by) for model_id in parts),
        total_bytes=_size(blobs, blobs) + _taken(unfinished),
        shared_bytes=_size(blobs, [digest for digest, count in needed_by.items() if count > 1]),
        partial_bytes=_taken(unfinished),
        leftover_bytes=_size(blobs, _unneeded(blobs, catalog)),
        free_bytes=directory.disk.free_bytes(directory.layout.root),
        reserve_bytes=directory.downloads.keep_free_bytes,
    )


def facts_of_all(directory: StoreDirectory) -> dict[Digest, FileFacts]:
    """Every file of ours among the blobs."""
    facts = {}
    for digest in directory.blobs.digests():
        try:
            found = directory.blobs.facts(digest)
        except StoreDamaged:  # a link, device or foreign file: neither used nor removed
            continue
        if found is not None:
            facts[digest] = found
    return facts


def _unneeded(blobs: Mapping[Digest, FileFacts], catalog: Catalog) -> tuple[Digest, ...]:
    needed = reachable(catalog)
    return () if needed is None else leftovers(blobs, needed)


def _parts(catalog: Catalog, model_id: Digest) -> frozenset[Digest]:
    manifest = catalog.manifest_of(model_id)
    layers = () if manifest is None else manifest.descriptors()
    return frozenset({model_id, *(part.digest for part in layers)})


def _model_disk(
    catalog: Catalog,
    model_id: Digest,
    parts: frozenset[Digest],
    blobs: Mapping[Digest, FileFacts],
    needed_by: Mapping[Digest, int],
) -> ModelDisk:
    tags = catalog.index.names_of(model_id)
    return ModelDisk(
        id=str(model_id),
        name=tags[0].familiar() if tags else model_id.short(),
        tags=tuple(map(str, tags)),
        size_bytes=_size(blobs, parts),
        own_bytes=_size(blobs, [digest for digest in parts if needed_by[digest] == 1]),
    )


def _size(
    blobs: Mapping[Digest, FileFacts], digests: Sequence[Digest] | Mapping[Digest, object] | frozenset[Digest]
) -> int:
    return sum(blobs[digest].size_bytes for digest in digests if digest in blobs)


def _taken(unfinished: Sequence[UnfinishedDownload]) -> int:
    return sum(one.size_bytes for one in unfinished)
