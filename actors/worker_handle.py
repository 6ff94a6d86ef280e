"""A loaded worker as leases hold it: generations opened, its counters, and the frames that wait for it.

The keeper makes a handle when the worker is ready and fails it when the worker goes. Imports the wire and the
domain. Read on in `actors/worker.py`, the keeper, `actors/stream.py`, the events of one generation, and
`actors/watchdog.py`, what counts as progress.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs
import trio

from actors.meters import StepSums
from actors.stream import GenerationStream
from actors.watchdog import WorkWatch
from runner.domain.events import GenerationEvent
from runner.domain.generation import GenerationRequest
from runner.domain.status import EngineMeters
from runner.errors import RunnerError, Unavailable
from runner.wire.codec import encode
from runner.wire.messages import Cancel, CloseAnnex, Generate, Loaded, SetThreads, Step


@attrs.frozen(kw_only=True)
class WorkerCounters:
    """What a worker last said of itself. `prefill_tokens` and `decode_tokens` count since it was loaded;
    `meters` are None before its first step.

    `resident_bytes` is asked of the system at the moment of the call, 0 when unknown.
    """

    pid: int
    resident_bytes: int
    step_index: int
    prefill_tokens: int
    decode_tokens: int
    running_sequences: int
    waiting_sequences: int
    cells_used: int
    open_streams: int
    meters: EngineMeters | None = None


class Outbox:
    """Frames that wait for the worker to read them."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._frames: deque[bytes] = deque()
        self._first: bytes | None = None
        self._filled = trio.Event()
        self._emptied = trio.Event()

    def put_request(self, frames: bytes) -> None:
        """Raises `Unavailable` when too much is waiting: the worker does not read."""
        if self._size_bytes + len(frames) > self._limit_bytes:
            raise Unavailable("the worker is not reading its requests")
        self.put(frames)

    def put(self, frames: bytes) -> None:
        """For what is small and bounded otherwise: one cancel per request."""
        self._frames.append(frames)
        self._size_bytes += len(frames)
        self._filled.set()

    def put_first(self, frames: bytes) -> None:
        """Before everything that waits, and instead of what was put first and waits still."""
        self._first = frames
        self._filled.set()

    async def take(self) -> bytes:
        """What comes first, then the oldest frames, once there are some; for one task."""
        while not self._frames and self._first is None:
            self._filled = trio.Event()
            await self._filled.wait()
        if self._first is not None:
            frames, self._first = self._first, None
            return frames
        frames = self._frames.popleft()
        self._size_bytes -= len(frames)
        if not self._frames:
            self._emptied.set()
        return frames

    async def until_empty(self) -> None:
        """Returns when nothing waits but what was put first; for one task, that sends much."""
        while self._frames:
            self._emptied = trio.Event()
            await self._emptied.wait()

    def __repr__(self) -> str:
        return f"<Outbox {len(self._frames)} waiting, {self._size_bytes} bytes>"


class WorkerHandle:
    """A loaded worker, as leases hold it. Stays usable after the worker's death: it then refuses."""

    def __init__(
        self,
        *,
        model: str,
        loaded: Loaded,
        pid: int,
        outbox: Outbox,
        resident_bytes: Callable[[], int],
        watch: WorkWatch,
        n_threads: int = 1,
    ) -> None:
        """`n_threads`: what it was loaded with, and the most that it can use."""
        self.model = model
        self.loaded = loaded
        self.pid = pid
        self.threads_max = n_threads
        self.on_activity: Callable[[bool], None] = lambda is_active: None
        """Called when the first stream has been opened, and when none is left; must not block."""
        self.watch = watch
        """For the keeper."""
        self.has_annex = False
        """Whether there may be a context for embeddings beside the load. For who reserves its memory."""
        self._outbox = outbox
        self._resident_bytes = resident_bytes
        self._streams: dict[str, GenerationStream] = {}
        self._last_step = Step(
            step_index=0, prefill_tokens=0, decode_tokens=0, running=0, waiting=0, cells_used=0
        )
        self._sums = StepSums()
        self._used = trio.Event()
        self._failed = trio.Event()
        self._annex_closed: trio.Event | None = None
        self._n_threads = n_threads
        self._is_active = False
        self._error: RunnerError | None = None

    def open_stream(self, request: GenerationRequest) -> GenerationStream:
        """Send the request; its events come through the stream, which the caller closes.

        Raises `Unavailable` when the worker is gone or reads nothing any more, `TooLarge` beyond 32 MiB.
        """
        if self._error is not None:
            raise Unavailable(f"the worker of {self.model} has ended")
        if request.request_id in self._streams:
            raise ValueError(f"request {request.request_id} is open already")
        frames = encode(Generate(request))
        self._outbox.put_request(frames)
        self.watch.opened(request.request_id, len(frames), trio.current_time())
        self._used.set()
        stream = GenerationStream(request.request_id, self._cancel)
        self._streams[request.request_id] = stream
        self._tell_activity()
        return stream

    def set_threads(self, n_threads: int) -> None:
        """Have the worker use so many from its next step on, and before any request that it has not read."""
        if n_threads != self._n_threads and self._error is None:
            self._n_threads = n_threads
            self._outbox.put_first(encode(SetThreads(n_threads)))

    async def close_annex(self) -> bool:
        """Have it free what embeddings take beside generations; True when it has, False when it is going
        instead. One caller at a time, who has seen to it that no request uses it."""
        if self._error is not None:
            await trio.lowlevel.checkpoint()
            return False
        closed = self._annex_closed = trio.Event()
        self._outbox.put(encode(CloseAnnex()))
        await closed.wait()
        return self._error is None

    async def until_failed(self) -> None:
        """Returns when the worker is going or gone."""
        await self._failed.wait()

    def status(self) -> WorkerCounters:
        step = self._last_step
        return WorkerCounters(
            pid=self.pid,
            resident_bytes=0 if self._error is not None else self._resident_bytes(),
            step_index=step.step_index,
            prefill_tokens=self._sums.prefill_tokens,
            decode_tokens=self._sums.decode_tokens,
            running_sequences=step.running,
            waiting_sequences=step.waiting,
            cells_used=step.cells_used,
            open_streams=len(self._streams),
            meters=self._sums.meters(step, self.loaded.n_cells),
        )

    # ---- the keeper's side

    @property
    def open_request_ids(self) -> tuple[str, ...]:
        return tuple(self._streams)

    async def until_used(self) -> None:
        """Returns when a request is open, now or later; for one task."""
        while self.watch.is_idle:
            self._used = trio.Event()
            await self._used.wait()

    def deliver(self, step: Step) -> None:
        """Hand each generation its events of one step. Ids that nobody reads any more are passed over."""
        self._last_step = step
        self._sums.add(step)
        self.watch.stepped(step, trio.current_time())
        batches: dict[str, list[GenerationEvent]] = {}
        for request_id, event in step.events:
            batches.setdefault(request_id, []).append(event)
        for request_id, events in batches.items():
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.deliver(events)
                if stream.has_ended:
                    self._streams.pop(request_id, None)
                    self.watch.closed(request_id)
                    self._tell_activity()

    def annex_closed(self) -> bool:
        """False when nobody has asked for it."""
        closed, self._annex_closed = self._annex_closed, None
        if closed is not None:
            closed.set()
        return closed is not None

    def fail(self, error: RunnerError) -> None:
        """The worker is going or gone: refuse new requests, and end every stream with `error`."""
        self._error = error
        self._failed.set()
        self.annex_closed()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(error)
        self._tell_activity()

    def _cancel(self, request_id: str) -> None:
        self.watch.closed(request_id)
        if self._streams.pop(request_id, None) is not None and self._error is None:
            self._outbox.put(encode(Cancel(request_id)))
        self._tell_activity()

    def _tell_activity(self) -> None:
        is_active = bool(self._streams)
        if is_active != self._is_active:
            self._is_active = is_active
            self.on_activity(is_active)

    def __repr__(self) -> str:
        state = "ended" if self._error is not None else f"{len(self._streams)} streams open"
        return f"<WorkerHandle {self.model}, pid {self.pid}, {state}>"
