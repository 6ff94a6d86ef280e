"""What nothing refers to any more. Pure; imports oci and the catalog.

Everything is kept that some model of the index refers to, that a client uploaded and has not packaged yet, or
that could belong to a model whose manifest cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from runner.oci.digest import Digest
from runner.store.catalog import Catalog
from runner.store.disk import FileFacts

LEFTOVER_AGE_S = 7 * 86400.0  # S26


def reachable(catalog: Catalog) -> frozenset[Digest] | None:
    """Every blob that the index leads to; None when that cannot be known."""
    found: set[Digest] = set()
    for model_id in catalog.index.manifests():
        manifest = catalog.manifest_of(model_id)
        if manifest is None:
            return None
        found.add(model_id)
        found.update(part.digest for part in manifest.descriptors())
    return frozenset(found)


def removable_with(
    model_id: Digest, before: Catalog, after: Catalog, kept: Set[Digest]
) -> tuple[Digest, ...]:
    """Blobs that go with a removed model, in reverse order of publishing: manifest, config, layers.

    When another model's manifest cannot be read, only the manifest goes: any part could be shared with it.
    """
    manifest = before.manifest_of(model_id)
    parts = () if manifest is None else tuple(reversed(manifest.descriptors()))
    still_needed = reachable(after)
    if still_needed is None:
        return (model_id,)
    in_order = dict.fromkeys((model_id, *(part.digest for part in parts)))
    return tuple(digest for digest in in_order if digest not in still_needed and digest not in kept)


def leftovers(blobs: Mapping[Digest, FileFacts], needed: Set[Digest], *, now_s: float) -> Iterable[Digest]:
    """Blobs that nothing needs and that have not changed for 7 days."""
    return (
        digest
        for digest, facts in blobs.items()
        if digest not in needed and now_s - facts.modified_s > LEFTOVER_AGE_S
    )
