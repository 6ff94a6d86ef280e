"""What the scheduler shows of itself: published by the actor after every event, read at any time by anybody.

Everything on the board is frozen; the numbers of live workers and the times are put in when somebody looks.
Imports domain values and the core's views. Read on in `actors/scheduler.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

from actors.worker_handle import WorkerCounters, WorkerHandle
from runner.domain.device_bytes import HOST_MEMORY, DeviceBytes
from runner.domain.engine import EngineOptions
from runner.domain.quarantine import FailedLoads
from runner.domain.status import BudgetStatus, SchedulerStatus, WorkerStatus
from runner.scheduling.instances import InstanceView
from runner.scheduling.lifecycle import InstanceState


@attrs.frozen(kw_only=True)
class LoadView:
    """What the shell knows of one load. `progress` from 0 to 1; `load_s` from spawn to ready, None before;
    `annex` is what embeddings would take more. `over` is set when nothing is left of it."""

    engine: str
    options: EngineOptions | None = None
    annex: DeviceBytes = attrs.field(factory=DeviceBytes)
    started_at_s: float = 0.0
    progress: float = 0.0
    handle: WorkerHandle | None = None
    over: trio.Event = attrs.field(factory=trio.Event)
    load_s: float | None = None

    def when_ready(self, handle: WorkerHandle, now_s: float) -> LoadView:
        return attrs.evolve(self, progress=1.0, handle=handle, load_s=now_s - self.started_at_s)


@attrs.frozen
class Row:
    """One model at one moment; `load` None while it has no attempt to load under way. `annex` is reserved
    beside it."""

    view: InstanceView
    load: LoadView | None
    annex: DeviceBytes = attrs.field(factory=DeviceBytes)

    def status(self, now_s: float) -> WorkerStatus:
        view, load = self.view, self.load or LoadView(engine="")
        counters = load.handle.status() if load.handle is not None else _NO_COUNTERS
        options = load.options
        is_ready = view.state is InstanceState.READY
        return WorkerStatus(
            model=view.name,
            model_id=str(view.model_id),
            state=view.state.value,
            pid=counters.pid or None,
            engine=load.engine,
            context_size=options.context_size if options is not None else 0,
            reserved_bytes=(view.reserved + self.annex).total_bytes,
            resident_bytes=counters.resident_bytes,
            leases=view.leases,
            waiting=view.waiting,
            running_sequences=counters.running_sequences,
            waiting_sequences=counters.waiting_sequences,
            cells_used=counters.cells_used,
            n_cells=options.n_cells if options is not None else 0,
            host_cells=options.host_cells if options is not None else 0,
            keep_alive_s=view.keep_alive_s if view.keep_alive_s < math.inf else None,
            expires_in_s=None if view.expires_at_s is None else max(0.0, view.expires_at_s - now_s),
            loaded_for_s=now_s - view.since_s if is_ready else None,
            load_s=load.load_s,
            load_progress=load.progress,
            meters=counters.meters,
        )


@attrs.frozen(kw_only=True)
class Notice:
    """One state of the scheduler, as it was after an event."""

    rows: tuple[Row, ...] = ()
    budget: DeviceBytes = attrs.field(factory=DeviceBytes)
    reserved: DeviceBytes = attrs.field(factory=DeviceBytes)
    is_draining: bool = False
    quarantined: tuple[FailedLoads, ...] = ()

    def budgets(self) -> tuple[BudgetStatus, ...]:
        """Of every device that has one or is in use, host memory first."""
        devices = dict.fromkeys((HOST_MEMORY, *self.budget.devices, *self.reserved.devices))
        return tuple(
            BudgetStatus(
                device=device, budget_bytes=self.budget[device], reserved_bytes=self.reserved[device]
            )
            for device in devices
        )


@attrs.define
class Board:
    """Where the latest notice hangs; empty while the scheduler does not run. Outlives its restarts."""

    _notice: Notice = attrs.field(factory=Notice, init=False)
    _is_open: bool = attrs.field(default=False, init=False)

    @contextmanager
    def open(self) -> Iterator[None]:
        """For one run of the actor; leaving wipes the board."""
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False
            self._notice = Notice()

    def show(self, notice: Notice) -> None:
        self._notice = notice

    def row(self, load_id: int) -> Row:
        """The row of this load; KeyError when there is none."""
        for row in self._notice.rows:
            if row.view.load_id == load_id:
                return row
        raise KeyError(load_id)

    def quarantined(self) -> tuple[FailedLoads, ...]:
        return self._notice.quarantined

    def status(self) -> SchedulerStatus:
        """Costs a look at the process of each worker."""
        notice, now_s = self._notice, trio.current_time()
        return SchedulerStatus(
            workers=tuple(row.status(now_s) for row in notice.rows),
            budgets=notice.budgets() if self._is_open else (),
            is_draining=notice.is_draining,
        )


_NO_COUNTERS = WorkerCounters(
    pid=0,
    resident_bytes=0,
    step_index=0,
    prefill_tokens=0,
    decode_tokens=0,
    running_sequences=0,
    waiting_sequences=0,
    cells_used=0,
    open_streams=0,
)
