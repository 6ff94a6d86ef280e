"""The worker's end of the channel: a private descriptor on one side, messages on the other.

One thread reads, one writes. Writing blocks, since a worker whose daemon does not listen has nothing better
to do, but not for ever: a daemon that takes nothing for `SEND_TIMEOUT_S` is stuck, and the memory this worker
holds is better used by the next one. Imports `runner.wire` and the standard library.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator

import attrs

from runner.errors import ProtocolFault
from runner.wire.codec import ToWorkerDecoder, encode
from runner.wire.messages import FromWorker, Step, ToWorker
from runner.wire.schema import EVENTS_LIMIT

SEND_TIMEOUT_S = 30.0
_RECEIVE_BYTES = 256 * 1024
_PRIVATE_FD = 100
"""Above what a library or a mistaken number in native code is likely to touch."""


class DaemonGone(Exception):
    """The daemon closed the channel or does not read it; there is nobody left to work for."""


class Channel:
    """Owns the socket. `send` and `messages` may be used from two threads."""

    def __init__(self, sock: socket.socket, *, send_timeout_s: float = SEND_TIMEOUT_S) -> None:
        self._socket = sock
        # Of the kernel, for sending alone: a Python timeout would hold for the reading thread as well.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(send_timeout_s))

    def send(self, message: FromWorker) -> None:
        """Raises DaemonGone when it is not taken within the time limit."""
        try:
            for frame in _frames(message):
                self._socket.sendall(frame)
        except OSError as error:
            raise DaemonGone(type(error).__name__) from None

    def messages(self) -> Iterator[ToWorker]:
        """What the daemon says, until it closes the channel or `close` is called.

        Raises ProtocolFault, after the messages that came before the fault.
        """
        decoder = ToWorkerDecoder()
        while data := self._receive():
            try:
                yield from decoder.feed(data)
            except ProtocolFault as fault:
                yield from fault.preceding  # type: ignore[misc]  # declared as objects for both directions
                raise

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_RECEIVE_BYTES)
        except OSError:  # reset, or closed by the other thread
            return b""

    def shut_down(self) -> None:
        """End both directions; a thread that waits in `messages` comes back. Not yet `close`."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the daemon was faster

    def close(self) -> None:
        self._socket.close()


def adopt(fd: int) -> socket.socket:
    """The socket behind the inherited descriptor `fd`, moved to a private number that no child inherits."""
    private = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _PRIVATE_FD)
    os.close(fd)
    return socket.socket(fileno=private)


def _frames(message: FromWorker) -> Iterator[bytes]:
    """One frame; a step whose events do not fit one goes out in several."""
    if isinstance(message, Step) and len(message.events) > EVENTS_LIMIT:
        yield from _halves(message)
        return
    try:
        frame = encode(message)
    except ProtocolFault:
        if not isinstance(message, Step) or len(message.events) < 2:
            raise
        yield from _halves(message)
        return
    yield frame


def _halves(step: Step) -> Iterator[bytes]:
    """The counted work goes with the first half, so that it is counted once."""
    middle = len(step.events) // 2
    yield from _frames(attrs.evolve(step, events=step.events[:middle]))
    rest = attrs.evolve(step, prefill_tokens=0, decode_tokens=0, step_s=0.0, computing_s=0.0)
    yield from _frames(attrs.evolve(rest, events=step.events[middle:]))


def _timeval(seconds: float) -> bytes:
    whole = int(seconds)
    return struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))
