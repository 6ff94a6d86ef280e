"""A model as one file: what such an archive holds, for writing and for reading. No I/O of its own.

One archive serves two readers. Tools for OCI images find an image layout (`oci-layout`, `index.json`,
`blobs/sha256/…`); Docker Model Runner reads blobs up to `manifest.json`, which is the manifest itself, and
stops there. Read are both forms, alone or together. Imports the tar format, oci and blob writers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import attrs
import orjson

from runner.errors import InvalidArchive, InvalidManifest, InvalidReference, UnsupportedModel
from runner.oci import media_types
from runner.oci.digest import ALGORITHM, Digest
from runner.oci.manifest import MANIFEST_BYTES_MAX, Descriptor, ImageIndex, Manifest
from runner.oci.model_config import CONFIG_BYTES_MAX, ModelConfig
from runner.oci.reference import Reference
from runner.store.blobs import BlobWriter
from runner.store.tar import (
    END,
    MEMBERS_MAX,
    Content,
    Member,
    MemberEnd,
    TarReader,
    header_of,
    padding_of,
)

MANIFEST_NAME: Final = "manifest.json"
INDEX_NAME: Final = "index.json"
LAYOUT_NAME: Final = "oci-layout"
MODELS_MAX: Final = 64
_DOCUMENT_LIMITS: Final = {MANIFEST_NAME: MANIFEST_BYTES_MAX, INDEX_NAME: 1 << 20, LAYOUT_NAME: 4096}
_BLOBS: Final = f"blobs/{ALGORITHM}"
_LAYOUT: Final = orjson.dumps({"imageLayoutVersion": "1.0.0"})
_FURTHER_MEMBERS: Final = 6  # directories, config, manifest twice, index, layout
_TAG_ONLY: Final = frozenset("/:")


# writing


@attrs.frozen(kw_only=True)
class Piece:
    """A part of an archive: bytes of ours, or the content of a blob."""

    content: bytes = b""
    blob: Digest | None = None
    size_bytes: int


@attrs.frozen(kw_only=True)
class ArchivePlan:
    """What an archive consists of, in order. Equal models under equal names give equal archives."""

    pieces: tuple[Piece, ...]

    @property
    def size_bytes(self) -> int:
        return sum(piece.size_bytes for piece in self.pieces)

    @classmethod
    def of(cls, manifest_bytes: bytes, manifest: Manifest, name: Reference | None) -> ArchivePlan:
        """An archive of one model. Raises InvalidArchive for one with more layers than any reader takes.

        1. Directories, layers and config, then `manifest.json`, where Docker Model Runner stops reading.
        2. The manifest among the blobs, the index with the model's name, the mark of the layout.
        """
        if len(manifest.layers) + _FURTHER_MEMBERS > MEMBERS_MAX:
            raise InvalidArchive(f"a model of {len(manifest.layers)} layers is too large for an archive")
        directories = ("blobs", _BLOBS)
        parts = {part.digest: part.size_bytes for part in manifest.descriptors()}
        digest = Digest.of(manifest_bytes)
        index = ImageIndex(manifests=(_entry(manifest_bytes, name),)).encode()
        pieces = [_own(header_of(f"{path}/", 0, is_directory=True)) for path in directories]
        for part, size_bytes in parts.items():  # 1
            pieces.append(_own(header_of(f"{_BLOBS}/{part.hex}", size_bytes)))
            pieces.append(Piece(blob=part, size_bytes=size_bytes))
            pieces.append(_own(padding_of(size_bytes)))
        documents = [(MANIFEST_NAME, manifest_bytes)]
        if digest not in parts:  # 2
            documents.append((f"{_BLOBS}/{digest.hex}", manifest_bytes))
        documents += [(INDEX_NAME, index), (LAYOUT_NAME, _LAYOUT)]
        pieces += [_own(_document(path, content)) for path, content in documents]
        return cls(pieces=(*pieces, _own(END)))


def _own(content: bytes) -> Piece:
    return Piece(content=content, size_bytes=len(content))


def _document(path: str, content: bytes) -> bytes:
    return header_of(path, len(content)) + content + padding_of(len(content))


def _entry(manifest_bytes: bytes, name: Reference | None) -> Descriptor:
    annotations = {} if name is None else {media_types.ANNOTATION_REFERENCE: str(name)}
    return attrs.evolve(Descriptor.of(manifest_bytes, media_types.IMAGE_MANIFEST), annotations=annotations)


# reading


@attrs.frozen(kw_only=True)
class ArchivedModel:
    """A model of an archive: its documents as they were in it, and the name that it had there."""

    manifest_bytes: bytes
    manifest: Manifest
    config_bytes: bytes
    name: Reference | None


@attrs.define
class ArchiveIntake:
    """Takes an archive in as it arrives: documents into memory, blobs into files that nobody sees yet.

    `begin` makes a writer for content of this length and digest. Used by one thread at a time. `feed` pieces,
    then `finish`; whatever happens, `abandon` what the store has not adopted of `writers`. Holds one piece of
    content at a time and documents of some megabytes, however large the archive.
    """

    begin: Callable[[int, Digest], BlobWriter]
    limit_bytes: int
    writers: dict[Digest, BlobWriter] = attrs.field(factory=dict, init=False)
    _documents: dict[str, bytearray] = attrs.field(factory=dict, init=False)
    _reader: TarReader = attrs.field(init=False)
    _sink: Callable[[memoryview], object] | None = attrs.field(default=None, init=False)
    _writer: BlobWriter | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._reader = TarReader(self.limit_bytes)

    def feed(self, data: bytes | bytearray) -> None:
        """The next bytes of the archive. Raises InvalidArchive, ContentMismatch for a blob that is not what
        its name says, DiskFull."""
        for event in self._reader.feed(data):
            match event:
                case Member():
                    if not event.is_directory:
                        self._begin(event)
                case Content():
                    if self._sink is not None:
                        self._sink(event.data)
                case MemberEnd():
                    self._end()

    def finish(self, read: Callable[[BlobWriter], bytes]) -> tuple[ArchivedModel, ...]:
        """The models of an archive that has ended. `read` gives the content of a small finished blob.

        Raises InvalidArchive for an archive that was cut off, holds no model or lacks a part of one, and
        UnsupportedModel for one of images or other artifacts.
        """
        self._reader.end()
        try:
            entries = tuple(self._entries())
            models = tuple(self._model(entry, read) for entry in entries)
        except (InvalidManifest, InvalidReference) as error:
            raise InvalidArchive(f"the archive holds no model: {error}") from None
        if not models:
            raise InvalidArchive("the archive holds no model: it has neither index.json nor manifest.json")
        return models

    def abandon(self) -> None:
        """Leave nothing of what was not adopted; doing so again changes nothing."""
        for writer in self.writers.values():
            writer.abandon()

    # members

    def _begin(self, member: Member) -> None:
        limit_bytes = _DOCUMENT_LIMITS.get(member.name)
        if limit_bytes is not None:
            self._begin_document(member, limit_bytes)
            return
        digest = _digest_of_name(member.name)
        if digest is None or digest in self.writers:
            self._sink = None  # nobody asks for it, or it is there already
            return
        writer = self.begin(member.size_bytes, digest)
        self.writers[digest] = writer
        writer.open()
        self._writer, self._sink = writer, lambda data: writer.write(bytes(data))

    def _begin_document(self, member: Member, limit_bytes: int) -> None:
        if member.name in self._documents:
            raise InvalidArchive(f"the archive has {member.name} twice")
        if member.size_bytes > limit_bytes:
            raise InvalidArchive(f"{member.name} has {member.size_bytes} bytes; the limit is {limit_bytes}")
        document = self._documents[member.name] = bytearray()
        self._sink = document.extend

    def _end(self) -> None:
        writer, self._writer, self._sink = self._writer, None, None
        if writer is not None:
            writer.finish()

    # models

    def _entries(self) -> Iterator[tuple[Digest, Reference | None]]:
        """Which manifests are models, with their names: those of the index, and `manifest.json`."""
        seen: set[tuple[Digest, Reference | None]] = set()
        index = self._documents.get(INDEX_NAME)
        if index is not None:
            manifests = ImageIndex.parse(bytes(index)).manifests
            if len(manifests) > MODELS_MAX:
                raise InvalidArchive(f"the archive holds {len(manifests)} models; the limit is {MODELS_MAX}")
            for descriptor in manifests:
                if descriptor.media_type != media_types.IMAGE_MANIFEST:
                    raise UnsupportedModel(
                        f"the archive holds something else than models: {descriptor.media_type}"
                    )
                entry = (descriptor.digest, _name_in(descriptor))
                if entry not in seen:
                    seen.add(entry)
                    yield entry
        manifest = self._documents.get(MANIFEST_NAME)
        if manifest is not None:
            digest = Digest.of(bytes(manifest))
            if not any(digest == other for other, _ in seen):
                yield digest, None

    def _model(
        self, entry: tuple[Digest, Reference | None], read: Callable[[BlobWriter], bytes]
    ) -> ArchivedModel:
        digest, name = entry
        manifest_bytes = self._manifest(digest, read)
        if manifest_bytes.lstrip().startswith(b"["):
            raise UnsupportedModel("the archive holds container images, as `docker save` writes them")
        manifest = Manifest.parse(manifest_bytes)
        if manifest.config.media_type not in media_types.READABLE_CONFIGS:
            raise UnsupportedModel(f"the archive holds no model but {manifest.config.media_type!r:.100}")
        for part in manifest.descriptors():
            self._require(part)
        if manifest.config.size_bytes > CONFIG_BYTES_MAX:
            raise InvalidArchive(f"a config has {manifest.config.size_bytes} bytes")
        config_bytes = read(self.writers[manifest.config.digest])
        ModelConfig.parse(config_bytes)
        return ArchivedModel(
            manifest_bytes=manifest_bytes, manifest=manifest, config_bytes=config_bytes, name=name
        )

    def _manifest(self, digest: Digest, read: Callable[[BlobWriter], bytes]) -> bytes:
        document = bytes(self._documents.get(MANIFEST_NAME, b""))
        if Digest.of(document) == digest:
            return document
        writer = self.writers.get(digest)
        if writer is None:
            raise InvalidArchive(f"the archive lacks the manifest {digest}")
        if writer.size_bytes > MANIFEST_BYTES_MAX:
            raise InvalidArchive(f"a manifest has {writer.size_bytes} bytes")
        return read(writer)

    def _require(self, part: Descriptor) -> None:
        writer = self.writers.get(part.digest)
        if writer is None:
            raise InvalidArchive(f"the archive lacks {part.digest}, a part of its model")
        if writer.size_bytes != part.size_bytes:
            raise InvalidArchive(f"{part.digest} has {writer.size_bytes} bytes instead of {part.size_bytes}")


def _digest_of_name(name: str) -> Digest | None:
    """The content that a member is by its name (`blobs/sha256/…`); None for files that nobody asks for."""
    directory, _, rest = name.partition("/")
    if directory not in ("blobs", "manifests") or rest.count("/") != 1:
        return None
    try:
        return Digest.parse(rest.replace("/", ":"))
    except InvalidReference:
        raise InvalidArchive(f"{name!r:.100} names no content: only sha256 is verified here") from None


def _name_in(descriptor: Descriptor) -> Reference | None:
    """The name of a model in the index. A bare tag, as other tools write it, is none; nor is a digest."""
    text = descriptor.annotations.get(media_types.ANNOTATION_REFERENCE, "")
    if _TAG_ONLY.isdisjoint(text):
        return None
    try:
        reference = Reference.parse(text)
    except InvalidReference:
        return None
    return reference.without_digest() if reference.tag is not None else None
