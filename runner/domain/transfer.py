"""Models on their way from or to a registry: what is asked, how far it is, what came of it. Values only."""

from __future__ import annotations

import enum

import attrs

from runner.oci.digest import Digest
from runner.oci.reference import ModelName, Reference


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
    """As whom to talk to a registry: a name with its password, or a token. Never shown.

    `bearer_token` is sent as it is; `identity_token` is exchanged for one (what `docker login` keeps of some
    registries in the place of a password).
    """

    username: str | None = attrs.field(default=None, repr=False)
    password: str | None = attrs.field(default=None, repr=False)
    bearer_token: str | None = attrs.field(default=None, repr=False)
    identity_token: str | None = attrs.field(default=None, repr=False)

    @property
    def is_empty(self) -> bool:
        secrets = (self.username, self.password, self.bearer_token, self.identity_token)
        return all(secret is None for secret in secrets)


@attrs.frozen(kw_only=True)
class PullRequest:
    """Bring a model into the store. `source_text` is the reference as somebody typed it, since hubs tell
    names apart by case. `given` credentials are for this request only."""

    reference: Reference
    given: RemoteCredentials | None = None
    source_text: str | None = None


@attrs.frozen(kw_only=True)
class PushRequest:
    """Send a model of the store to a registry; `target` None: under the very name it is asked for by."""

    name: ModelName
    target: Reference | None = None
    given: RemoteCredentials | None = None
