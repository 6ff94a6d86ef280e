"""What happened: everything that can make the scheduler's core do something. Values only.

Tickets are numbers that callers were given when they asked, never used twice. A `load_id` numbers one attempt
to have a model in memory, from sizing to the end of its process; the core invents it. Read on in `core.py`.
"""

from __future__ import annotations

import attrs

from runner.domain.device_bytes import DeviceBytes
from runner.oci.digest import Digest


@attrs.frozen
class Failure:
    """Why something failed: a code of `runner.errors` and a sentence for people."""

    code: str
    message: str


# from callers


@attrs.frozen(kw_only=True)
class ModelWanted:
    """What a caller says of the model it wants; what it leaves out never makes a loaded model load again.

    `keep_alive_s` None keeps what is set; 0 unloads after the last lease; infinite never idles out. `pin`
    None keeps what is set; a pinned model never idles out and makes room only by command. `context_size` is
    the least that a sequence must be able to hold in tokens, 0 for whatever there is. `request_id` and
    `label` are what `why` knows the request by. `owner_id`: what is wanted is no model but the annex of this
    one, which the caller holds a lease of.
    """

    ticket: int
    model_id: Digest
    name: str
    keep_alive_s: float | None = None
    pin: bool | None = None
    context_size: int = 0
    request_id: str | None = None
    label: str | None = None
    owner_id: Digest | None = None


@attrs.frozen(kw_only=True)
class LeaseRequested(ModelWanted):
    """Somebody wants to use a model."""


@attrs.frozen(kw_only=True)
class PreloadRequested(ModelWanted):
    """Somebody wants a model in memory without using it yet."""


@attrs.frozen
class LeaseReleased:
    """Unknown tickets are ignored: the lease ended with its worker."""

    ticket: int


@attrs.frozen
class CallerLeft:
    """Whoever holds this ticket is gone, whether it still waits or was answered a moment ago."""

    ticket: int


@attrs.frozen
class UnloadRequested:
    """`model_ids` None means every model."""

    ticket: int
    model_ids: tuple[Digest, ...] | None


@attrs.frozen
class DrainRequested:
    """Take no new work. Models in use may be used for `grace_s` more; then their workers stop as well."""

    ticket: int
    grace_s: float


@attrs.frozen(kw_only=True)
class UnquarantineRequested:
    """Let a model be loaded again whose loads crashed the engine."""

    ticket: int
    model_id: Digest


# from sizing


@attrs.frozen
class ModelSized:
    """The files are pinned; with this context size (tokens of one sequence) the model needs this memory."""

    load_id: int
    footprint: DeviceBytes
    context_size: int


@attrs.frozen
class SizingFailed:
    load_id: int
    failure: Failure


# from workers


@attrs.frozen
class WorkerReady:
    """`max_sequences` is how many requests it runs at once; None: as the rules say of all models."""

    load_id: int
    max_sequences: int | None = None


@attrs.frozen
class WorkerLoadFailed:
    """The worker could not load the model. Its process still has to end."""

    load_id: int
    failure: Failure


@attrs.frozen
class WorkerFailing:
    """A ready worker serves nobody any more, and its leases are void. Its process still has to end."""

    load_id: int


@attrs.frozen(kw_only=True)
class WorkerEnded:
    """The process is gone. `is_crash`: it was not asked to. `is_load_crash`: nor did anybody else end it, and
    the model was not in memory yet. `jitter` is drawn from [0, 1) by the shell."""

    load_id: int
    cause: str
    is_crash: bool
    jitter: float
    is_load_crash: bool = False


# from the machine


@attrs.frozen
class BudgetChanged:
    """What models may take in all: `budget` is given away, and above `ceiling` idle ones have to go.

    The ceiling is the budget where it is None; a measured one lies a little higher, so that a model does not
    go for every megabyte that another program takes.
    """

    budget: DeviceBytes
    ceiling: DeviceBytes | None = None


@attrs.frozen
class Ticked:
    """The timer went off; early and late ones are harmless."""


Event = (
    LeaseRequested
    | PreloadRequested
    | LeaseReleased
    | CallerLeft
    | UnloadRequested
    | DrainRequested
    | UnquarantineRequested
    | ModelSized
    | SizingFailed
    | WorkerReady
    | WorkerLoadFailed
    | WorkerFailing
    | WorkerEnded
    | BudgetChanged
    | Ticked
)
