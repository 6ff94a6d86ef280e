"""The worker: load one model, then receive, step, send, until told to stop.

    reader thread        Generate ──> preparation thread ──┐
                         Cancel, SetThreads, Shutdown ─────┤
                                                           v
    step thread (main)   inbox ──> Engine.submit / cancel ──> Engine.step ──> one Step frame

The step thread alone touches the engine and writes to the channel. It sends one frame per step with
everything that happened, or one for several where steps are so short that nobody could see the difference,
and blocks on its inbox when there is nothing to do. When the daemon closes the
channel the reader ends the process at once, also in the middle of native code: nobody is left to work for
(W10).

Imports `runner.engine`, `runner.wire` and this package; the engine's implementation only when a model names
it. Read on in `preparation.py`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

import attrs

from runner.domain.engine import EngineOptions
from runner.domain.events import Accepted, Failed, TextDelta
from runner.engine.backend import Backend, load_backend
from runner.engine.embed import EmbeddingRequest
from runner.engine.engine import Engine, EngineStatistics, SequenceRequest, StepOutput
from runner.errors import LoadingFailed, ProtocolFault, QueueFull, RunnerError
from runner.wire.messages import (
    PROTOCOL_VERSION,
    AnnexClosed,
    Cancel,
    CloseAnnex,
    Generate,
    Hello,
    Loaded,
    LoadFailed,
    LoadModel,
    LoadProgress,
    MoreParts,
    OfferStates,
    SetThreads,
    Shutdown,
    StateGone,
    StateKept,
    StatePart,
    Step,
    StepEvent,
    ToWorker,
)
from runner.worker.channel import Channel, DaemonGone
from runner.worker.preparation import (
    QUEUE_MAX,
    Answered,
    Outcome,
    Preparation,
    Prepared,
    Preparer,
    Refused,
    failure,
)
from runner.worker.states import StateAnswer, StateCarrier

EXIT_DONE: Final = 0
"""Told to stop, or the daemon has closed the channel, or the load has failed and the daemon was told so."""
EXIT_PROTOCOL: Final = 3
EXIT_DEAF_DAEMON: Final = 4
EXIT_PREPARATION: Final = 5

_PROGRESS_INTERVAL_S = 0.05
FRAME_INTERVAL_S: Final = 0.05
"""Text waits so long for more of it, which is 20 times a second. Beside a small model that uses all cores, a
frame for every token of 6 ms took a tenth of its speed: each wakes the daemon and the client there."""
_CLOSE_WAIT_S = 1.0
"""For the preparation thread, within the two seconds after which the daemon sends SIGTERM."""

LimitsOf = Callable[[EngineOptions], Callable[[], AbstractContextManager[object]]]
"""Of an engine's options: what to enter around everything that runs a template."""


@attrs.frozen
class _Ended:
    """The reader or the preparation thread has ended; the process goes with `exit_code`."""

    exit_code: int


_Item = LoadModel | Cancel | SetThreads | CloseAnnex | StateAnswer | Shutdown | Outcome | _Ended


class Worker:
    """One per process. `run` is called once, in the main thread; `exit_process` does not return, outside
    tests."""

    def __init__(
        self,
        channel: Channel,
        *,
        limits_of: LimitsOf,
        on_loaded: Callable[[], object] = lambda: None,
        exit_process: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = channel
        self._limits_of = limits_of
        self._on_loaded = on_loaded
        self._exit_process = exit_process
        self._clock = clock
        self._inbox: SimpleQueue[_Item] = SimpleQueue()
        self._is_stopping = threading.Event()
        self._events: list[tuple[str, StepEvent]] = []
        """Since the last frame: of requests that were accepted or refused, and text that waits for more."""
        self._work = _Work()
        self._frame_due_s = 0.0
        self._states = StateCarrier(channel.send)
        self._told: EngineStatistics | None = None
        self._progress_due_s = 0.0
        self._preparation = Preparation(
            self._inbox.put, on_fault=lambda: self._end(EXIT_PREPARATION), clock=clock
        )
        self._reader = threading.Thread(target=self._read, name="reader", daemon=True)

    def run(self) -> int:
        """The exit code. Afterwards the channel is closed and, with one exception, no thread of ours is left:
        a preparation that is still busy, whose memory must not be freed; then the process has to end now."""
        self._reader.start()
        engine: Engine | None = None
        try:
            self._channel.send(Hello(protocol_version=PROTOCOL_VERSION, pid=os.getpid()))
            engine = self._await_model()
            return EXIT_DONE if engine is None else self._serve(engine)
        except DaemonGone:
            return EXIT_DEAF_DAEMON
        except _Stop as stop:
            return stop.exit_code
        finally:
            self._is_stopping.set()
            self._states.close()
            if self._preparation.close(_CLOSE_WAIT_S) and engine is not None:
                engine.close()
            self._channel.shut_down()
            self._reader.join()
            self._channel.close()

    # the reader thread

    def _read(self) -> None:
        exit_code = EXIT_DONE
        try:
            for message in self._channel.messages():
                self._route(message)
        except ProtocolFault as fault:
            sys.stderr.write(f"{fault}\n")
            exit_code = EXIT_PROTOCOL
        if not self._is_stopping.is_set():
            self._end(exit_code)

    def _route(self, message: ToWorker) -> None:
        match message:
            case Generate():
                if not self._preparation.submit(message.request):
                    self._inbox.put(Refused(message.request.request_id, _queue_full()))
            case Cancel():
                self._preparation.discard(message.request_id)
                self._inbox.put(message)
            case Shutdown():
                self._is_stopping.set()  # seen by a load under way
                self._inbox.put(message)
            case LoadModel() | SetThreads() | CloseAnnex():
                self._inbox.put(message)
            case OfferStates() | StatePart() | StateGone() | MoreParts() | StateKept():
                self._inbox.put(message)

    def _end(self, exit_code: int) -> None:
        self._exit_process(exit_code)
        self._inbox.put(_Ended(exit_code))

    # loading

    def _await_model(self) -> Engine | None:
        """None when there will be none: told to stop, or the load failed and the daemon knows."""
        item = self._inbox.get()
        match item:
            case LoadModel():
                return self._load(item)
            case Shutdown():
                return None
            case _Ended():
                raise _Stop(item.exit_code)
            case _:
                sys.stderr.write(f"{type(item).__name__} before a model was named\n")
                raise _Stop(EXIT_PROTOCOL)

    def _load(self, message: LoadModel) -> Engine | None:
        started_s = self._clock()
        # For the engine's back ends, which read them when they are initialised; that happens in this load.
        os.environ.update({pin.variable: pin.value for pin in message.pins})
        try:
            path, *further_parts = map(Path, message.weights_paths)
            backend = load_backend(
                message.engine,
                path,
                message.options,
                self._report_progress,
                further_parts=tuple(further_parts),
            )
        except RunnerError as error:
            if not self._is_stopping.is_set():
                self._channel.send(LoadFailed(code=error.code, message=str(error)))
            return None
        except (MemoryError, OSError, ImportError) as error:
            self._channel.send(
                LoadFailed(code=LoadingFailed.code, message=f"the engine failed: {type(error).__name__}")
            )
            raise
        self._preparation.begin(lambda: self._make_preparer(backend, message))
        self._on_loaded()
        engine = Engine(backend, message.options, clock=self._clock)
        self._channel.send(_loaded(backend, message.options, self._clock() - started_s))
        return engine

    def _report_progress(self, fraction: float) -> bool:
        """Tells the daemon at most 20 times a second; False when the load is to be given up.

        The first report comes when the engine's own code is at work, which leaves the interpreter to others.
        """
        self._preparation.warm_up()
        now_s = self._clock()
        if now_s >= self._progress_due_s or fraction >= 1.0:
            self._progress_due_s = now_s + _PROGRESS_INTERVAL_S
            self._channel.send(LoadProgress(min(max(fraction, 0.0), 1.0)))
        return not self._is_stopping.is_set()

    def _make_preparer(self, backend: Backend, message: LoadModel) -> Preparer:
        """In the preparation thread, which has imported these."""
        from runner.chat.control_text import ControlTexts
        from runner.chat.template import ChatTemplate
        from runner.worker.reasoning import ReasoningReader

        template = ChatTemplate(
            message.chat_template or backend.chat_template,
            backend.bos_text,
            backend.eos_text,
            guard=self._limits_of(message.options),
        )
        template.prepare()
        return Preparer(
            backend,
            message.options,
            template,
            ControlTexts(backend.control_texts),
            ReasoningReader(backend, template),
        )

    # serving

    def _serve(self, engine: Engine) -> int:
        while True:
            for item in self._items(wait=not (engine.has_work or self._states.has_to_send(engine))):
                match item:
                    case Shutdown():
                        if item.save_bytes:
                            self._states.leave(engine, item, self._clock)
                        return EXIT_DONE
                    case _Ended():
                        return item.exit_code
                    case LoadModel():
                        sys.stderr.write("a second model\n")
                        return EXIT_PROTOCOL
                    case Cancel():
                        self._cancel(engine, item.request_id)
                    case SetThreads():
                        engine.set_threads(item.n_threads)
                    case CloseAnnex():
                        engine.close_annex()
                        self._channel.send(AnnexClosed())
                    case Prepared():
                        self._submit(engine, item.request)
                    case OfferStates() | StatePart() | StateGone() | MoreParts() | StateKept():
                        self._states.hear(item, engine)
                    case Refused():
                        self._events.append((item.request_id, item.failed))
                    case Answered():
                        self._send_step(engine, ((item.request_id, item.examined),))  # may fill a frame
            self._states.advance(engine)
            self._advance(engine)

    def _items(self, *, wait: bool) -> Iterator[_Item]:
        """Everything in the inbox; at least one item when `wait` is true."""
        if wait:
            yield self._inbox.get()
        while True:
            try:
                yield self._inbox.get_nowait()
            except Empty:
                return

    def _cancel(self, engine: Engine, request_id: str) -> None:
        engine.cancel(request_id)
        self._events = [event for event in self._events if event[0] != request_id]

    def _submit(self, engine: Engine, request: SequenceRequest | EmbeddingRequest) -> None:
        event: StepEvent = Accepted(prompt_tokens=request.n_tokens_longest)
        try:
            if engine.n_waiting >= QUEUE_MAX:
                event = _queue_full()
            else:
                engine.submit(request)
        except RunnerError as error:
            event = failure(error)
        self._events.append((request.request_id, event))

    def _advance(self, engine: Engine) -> None:
        """One step, if there is work, and one frame, if anything happened, a cancel included."""
        if engine.has_work:
            output = engine.step()
            self._events += output.events
            self._work.add(output)
            if self._may_wait(engine, output):
                return
        events, self._events = self._events, []
        if events or engine.statistics() != self._told:
            self._send_step(engine, tuple(events))

    def _may_wait(self, engine: Engine, output: StepOutput) -> bool:
        """Whether all that there is to tell is text, of which more comes with the next step: everybody had a
        part in this one, so that no prompt is read before."""
        if not self._events or self._clock() >= self._frame_due_s:
            return False
        if any(type(event) is not TextDelta for _, event in self._events):
            return False
        return 0 < engine.n_running == output.decode_tokens and not engine.n_waiting

    def _send_step(self, engine: Engine, events: tuple[tuple[str, StepEvent], ...]) -> None:
        statistics = self._told = engine.statistics()
        work, self._work = self._work, _Work()
        self._frame_due_s = self._clock() + FRAME_INTERVAL_S
        self._channel.send(
            Step(
                step_index=statistics.step_index,
                prefill_tokens=work.prefill_tokens,
                decode_tokens=work.decode_tokens,
                running=statistics.running,
                waiting=statistics.waiting,
                cells_used=statistics.cells_used,
                cells_retained=statistics.cells_retained,
                host_tokens=statistics.host_tokens,
                step_s=work.step_s,
                computing_s=work.computing_s,
                counts=statistics.counts,
                events=events,
            )
        )


@attrs.define
class _Work:
    """Of the steps since the last frame."""

    prefill_tokens: int = 0
    decode_tokens: int = 0
    step_s: float = 0.0
    computing_s: float = 0.0

    def add(self, output: StepOutput) -> None:
        self.prefill_tokens += output.prefill_tokens
        self.decode_tokens += output.decode_tokens
        self.step_s += output.step_s
        self.computing_s += output.computing_s


class _Stop(Exception):
    """Leave before there is an engine."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def _loaded(backend: Backend, options: EngineOptions, load_s: float) -> Loaded:
    facts = backend.facts
    return Loaded(
        engine_version=facts.engine_version,
        context_size=min(options.context_size, options.n_cells),
        trained_context_size=facts.trained_context_size,
        n_vocab=facts.n_vocab,
        n_cells=options.n_cells,
        max_sequences=options.max_sequences,
        load_s=load_s,
        devices=facts.devices,
    )


def _queue_full() -> Failed:
    return failure(QueueFull("too many requests wait for this model"))
