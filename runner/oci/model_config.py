"""The config document of a model artifact: what the model is, in words that lists can show.

Owns Docker's model config (v0.1 and v0.2 share one schema). Imports errors, digests and the reading of
documents. The document is a summary for people and tools: what the engine may trust is read from the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Self

import attrs

from runner.errors import InvalidManifest
from runner.oci.digest import Digest
from runner.oci.documents import make_converter, read_document, write_document

CONFIG_BYTES_MAX = 1 << 20  # S03
_CONTEXT_MAX = 2**31 - 1  # the field is an int32


@attrs.frozen(kw_only=True)
class _Details:
    format: str = ""
    quantization: str = ""
    parameters: str = ""
    architecture: str = ""
    size: str = ""
    gguf: Mapping[str, str] = attrs.field(factory=dict)
    context_size: int | None = None


@attrs.frozen(kw_only=True)
class _Created:
    created: str | None = None


@attrs.frozen(kw_only=True)
class _RootFilesystem:
    type: str = "rootfs"
    diff_ids: tuple[Digest, ...] = ()


@attrs.frozen(kw_only=True)
class _Document:
    config: _Details
    descriptor: _Created = _Created()
    rootfs: _RootFilesystem = _RootFilesystem()


_CONVERTER = make_converter((_Details, {}), (_Created, {}), (_RootFilesystem, {}), (_Document, {}))


@attrs.frozen(kw_only=True)
class ModelConfig:
    """What a config says; texts are empty when it does not.

    `size` is the text of the tensors' bytes (`98.12MiB`), `metadata` the scalars of the GGUF header as text,
    `context_size` the wish of whoever packaged it. `created_s` is Unix time, 0 when unknown.
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

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The config in these bytes; raises InvalidManifest."""
        document = read_document(content, _Document, _CONVERTER, limit_bytes=CONFIG_BYTES_MAX)
        details = document.config
        if details.context_size is not None and not 1 <= details.context_size <= _CONTEXT_MAX:
            raise InvalidManifest(f"a context of {details.context_size} tokens is out of range")
        return cls(
            format=details.format,
            quantization=details.quantization,
            parameters=details.parameters,
            architecture=details.architecture,
            size=details.size,
            metadata=details.gguf,
            context_size=details.context_size,
            created_s=_parse_time(document.descriptor.created),
            diff_ids=document.rootfs.diff_ids,
        )

    def encode(self) -> bytes:
        """The bytes of a config built here; equal values give equal bytes."""
        details = _Details(
            format=self.format,
            quantization=self.quantization,
            parameters=self.parameters,
            architecture=self.architecture,
            size=self.size,
            gguf=dict(sorted(self.metadata.items())),
            context_size=self.context_size,
        )
        document = _Document(
            config=details,
            descriptor=_Created(created=_format_time(self.created_s)),
            rootfs=_RootFilesystem(diff_ids=self.diff_ids),
        )
        return write_document(document, _CONVERTER)

    def trained_context_size(self) -> int | None:
        """`<architecture>.context_length` of the header; None when it is absent or no positive number."""
        text = self.metadata.get(f"{self.architecture}.context_length", "")
        is_number = text.isascii() and text.isdecimal() and len(text) < 19
        return int(text) if is_number and int(text) > 0 else None


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
