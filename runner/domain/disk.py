"""What the store holds on its disk, what a collection removed and what a check found. Values only."""

from __future__ import annotations

from typing import Literal

import attrs

FindingKind = Literal["missing", "wrong_size", "wrong_content", "foreign", "unreadable"]


@attrs.frozen(kw_only=True)
class GcReport:
    """What a collection removed, or would remove when `is_dry_run`.

    `removed_models` are ids of untagged models, `removed` digests of content, `removed_downloads` digests
    of unfinished downloads. `kept_leftovers` are digests that no model refers to and that stay for now,
    since they are in use or young; `kept_bytes` is their size.
    """

    is_dry_run: bool
    removed_models: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    removed_downloads: tuple[str, ...] = ()
    freed_bytes: int = 0
    kept_leftovers: tuple[str, ...] = ()
    kept_bytes: int = 0


@attrs.frozen(kw_only=True)
class ModelDisk:
    """One model. `size_bytes` is all it refers to, `own_bytes` what no other model refers to."""

    id: str
    name: str
    tags: tuple[str, ...]
    size_bytes: int
    own_bytes: int


@attrs.frozen(kw_only=True)
class DiskReport:
    """The store on its disk, in bytes. `shared_bytes` are referred to by several models and counted once.

    `total_bytes` is everything of the store; `partial_bytes` what unfinished downloads take, `leftover_bytes`
    content that no model refers to. `free_bytes` is what the file system has for this user, of which
    `reserve_bytes` are never used for models. Beside the store lie `cache_states` of engines' caches, of
    `cache_bytes` together.
    """

    models: tuple[ModelDisk, ...]
    total_bytes: int
    shared_bytes: int
    partial_bytes: int
    leftover_bytes: int
    free_bytes: int
    reserve_bytes: int
    cache_states: int = 0
    cache_bytes: int = 0


@attrs.frozen(kw_only=True)
class BlobFinding:
    """Content of a model that is not what it should be.

    `models` are the names (or short ids) that refer to it. `bad_ranges` are the first and the first byte
    beyond of its bad pieces; None when only a fetch of the whole can help.
    """

    digest: str
    kind: FindingKind
    models: tuple[str, ...]
    message: str
    bad_ranges: tuple[tuple[int, int], ...] | None = None


@attrs.frozen(kw_only=True)
class VerifyReport:
    """What was read, and what was wrong with it. Sound when there are no findings."""

    models: int
    blobs: int
    size_bytes: int
    findings: tuple[BlobFinding, ...]


@attrs.frozen(kw_only=True)
class VerifyProgress:
    """How far a check has come. `digest` is the content that is being read."""

    digest: str
    done_bytes: int
    total_bytes: int
