"""The keeper of one worker process: requests in, events out, its death reported.

The scheduler runs one `run_keeper` per worker in its nursery. Cancelling it stops the worker; it returns only
when the process is gone. What it has to tell arrives through `report`, in this order:

    WorkerLoadProgress*, (WorkerReady | WorkerLoadFailed), WorkerEnded

`WorkerEnded` comes last and exactly once, also on cancellation and when nothing could be started; before it the
worker's memory counts as used. Tokens pass through here and nowhere else in the daemon: one task reads frames and
hands each generation its events, once per engine step.

Imports the wire, the domain and `actors/process.py`. Read on in `actors/stream.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

from actors.stream import GenerationStream as GenerationStream
from runner.domain.engine import EngineOptions
from runner.domain.events import GenerationEvent
from runner.domain.generation import GenerationRequest
from runner.domain.model import Model, ModelFiles
from runner.errors import RunnerError, Unavailable
from runner.wire.codec import encode
from runner.wire.messages import Cancel, Generate, Loaded, Step


@attrs.frozen(kw_only=True)
class WorkerSpec:
    """What one worker is to load. `engine` is `llama` or `scripted`; `files` must stay leased while it lives."""

    model: Model
    files: ModelFiles
    options: EngineOptions
    engine: str = "llama"


@attrs.frozen(kw_only=True)
class DeathReport:
    """How a worker ended.

    `cause` is a phrase for people and safe to send to clients: `signal SIGSEGV`, `exit code 3`,
    `protocol fault: …`, `no progress for 300 s`, `stopped`. At most one of `exit_code` and `signal` (`SIGKILL`)
    is set, none when the process never started. `stderr_tail` is cleaned text of at most 64 KiB, for logs only.
    `request_ids` are the generations that were running. `was_requested`: the keeper was asked to stop.
    """

    model: str
    model_id: str
    engine_version: str | None
    pid: int | None
    cause: str
    exit_code: int | None
    signal: str | None
    stderr_tail: str
    request_ids: tuple[str, ...]
    was_requested: bool


@attrs.frozen
class WorkerLoadProgress:
    """0 to 1, told at most once per percent."""

    fraction: float


@attrs.frozen
class WorkerReady:
    handle: WorkerHandle
    loaded: Loaded


@attrs.frozen
class WorkerLoadFailed:
    """`error` is `LoadingFailed`, `LoadTimeout`, `InvalidModelFile` or `TemplateFailed`. Not told on a stop."""

    error: RunnerError


@attrs.frozen
class WorkerEnded:
    """The process and its group are gone and reaped."""

    report: DeathReport


KeeperEvent = WorkerLoadProgress | WorkerReady | WorkerLoadFailed | WorkerEnded

Launcher = Callable[[WorkerSpec, Callable[[KeeperEvent], None]], Awaitable[None]]
"""What the scheduler is given to start workers with: `functools.partial(run_keeper, settings=…)`, or a fake."""


@attrs.frozen(kw_only=True)
class WorkerCounters:
    """What a worker last said of itself. `prefill_tokens` and `decode_tokens` count since it was loaded.

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


class WorkerHandle:
    """A loaded worker, as leases hold it. Stays usable after the worker's death: it then refuses."""

    def __init__(
        self,
        *,
        model: str,
        loaded: Loaded,
        pid: int,
        send: Callable[[bytes], None],
        resident_bytes: Callable[[], int],
    ) -> None:
        """`send` queues frames for the worker and raises `Unavailable` when too much is waiting already."""
        self.model = model
        self.loaded = loaded
        self.pid = pid
        self._send = send
        self._resident_bytes = resident_bytes
        self._streams: dict[str, GenerationStream] = {}
        self._last_step = Step(
            step_index=0, prefill_tokens=0, decode_tokens=0, running=0, waiting=0, cells_used=0
        )
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._error: RunnerError | None = None

    def open_stream(self, request: GenerationRequest) -> GenerationStream:
        """Send the request; its events come through the stream, which the caller closes.

        Raises `Unavailable` when the worker is gone or reads nothing any more, `TooLarge` beyond 32 MiB.
        """
        if self._error is not None:
            raise Unavailable(f"the worker of {self.model} has ended")
        if request.request_id in self._streams:
            raise ValueError(f"request {request.request_id} is open already")
        self._send(encode(Generate(request)))
        stream = GenerationStream(request.request_id, self._cancel)
        self._streams[request.request_id] = stream
        return stream

    def status(self) -> WorkerCounters:
        step = self._last_step
        return WorkerCounters(
            pid=self.pid,
            resident_bytes=0 if self._error is not None else self._resident_bytes(),
            step_index=step.step_index,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            running_sequences=step.running,
            waiting_sequences=step.waiting,
            cells_used=step.cells_used,
            open_streams=len(self._streams),
        )

    @property
    def open_request_ids(self) -> tuple[str, ...]:
        return tuple(self._streams)

    # ---- the keeper's side

    def deliver(self, step: Step) -> None:
        """Hand each generation its events of one step. Ids that nobody reads any more are passed over."""
        self._last_step = step
        self._prefill_tokens += step.prefill_tokens
        self._decode_tokens += step.decode_tokens
        batches: dict[str, list[GenerationEvent]] = {}
        for request_id, event in step.events:
            batches.setdefault(request_id, []).append(event)
        for request_id, events in batches.items():
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.deliver(events)
                if stream.has_ended:
                    self._streams.pop(request_id, None)

    def fail(self, error: RunnerError) -> None:
        """The worker is going or gone: refuse new requests, and end every stream with `error`."""
        self._error = error
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(error)

    def _cancel(self, request_id: str) -> None:
        if self._streams.pop(request_id, None) is not None and self._error is None:
            self._send(encode(Cancel(request_id)))

    def __repr__(self) -> str:
        state = "ended" if self._error is not None else f"{len(self._streams)} streams open"
        return f"<WorkerHandle {self.model}, pid {self.pid}, {state}>"
