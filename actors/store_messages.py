"""What the store is asked, and what its threads tell it. Values only.

Read on in `actors/store_handle.py` (who asks) and `actors/store_run.py` (who answers).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from actors.actor import Reply
from runner.domain.disk import DiskReport, GcReport
from runner.domain.model import Model, ModelFiles
from runner.domain.settings import ModelSettings
from runner.domain.status import ModelReport, Removal, UploadedBlob
from runner.errors import RunnerError
from runner.oci.digest import Digest
from runner.oci.manifest import Descriptor
from runner.oci.reference import ModelName, Reference
from runner.store.blobs import BlobWriter, StoredBlob
from runner.store.directory import LoadedCatalog
from runner.store.documents import ModelDocuments, UsedContent
from runner.store.partials import PartialBlob
from runner.store.verify import BlobCheck


@attrs.frozen(kw_only=True)
class StoreNotice:
    """Something about the disk that whoever looks after the daemon should know, as a sentence."""

    message: str


@attrs.frozen(kw_only=True)
class Work:
    """What a thread does of a change. `settle` takes its result over in the loop and gives the answer;
    `give_back` ends, in a thread, what nobody is there to take."""

    reply: Reply[Any]
    in_thread: Callable[[], object]
    settle: Callable[[Any], object]
    changes_index: bool = False
    give_back: Callable[[Any], None] | None = None


@attrs.frozen
class ListModels:
    reply: Reply[tuple[Model, ...]]


@attrs.frozen
class ResolveName:
    name: ModelName
    reply: Reply[Model]


@attrs.frozen
class InspectModel:
    name: ModelName
    reply: Reply[ModelReport]


@attrs.frozen
class OpenFiles:
    """Answer what a worker loads. The asker has pinned the model already."""

    model_id: Digest
    reply: Reply[ModelFiles]


@attrs.frozen
class TagModel:
    source: ModelName
    target: Reference
    reply: Reply[Model]


@attrs.frozen
class UntagModel:
    target: Reference
    reply: Reply[Model]


@attrs.frozen
class ConfigureModel:
    name: ModelName
    changes: ModelSettings
    unset: frozenset[str]
    reply: Reply[Model]


@attrs.frozen
class RemoveModel:
    name: ModelName
    force: bool
    reply: Reply[tuple[Removal, ...]]


@attrs.frozen
class BeginUpload:
    """Answer a writer that the asker drives, then abandons or has adopted."""

    size_bytes: int | None
    digest: Digest | None
    reply: Reply[BlobWriter]


@attrs.frozen
class AdoptUpload:
    """The writer is finished; make its content visible."""

    writer: BlobWriter
    reply: Reply[UploadedBlob]


@attrs.frozen
class HoldBlobs:
    """Answer where content lies; whoever asks holds it meanwhile."""

    digests: tuple[Digest, ...]
    reply: Reply[tuple[StoredBlob, ...]]


@attrs.frozen
class PublishModel:
    config: bytes
    config_media_type: str
    layers: tuple[Descriptor, ...]
    tag: Reference | None
    reply: Reply[Model]


@attrs.frozen
class BeginDownload:
    """Answer what lies there already, or where to write; None when somebody must read what lies there first.

    `is_repair`: what lies there is wrong, whatever is known of it.
    """

    descriptor: Descriptor
    is_repair: bool
    reply: Reply[StoredBlob | PartialBlob | None]


@attrs.frozen
class SeedDownload:
    """Copy what is still good of a damaged file into the download that will replace it."""

    partial: PartialBlob
    reply: Reply[None]


@attrs.frozen
class BeginCheck:
    """Answer what reads this content again; the asker drives and closes it."""

    descriptor: Descriptor
    reply: Reply[BlobCheck]


@attrs.frozen
class AdoptDownload:
    """The download is finished; make its content visible."""

    partial: PartialBlob
    reply: Reply[StoredBlob]


@attrs.frozen
class RequireRoom:
    """Fail unless all of this could be downloaded onto this disk."""

    descriptors: tuple[Descriptor, ...]
    reply: Reply[None]


@attrs.frozen
class PublishVerbatim:
    """`origin` is the digest reference that a model without a tag was pulled by."""

    manifest: bytes
    config: bytes
    tag: Reference | None
    origin: Reference | None
    reply: Reply[Model]


@attrs.frozen
class AbandonUploads:
    """The package of this content was refused; nobody waits for an answer."""

    digests: tuple[Digest, ...]


@attrs.frozen
class CollectGarbage:
    """Remove what nothing needs; with `prunes_untagged` also models without a name, and what is young."""

    prunes_untagged: bool
    is_dry_run: bool
    reply: Reply[GcReport]


@attrs.frozen
class ReportDisk:
    reply: Reply[DiskReport]


@attrs.frozen
class ReadDocuments:
    """Answer the documents of a model, also of one that cannot be used."""

    name: ModelName
    reply: Reply[ModelDocuments]


@attrs.frozen
class ListContent:
    """Answer all content of these models, or of all, with the names of those that refer to it. What was asked
    to change before has changed then."""

    names: tuple[ModelName, ...] | None
    reply: Reply[tuple[UsedContent, ...]]


@attrs.frozen
class Reloaded:
    """What the disk shows, after it was uncertain; or why that cannot be told."""

    outcome: LoadedCatalog | RunnerError


@attrs.frozen
class WorkDone:
    work: Work
    result: object


@attrs.frozen
class WorkFailed:
    """`loaded` is what the disk shows now, when the work may have altered the index; or why that cannot be
    told."""

    work: Work
    error: RunnerError
    loaded: LoadedCatalog | RunnerError | None


Adoption = AdoptUpload | AdoptDownload
ChangeMessage = (
    TagModel
    | UntagModel
    | ConfigureModel
    | RemoveModel
    | Adoption
    | HoldBlobs
    | PublishModel
    | PublishVerbatim
    | BeginDownload
    | RequireRoom
    | CollectGarbage
    | ReportDisk
    | ListContent
)
StoreMessage = (
    ListModels
    | ResolveName
    | InspectModel
    | OpenFiles
    | BeginUpload
    | BeginCheck
    | SeedDownload
    | AbandonUploads
    | ReadDocuments
    | Reloaded
    | WorkDone
    | WorkFailed
    | ChangeMessage
)
