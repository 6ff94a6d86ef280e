"""One attempt to have the annex of a loaded model, as a task: memory that its worker takes beside the load.

    ModelSized ─> (may start) ─> WorkerReady ─> the worker opens its second context when embeddings are asked
                                            └─> cancelled: it closes it ─> LoadOver

The scheduler's core treats it as a load: it reserves the bytes before anybody may use them, evicts it while
it is idle, and counts the bytes until the worker has said that they are free, or is gone. Nothing is started:
the process is the model's, and when that ends the annex ends with it.

Imports the core's events and the worker's handle. Read on in `actors/scheduler_run.py`, which runs these
tasks, and in `runner/engine/embed.py`, which opens and closes the context.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs
import trio

from actors.load import LoadOver
from actors.scheduler_messages import Happened, SchedulerMessage
from actors.worker_handle import WorkerHandle
from runner.domain.device_bytes import DeviceBytes
from runner.errors import Unavailable
from runner.scheduling import events

ANNEX_KEEP_S: Final = 60.0
"""So long an annex that nobody uses is kept; opening it takes a fraction of a second."""


@attrs.frozen(kw_only=True)
class Owner:
    """The loaded model. `over` is set when nothing is left of its worker."""

    handle: WorkerHandle
    context_size: int
    over: trio.Event


@attrs.define(eq=False)
class AnnexTask:
    """`owner` None: it had ended when its annex was to be sized."""

    load_id: int
    size: DeviceBytes
    _owner: Owner | None
    _tell: Callable[[SchedulerMessage], None]
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _may_start: trio.Event = attrs.field(factory=trio.Event, init=False)
    _is_ready: bool = attrs.field(default=False, init=False)

    def start_worker(self) -> None:
        """Its memory is reserved: from here on `LoadOver` will be told."""
        self._may_start.set()

    def stop(self) -> None:
        """Give up, whatever it is doing; harmless when it is over."""
        self._scope.cancel()

    async def run(self) -> None:
        try:
            with self._scope:
                await self._serve()
        finally:
            if self._may_start.is_set():
                with trio.CancelScope(shield=True):
                    await self._close()
                self._tell(LoadOver(self.load_id, "its model has ended", is_crash=False, is_load_crash=False))

    async def _serve(self) -> None:
        if self._owner is not None:
            sized = events.ModelSized(self.load_id, self.size, self._owner.context_size)
            self._tell(Happened(sized))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, self._owner.handle, nursery.cancel_scope)
                await self._may_start.wait()
                self._begin(self._owner.handle)
                await trio.sleep_forever()
        await self._give_up()

    def _begin(self, handle: WorkerHandle) -> None:
        self._is_ready = handle.has_annex = True
        self._tell(Happened(events.WorkerReady(self.load_id, handle.loaded.max_sequences)))

    async def _watch(self, handle: WorkerHandle, serving: trio.CancelScope) -> None:
        await handle.until_failed()
        serving.cancel()

    async def _give_up(self) -> None:
        """The model is going.

        1. Leases of its annex are void.
        2. Nobody gets any. The core stops this task then, which it may have let start a moment ago.
        """
        if self._is_ready:
            self._tell(Happened(events.WorkerFailing(self.load_id)))  # 1
            return
        failure = events.Failure(Unavailable.code, "the model has ended")
        self._tell(Happened(events.SizingFailed(self.load_id, failure)))  # 2
        await trio.sleep_forever()

    async def _close(self) -> None:
        """Returns when its bytes are free."""
        if self._owner is None:
            return
        if not await self._owner.handle.close_annex():
            await self._owner.over.wait()
        self._owner.handle.has_annex = False

    def __repr__(self) -> str:
        return f"<AnnexTask {self.load_id}, {self.size}>"
