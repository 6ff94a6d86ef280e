"""The config document of a model artifact: what the model is, in words that lists can show.

Owns Docker's model config (v0.1 and v0.2 share one schema) and that of CNCF ModelPack; both are read into one
value, and written from it. Imports errors, digests and the reading of documents. The document is a summary
for people and tools: what the engine may trust is read from the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Self

import attrs

from runner.errors import InvalidManifest
from runner.oci import media_types
from runner.oci.digest import Digest
from runner.oci.documents import make_converter, read_document, write_document

CONFIG_BYTES_MAX = 1 << 20  # S03
CONTEXT_MAX = 2**31 - 1  # the field is an int32


@attrs.frozen(kw_only=True)
class _Details:
    format: str | None = None
    quantization: str | None = None
    parameters: str | None = None
    parameter_size: str | None = None
    architecture: str | None = None
    size: str | None = None
    gguf: Mapping[str, str] | None = None
    safetensors: Mapping[str, str] | None = None
    diffusers: Mapping[str, str] | None = None
    context_size: int | None = None


@attrs.frozen(kw_only=True)
class _Description:
    created: str | None = None
    created_at: str | None = None
    family: str | None = None


@attrs.frozen(kw_only=True)
class _Files:
    """Docker's `rootfs` and ModelPack's `modelfs`."""

    type: str = "rootfs"
    diff_ids: tuple[Digest, ...] | None = None
    diff_ids_of_pack: tuple[Digest, ...] | None = None


@attrs.frozen(kw_only=True)
class _Document:
    """Members of all formats together; a document of one has none of the others'."""

    config: _Details
    descriptor: _Description | None = None
    rootfs: _Files | None = None
    model_files: _Files | None = None


_CONVERTER = make_converter(
    (_Details, {"parameter_size": "paramSize"}),
    (_Description, {"created_at": "createdAt"}),
    (_Files, {"diff_ids_of_pack": "diffIds"}),
    (_Document, {"model_files": "modelfs"}),
)


@attrs.frozen(kw_only=True)
class ModelConfig:
    """What a config says; texts are empty when it does not.

    `size` is the text of the tensors' bytes (`98.12MiB`), `metadata` the scalars of the GGUF header as text,
    `context_size` what stands there, which says little: see `chosen_context_size`. `created_s` is Unix time,
    0 when unknown. `is_pack`: a ModelPack, which has neither sizes nor metadata. `other_metadata` is that of
    weights that are no GGUF, by format.
    """

    format: str
    quantization: str
    parameters: str
    architecture: str
    size: str
    metadata: Mapping[str, str] = attrs.field(hash=False)
    context_size: int | None
    created_s: int
    diff_ids: tuple[Digest, ...]
    is_pack: bool = False
    other_metadata: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict, hash=False)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The config in these bytes, of whichever format; raises InvalidManifest."""
        document = read_document(content, _Document, _CONVERTER, limit_bytes=CONFIG_BYTES_MAX)
        details, description = document.config, document.descriptor or _Description()
        if details.context_size is not None and not 1 <= details.context_size <= CONTEXT_MAX:
            raise InvalidManifest(f"a context of {details.context_size} tokens is out of range")
        is_pack = details.parameter_size is not None or document.model_files is not None
        files = (document.model_files if is_pack else document.rootfs) or _Files()
        other = {"safetensors": details.safetensors, "diffusers": details.diffusers}
        return cls(
            format=(details.format or "").lower(),
            quantization=details.quantization or "",
            parameters=details.parameter_size or details.parameters or "",
            architecture=details.architecture or "",
            size=details.size or "",
            metadata=details.gguf or {},
            context_size=details.context_size,
            created_s=_parse_time(description.created or description.created_at),
            diff_ids=files.diff_ids_of_pack or files.diff_ids or (),
            is_pack=is_pack,
            other_metadata={name: texts for name, texts in other.items() if texts},
        )

    def encode(self) -> bytes:
        """The bytes of a config built here; equal values give equal bytes."""
        return write_document(self._pack() if self.is_pack else self._docker(), _CONVERTER)

    def as_pack(self) -> Self:
        """The same as a ModelPack, which has no place for sizes, metadata and context."""
        if self.is_pack:
            return self
        return attrs.evolve(self, is_pack=True, size="", metadata={}, context_size=None, other_metadata={})

    @property
    def media_type(self) -> str:
        """Of a config built here: v0.2 is that of directories, which we do not make."""
        return media_types.CNCF_CONFIG if self.is_pack else media_types.DOCKER_CONFIG_V01

    def trained_context_size(self) -> int | None:
        """`<architecture>.context_length` of the header; None when it is absent or no positive number."""
        text = self.metadata.get(f"{self.architecture}.context_length", "")
        is_number = text.isascii() and text.isdecimal() and len(text) < 19
        return int(text) if is_number and int(text) > 0 else None

    def chosen_context_size(self, annotations: Mapping[str, str], *, default: int) -> int | None:
        """The context that whoever packaged the model wants it to have; None when nobody said.

        1. Our annotation on the manifest says so.
        2. A size other than the trained one was chosen: tools write the trained one without being asked.
        3. Without a header to compare with, a size up to `default` is no danger, and a larger one may be the
           trained one.
        """
        chosen = annotations.get(media_types.ANNOTATION_CONTEXT_SIZE, "")
        if chosen.isascii() and chosen.isdecimal() and len(chosen) <= 10 and 1 <= int(chosen) <= CONTEXT_MAX:
            return int(chosen)  # 1
        trained = self.trained_context_size()
        if trained is not None:
            return self.context_size if self.context_size != trained else None  # 2
        return self.context_size if (self.context_size or 0) <= default else None  # 3

    def _docker(self) -> _Document:
        details = _Details(
            format=self.format,
            quantization=self.quantization or None,
            parameters=self.parameters or None,
            architecture=self.architecture or None,
            size=self.size or None,
            gguf=dict(sorted(self.metadata.items())),
            context_size=self.context_size,
        )
        return _Document(
            config=details,
            descriptor=_Description(created=_format_time(self.created_s)),
            rootfs=_Files(diff_ids=self.diff_ids),
        )

    def _pack(self) -> _Document:
        details = _Details(
            format=self.format or None,
            quantization=self.quantization or None,
            parameter_size=self.parameters,
            architecture=self.architecture or None,
        )
        return _Document(
            config=details,
            descriptor=_Description(
                created_at=_format_time(self.created_s), family=self.architecture or None
            ),
            model_files=_Files(type="layers", diff_ids_of_pack=self.diff_ids),
        )


def _format_time(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _parse_time(text: str | None) -> int:
    """Unix seconds; 0 for text that is no time, since a date is nothing to refuse a model for."""
    if text is None:
        return 0
    try:
        moment = datetime.fromisoformat(text)
        return max(0, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()))
    except (ValueError, OverflowError):
        return 0
