"""A worker process that behaves as its command line says, and speaks the real protocol until told not to.

    python scripted_worker.py BEHAVIOUR[,BEHAVIOUR…] --channel-fd N --parent-pid P

Behaviours of the process: `normal`, `slow-hello`, `late-hello`, `wrong-version`, `two-hellos`,
`step-too-early`, `load-hangs`, `load-fails:CODE:MESSAGE`, `raise-at-end`, `exit-while-loading:N`,
`ignore-shutdown`, `ignore-sigterm`, `fork`, `noise`, `busy`, `wants:STATE`, `announces:BYTES` (a state, and
nothing of it), `pushes` (a part that nobody asked for); asked to save, `saves:BYTES`, `saves-half:BYTES` and
`saves-garbage:BYTES`: one state, half of one, or one and bytes that mean nothing.
Behaviours of one generation, as the text of its prompt: see `_generate`.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from runner.domain.events import Accepted, Finished, FinishReason, TextDelta, Timings, Usage
from runner.domain.generation import ChatPrompt, GenerationRequest, TextPrompt
from runner.wire.codec import FRAME_LIMIT_BYTES, ToWorkerDecoder, encode
from runner.wire.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Generate,
    Hello,
    Loaded,
    LoadFailed,
    LoadModel,
    LoadProgress,
    SavedPart,
    SaveState,
    Shutdown,
    Step,
    StepEvent,
    WantState,
)

_PR_SET_PDEATHSIG = 1


class Worker:
    def __init__(self, behaviours: list[str], channel: socket.socket) -> None:
        self._behaviours = behaviours
        self._channel = channel
        self._decoder = ToWorkerDecoder()
        self._step_index = 0
        self._held: set[str] = set()

    def run(self) -> None:
        self._start()
        while data := self._channel.recv(65_536):
            for message in self._decoder.feed(data):
                match message:
                    case LoadModel():
                        self._load()
                    case Generate(request):
                        self._generate(request)
                    case Cancel(request_id):
                        self._held.discard(request_id)
                        self._step()  # a sign that it was read
                    case Shutdown() if "ignore-shutdown" not in self._behaviours:
                        if message.save_bytes:
                            self._save()
                        return
        if "ignore-shutdown" in self._behaviours:
            _sleep_for_ever()

    def _has(self, behaviour: str) -> bool:
        return behaviour in self._behaviours

    def _argument(self, behaviour: str) -> str | None:
        for text in self._behaviours:
            if text.startswith(f"{behaviour}:"):
                return text.partition(":")[2]
        return None

    def _start(self) -> None:
        if self._has("ignore-sigterm"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self._has("fork"):
            _fork_a_descendant()
        if self._has("noise"):
            _print_noise(200_000)
        if self._has("late-hello"):
            self._channel.recv(1)  # whoever wants to be greeted says so
        if self._has("slow-hello"):
            self._channel.sendall(b"\x00")  # a byte of a frame: not silence, and no greeting either
            _sleep_for_ever()
        if self._has("step-too-early"):
            self._step()
        version = PROTOCOL_VERSION + 1 if self._has("wrong-version") else PROTOCOL_VERSION
        self._send(encode(Hello(protocol_version=version, pid=os.getpid())))
        if self._has("two-hellos"):
            self._send(encode(Hello(protocol_version=version, pid=os.getpid())))

    def _load(self) -> None:
        if (failure := self._argument("load-fails")) is not None:
            code, _, message = failure.partition(":")
            self._send(encode(LoadFailed(code=code, message=message)))
            if self._has("raise-at-end"):
                raise MemoryError
            return
        for percent in range(0, 101, 50):
            self._send(encode(LoadProgress(percent / 100)))
        if self._has("load-hangs"):
            _sleep_for_ever()
        if (status := self._argument("exit-while-loading")) is not None:
            os._exit(int(status))
        loaded = Loaded(
            engine_version="scripted 1",
            context_size=100,
            trained_context_size=100,
            n_vocab=256,
            n_cells=200,
            max_sequences=4,
            load_s=0.01,
        )
        self._send(encode(loaded))
        if (state_id := self._argument("wants")) is not None:
            self._send(encode(WantState(int(state_id))))
        if (size := self._argument("announces")) is not None:
            self._send(encode(SaveState(owner="", tokens=(1, 2, 3), size_bytes=int(size))))
        if self._has("pushes"):
            self._send(encode(SavedPart(b"x")))
        if self._has("busy"):
            _spin_for_ever()

    def _save(self) -> None:
        for behaviour in ("saves", "saves-half", "saves-garbage"):
            if (size := self._argument(behaviour)) is not None:
                announced = int(size) * (2 if behaviour == "saves-half" else 1)
                self._send(encode(SaveState(owner="", tokens=(1, 2, 3), size_bytes=announced)))
                self._send(encode(SavedPart(b"x" * int(size))))
                if behaviour == "saves-garbage":
                    self._send(b"\xff" * 100_000)

    def _generate(self, request: GenerationRequest) -> None:
        """`say …`: one delta per word, all in one step each. `hold`: one delta, then only Cancel or the end.

        `die SIGNAL`, `exit N`, `raise`, `garbage`, `oversized`, `stop`, `close`, `descendant`, `heartbeat`:
        one delta, then what it says. `early …`: the same without a delta. `burst N`: N deltas of 1000 bytes;
        `last N`: the same, and exit. `noise`: 8 MiB to stderr, then a normal end. `report`: facts about this
        process as JSON. `length`: that of the prompt.
        """
        text = request.prompt.text if isinstance(request.prompt, TextPrompt) else _joined(request.prompt)
        word, _, argument = text.partition(" ")
        name = request.request_id
        if word == "early":
            self._act(argument)
        self._step((name, Accepted(prompt_tokens=len(text))))
        match word:
            case "say":
                for piece in argument.split(" "):
                    self._step((name, TextDelta(piece, 1)))
            case "burst" | "last":
                for _ in range(int(argument)):
                    self._step((name, TextDelta("x" * 1000, 1)))
                if word == "last":
                    os._exit(3)
            case "report":
                self._step((name, TextDelta(json.dumps(_facts()), 1)))
            case "length":
                self._step((name, TextDelta(str(len(text)), 1)))
            case "noise":
                _print_noise(8 * 1024 * 1024)
            case "hold":
                self._held.add(name)
                self._step((name, TextDelta("held", 1)))
                return
            case _:
                self._step((name, TextDelta("before", 1)))
                self._act(text)
                return
        usage = Usage(prompt_tokens=1, completion_tokens=1)
        timings = Timings(queued_s=0, prefill_s=0, decode_s=0)
        self._step((name, Finished(reason=FinishReason.STOP, usage=usage, timings=timings)))

    def _act(self, text: str) -> None:
        word, _, argument = text.partition(" ")
        actions: dict[str, Callable[[], object]] = {
            "die": lambda: os.kill(os.getpid(), signal.Signals[argument]),
            "exit": lambda: os._exit(int(argument)),
            "garbage": lambda: self._send(b"\x00\x00\x00\x04\xc1\xc1\xc1\xc1"),
            "oversized": lambda: self._send(struct.pack(">I", FRAME_LIMIT_BYTES + 1)),
            "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
            "close": self._channel.close,
            "heartbeat": self._beat,
            "descendant": lambda: _fork_a_descendant(apart=argument == "apart"),
        }
        if word == "raise":
            raise ValueError(f"a secret: {argument}")
        actions[word]()
        if word == "descendant":
            os._exit(0)
        _sleep_for_ever()

    def _step(self, *events: tuple[str, StepEvent]) -> None:
        self._step_index += 1
        step = Step(
            step_index=self._step_index,
            prefill_tokens=0,
            decode_tokens=len(events),
            running=len(self._held),
            waiting=0,
            cells_used=self._step_index,
            events=events,
        )
        self._send(encode(step))

    def _beat(self) -> None:
        """Frames for ever, and no work in them."""
        while True:
            self._step()
            time.sleep(0.05)

    def _send(self, data: bytes) -> None:
        self._channel.sendall(data)


def _joined(prompt: object) -> str:
    assert isinstance(prompt, ChatPrompt)
    return "\n".join(message.content for message in prompt.messages)


def _facts() -> dict[str, object]:
    links = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            links[path.name] = str(path.readlink())
        except OSError:  # the descriptor of this listing
            continue
    cwd = Path.cwd()
    return {
        "environment": dict(os.environ),
        "descriptors": links,
        "cwd": str(cwd),
        "cwd_entries": [path.name for path in cwd.iterdir()],
        "cwd_mode": cwd.stat().st_mode & 0o777,
        "pid": os.getpid(),
        "process_group": os.getpgid(0),
        "session": os.getsid(0),
        "core_limit": resource.getrlimit(resource.RLIMIT_CORE),
        "path": sys.path,
    }


def _fork_a_descendant(*, apart: bool = False) -> None:
    """Lives on, deaf to SIGTERM, with the channel and the output pipe open; its pid is printed.

    `apart`: in a session and a process group of its own.
    """
    ready, tell = os.pipe()
    if (pid := os.fork()) == 0:
        if apart:
            os.setsid()
        os.write(tell, b"x")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _sleep_for_ever()
    os.read(ready, 1)
    print(f"descendant {pid}", file=sys.stderr, flush=True)


def _print_noise(size_bytes: int) -> None:
    line = b"\x1b[31mnoise\x1b[0m \x07" + b"n" * 984 + b"\n"
    for _ in range(size_bytes // len(line)):
        os.write(2, line)
    os.write(2, b"the last line\n")


def _sleep_for_ever() -> None:
    while True:
        time.sleep(1000)


def _spin_for_ever() -> None:
    while True:
        pass


def main() -> None:
    behaviours, _, channel_fd, _, parent_pid = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent_pid):
        os._exit(1)
    with socket.socket(fileno=int(channel_fd)) as channel:
        Worker(behaviours.split(","), channel).run()


if __name__ == "__main__":
    main()
