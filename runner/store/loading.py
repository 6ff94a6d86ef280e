"""What a worker needs to load a model: paths and figures, checked once more. Belongs in a thread.

Owns the last look at a model's parts before an engine sees them (G02). Imports gguf and the store's
blobs.
"""

from __future__ import annotations

import attrs

from runner.domain.model import ModelFiles
from runner.errors import InvalidModelFile, StoreError
from runner.gguf.metadata import GgufMetadata, read_metadata
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.store.blobs import BlobStore
from runner.store.catalog import StoredModel
from runner.store.disk import FileFacts
from runner.store.package import TEXT_LAYER_BYTES_MAX, check_text_layer
from runner.store.verify import require_good

_REMEMBERED_MAX = 64


@attrs.define
class ModelLoader:
    """Finds the files of models, and remembers headers: reading one takes 60 to 500 ms of CPU.

    What is remembered counts only for the very file it was read from. Any number of threads may use it.
    """

    _blobs: BlobStore
    _cell_bytes: dict[tuple[Digest, FileFacts | None], int] = attrs.field(factory=dict, init=False)

    def files_of(self, stored: StoredModel) -> ModelFiles:
        """Raises InvalidModelFile or StoreDamaged for a part that is missing or must not be loaded."""
        weights = _only_weights(stored)
        require_good(self._blobs, stored.manifest.layers)
        return ModelFiles(
            model=stored.model,
            weights=(self._blobs.path(weights.digest),),
            weights_digests=(weights.digest,),
            weights_bytes=weights.size_bytes,
            kv_bytes_per_cell=self._kv_bytes_per_cell(weights.digest),
            chat_template=stored.model.settings.chat_template or _chat_template(stored, self._blobs),
        )

    def _kv_bytes_per_cell(self, digest: Digest) -> int:
        facts = self._blobs.facts(digest)
        remembered = self._cell_bytes.get((digest, facts))
        if remembered is not None:
            return remembered
        found = read_weights_header(digest, self._blobs).kv_bytes_per_cell()
        if len(self._cell_bytes) >= _REMEMBERED_MAX:
            self._cell_bytes.clear()
        self._cell_bytes[digest, facts] = found
        return found


def read_weights_header(digest: Digest, blobs: BlobStore) -> GgufMetadata:
    """The header of a GGUF in the store; raises InvalidModelFile, StoreDamaged."""
    with blobs.open(digest) as file:
        try:
            return read_metadata(file)
        except OSError as error:
            raise StoreError(f"reading {digest} failed: {error.strerror}") from error


def _only_weights(stored: StoredModel) -> Descriptor:
    found = [layer for layer in stored.manifest.layers if layer.media_type == media_types.GGUF]
    if len(found) != 1:
        raise InvalidModelFile(f"model {stored.model.name} has {len(found)} GGUF files; one can be loaded")
    return found[0]


def _chat_template(stored: StoredModel, blobs: BlobStore) -> str | None:
    """The packaged template, which replaces the one in the weights; None when there is none."""
    for layer in stored.manifest.layers:
        if layer.media_type == media_types.CHAT_TEMPLATE:
            content = blobs.read(layer.digest, limit_bytes=TEXT_LAYER_BYTES_MAX)
            return check_text_layer("chat_template", content)
    return None
