"""The changes of the store: planned as values against a catalog, carried out in one order.

Owns what publish, tag, untag and remove mean. Planning is pure and raises before anything has happened; only
`carry_out` touches the disk, and belongs in a thread. Its order is that of S17: content that must be there,
documents, index; what is not needed any more goes last. Cut anywhere, the old or the new index is complete,
and everything it refers to lies on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Set

import attrs

from runner.domain.model import Model
from runner.domain.status import Removal
from runner.errors import Conflict, InvalidReference, ModelInUse, ModelNotFound
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.model_config import ModelConfig
from runner.oci.reference import ModelName, Reference
from runner.store.catalog import Catalog, StoredModel
from runner.store.directory import StoreDirectory
from runner.store.gc import removable_with


@attrs.frozen(kw_only=True)
class Change:
    """What to do and what the store shows afterwards.

    `model_id` is what the change is about. `required` must lie in the store, `documents` are written in
    order, `unneeded` goes in order. `removals` is what a removal reports.
    """

    model_id: Digest
    catalog: Catalog
    required: tuple[Descriptor, ...] = ()
    documents: tuple[bytes, ...] = ()
    unneeded: tuple[Digest, ...] = ()
    removals: tuple[Removal, ...] = ()

    def model(self) -> Model:
        """The model as it is afterwards; not for one that goes."""
        return self.catalog.usable(self.model_id).model


def plan_publish(
    catalog: Catalog,
    config: bytes,
    layers: tuple[Descriptor, ...],
    name: Reference | None,
    *,
    config_media_type: str = media_types.DOCKER_CONFIG_V01,
) -> Change:
    """A new model of layers that lie in the store. Raises InvalidManifest for documents nobody could read."""
    content = Manifest.binding(config, layers, config_media_type).encode()
    manifest = Manifest.parse(content)  # what we write is held to the limits for what we read
    descriptor = Descriptor.of(content, manifest.media_type)
    stored = StoredModel.of(descriptor, manifest, ModelConfig.parse(config))
    index = catalog.index.with_model(descriptor, _as_target(name) if name is not None else None)
    return Change(
        model_id=descriptor.digest,
        catalog=catalog.with_model(index, stored),
        required=layers,
        documents=(config, content),
    )


def plan_tag(catalog: Catalog, source: ModelName, target: Reference) -> Change:
    """Another name for a model; the name moves when another model has it."""
    stored = catalog.resolve(source)
    index = catalog.index.with_model(stored.descriptor, _as_target(target))
    return Change(model_id=stored.model.id, catalog=catalog.with_index(index))


def plan_untag(catalog: Catalog, target: Reference) -> Change:
    """One name less; the model stays."""
    name = ModelName.of(target)
    if not catalog.is_found_by_name(name):
        raise ModelNotFound(name.text)
    model_id = catalog.resolve(name).model.id
    index = catalog.index.without_name(target.without_digest())
    return Change(model_id=model_id, catalog=catalog.with_index(index))


def plan_remove(
    catalog: Catalog,
    name: ModelName,
    *,
    force: bool,
    is_pinned: Callable[[Digest], bool],
    kept: Set[Digest] = frozenset(),
) -> Change:
    """A name or a model less; the cases are those of `StoreHandle.remove`. `kept` blobs stay in any case."""
    model_id = catalog.find(name)
    tags = catalog.index.names_of(model_id)
    is_by_name = catalog.is_found_by_name(name)
    if is_by_name and len(tags) > 1:
        assert name.reference is not None
        gone = name.reference.without_digest()
        return Change(
            model_id=model_id,
            catalog=catalog.with_index(catalog.index.without_name(gone)),
            removals=(Removal(untagged=str(gone)),),
        )
    if not is_by_name and len(tags) > 1 and not force:
        names = ", ".join(tag.familiar() for tag in tags)
        raise Conflict(f"{model_id.short()} has several names ({names}); remove them one by one, or force it")
    if is_pinned(model_id):
        raise ModelInUse(name.text)
    after = catalog.with_index(catalog.index.without_model(model_id))
    return Change(
        model_id=model_id,
        catalog=after,
        unneeded=removable_with(model_id, catalog, after, kept),
        removals=(*(Removal(untagged=str(tag)) for tag in tags), Removal(deleted=str(model_id))),
    )


def carry_out(change: Change, directory: StoreDirectory) -> None:
    """Do it. After an error the caller reads the index again: the disk may show the old or the new one."""
    directory.require(change.required)
    for document in change.documents:
        directory.blobs.put(document)
    directory.commit(change.catalog.index)
    directory.drop(change.unneeded)


def _as_target(name: Reference) -> Reference:
    if name.tag is None or name.digest is not None:
        raise InvalidReference(str(name), "a new name has a tag and no digest")
    return name
