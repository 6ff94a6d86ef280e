"""The changes of the store: planned as values against a catalog, carried out in one order.

Owns what publish, tag, untag, configure and remove mean. Planning is pure and raises before anything has
happened; only `carry_out` touches the disk, and belongs in a thread. Its order is that of S17: content that
must be there, documents, index, settings; what is not needed any more goes last. Cut anywhere, the old or the
new index is complete, and everything it refers to lies on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Set

import attrs

from runner.domain.model import Model
from runner.domain.settings import ModelSettings
from runner.domain.status import Removal
from runner.errors import (
    Conflict,
    ContentMismatch,
    FieldFault,
    InvalidParameter,
    InvalidReference,
    ModelInUse,
    ModelNotFound,
)
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

    `model_id` is what the change is about, `is_new` when the store did not have it. `required` must lie in
    the store, `documents` are written in order, `unneeded` goes in order. `settings` are written for the
    model unless None. `removals` is what a removal reports.
    """

    model_id: Digest
    catalog: Catalog
    is_new: bool = False
    required: tuple[Descriptor, ...] = ()
    documents: tuple[bytes, ...] = ()
    unneeded: tuple[Digest, ...] = ()
    settings: ModelSettings | None = None
    removals: tuple[Removal, ...] = ()

    @property
    def is_removal(self) -> bool:
        return self.model_id not in self.catalog.index.manifests()

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
    return plan_publish_verbatim(catalog, content, config, name)


def plan_publish_verbatim(
    catalog: Catalog,
    content: bytes,
    config: bytes,
    name: Reference | None,
    *,
    origin: Reference | None = None,
) -> Change:
    """A new model with these very bytes as its manifest and config, of layers that lie in the store.

    Without a name it is found by its digest, and `origin` tells where that was pulled; names that it has
    already stay. Raises InvalidManifest for documents that cannot be read, and ContentMismatch when the
    config is not the manifest's.
    """
    manifest = Manifest.parse(content)  # what we write is held to the limits for what we read, too
    if manifest.config.digest != Digest.of(config) or manifest.config.size_bytes != len(config):
        raise ContentMismatch(f"the config is not {manifest.config.digest}, which the manifest names")
    descriptor = Descriptor.of(content, manifest.media_type)
    stored = StoredModel.of(descriptor, manifest, ModelConfig.parse(config))
    if origin is not None and (origin.tag is not None or origin.digest != descriptor.digest):
        raise InvalidReference(str(origin), "an origin has the digest of the manifest and no tag")
    target = None if name is None else _as_target(name)
    index = catalog.index.with_model(descriptor, target, None if name is not None else origin)
    return Change(
        model_id=descriptor.digest,
        catalog=catalog.with_model(index, stored),
        is_new=descriptor.digest not in catalog.index.manifests(),
        required=manifest.layers,
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


def plan_configure(
    catalog: Catalog, name: ModelName, changes: ModelSettings, unset: Collection[str] = ()
) -> Change:
    """Other settings for a model, by its digest, so that all its names share them.

    Raises InvalidParameter for what does not go together or not with the model; paths are the control API's.
    """
    model = catalog.resolve(name).model
    settings = model.settings.changed(changes, unset)
    faults = settings.faults(trained_context_size=model.trained_context_size)
    if faults:
        raise InvalidParameter(*(FieldFault(f"set.{fault.path}", fault.message) for fault in faults))
    return Change(model_id=model.id, catalog=catalog.with_settings(model.id, settings), settings=settings)


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
    return _removal(catalog, model_id, kept)


def plan_prune(
    catalog: Catalog, *, is_pinned: Callable[[Digest], bool], kept: Set[Digest] = frozenset()
) -> tuple[Change, ...]:
    """Every model without a name that nobody uses goes; each change is planned on the one before it."""
    changes: list[Change] = []
    for model_id in catalog.index.manifests():
        if not catalog.index.names_of(model_id) and not is_pinned(model_id):
            changes.append(_removal(changes[-1].catalog if changes else catalog, model_id, kept))
    return tuple(changes)


def _removal(catalog: Catalog, model_id: Digest, kept: Set[Digest]) -> Change:
    """The model goes, with all its names and what only it refers to."""
    tags = catalog.index.names_of(model_id)
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
    if change.is_new:  # a removal that failed half-way may have left the settings of an earlier one
        directory.settings.drop(change.model_id)
    directory.condemn(change.unneeded)
    directory.commit(change.catalog.index, may_use_reserve=bool(change.removals))
    if change.settings is not None:
        directory.settings.write(change.model_id, change.settings)
    if change.is_removal:
        directory.settings.drop(change.model_id)
    directory.drop(change.unneeded)
    if change.removals:
        directory.hold_reserve()


def _as_target(name: Reference) -> Reference:
    if name.tag is None or name.digest is not None:
        raise InvalidReference(str(name), "a new name has a tag and no digest")
    return name
