"""What the store knows in memory: index, manifests, and which models are damaged. Pure values.

Owns how a name finds a model. Imports domain, oci and the index. A new catalog is made for every change.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Self

import attrs

from runner.domain.model import Model
from runner.domain.settings import NOTHING, ModelSettings
from runner.errors import AmbiguousModel, ModelNotFound, StoreDamaged
from runner.memory.fit import DEFAULT_CONTEXT_SIZE
from runner.oci.digest import Digest
from runner.oci.layers import ArtifactLayers
from runner.oci.manifest import Descriptor, Manifest
from runner.oci.model_config import ModelConfig
from runner.oci.reference import ModelName, Reference
from runner.store.index import StoreIndex

_NO_SETTINGS: Final[Mapping[Digest, ModelSettings]] = MappingProxyType({})


@attrs.frozen(kw_only=True)
class StoredModel:
    """A model with its manifest. `descriptor` is that of the manifest."""

    descriptor: Descriptor
    manifest: Manifest
    model: Model

    @classmethod
    def of(cls, descriptor: Descriptor, manifest: Manifest, config: ModelConfig) -> Self:
        """What manifest and config say; names and settings come later, from index and settings."""
        layers = ArtifactLayers.of(manifest, model_format=config.format)
        model = Model(
            id=descriptor.digest,
            tags=(),
            created_s=config.created_s,
            size_bytes=sum(part.size_bytes for part in manifest.descriptors()),
            format=config.format or layers.format,
            architecture=config.architecture,
            quantization=config.quantization,
            parameters=config.parameters,
            context_size=config.chosen_context_size(manifest.annotations, default=DEFAULT_CONTEXT_SIZE),
            trained_context_size=config.trained_context_size(),
            has_chat_template=layers.chat_template is not None,
        )
        return cls(descriptor=descriptor, manifest=manifest, model=model)

    def layers(self) -> ArtifactLayers:
        """The layers by what they are for."""
        return ArtifactLayers.of(self.manifest, model_format=self.model.format)


@attrs.frozen(kw_only=True)
class Fault:
    """Why a model of the index cannot be used. `manifest` None: what it refers to is unknown."""

    reason: str
    manifest: Manifest | None


@attrs.frozen(kw_only=True)
class Catalog:
    """`stored` and `faults` together hold every model of the index; `settings` are of some of these."""

    index: StoreIndex
    stored: Mapping[Digest, StoredModel]
    faults: Mapping[Digest, Fault]
    settings: Mapping[Digest, ModelSettings] = _NO_SETTINGS

    @classmethod
    def of(
        cls,
        index: StoreIndex,
        stored: Mapping[Digest, StoredModel],
        faults: Mapping[Digest, Fault],
        settings: Mapping[Digest, ModelSettings] = _NO_SETTINGS,
    ) -> Self:
        """The catalog of this index; what the index does not hold is left out."""
        model_ids = index.manifests().keys()
        tags: dict[Digest, list[Reference]] = {model_id: [] for model_id in model_ids}
        for entry in index.entries:
            if entry.name is not None:
                tags[entry.model_id].append(entry.name)
        return cls(
            index=index,
            stored={
                model_id: attrs.evolve(
                    found,
                    model=attrs.evolve(
                        found.model, tags=tuple(tags[model_id]), settings=settings.get(model_id, NOTHING)
                    ),
                )
                for model_id, found in stored.items()
                if model_id in model_ids
            },
            faults={model_id: fault for model_id, fault in faults.items() if model_id in model_ids},
            settings={model_id: found for model_id, found in settings.items() if model_id in model_ids},
        )

    def with_index(self, index: StoreIndex) -> Self:
        return self.of(index, self.stored, self.faults, self.settings)

    def with_settings(self, model_id: Digest, settings: ModelSettings) -> Self:
        return self.of(self.index, self.stored, self.faults, {**self.settings, model_id: settings})

    def with_model(self, index: StoreIndex, added: StoredModel) -> Self:
        """With a model that was just written, so that an earlier fault of it is healed."""
        model_id = added.model.id
        faults = {faulty_id: fault for faulty_id, fault in self.faults.items() if faulty_id != model_id}
        return self.of(index, {**self.stored, model_id: added}, faults, self.settings)

    def models(self) -> tuple[Model, ...]:
        """All usable models, by name, untagged ones last."""
        found = (stored.model for stored in self.stored.values())
        return tuple(sorted(found, key=lambda model: (not model.tags, model.name, model.id.hex)))

    def find(self, name: ModelName) -> Digest:
        """The model that is meant, usable or not.

        1. A bare digest: that model.
        2. A name: the model that has it; with a digest besides, both must agree.
        3. A name without tag: the model with its digest, whatever its names are.
        4. At least 7 hex digits: the one model whose id begins so, unless 2 found one.

        Raises ModelNotFound, AmbiguousModel.
        """
        found = self._exact(name)
        if found is not None:
            return found
        candidates = self._beginning_with(name.short_id) if name.short_id else []
        if not candidates:
            raise ModelNotFound(name.text)
        if len(candidates) > 1:
            raise AmbiguousModel(name.text, tuple(str(candidate) for candidate in candidates))
        return candidates[0]

    def is_found_by_name(self, name: ModelName) -> bool:
        """The name, and not an id, leads to the model (case 2 of `find`)."""
        return name.reference is not None and name.reference.tag is not None and self._exact(name) is not None

    def resolve(self, name: ModelName) -> StoredModel:
        """The usable model that is meant; raises like `find`, and StoreDamaged."""
        return self.usable(self.find(name))

    def usable(self, model_id: Digest) -> StoredModel:
        """The model with this id; raises ModelNotFound, StoreDamaged."""
        if model_id in self.faults:
            raise StoreDamaged(
                f"model {model_id.short()} cannot be used: {self.faults[model_id].reason}; "
                f"remove it, then package or pull it again"
            )
        if model_id not in self.stored:
            raise ModelNotFound(str(model_id))
        return self.stored[model_id]

    def manifest_of(self, model_id: Digest) -> Manifest | None:
        """None when it cannot be read."""
        if model_id in self.stored:
            return self.stored[model_id].manifest
        return self.faults[model_id].manifest

    def _exact(self, name: ModelName) -> Digest | None:
        reference = name.reference
        if reference is None:
            return name.digest if name.digest in self.index.manifests() else None
        if reference.tag is None:
            return reference.digest if reference.digest in self.index.manifests() else None
        found = self.index.model_of(reference.without_digest())
        return None if reference.digest not in (None, found) else found

    def _beginning_with(self, hex_digits: str) -> list[Digest]:
        return [model_id for model_id in self.index.manifests() if model_id.hex.startswith(hex_digits)]
