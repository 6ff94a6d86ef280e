"""What a worker needs to load a model: paths and figures, checked once more. Belongs in a thread.

Owns the last look at a model's parts before an engine sees them (G02, G04). Imports gguf and the store's
blobs. Which layers are the model, in which order, is said by the manifest (`runner/oci/layers.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, TypeVar

import attrs

from runner.domain.model import Model, ModelFiles
from runner.errors import InvalidModelFile, StoreError, UnsupportedModel
from runner.gguf.metadata import GgufMetadata, read_metadata
from runner.gguf.split import read_parts
from runner.oci.digest import Digest
from runner.oci.layers import ArtifactLayers
from runner.oci.manifest import Descriptor
from runner.store.blobs import BlobStore
from runner.store.catalog import StoredModel
from runner.store.disk import FileFacts
from runner.store.package import TEXT_LAYER_BYTES_MAX, check_projector, check_text_layer, check_weights
from runner.store.verify import require_good

T = TypeVar("T")

_REMEMBERED_MAX = 64


@attrs.frozen
class _Figures:
    """What loads need of a header."""

    kv_bytes_per_cell: int
    trained_context_size: int | None


_Source = tuple[tuple[Digest, FileFacts | None], ...]
"""The very files that something was read from."""


@attrs.define
class ModelLoader:
    """Finds the files of models, and remembers headers: reading one takes 60 to 500 ms of CPU.

    What is remembered counts only for the very files it was read from. Any number of threads may use it.
    """

    _blobs: BlobStore
    _figures: dict[_Source, _Figures] = attrs.field(factory=dict, init=False)
    _projectors: dict[_Source, None] = attrs.field(factory=dict, init=False)

    def files_of(self, stored: StoredModel) -> ModelFiles:
        """Raises InvalidModelFile or StoreDamaged for a part that is missing or must not be loaded, and
        UnsupportedModel for weights that the engine does not read."""
        layers = _loadable(stored)
        require_good(self._blobs, stored.manifest.layers)
        digests = tuple(layer.digest for layer in layers.weights)
        figures = self._remembered(self._figures, digests, lambda: self._read_figures(digests))
        return ModelFiles(
            model=_with_trained_context(stored.model, figures.trained_context_size),
            weights=tuple(self._blobs.path(digest) for digest in digests),
            weights_digests=digests,
            weights_bytes=sum(layer.size_bytes for layer in layers.weights),
            kv_bytes_per_cell=figures.kv_bytes_per_cell,
            chat_template=stored.model.settings.chat_template or self._chat_template(layers.chat_template),
            projector=self._blobs.path(self._checked_projector(layers.projector.digest))
            if layers.projector is not None
            else None,
        )

    def _read_figures(self, digests: tuple[Digest, ...]) -> _Figures:
        metadata = read_weights_header(digests, self._blobs)
        check_weights(metadata)
        return _Figures(metadata.kv_bytes_per_cell(), metadata.context_length)

    def _checked_projector(self, digest: Digest) -> Digest:
        self._remembered(self._projectors, (digest,), lambda: self._check_projector(digest))
        return digest

    def _check_projector(self, digest: Digest) -> None:
        with self._blobs.open(digest) as file:
            check_projector(_translated(digest, lambda: read_metadata(file)))

    def _chat_template(self, layer: Descriptor | None) -> str | None:
        """The packaged template, which replaces the one in the weights; None when there is none."""
        if layer is None:
            return None
        content = self._blobs.read(layer.digest, limit_bytes=TEXT_LAYER_BYTES_MAX)
        return check_text_layer("chat_template", content)

    def _remembered(self, known: dict[_Source, T], digests: tuple[Digest, ...], read: Callable[[], T]) -> T:
        source = tuple((digest, self._blobs.facts(digest)) for digest in digests)
        if source in known:
            return known[source]
        found = read()
        if len(known) >= _REMEMBERED_MAX:
            known.clear()
        known[source] = found
        return found


def read_weights_header(digests: Sequence[Digest], blobs: BlobStore) -> GgufMetadata:
    """The header of a GGUF in the store, or of all its parts; raises InvalidModelFile, StoreDamaged."""

    def opened() -> Iterator[tuple[BinaryIO, int]]:
        for digest in digests:
            with blobs.open(digest) as file:
                yield file, file.seek(0, 2)

    return _translated(digests[0], lambda: read_parts(opened(), len(digests)))


def _translated(digest: Digest, read: Callable[[], T]) -> T:
    try:
        return read()
    except OSError as error:
        raise StoreError(f"reading {digest} failed: {error.strerror}") from error


def _loadable(stored: StoredModel) -> ArtifactLayers:
    """The layers of a model that the engine reads."""
    layers = stored.layers()
    name = stored.model.name
    if layers.weights and layers.format != "gguf":
        raise UnsupportedModel(
            f"model {name} has its weights as {layers.format}; they can be kept and pushed, but only GGUF "
            f"can be loaded: take a GGUF variant of the model"
        )
    if not layers.weights and layers.has_packed:
        raise UnsupportedModel(
            f"model {name} has its files in an archive; it can be kept and pushed, but not loaded"
        )
    if not layers.weights:
        raise InvalidModelFile(f"model {name} has no weights")
    return layers


def _with_trained_context(model: Model, trained_context_size: int | None) -> Model:
    """The header's own word, which a config may lack or have wrong."""
    if trained_context_size in (None, model.trained_context_size):
        return model
    return attrs.evolve(model, trained_context_size=trained_context_size)
