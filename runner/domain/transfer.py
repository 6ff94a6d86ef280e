"""Models on their way from or to a registry: how far they are, what came of it, and as whom. Values only."""

from __future__ import annotations

import enum

import attrs

from runner.oci.digest import Digest


class TransferDirection(enum.StrEnum):
    PULL = "pull"
    PUSH = "push"


class TransferPhase(enum.StrEnum):
    """What a transfer is at; later ones follow earlier ones, but for a pull that finds all it needs."""

    QUEUED = "queued"
    """As many transfers as may run at once are running."""
    RESOLVING = "resolving"
    """The name becomes a manifest."""
    TRANSFERRING = "transferring"
    VERIFYING = "verifying"
    """All bytes are there; the whole files are checked against their digests, and weights as models."""
    PUBLISHING = "publishing"


@attrs.frozen(kw_only=True)
class LayerProgress:
    """One part of a model. `kind` as a model's report names it (`gguf`, `license`, …); `title` is the file
    name it had. `done_bytes` counts what was there already, and falls when a part has to start again."""

    digest: str
    kind: str
    title: str | None
    size_bytes: int
    done_bytes: int


@attrs.frozen(kw_only=True)
class TransferProgress:
    """A moment of a transfer. `queue_position` is 1 for the next one to run, and None once it runs.

    `total_bytes` and `done_bytes` are the sums over `layers`, which are empty until the name is resolved.
    `notes` are sentences for people, oldest first.
    """

    direction: TransferDirection
    phase: TransferPhase
    queue_position: int | None = None
    layers: tuple[LayerProgress, ...] = ()
    total_bytes: int = 0
    done_bytes: int = 0
    notes: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class TransferStatus:
    """One transfer in the list of all: the newest progress of `reference`, who waits for it, and since when.

    `model_id` is empty until it is known. `started_ago_s` counts from the first who asked.
    """

    reference: str
    model_id: str
    waiters: int
    started_ago_s: float
    progress: TransferProgress


@attrs.frozen(kw_only=True)
class TransferResult:
    """What came of a transfer. `transferred_bytes` went over the network, what was fetched twice included;
    `was_cached`: nothing had to, but for the manifest."""

    model_id: Digest
    reference: str
    size_bytes: int
    transferred_bytes: int
    was_cached: bool


@attrs.frozen(kw_only=True)
class RemoteCredentials:
    """As whom to talk to a registry: a name with its password, or a token. Never shown."""

    username: str | None = attrs.field(default=None, repr=False)
    password: str | None = attrs.field(default=None, repr=False)
    bearer_token: str | None = attrs.field(default=None, repr=False)

    @property
    def is_empty(self) -> bool:
        return self.username is None and self.password is None and self.bearer_token is None
