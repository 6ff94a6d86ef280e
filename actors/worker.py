"""The keeper of one worker process: requests in, events out, its death reported.

The scheduler runs one `run_keeper` per worker in its nursery. Cancelling it stops the worker; it returns only
when the process is gone. What it has to tell arrives through `report`, in this order:

    WorkerLoadProgress*, (WorkerReady, WorkerFailing? | WorkerLoadFailed), WorkerEnded

`WorkerEnded` comes last and exactly once, also on cancellation and when nothing could be started; before it
the worker's memory counts as used. Tokens pass through here and nowhere else in the daemon: one task reads
frames and hands each generation its events, once per engine step.

Imports the wire, the domain and `actors/process.py`. Read on in `actors/worker_handle.py` (what a lease
holds), `stream.py` (one generation's events), `watchdog.py` (how long a worker may go without counted work),
`state_traffic.py` (what it saves and gets back of its cache) and `deaths.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import trio

from actors.deaths import Cause, DeathKind, cause_of_exit, kernel_memory_kills
from actors.deaths import DeathReport as DeathReport
from actors.process import Command, ExitStatus, NewWorkers, StopTimes, WorkerSource, worker_command
from actors.saved_states import SavedStates
from actors.state_traffic import SavingRules, StateTraffic
from actors.stream import GenerationStream as GenerationStream
from actors.watchdog import LoadWatch, WatchdogRules, WorkWatch
from actors.worker_handle import Outbox
from actors.worker_handle import WorkerCounters as WorkerCounters
from actors.worker_handle import WorkerHandle as WorkerHandle
from actors.worker_loading import load_error, load_message
from runner.domain.engine import EngineOptions
from runner.domain.model import Model, ModelFiles
from runner.errors import (
    LoadingFailed,
    LoadTimeout,
    ProtocolFault,
    RunnerError,
    TooLarge,
    Unavailable,
    WorkerCrashed,
)
from runner.wire.codec import FromWorkerDecoder, encode
from runner.wire.messages import (
    PROTOCOL_VERSION,
    AnnexClosed,
    Hello,
    Loaded,
    LoadFailed,
    LoadProgress,
    SavedPart,
    SaveState,
    Shutdown,
    Step,
    WantState,
)

_READ_BYTES: Final = 65_536
_LOOK_S: Final = 1.0
"""Between two looks at a worker, whose deadline can come nearer: it is loaded, or has its first token."""


@attrs.frozen(kw_only=True)
class WorkerSpec:
    """What one worker is to load, with which sizes. `engine` is `llama` or `scripted`.

    `files` must stay leased until `WorkerEnded`. The worker may take `private_bytes_max` of private memory,
    which the mapped model file is not; None sets no limit.
    """

    model: Model
    files: ModelFiles
    options: EngineOptions
    engine: str = "llama"
    private_bytes_max: int | None = None


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
    """`LoadingFailed`, `LoadTimeout`, `InvalidModelFile` or `TemplateFailed`. Not told when asked to stop."""

    error: RunnerError


@attrs.frozen
class WorkerFailing:
    """A worker that was ready is going: its handle refuses already, and its process still has to end.

    Not told when asked to stop."""

    cause: str


@attrs.frozen
class WorkerEnded:
    """The process and its group are gone and reaped."""

    report: DeathReport


KeeperEvent = WorkerLoadProgress | WorkerReady | WorkerFailing | WorkerLoadFailed | WorkerEnded

Launcher = Callable[[WorkerSpec, Callable[[KeeperEvent], None]], Awaitable[None]]
"""What the scheduler starts workers with: `functools.partial(run_keeper, settings=…)`, or a fake."""


@attrs.frozen(kw_only=True)
class KeeperSettings:
    """Deadlines and limits of one keeper.

    `outbox_limit_bytes` bounds the requests that wait for the worker to read them. Working directories are
    made below `directory` (None: the system's temporary one). `engine_version` is for reports of workers
    that die before they have told their own. Without `states` nothing is saved of a worker's cache.
    """

    watchdog: WatchdogRules = attrs.field(factory=WatchdogRules)
    stop: StopTimes = attrs.field(factory=StopTimes)
    outbox_limit_bytes: int = 64 * 1024 * 1024
    states: SavedStates | None = None
    saving: SavingRules = attrs.field(factory=SavingRules)
    directory: Path | None = None
    engine_version: str | None = None


async def run_keeper(
    spec: WorkerSpec,
    report: Callable[[KeeperEvent], None],
    *,
    settings: KeeperSettings = KeeperSettings(),
    command: Command = worker_command,
    workers: WorkerSource | None = None,
) -> None:
    """Start a worker, load the model, serve until it ends; returns when nothing of it is left.

    Its process comes from `workers`; without, `command` starts one. Cancel it to stop the worker: the ladder
    of L08 takes 14 s at most, and 3 s more where a cache is saved. `report` must not block. Whatever the
    worker does becomes an event; only faults of ours are raised.
    """
    try:
        keeper = _Keeper(spec, report, settings, workers or NewWorkers(command, settings.directory))
    except (OSError, TooLarge) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        _report_no_start(spec, report, settings, f"could not be started: {reason}")
        await trio.lowlevel.checkpoint()
    else:
        await keeper.run()


class _Phase(enum.Enum):
    STARTING = "starting"
    LOADING = "loading"
    READY = "serving"


@attrs.frozen(kw_only=True)
class _Ending:
    """Why serving ended. `cause` None: the exit status will tell. `is_polite`: ask first, before SIGKILL."""

    cause: Cause | None = None
    load_error: RunnerError | None = None
    is_polite: bool = False

    @property
    def was_requested(self) -> bool:
        return self.cause == _STOPPED


_STOPPED = Cause(DeathKind.STOPPED, "stopped")


class _Keeper:
    def __init__(
        self,
        spec: WorkerSpec,
        report: Callable[[KeeperEvent], None],
        settings: KeeperSettings,
        workers: WorkerSource,
    ) -> None:
        self._spec = spec
        self._model = spec.model.name
        self._report = report
        self._settings = settings
        self._load_frames = encode(load_message(spec.engine, spec.files, spec.options))
        self._outbox = Outbox(settings.outbox_limit_bytes)
        self._states = StateTraffic(settings.states, spec.files, spec.options, self._outbox, settings.saving)
        self._decoder = FromWorkerDecoder()
        self._phase = _Phase.STARTING
        self._started_s = trio.current_time()
        self._memory_kills = kernel_memory_kills()
        self._told_fraction = -1.0
        self._load_watch: LoadWatch | None = None
        self._loaded: Loaded | None = None
        self._handle: WorkerHandle | None = None
        self._ending: _Ending | None = None
        self._unsent = memoryview(b"")
        """Of the frames that are being sent."""
        self._reading = trio.CancelScope()
        self._workers: WorkerSource | None = workers
        self._process = workers.take_or_start()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._process.supervise)
            ending = _Ending(cause=_STOPPED, is_polite=True)
            try:
                ending = await self._serve()
            except Exception:  # not Cancelled, nor a group of nothing else
                ending = _Ending(cause=Cause(DeathKind.DAEMON_FAULT, "a fault of the daemon"), is_polite=True)
                raise
            finally:
                with trio.CancelScope(shield=True):
                    await self._end(ending)

    async def _serve(self) -> _Ending:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            nursery.start_soon(self._watch_exit)
            nursery.start_soon(self._watch_progress)
            nursery.start_soon(self._states.serve)
            ending = await self._read()
            nursery.cancel_scope.cancel()
        return ending

    async def _read(self) -> _Ending:
        """Frames in, events out, until there is a reason to end."""
        with self._reading:
            while self._ending is None:
                data = await self._receive()
                if not data:
                    return _Ending()
                self._take(data)
        assert self._ending is not None, "only an interruption ends the reading from outside"
        return self._ending

    async def _receive(self) -> bytes:
        """b"" at the end of the channel; a crash breaks it now and then instead of ending it."""
        try:
            return bytes(await self._process.channel.receive_some(_READ_BYTES))
        except trio.BrokenResourceError:
            return b""

    def _take(self, data: bytes) -> None:
        try:
            self._handle_all(self._decoder.feed(data))
        except ProtocolFault as fault:
            self._handle_all(fault.preceding)  # what came whole before it counts
            self._ending = self._ending or _protocol_fault(fault.reason)

    def _handle_all(self, messages: Iterable[object]) -> None:
        for message in messages:
            if self._ending is None:
                self._handle_message(message)

    def _handle_message(self, message: object) -> None:
        """1. Hello, once.  2. LoadProgress, until Loaded or LoadFailed.  3. The rest, from Loaded on."""
        match self._phase, message:
            case _Phase.STARTING, Hello():
                self._start_loading(message)
            case _Phase.LOADING, LoadProgress():
                self._tell_progress(message.fraction)
            case _Phase.LOADING, Loaded():
                self._become_ready(message)
            case _Phase.LOADING, LoadFailed():
                cause = Cause(DeathKind.LOADING_FAILED, "loading failed")
                error = load_error(message, self._spec.files)
                self._ending = _Ending(cause=cause, load_error=error, is_polite=True)
            case _Phase.READY, Step():
                assert self._handle is not None
                self._handle.deliver(message)
            case _Phase.READY, AnnexClosed() if self._handle and self._handle.annex_closed():
                pass
            case _Phase.READY, WantState() | SaveState() | SavedPart() if self._states.hear(message):
                pass
            case _:
                unexpected = f"{type(message).__name__} from a worker that is {self._phase.value}"
                self._ending = _protocol_fault(unexpected)

    def _start_loading(self, hello: Hello) -> None:
        if hello.protocol_version != PROTOCOL_VERSION:
            difference = f"version {hello.protocol_version} where {PROTOCOL_VERSION} is spoken"
            self._ending = _protocol_fault(difference)
            return
        self._phase = _Phase.LOADING
        self._load_watch = LoadWatch(
            self._settings.watchdog, self._spec.files.weights_bytes, trio.current_time()
        )
        if self._spec.private_bytes_max is not None:
            self._process.limit_private_memory(self._spec.private_bytes_max)
        self._outbox.put(self._load_frames)

    def _tell_progress(self, fraction: float) -> None:
        assert self._load_watch is not None
        self._load_watch.progressed(fraction, trio.current_time())
        if fraction >= self._told_fraction + 0.01:
            self._told_fraction = fraction
            self._report(WorkerLoadProgress(fraction))

    def _become_ready(self, loaded: Loaded) -> None:
        self._phase = _Phase.READY
        self._end_load()
        self._loaded = loaded
        self._handle = WorkerHandle(
            model=self._model,
            loaded=loaded,
            pid=self._process.pid,
            outbox=self._outbox,
            resident_bytes=self._process.resident_bytes,
            watch=WorkWatch(self._settings.watchdog, self._spec.files.weights_bytes),
            n_threads=self._spec.options.n_threads,
        )
        self._states.loaded(loaded)
        self._report(WorkerReady(self._handle, loaded))

    def _end_load(self) -> None:
        """Once, at the latest when the worker ends."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.load_over()

    async def _write(self) -> None:
        try:
            while True:
                self._unsent = memoryview(await self._outbox.take())
                while self._unsent:
                    n_sent = await self._process.channel.socket.send(self._unsent)
                    self._unsent = self._unsent[n_sent:]
        except OSError:
            pass  # the worker is gone, which the reading side is about to see

    async def _watch_exit(self) -> None:
        """The end of the channel tells it sooner, unless a descendant of the worker holds it open."""
        await self._process.exited.wait()
        await trio.sleep(1)
        self._interrupt(_Ending())

    async def _watch_progress(self) -> None:
        """Until a deadline has passed, and passed still after what has arrived meanwhile was read."""
        while not self._is_overdue():
            await self._until_next_look()
        self._interrupt(self._stuck())

    async def _until_next_look(self) -> None:
        """At the deadline and its grace, or sooner, since the deadline moves."""
        if self._handle is not None and self._handle.watch.is_idle:
            await self._handle.until_used()
        left_s = self._due_s + self._settings.watchdog.grace_s - trio.current_time()
        await trio.sleep(min(max(left_s, 0.0), _LOOK_S))

    @property
    def _due_s(self) -> float:
        if self._handle is not None:
            return self._handle.watch.due_s
        if self._load_watch is not None:
            return self._load_watch.due_s
        return self._started_s + self._settings.watchdog.start_s

    def _is_overdue(self) -> bool:
        return trio.current_time() >= self._due_s + self._settings.watchdog.grace_s

    def _stuck(self) -> _Ending:
        if self._handle is not None:
            return _Ending(cause=Cause(DeathKind.NO_PROGRESS, self._handle.watch.complaint))
        if self._load_watch is not None:
            kind, complaint = DeathKind.NO_PROGRESS, self._load_watch.complaint
        else:
            limit_s = self._settings.watchdog.start_s
            kind, complaint = DeathKind.NOT_STARTED, f"not started within {limit_s:g} s"
        error = LoadTimeout(f"{self._model} could not be loaded: {complaint}")
        return _Ending(cause=Cause(kind, complaint), load_error=error)

    def _interrupt(self, ending: _Ending) -> None:
        self._ending = self._ending or ending
        self._reading.cancel()

    async def _end(self, ending: _Ending) -> None:
        """Tell those who wait, as soon as the cause is known, and see the process off."""
        request_ids: tuple[str, ...] = ()
        try:
            if ending.cause is None:
                ending = await self._await_exit(ending)
            if self._handle is not None:
                request_ids = self._handle.open_request_ids
            self._tell(ending)
        finally:
            self._end_load()
            await self._see_off(ending)
            await self._states.end()
            self._report(WorkerEnded(self._death_report(ending, request_ids)))

    async def _await_exit(self, ending: _Ending) -> _Ending:
        """The channel ended: 1. so does the process, and says why.  2. It lives on: that is a fault."""
        with trio.move_on_after(self._settings.stop.polite_s):
            await self._process.exited.wait()
        if self._process.status is None:
            return _protocol_fault("it closed its channel")
        return attrs.evolve(ending, cause=self._cause_of(self._process.status))

    def _cause_of(self, status: ExitStatus) -> Cause:
        is_oom = kernel_memory_kills() > self._memory_kills
        return cause_of_exit(status, self._process.output.text(), was_out_of_memory=is_oom)

    def _tell(self, ending: _Ending) -> None:
        cause = ending.cause.text if ending.cause else "unknown"
        if self._handle is not None:
            crashed = WorkerCrashed(model=self._model, cause=cause)
            stopped = Unavailable(f"{self._model} was stopped")
            self._handle.fail(stopped if ending.was_requested else crashed)
            if not ending.was_requested:
                self._report(WorkerFailing(cause))
        elif not ending.was_requested:
            died = LoadingFailed(f"the worker of {self._model} ended before it was ready ({cause})")
            self._report(WorkerLoadFailed(ending.load_error or died))

    async def _see_off(self, ending: _Ending) -> None:
        """Its states are wanted only of a worker that did nothing wrong."""
        times = self._settings.stop
        if not ending.is_polite:
            await self._process.stop(None, times)
        elif not ending.was_requested:
            await self._process.stop(partial(self._ask, Shutdown()), times)
        else:
            times = attrs.evolve(times, polite_s=times.polite_s + self._states.save_s)
            await self._process.stop(partial(self._ask, self._states.farewell()), times)

    async def _ask(self, farewell: Shutdown) -> None:
        """`Shutdown`, then read on: it may save states, and is to come out of a send that it is in."""
        channel = self._process.channel
        try:
            await channel.send_all(bytes(self._unsent) + encode(farewell))
            while data := await channel.receive_some(_READ_BYTES):
                await self._states.take(self._last_words(bytes(data)))
        except trio.BrokenResourceError:
            pass

    def _last_words(self, data: bytes) -> Iterable[object]:
        """From the first fault on nothing is believed; it is ending anyway."""
        try:
            return self._decoder.feed(data)
        except ProtocolFault as fault:
            return fault.preceding

    def _death_report(self, ending: _Ending, request_ids: tuple[str, ...]) -> DeathReport:
        status = self._process.status
        cause = ending.cause or Cause(DeathKind.DAEMON_FAULT, "unknown")
        if cause.kind is DeathKind.LOADING_FAILED and status is not None and status.exit_code:
            cause = self._cause_of(status)  # it still said so, and then did not end in order
        return DeathReport(
            model=self._model,
            model_id=str(self._spec.model.id),
            engine_version=self._loaded.engine_version if self._loaded else self._settings.engine_version,
            pid=self._process.pid,
            kind=cause.kind,
            cause=cause.text + ("" if status else "; the process could not be ended"),
            exit_code=status.exit_code if status else None,
            signal=status.signal if status else None,
            phase=self._phase.value,
            lived_s=trio.current_time() - self._started_s,
            stderr_tail=self._process.output.text(),
            request_ids=request_ids,
            was_requested=ending.was_requested,
        )


def _protocol_fault(reason: str) -> _Ending:
    return _Ending(cause=Cause(DeathKind.PROTOCOL_FAULT, f"protocol fault: {reason}"))


def _report_no_start(
    spec: WorkerSpec, report: Callable[[KeeperEvent], None], settings: KeeperSettings, cause: str
) -> None:
    report(WorkerLoadFailed(LoadingFailed(f"the worker of {spec.model.name} {cause}")))
    death = DeathReport.of_no_process(
        model=spec.model.name,
        model_id=str(spec.model.id),
        engine_version=settings.engine_version,
        cause=cause,
    )
    report(WorkerEnded(death))
