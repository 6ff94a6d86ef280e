"""What can happen to a worker, made to happen at a moment: to any worker, from outside, or by a script.

    signals, garbage on its channel, a flood on its log      from outside, whatever engine runs
    memory that grows beyond the limit                       by a directive of the scripted engine

Used by tests and by `scripts/faults.py`. Linux; the caller owns the processes.
"""

from __future__ import annotations

import ctypes
import errno
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import psutil

from tests.support.daemon import RunningDaemon

T = TypeVar("T")

_PIDFD_GETFD: Final = 438  # asm-generic/unistd.h
_CHANNEL_FD: Final = 100  # runner/worker/channel.py moves it there
_THREADS_OF_A_READY_WORKER: Final = 3
_FLOOD_BYTES: Final = 16 * 1024 * 1024
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


# faults


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def segfault(pid: int) -> None:
    os.kill(pid, signal.SIGSEGV)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def send_garbage(pid: int) -> None:
    """As if the worker had sent it: bytes that are no frame."""
    with _its_channel(pid) as channel:
        channel.sendall(b"\x00\x00\x00\x04\xc1\xc1\xc1\xc1")


def flood_log(pid: int) -> None:
    """16 MiB on its stderr, as fast as the daemon takes it."""
    with Path(f"/proc/{pid}/fd/2").open("wb", buffering=0) as log:
        line = b"\x1b[31mnoise " + b"n" * 900 + b"\n"
        for _ in range(_FLOOD_BYTES // len(line)):
            log.write(line)


@contextmanager
def _its_channel(pid: int) -> Iterator[socket.socket]:
    """Also of a worker that has only just begun and has yet to move it to its place."""
    pidfd = os.pidfd_open(pid)
    try:
        fd = wait_for(lambda: _get_fd(pidfd), within_s=10.0)
    finally:
        os.close(pidfd)
    with socket.socket(fileno=fd) as channel:
        yield channel


def _get_fd(pidfd: int) -> int | None:
    fd: int = _LIBC.syscall(_PIDFD_GETFD, pidfd, _CHANNEL_FD, 0)
    if fd < 0 and ctypes.get_errno() != errno.EBADF:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return fd if fd >= 0 else None


OUTSIDE: Final[dict[str, Callable[[int], None]]] = {
    "SIGKILL": kill,
    "SIGSEGV": segfault,
    "SIGSTOP": stop,
    "garbage frames": send_garbage,
    "stderr flood": flood_log,
}


# what clients see


@attrs.frozen(kw_only=True)
class Seen:
    """One answer. `status` 0: none came. `code` is of an error, in the body or in the stream; `is_whole`: a
    normal end was there. `ended_s` is on `time.monotonic`'s clock."""

    status: int
    code: str | None
    text: str
    is_whole: bool
    ended_s: float

    def __str__(self) -> str:
        if self.status == 200 and self.is_whole:
            return "200, whole answer"
        end = f"error event {self.code}" if self.status == 200 and self.code else self.code or "cut off"
        return f"{self.status}, {end}"


@attrs.define
class Client:
    """One chat completion in a thread of its own."""

    daemon: RunningDaemon
    model: str
    text: str
    is_streamed: bool = False
    max_tokens: int | None = None
    timeout_s: float = 120.0
    began: threading.Event = attrs.field(factory=threading.Event, init=False)
    """Some text has arrived."""
    _seen: Seen | None = attrs.field(default=None, init=False)
    _thread: threading.Thread = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"client of {self.model}")
        self._thread.start()

    def seen(self) -> Seen:
        """Once it is there."""
        self._thread.join(self.timeout_s + 10)
        assert self._seen is not None, "a client hangs"
        return self._seen

    @property
    def is_done(self) -> bool:
        return self._seen is not None

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=self.timeout_s)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.text}],
            "stream": self.is_streamed,
            "temperature": 0,
        }
        if self.max_tokens is not None:
            body |= {"max_tokens": self.max_tokens, "ignore_eos": True}
        try:
            connection.request(
                "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            if self.is_streamed and response.status == 200:
                self._seen = self._read_stream(response)
            else:
                self._seen = _whole(response.status, json.loads(response.read()))
        except (OSError, http.client.HTTPException) as error:
            self._seen = Seen(
                status=0, code=type(error).__name__, text="", is_whole=False, ended_s=time.monotonic()
            )
        finally:
            connection.close()

    def _read_stream(self, response: http.client.HTTPResponse) -> Seen:
        text, code, is_whole = "", None, False
        for line in response:
            data = line.removeprefix(b"data: ").strip()
            if not line.startswith(b"data: "):
                continue
            if data == b"[DONE]":
                is_whole = True
                continue
            event = json.loads(data)
            code = event["error"]["code"] if "error" in event else code
            delta = "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
            text += delta
            if delta:
                self.began.set()
        return Seen(status=200, code=code, text=text, is_whole=is_whole, ended_s=time.monotonic())


def _whole(status: int, body: dict[str, Any]) -> Seen:
    if status == 200:
        content = body["choices"][0]["message"]["content"]
        return Seen(status=200, code=None, text=content, is_whole=True, ended_s=time.monotonic())
    return Seen(status=status, code=body["error"]["code"], text="", is_whole=False, ended_s=time.monotonic())


class Bystander:
    """Asks another model short questions, one after the other, and notes failures and the longest wait."""

    def __init__(self, daemon: RunningDaemon, model: str, text: str = "hello", max_tokens: int = 2) -> None:
        self._daemon, self._model, self._text, self._max_tokens = daemon, model, text, max_tokens
        self._is_over = threading.Event()
        self.answers = 0
        self.failures: list[str] = []
        self.longest_s = 0.0
        self._thread = threading.Thread(target=self._run, name=f"bystander at {model}")

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            started_s = time.monotonic()
            seen = Client(self._daemon, self._model, self._text, max_tokens=self._max_tokens).seen()
            if seen.is_whole:
                self.answers += 1
                self.longest_s = max(self.longest_s, seen.ended_s - started_s)
            else:
                self.failures.append(str(seen))
            self._is_over.wait(0.05)


# moments


def worker_of(daemon: RunningDaemon, model: str) -> int | None:
    """The process of a model that is loaded."""
    for worker in daemon.get("/control/v1/ps")["workers"]:
        if worker["model"] == model and worker["state"] == "ready":
            return int(worker["pid"])
    return None


def is_loading(daemon: RunningDaemon, model: str) -> bool:
    workers = daemon.get("/control/v1/ps")["workers"]
    return any(worker["model"] == model and worker["state"] == "loading" for worker in workers)


def ready_spare(daemon: RunningDaemon) -> int | None:
    """The worker that the next load will take: it has imported everything and started its threads."""
    known = {worker["pid"] for worker in daemon.get("/control/v1/ps")["workers"]}
    for pid in daemon.worker_pids():
        if pid not in known and _is_ready_spare(pid):
            return pid
    return None


def is_prefilling(daemon: RunningDaemon, model: str) -> bool:
    """A request is with the worker, and no more is known."""
    workers = daemon.get("/control/v1/ps")["workers"]
    return any(worker["model"] == model and worker["running_sequences"] for worker in workers)


def wait_for(look: Callable[[], T | None], *, within_s: float = 60.0, pause_s: float = 0.01) -> T:
    """What `look` finds, once it finds something that is not false."""
    deadline_s = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline_s, "it did not come to pass"
        time.sleep(pause_s)
    return found


def _is_ready_spare(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return "--ahead" in process.cmdline() and process.num_threads() >= _THREADS_OF_A_READY_WORKER
    except psutil.Error:
        return False
