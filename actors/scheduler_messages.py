"""What the scheduler is told and asked, and the lease that it answers with.

Callers use `SchedulerHandle` in `actors/scheduler.py`, which makes these messages; `actors/scheduler_run.py`
reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import attrs

from actors.actor import Reply
from actors.load import LoadFault, LoadNews
from actors.quarantine import QuarantineTrouble
from actors.worker import DeathReport
from actors.worker_handle import WorkerHandle
from runner.domain.explained import PlanReport, WhyReport
from runner.domain.model import Model
from runner.errors import Unavailable
from runner.oci.digest import Digest
from runner.scheduling import events
from runner.scheduling.decisions import Decision
from runner.wire.messages import Loaded

Question = (
    events.LeaseRequested
    | events.PreloadRequested
    | events.UnloadRequested
    | events.DrainRequested
    | events.UnquarantineRequested
)


@attrs.frozen
class Asked:
    """Somebody waits for the answer to this event."""

    event: Question
    reply: Reply[Any]


@attrs.frozen
class Happened:
    """Something that the core is told as it is."""

    event: events.Event


@attrs.frozen
class ListDecisions:
    model_id: Digest | None
    reply: Reply[tuple[Decision, ...]]


@attrs.frozen
class PlanLoad:
    """What would a request for this model meet? `context_size` is the least it needs, 0 for the default."""

    model: Model
    context_size: int
    reply: Reply[PlanReport]


@attrs.frozen
class ExplainModel:
    model_id: Digest
    name: str
    reply: Reply[WhyReport]


@attrs.frozen
class ExplainRequest:
    """`request_id` may be a label as well. The answer is None when nothing is known."""

    request_id: str
    reply: Reply[WhyReport | None]


@attrs.frozen
class MeasureBudgets:
    """Measure now, and not only when it is time."""

    reply: Reply[None]


SchedulerMessage = (
    Asked | Happened | ListDecisions | PlanLoad | ExplainModel | ExplainRequest | MeasureBudgets | LoadNews
)

SchedulerNotice = Decision | DeathReport | LoadFault | QuarantineTrouble
"""What the actor's `report` hears as it happens, for the log."""


class ModelLease:
    """The right to use one loaded model; it stays in memory until this is released.

    When the worker dies the lease is void: `worker` refuses, and a new lease has to be acquired.
    """

    def __init__(self, worker: WorkerHandle, give_back: Callable[[], None]) -> None:
        self.worker = worker
        self._give_back: Callable[[], None] | None = give_back

    @property
    def loaded(self) -> Loaded:
        return self.worker.loaded

    def with_annex(self, annex: ModelLease) -> ModelLease:
        """Both as one. Raises Unavailable when they are of different workers: the first one has ended in the
        meantime."""
        if annex.worker is not self.worker:
            annex.release()
            raise Unavailable(f"the worker of {self.worker.model} has ended")

        def give_back() -> None:
            annex.release()
            self.release()

        return ModelLease(self.worker, give_back)

    def release(self) -> None:
        """Give the model up; again, or after the end of the worker or the scheduler, it changes nothing."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<ModelLease {self.worker!r} {'released' if self._give_back is None else 'held'}>"
