"""Which name means which manifest: `index.json` as a value, and what each command makes of it. Pure.

Owns the rules of names: every name is unique, and a model without a name has exactly one entry without one.
Imports oci. Equal contents give equal bytes, since entries are sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Self

import attrs
import orjson

from runner.errors import InvalidManifest, InvalidReference
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor, ImageIndex
from runner.oci.reference import Reference


@attrs.frozen
class IndexEntry:
    """One descriptor of the index; `manifest` carries no annotations here.

    `origin` is the digest reference that a model without a name was pulled by.
    """

    manifest: Descriptor
    name: Reference | None
    origin: Reference | None = None

    @property
    def model_id(self) -> Digest:
        return self.manifest.digest

    @classmethod
    def of(cls, descriptor: Descriptor) -> Self:
        """The entry in a descriptor of `index.json`; raises InvalidManifest."""
        if descriptor.media_type != media_types.IMAGE_MANIFEST:
            raise InvalidManifest("the index holds something that is no image manifest")
        name = descriptor.annotations.get(media_types.ANNOTATION_REFERENCE)
        origin = descriptor.annotations.get(media_types.ANNOTATION_ORIGIN)
        return cls(
            attrs.evolve(descriptor, annotations={}),
            None if name is None else _name(name),
            None if name is not None or origin is None else _origin(origin, descriptor.digest),
        )

    def descriptor(self) -> Descriptor:
        if self.name is not None:
            return attrs.evolve(self.manifest, annotations={media_types.ANNOTATION_REFERENCE: str(self.name)})
        if self.origin is not None:
            return attrs.evolve(self.manifest, annotations={media_types.ANNOTATION_ORIGIN: str(self.origin)})
        return self.manifest


@attrs.frozen
class StoreIndex:
    """All entries, sorted by name; build one with `of`."""

    entries: tuple[IndexEntry, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[IndexEntry]) -> Self:
        """An index of these entries: a name goes to its first entry, a nameless model has one entry."""
        named: dict[Reference, IndexEntry] = {}
        models: dict[Digest, Descriptor] = {}
        origins: dict[Digest, Reference] = {}
        for entry in entries:
            models.setdefault(entry.model_id, entry.manifest)
            if entry.origin is not None:
                origins.setdefault(entry.model_id, entry.origin)
            if entry.name is not None:
                named.setdefault(entry.name, entry)
        with_name = {entry.model_id for entry in named.values()}
        unnamed = [
            IndexEntry(models[model_id], None, origins.get(model_id))
            for model_id in models
            if model_id not in with_name
        ]
        in_order = sorted(named.values(), key=lambda entry: str(entry.name))
        return cls((*in_order, *sorted(unnamed, key=lambda entry: entry.model_id.hex)))

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The index in `index.json`; raises InvalidManifest, also for a name that occurs twice."""
        entries = [IndexEntry.of(descriptor) for descriptor in ImageIndex.parse(content).manifests]
        names = [entry.name for entry in entries if entry.name is not None]
        if len(names) != len(set(names)):
            raise InvalidManifest("the index holds a name twice")
        return cls.of(entries)

    def encode(self) -> bytes:
        return ImageIndex(manifests=tuple(entry.descriptor() for entry in self.entries)).encode()

    # looking

    def model_of(self, name: Reference) -> Digest | None:
        """The model with this name, which carries no digest."""
        return next((entry.model_id for entry in self.entries if entry.name == name), None)

    def names_of(self, model_id: Digest) -> tuple[Reference, ...]:
        return tuple(
            entry.name for entry in self.entries if entry.model_id == model_id and entry.name is not None
        )

    def origin_of(self, model_id: Digest) -> Reference | None:
        """The digest reference that a model without a name was pulled by."""
        origins = (entry.origin for entry in self.entries if entry.model_id == model_id)
        return next((origin for origin in origins if origin is not None), None)

    def manifests(self) -> dict[Digest, Descriptor]:
        """Every model once."""
        return {entry.model_id: entry.manifest for entry in self.entries}

    # changing

    def with_model(
        self, manifest: Descriptor, name: Reference | None, origin: Reference | None = None
    ) -> Self:
        """With this model under this name, which moves here if another model has it."""
        return self.of((IndexEntry(manifest, name, origin), *self.entries))

    def without_name(self, name: Reference) -> Self:
        """Without this name; its model stays."""
        return self.of(
            attrs.evolve(entry, name=None) if entry.name == name else entry for entry in self.entries
        )

    def without_model(self, model_id: Digest) -> Self:
        """Without this model and all its names."""
        return self.of(entry for entry in self.entries if entry.model_id != model_id)

    def only(self, is_wanted: Callable[[Digest], bool]) -> Self:
        """With those models alone that are wanted."""
        return self.of(entry for entry in self.entries if is_wanted(entry.model_id))

    def __add__(self, other: StoreIndex) -> StoreIndex:
        """Both; where a name is in both, the left one counts."""
        return StoreIndex.of((*self.entries, *other.entries))


def salvage(content: bytes) -> StoreIndex:
    """What can still be read of a damaged `index.json`; never raises."""
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        return StoreIndex()
    manifests = document.get("manifests") if isinstance(document, dict) else None
    found: list[IndexEntry] = []
    for member in manifests if isinstance(manifests, list) else []:
        try:
            found.extend(StoreIndex.parse(orjson.dumps({"schemaVersion": 2, "manifests": [member]})).entries)
        except InvalidManifest:
            continue
    return StoreIndex.of(found)


def _origin(text: str, model_id: Digest) -> Reference | None:
    """Nothing depends on it, so one that is wrong is none."""
    try:
        origin = Reference.parse(text)
    except InvalidReference:
        return None
    return origin if origin.tag is None and origin.digest == model_id else None


def _name(text: str) -> Reference:
    try:
        name = Reference.parse(text)
    except InvalidReference as error:
        raise InvalidManifest(f"the index holds a wrong name: {error}") from None
    if str(name) != text or name.tag is None or name.digest is not None:
        raise InvalidManifest(f"the index holds a name that is not in full form: {text!r:.80}")
    return name
