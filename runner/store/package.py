"""What a model may be packaged of, and the checks that parts go through. Pure: values in, errors out.

Owns the specification of a package. Imports oci and gguf. What a specification becomes: `packaging.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import attrs

from runner.errors import FieldFault, InvalidModelFile, InvalidParameter
from runner.gguf.metadata import GgufMetadata
from runner.gguf.split import PARTS_MAX
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.filename import file_name_fault
from runner.oci.model_config import CONTEXT_MAX
from runner.oci.reference import ModelName, Reference

LayerKind = Literal["gguf", "license", "chat_template", "mmproj"]
PackageFormat = Literal["docker", "cncf"]

LICENSES_MAX = 16
TEXT_LAYER_BYTES_MAX = 1 << 20  # a licence or template; the longest licence in use has 35 KB
CONTEXT_SIZE_MAX = CONTEXT_MAX
LABELS_MAX = 64
LABEL_KEY_MAX = 255
LABEL_VALUE_BYTES_MAX = 4096

KINDS_IN_ORDER: tuple[LayerKind, ...] = ("gguf", "license", "chat_template", "mmproj")
"""As manifests list them: weights, licences, template, projector."""
_COUNTS_MAX: Mapping[LayerKind, int] = {
    "gguf": PARTS_MAX,
    "license": LICENSES_MAX,
    "chat_template": 1,
    "mmproj": 1,
}
_OUR_LABELS = frozenset({media_types.ANNOTATION_CONTEXT_SIZE, media_types.ANNOTATION_REFERENCE})


@attrs.frozen(kw_only=True)
class PackageLayer:
    """One uploaded part and the name of the file it came from."""

    kind: LayerKind
    digest: Digest
    filename: str


@attrs.frozen(kw_only=True)
class PackageSpec:
    """What to package under which name.

    Either `layers` hold the weights, all parts of a split file in their order, or `base` names a model of the
    store whose layers are taken over; then a template or projector replaces that of the base, and licences
    are added. `format` None is that of the base, else Docker's. `labels` become annotations of the manifest.
    `context_size` in tokens; `created_s` None means now, or when the base was created. `target` needs a tag
    and no digest, since the digest is what packaging yields.
    """

    target: Reference
    layers: tuple[PackageLayer, ...] = ()
    base: ModelName | None = None
    context_size: int | None = None
    labels: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    format: PackageFormat | None = None
    created_s: int | None = None

    def check(self) -> None:
        """Raise InvalidParameter with every fault; paths are those of the control API."""
        faults = [*self._target_faults(), *self._layer_faults(), *self._label_faults()]
        if self.context_size is not None and not 1 <= self.context_size <= CONTEXT_SIZE_MAX:
            faults.append(FieldFault("context_size", f"must be from 1 to {CONTEXT_SIZE_MAX}"))
        if self.context_size is not None and self.format == "cncf":
            faults.append(no_context_in_packs())
        if faults:
            raise InvalidParameter(*faults)

    def in_order(self) -> tuple[PackageLayer, ...]:
        """The layers as a manifest lists them; parts of one kind stay in the order they were given in."""
        return tuple(layer for kind in KINDS_IN_ORDER for layer in self.layers if layer.kind == kind)

    def _target_faults(self) -> list[FieldFault]:
        if self.target.tag is None or self.target.digest is not None:
            return [FieldFault("target", "must be a name with a tag and without a digest")]
        return []

    def _layer_faults(self) -> list[FieldFault]:
        faults = []
        counts: Counter[LayerKind] = Counter()
        for layer_index, layer in enumerate(self.layers):
            path = f"layers[{layer_index}]"
            if layer.kind not in KINDS_IN_ORDER:
                faults.append(FieldFault(f"{path}.kind", f"must be one of {', '.join(KINDS_IN_ORDER)}"))
                continue
            counts[layer.kind] += 1
            name_fault = file_name_fault(layer.filename)
            if name_fault is not None:
                faults.append(FieldFault(f"{path}.filename", name_fault))
        if self.base is None and not counts["gguf"]:
            faults.append(FieldFault("layers", "need a gguf layer, unless there is a base"))
        if self.base is not None and counts["gguf"]:
            faults.append(
                FieldFault("layers", "may hold no gguf layer beside a base, whose weights are taken")
            )
        for kind, count in counts.items():
            if count > _COUNTS_MAX[kind]:
                faults.append(FieldFault("layers", f"may hold {_COUNTS_MAX[kind]} {kind} layers"))
        names = Counter(layer.filename for layer in self.layers)
        faults += [
            FieldFault("layers", f"hold {name!r:.80} more than once; files of a model need different names")
            for name, count in names.items()
            if count > 1
        ]
        return faults

    def _label_faults(self) -> list[FieldFault]:
        faults = []
        if len(self.labels) > LABELS_MAX:
            faults.append(FieldFault("labels", f"may be {LABELS_MAX}"))
        for key, value in self.labels.items():
            if not (0 < len(key) <= LABEL_KEY_MAX and key.isascii() and key.isprintable() and " " not in key):
                faults.append(
                    FieldFault("labels", f"{key!r:.80} is no key: 1 to {LABEL_KEY_MAX} printable characters")
                )
            elif key in _OUR_LABELS:
                faults.append(FieldFault("labels", f"{key} is written by us alone"))
            elif len(value.encode()) > LABEL_VALUE_BYTES_MAX or not value.isprintable():
                faults.append(
                    FieldFault("labels", f"{key} needs up to {LABEL_VALUE_BYTES_MAX} bytes of printable text")
                )
        return faults


def no_context_in_packs() -> FieldFault:
    return FieldFault("context_size", "has no place in a ModelPack; take the docker format")


def check_weights(metadata: GgufMetadata) -> None:
    """Raise InvalidModelFile unless this is a language model."""
    if not metadata.is_language_model:
        raise InvalidModelFile(f"the file holds no language model ({metadata.architecture}, {metadata.kind})")


def check_projector(metadata: GgufMetadata) -> None:
    """Raise InvalidModelFile unless this turns images or sound into what a language model takes."""
    if metadata.is_language_model or metadata.architecture != "clip":
        raise InvalidModelFile(f"the file holds no projector ({metadata.architecture}, {metadata.kind})")


def check_text_layer(kind: LayerKind, content: bytes) -> str:
    """The text of a licence or template; raises InvalidModelFile unless it is UTF-8 within the limit."""
    if len(content) > TEXT_LAYER_BYTES_MAX:
        raise InvalidModelFile(f"a {kind} layer is larger than {TEXT_LAYER_BYTES_MAX} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise InvalidModelFile(f"a {kind} layer is not UTF-8 text") from None
