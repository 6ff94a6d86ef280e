"""What nothing refers to any more. Pure; imports oci and the catalog.

Everything is kept that some model of the index refers to, that a client uploaded and has not packaged yet, or
that could belong to a model whose manifest cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

import attrs

from runner.oci.digest import Digest
from runner.store.catalog import Catalog

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


@attrs.frozen(kw_only=True)
class GarbageRules:
    """What may go of what no model refers to.

    1. What is `held` by an operation stays.
    2. What was `abandoned` goes: an upload whose package was refused.
    3. What `waits` to be packaged stays until it is 7 days old.
    4. The rest goes when it is older than `older_than_s`.
    """

    now_s: float
    older_than_s: float = LEFTOVER_AGE_S
    held: Set[Digest] = frozenset()
    waiting: Set[Digest] = frozenset()
    abandoned: Set[Digest] = frozenset()

    def may_go(self, digest: Digest, modified_s: float) -> bool:
        age_s = self.now_s - modified_s
        if digest in self.held:
            return False
        if digest in self.abandoned:
            return True
        if digest in self.waiting:
            return age_s > LEFTOVER_AGE_S
        return age_s > self.older_than_s


def leftovers(blobs: Iterable[Digest], needed: Set[Digest]) -> tuple[Digest, ...]:
    """Blobs that nothing needs, in order of their digests."""
    return tuple(sorted((digest for digest in blobs if digest not in needed), key=lambda digest: digest.hex))
