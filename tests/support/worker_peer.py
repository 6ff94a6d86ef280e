"""The daemon's side of a worker, for tests: says things, collects what comes back, never waits for ever."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

from runner.domain.engine import EngineOptions
from runner.domain.events import Examined, Failed, Finished, GenerationEvent, TextDelta
from runner.domain.generation import ChatMessage, ChatPrompt, GenerationRequest, Prompt
from runner.domain.sampling import SamplingParams
from runner.wire.codec import FromWorkerDecoder, encode
from runner.wire.messages import (
    FromWorker,
    Generate,
    Hello,
    Loaded,
    LoadFailed,
    LoadModel,
    LoadProgress,
    Shutdown,
    Step,
    ToWorker,
)
from runner.worker.channel import Channel
from runner.worker.loop import LimitsOf, Worker

PATIENCE_S = 20.0
ROOMY = EngineOptions(context_size=8192, n_cells=16384, max_sequences=4, prefill_chunk=64)
ENDLESS = "[[forever]][[slow 1]]"
"""Asked with `ROOMY`, it goes on for seconds: other requests have time to come."""
OPTIONS = EngineOptions(context_size=256, n_cells=512, max_sequences=4, prefill_chunk=64)


def chat(request_id: str, text: str, **fields: object) -> Generate:
    prompt = ChatPrompt(messages=(ChatMessage(role="user", content=text),))
    return generate(request_id, prompt, **fields)


def generate(request_id: str, prompt: Prompt, **fields: object) -> Generate:
    return Generate(
        GenerationRequest(
            request_id=request_id,
            prompt=prompt,
            sampling=SamplingParams(temperature=0.0),
            **fields,  # type: ignore[arg-type]  # whatever a test wants to set
        )
    )


class Peer:
    """One end of a channel. `steps` are all Step frames so far."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.settimeout(PATIENCE_S)
        self._decoder = FromWorkerDecoder()
        self._arrived: list[FromWorker] = []
        self.steps: list[Step] = []

    def send(self, *messages: ToWorker) -> None:
        for message in messages:
            self._socket.sendall(encode(message))

    def send_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> FromWorker | None:
        """The next message; None when the worker has closed the channel."""
        while not self._arrived:
            try:
                data = self._socket.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._arrived += self._decoder.feed(data)
        message = self._arrived.pop(0)
        if isinstance(message, Step):
            self.steps.append(message)
        return message

    def load(
        self,
        weights: Path,
        *,
        engine: str = "scripted",
        options: EngineOptions = OPTIONS,
        template: str | None = None,
    ) -> Loaded:
        """Say hello, load, and return what was loaded; an error when it fails."""
        answer = self.try_to_load(weights, engine=engine, options=options, template=template)
        assert isinstance(answer, Loaded), answer
        return answer

    def try_to_load(
        self,
        weights: Path,
        *,
        engine: str = "scripted",
        options: EngineOptions = OPTIONS,
        template: str | None = None,
    ) -> Loaded | LoadFailed:
        assert isinstance(self.receive(), Hello)
        self.send(
            LoadModel(engine=engine, weights_paths=(str(weights),), options=options, chat_template=template)
        )
        while isinstance(answer := self.receive(), LoadProgress):
            pass
        assert isinstance(answer, Loaded | LoadFailed), answer
        return answer

    def events_until(
        self, done: Callable[[dict[str, list[GenerationEvent]]], bool]
    ) -> dict[str, list[GenerationEvent]]:
        """Events by request id, from the next frame on, until `done` says so."""
        events: dict[str, list[GenerationEvent]] = {}
        while not done(events):
            step = self.receive()
            assert isinstance(step, Step), step
            for request_id, event in step.events:
                events.setdefault(request_id, []).append(event)
        return events

    def step_shared_by(self, *request_ids: str) -> Step:
        """The next step that decoded a token of each of these requests."""
        while True:
            step = self.receive()
            assert isinstance(step, Step), step
            names = {name for name, event in step.events if isinstance(event, TextDelta)}
            if names.issuperset(request_ids) and step.decode_tokens >= len(request_ids):
                return step

    def outcomes(self, *request_ids: str) -> dict[str, list[GenerationEvent]]:
        """All events of these requests, until each has ended."""
        return self.events_until(lambda events: all(has_ended(events.get(name, [])) for name in request_ids))

    def outcome(self, request_id: str) -> list[GenerationEvent]:
        return self.outcomes(request_id)[request_id]

    def close(self) -> None:
        self._socket.close()


def has_ended(events: list[GenerationEvent]) -> bool:
    return bool(events) and isinstance(events[-1], Finished | Failed | Examined)


def text_of(events: list[GenerationEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


class WorkerThread(Peer):
    """The loop in a thread of this process. `exit_codes` are what would have ended the process."""

    def __init__(
        self,
        *,
        limits_of: LimitsOf | None = None,
        send_timeout_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        mine, theirs = socket.socketpair()
        super().__init__(mine)
        self.exit_codes: list[int] = []
        self.returned: int | None = None
        self.raised: BaseException | None = None
        self.worker = Worker(
            Channel(theirs, send_timeout_s=send_timeout_s),
            limits_of=limits_of or (lambda _: nullcontext),
            exit_process=self.exit_codes.append,
            clock=clock,
        )
        self._thread = threading.Thread(target=self._run, name="worker under test")
        self._thread.start()

    def _run(self) -> None:
        try:
            self.returned = self.worker.run()
        except Exception as error:
            self.raised = error

    def join(self) -> int | None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the worker did not end"
        return self.returned

    def stop(self) -> None:
        """Whatever it is doing, also when it waits for somebody to read what it sends."""
        with contextlib.suppress(OSError):
            self.send(Shutdown())
        deadline_s = time.monotonic() + PATIENCE_S
        while self._thread.is_alive() and time.monotonic() < deadline_s:
            with contextlib.suppress(OSError):
                self._socket.settimeout(0.05)
                self._socket.recv(1 << 16)
        self.join()
        self.close()


class WorkerProcess(Peer):
    """A real `python -m runner.worker`, started from this thread."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        super().__init__(mine)
        fd = theirs.fileno()
        self.popen = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "runner.worker",
                "--channel-fd",
                str(fd),
                "--parent-pid",
                str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(fd,),
            start_new_session=True,
        )
        theirs.close()

    def wait(self) -> int:
        """The exit code, negative for a signal."""
        return self.popen.wait(PATIENCE_S)

    def output(self) -> tuple[str, str]:
        """What it wrote to stdout and stderr, after its end."""
        stdout, stderr = self.popen.communicate(timeout=PATIENCE_S)
        return stdout.decode(), stderr.decode()

    def stop(self) -> None:
        """Whatever state it is in."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.communicate(timeout=PATIENCE_S)
        self.close()


@contextlib.contextmanager
def worker_thread(
    *, limits_of: LimitsOf | None = None, send_timeout_s: float = PATIENCE_S
) -> Iterator[WorkerThread]:
    worker = WorkerThread(limits_of=limits_of, send_timeout_s=send_timeout_s)
    try:
        yield worker
    finally:
        worker.stop()


@contextlib.contextmanager
def worker_process() -> Iterator[WorkerProcess]:
    worker = WorkerProcess()
    try:
        yield worker
    finally:
        worker.stop()
