"""What to do: everything the scheduler's core asks of its shell, and the answers it gives. Values only.

Every outcome of an effect comes back as an event. Read on in `events.py` and `core.py`.
"""

from __future__ import annotations

import attrs

from runner.domain.device_bytes import DeviceBytes
from runner.domain.quarantine import FailedLoads
from runner.domain.status import UnloadReport
from runner.oci.digest import Digest
from runner.scheduling.events import Failure
from runner.scheduling.protection import InQuarantine, LeftAlone

# work


@attrs.frozen
class SizeModel:
    """Pin the model's files and find its footprint: ends in ModelSized, SizingFailed or DropLoad.

    `context_size` is the least that is wanted, in tokens; 0 for the default. `owner_id`: it is the annex of
    this model, whose worker starts and stops it.
    """

    load_id: int
    model_id: Digest
    context_size: int = 0
    owner_id: Digest | None = None


@attrs.frozen
class StartWorker:
    """Start a worker for a sized load, whose bytes are reserved. Ends in WorkerEnded, whatever happens."""

    load_id: int


@attrs.frozen
class StopWorker:
    """End the worker of this load, or its start; harmless when it is ending already."""

    load_id: int


@attrs.frozen
class DropLoad:
    """Forget a load that never got a worker, and let its files go."""

    load_id: int


@attrs.frozen
class ArmTimer:
    """Send Ticked at this time, and not at the time armed before; None: not at all."""

    at_s: float | None


@attrs.frozen
class KeepQuarantine:
    """Write down which models crash the engine while they load; all of it, each time it changes."""

    records: tuple[FailedLoads, ...]


# answers; exactly one for every ticket, none after its caller left


@attrs.frozen
class GrantLease:
    ticket: int
    load_id: int


@attrs.frozen
class ConfirmPreload:
    ticket: int
    load_id: int


@attrs.frozen
class ReportUnloaded:
    ticket: int
    report: UnloadReport


@attrs.frozen
class ReportDrained:
    ticket: int


@attrs.frozen(kw_only=True)
class ReportFreed:
    """`crashes` of loads were forgotten; they may have been too few to keep the model from being loaded."""

    ticket: int
    was_quarantined: bool
    crashes: int


@attrs.frozen
class Refuse:
    ticket: int
    refusal: Refusal


@attrs.frozen(kw_only=True)
class LineFull:
    """`waiting` callers stand in line for the model already."""

    model: str
    waiting: int
    retry_after_s: float


@attrs.frozen(kw_only=True)
class NoRoom:
    """`free` is what there would be after every permitted eviction, `in_use` the rest of the budget."""

    model: str
    needed: DeviceBytes
    free: DeviceBytes
    in_use: DeviceBytes
    retry_after_s: float


@attrs.frozen(kw_only=True)
class ContextTooLarge:
    """The model cannot be loaded with the wanted context, whatever room there is. Tokens of one sequence."""

    model: str
    wanted: int
    most: int


@attrs.frozen(kw_only=True)
class CannotLoad:
    model: str
    failure: Failure


@attrs.frozen
class NoNewWork:
    """The daemon is draining."""


Refusal = LineFull | NoRoom | ContextTooLarge | CannotLoad | NoNewWork | LeftAlone | InQuarantine
Answer = GrantLease | ConfirmPreload | ReportUnloaded | ReportDrained | ReportFreed | Refuse
Effect = SizeModel | StartWorker | StopWorker | DropLoad | ArmTimer | KeepQuarantine | Answer
