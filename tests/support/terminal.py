"""A process on a terminal of its own, driven like an impatient person would."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

LIMIT_S = 20.0


class OnTerminal:
    """`screen` is everything that was written to the terminal so far, escape sequences included."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self._process = process
        self._descriptor = descriptor
        self._read = b""
        self._seen = 0

    @property
    def screen(self) -> str:
        return self._read.decode(errors="replace")

    def wait_for(self, text: str) -> None:
        """Until `text` is written, after what was waited for before."""
        deadline_s = time.monotonic() + LIMIT_S
        while not self._meets(text):
            assert time.monotonic() < deadline_s, f"{text!r} did not come: {self.screen!r}"
            assert self._receive(), f"it ended without {text!r}: {self.screen!r}"

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.type("\x03")

    def interrupt_the_prompt(self, answer: str) -> None:
        """Ctrl-C until `answer` is written. Python may sleep through one that comes just before it waits for
        a key."""
        self.type_until("\x03", answer)

    def type_until(self, text: str, answer: str) -> None:
        """Type it again while `answer` is not written: a Ctrl-C that is heard late takes away what was typed
        after it."""
        deadline_s = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline_s:
            self.type(text)
            again_s = time.monotonic() + LIMIT_S / 8
            while (left_s := again_s - time.monotonic()) > 0:
                if self._meets(answer):
                    return
                if select.select([self._descriptor], [], [], left_s)[0]:
                    assert self._receive(), f"it ended without {answer!r}: {self.screen!r}"
        raise AssertionError(f"{answer!r} did not come: {self.screen!r}")

    def end_by(self, number: signal.Signals) -> int:
        """The exit status. Python may sleep through one that comes just before it waits for a key."""
        deadline_s = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline_s:
            self._process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(LIMIT_S / 4)
                return self.wait_for_end()
        raise AssertionError(f"{number.name} did not end it: {self.screen!r}")

    def wait_for_end(self) -> int:
        while self._receive():
            pass
        return self._process.wait(LIMIT_S)

    def _meets(self, text: str) -> bool:
        """Whether `text` is written already; then what comes before it counts as seen."""
        index = self._read.find(text.encode(), self._seen)
        if index < 0:
            return False
        self._seen = index + len(text.encode())
        return True

    def _receive(self) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], LIMIT_S)
        assert ready, f"nothing comes any more: {self.screen!r}"
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # the last process on it has ended
            return False
        self._read += data
        return bool(data)


@contextmanager
def on_terminal(
    command: list[str],
    environment: Mapping[str, str],
    *,
    cwd: Path,
    columns: int = 100,
    stdout: int | None = None,
) -> Iterator[OnTerminal]:
    """`command` with stdin, stdout and stderr on a terminal; killed at the end when it still runs."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    try:
        process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
            env={"TERM": "xterm", **environment},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
        )
    finally:
        os.close(theirs)
    try:
        yield OnTerminal(process, ours)
    finally:
        process.kill()
        process.wait(LIMIT_S)
        os.close(ours)
